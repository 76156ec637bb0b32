"""The commands as a person types them: what they write, what they print, and how they refuse."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits import load_run
from jaxcircuits.cli import main
from tests.helpers import saved_bundle, tiny_config, tiny_sae, tiny_saes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    saved_bundle(path)
    return str(path)


@pytest.fixture(autouse=True)
def _no_compilation_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / ".cache"))


def run(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)


# --- what works -----------------------------------------------------------------------------------


def test_attribute_writes_a_run_and_prints_its_strongest_edges(bundle: str, capsys) -> None:
    assert run("attribute", "--bundle", bundle, "--prompt", "w3 w4 w5", "w7", "--positions", "all", "--out", "r") == 0
    printed = capsys.readouterr().out
    edges = load_run("r").to_pandas()
    strongest = edges.loc[edges.attribution.abs().idxmax()]
    assert f"{strongest.attribution:+.4f}" in printed
    assert f"{len(edges):,} edges" in printed
    assert "method structured" in printed
    assert "written to r" in printed
    assert sorted(edges.prompt.unique()) == [0, 1]


def test_without_a_place_it_takes_the_next_free_one(bundle: str) -> None:
    for _ in range(2):
        assert run("attribute", "--bundle", bundle, "--prompt", "w3 w4", "--quiet") == 0
    assert [p.name for p in sorted(Path("runs").iterdir())] == ["attribute-001", "attribute-002"]


def test_options_reach_the_run(bundle: str) -> None:
    Path("ids.json").write_text("[[0, 3, 4, 5], [0, 7, 8]]")
    options = "--prompt-ids ids.json --method reference --splice both --include-bos --source-threshold 0.1 --top-k 2"
    assert (
        run("attribute", "--bundle", bundle, *options.split(), "--target-threshold", "0.2", "--out", "r", "--quiet")
        == 0
    )
    record = json.loads(Path("r/run.json").read_text())
    expected = {"method": "reference", "splice": "both", "include_bos": True, "source_threshold": 0.1, "top_k": 2}
    assert expected.items() <= record["settings"].items()
    edges = load_run("r").to_pandas()
    assert edges.groupby(["prompt", "target_pos", "target_feature"]).size().max() == 2
    assert edges.source_act.min() > 0.1
    assert edges.target_act.min() > 0.2
    assert (edges.target_pos == 0).any()


def test_named_targets(bundle: str) -> None:
    assert (
        run("attribute", "--bundle", bundle, "--prompt", "w3 w4", "--targets", "last:4", "1:2", "--out", "r", "--quiet")
        == 0
    )
    targets = load_run("r").targets.to_table().to_pandas()
    assert targets[["target_pos", "target_feature"]].to_numpy().tolist() == [[1, 2], [2, 4]]


def test_a_corpus_with_bad_prompts(bundle: str, capsys) -> None:
    long = " ".join(["w3"] * 40)
    Path("c.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("w3 w4", long, "w5")))
    common = ("attribute", "--bundle", bundle, "--corpus", "c.jsonl", "--quiet")
    assert run(*common, "--out", "r") == 2
    assert "prompt 1 has 41 tokens" in capsys.readouterr().err
    assert not Path("r").exists()
    assert run(*common, "--out", "skipped", "--skip-bad") == 0
    assert "left out: prompt 1" in capsys.readouterr().err
    assert load_run("skipped").prompts.count_rows() == 2
    assert run(*common, "--out", "cut", "--truncate") == 0
    assert [len(t) for t in load_run("cut").tokens] == [3, 16, 2]


def test_nothing_active_is_a_warning_and_a_valid_run(bundle: str, capsys) -> None:
    assert run("attribute", "--bundle", bundle, "--prompt", "w3 w4", "--target-threshold", "1e6", "--out", "r") == 0
    out = capsys.readouterr()
    assert out.err.startswith("jaxcircuits: warning: no pair of active features")
    assert load_run("r").edges.count_rows() == load_run("r").targets.count_rows() == 0
    assert load_run("r").to_pandas().columns[0] == "prompt"


def test_an_occupied_place_is_kept_unless_told(bundle: str, capsys) -> None:
    common = ("attribute", "--bundle", bundle, "--prompt", "w3 w4", "--quiet", "--out", "r")
    assert run(*common) == 0
    before = Path("r/run.json").read_bytes()
    assert run(*common, "--positions", "all") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("r/run.json").read_bytes() == before
    assert run(*common, "--positions", "all", "--overwrite") == 0
    assert json.loads(Path("r/run.json").read_text())["settings"]["positions"] == "all"


def test_study_writes_arrays_figures_and_a_summary(bundle: str, capsys) -> None:
    common = ("study", "--bundle", bundle, "--prompt", "w3 w4 w5", "--story", "w3 w4 w5 w6 w7 w8", "--mark", "3")
    assert run(*common, "--out", "s") == 0
    printed = capsys.readouterr().out
    assert "Spearman" in printed
    names = {p.name for p in Path("s").rglob("*")}
    assert {"study.npz", "study.json"} <= names
    figures = [p for p in Path("s").rglob("*.png")]
    assert len(figures) == 4
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in figures)
    with np.load("s/study.npz") as arrays:
        assert arrays["decoder_grads"].shape == (24,)
        assert arrays["prompt"].tolist() == [0, 3, 4, 5]
    assert run(*common, "--out", "s2", "--quiet") == 0
    with np.load("s/study.npz") as one, np.load("s2/study.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in one.files)


def test_a_study_of_silence_is_empty_and_says_so(bundle: str, capsys) -> None:
    from jaxcircuits.bundle import load_bundle, save_bundle

    loud = load_bundle(bundle, processed=False)
    saes = {n: type(s)(s.weights._replace(b_enc=s.weights.b_enc - 50), s.cfg) for n, s in loud.saes.items()}
    save_bundle("silent", loud.cfg, loud.params, saes, loud.tokenizer, source={})
    texts = ("--prompt", "w3 w4", "--story", "w3 w4", "--quiet")
    assert run("study", "--bundle", "silent", *texts, "--out", "s") == 0
    warnings = capsys.readouterr().err.splitlines()
    assert all(line.startswith("jaxcircuits: warning: ") for line in warnings)
    empty = ("active_source_features", "prompt_targets", "prompt_sources", "story_pairs")
    for line, what in zip(warnings, ("target feature 0 is off", *empty), strict=True):
        assert what in line
    with np.load("s/study.npz") as arrays:
        assert not arrays["decoder_grads"].any()
        assert all(len(arrays[name]) == 0 for name in empty)
    assert run("study", "--bundle", bundle, *texts, "--out", "loud") == 0
    assert "is off" not in capsys.readouterr().err


def test_a_study_may_cut_its_story(bundle: str) -> None:
    long = " ".join(["w3", "w4", "w5"] * 20)
    assert (
        run("study", "--bundle", bundle, "--prompt", "w3", "--story", long, "--truncate", "--out", "s", "--quiet") == 0
    )
    with np.load("s/study.npz") as arrays:
        assert arrays["story"].tolist() == [0, *[3, 4, 5] * 5]


def test_a_closed_pipe_and_a_full_disk() -> None:
    command = [sys.executable, "-m", "jaxcircuits", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode != 0
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "jaxcircuits: error: the output: No space left on device.\n"


def test_info(bundle: str, capsys) -> None:
    assert run("info", "--bundle", bundle) == 0
    printed = capsys.readouterr().out
    assert "blocks.1.mlp.hook_post" in printed
    assert "random numbers" in printed
    assert "global, local; window 4" in printed


def test_info_counts_what_hugging_face_counts(capsys) -> None:
    """The shipped model, whose unembedding is its embedding; GPT-Neo has no biases on query, key and value."""
    from jaxcircuits import load_bundle

    cfg = load_bundle().cfg
    d, f = cfg.d_model, cfg.d_mlp
    block = 2 * 2 * d + 4 * d * d + d + 2 * d * f + f + d
    assert run("info") == 0
    expected = (cfg.d_vocab + cfg.n_ctx) * d + cfg.n_layers * block + 2 * d
    assert f"{expected:,}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["", "attribute", "study", "convert", "info", "train lm", "train sae"])
def test_help_has_examples(command: str, capsys) -> None:
    assert run(*command.split(), "--help") == 0
    printed = capsys.readouterr().out
    assert "usage: jaxcircuits" in printed
    assert not command or "examples:\n  jaxcircuits" in printed


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jaxcircuits", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("jaxcircuits 0.")


def test_importing_loads_no_framework() -> None:
    heavy = ("torch", "transformers", "matplotlib", "pyarrow", "duckdb", "pandas", "huggingface_hub", "optax")
    code = f"import sys, jaxcircuits; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- what is refused ------------------------------------------------------------------------------


class _Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def _broken(bundle: str, change) -> str:
    """A copy of the bundle with one file changed, its manifest made to agree."""
    import hashlib
    import shutil

    copy = Path("broken")
    shutil.copytree(bundle, copy)
    file = change(copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sha256"][file.relative_to(copy).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return str(copy)


def _truncated(copy: Path) -> Path:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return file


def _other_width(copy: Path) -> Path:
    from jaxcircuits.bundle import save_sae

    save_sae(copy / "saes" / "wide", tiny_sae(tiny_config(d_mlp=32)))
    return copy / "saes" / "wide" / "config.json"


def _other_hook(copy: Path) -> Path:
    from jaxcircuits.bundle import save_sae

    save_sae(copy / "saes" / "deep", list(tiny_saes(tiny_config(n_layers=3)).values())[2])
    return copy / "saes" / "deep" / "config.json"


BAD: dict[str, tuple[str, str]] = {
    "no bundle": ("attribute --bundle nowhere --prompt w3", "there is no bundle nowhere"),
    "no file": ("attribute --bundle B --corpus nowhere.txt", "nowhere.txt"),
    "no ids file": ("attribute --bundle B --prompt-ids nowhere.json", "nowhere.json"),
    "ids that are words": ("attribute --bundle B --prompt-ids words.json", "words.json: expected a JSON list"),
    "ids that are not JSON": ("attribute --bundle B --prompt-ids latin.txt", "latin.txt"),
    "not UTF-8": ("attribute --bundle B --corpus latin.txt", "UTF-8"),
    "empty corpus": ("attribute --bundle B --corpus empty.txt", "empty.txt"),
    "unknown kind of corpus": ("attribute --bundle B --corpus words.csv", "words.csv"),
    "too long": ("attribute --bundle B --prompt LONG", "context holds 16"),
    "empty prompt": ("attribute --bundle B --prompt EMPTY", "prompt is empty"),
    "unknown id": ("attribute --bundle B --prompt-ids big.json", "token ids must lie in 0..30, got 99"),
    "an id that no integer holds": ("attribute --bundle B --prompt-ids huge.json", "in 0..30, got 1.00e+30"),
    "a place without a name": ("attribute --bundle B --prompt w3 --out EMPTY", "expected a name, got an empty one"),
    "fewer than no edges": ("attribute --bundle B --prompt w3 --show -1", "a number of 0 or more, got '-1'"),
    "memory": ("attribute --bundle B --prompt w3 --memory lots", "must be a size such as 8GB"),
    "no points": (
        "attribute --bundle B --prompt w3 --derivative integrated --points 0",
        "points must be a whole number",
    ),
    "targets in other digits": ("attribute --bundle B --prompt w3 --targets ²:1", "expected POSITION:FEATURE"),
    "unknown method": ("attribute --bundle B --prompt w3 --method magic", "invalid choice: 'magic'"),
    "unknown derivative": ("attribute --bundle B --prompt w3 --derivative half", "invalid choice: 'half'"),
    "unknown splice": ("attribute --bundle B --prompt w3 --splice some", "invalid choice: 'some'"),
    "unknown option": ("attribute --bundle B --prompt w3 --colour red", "unrecognized arguments: --colour red"),
    "unknown command": ("attrbute", "invalid choice: 'attrbute'"),
    "threshold": ("attribute --bundle B --prompt w3 --source-threshold many", "expected a number or 'all', got 'many'"),
    "targets": (
        "attribute --bundle B --prompt w3 --targets five",
        "expected POSITION:FEATURE such as 9:880 or last:880, got 'five'",
    ),
    "target far away": ("attribute --bundle B --prompt w3 --targets 9:1", "positions 0..1"),
    "target on BOS": ("attribute --bundle B --prompt w3 --targets 0:1", "--include-bos"),
    "unknown SAE": ("attribute --bundle B --prompt w3 --source-sae x", "no SAE 'x'"),
    "SAEs in the wrong order": (
        "attribute --bundle B --prompt w3 --source-sae blocks.1.mlp.hook_post",
        "must sit before",
    ),
    "a file in the way": ("attribute --bundle B --prompt w3 --out words.csv/x", "words.csv"),
    "study, unknown feature": (
        "study --bundle B --prompt w3 --story w3 --feature 999 --out o",
        "features 0..25, got 999",
    ),
    "study, unknown mark": ("study --bundle B --prompt w3 --story w3 --mark 999 --out o", "999"),
    "study, too long": ("study --bundle B --prompt LONG --story w3 --out o", "context holds 16"),
    "study without a place": ("study --bundle B", "--out"),
    "study, a place without a name": ("study --bundle B --out EMPTY", "argument --out: expected a name"),
    "study, empty prompt": (
        "study --bundle B --prompt EMPTY --story w3 --out o",
        "study's prompt: the prompt is empty",
    ),
    "study, empty story": ("study --bundle B --prompt w3 --story EMPTY --out o", "study's story: the prompt is empty"),
    "study, story too long": ("study --bundle B --prompt w3 --story LONG --out o", "study's story: prompt 0 has 41"),
    "study of two prompts": ("study --bundle B --prompt-ids two.json --story w3 --out o", "takes one prompt, got 2"),
    "study, negative seed": (
        "study --bundle B --prompt w3 --story w3 --seed -1 --out o",
        "seed must lie in 0..2147483",
    ),
    "study in place of a bundle": ("study --bundle B --prompt w3 --story w3 --out B --overwrite", "else than a study"),
    "a run in place of a bundle": ("attribute --bundle B --prompt w3 --out B --overwrite", "else than a run"),
    "a prompt of stray bytes": ("attribute --bundle B --prompt STRAY", "not UTF-8"),
    "ids too deep": ("attribute --bundle B --prompt-ids deep.json", "beyond what JSON is read for"),
    "text for a bundle without a tokenizer": ("attribute --bundle IDS --prompt w3", "no tokenizer"),
    "info of nothing": ("info --bundle nowhere", "there is no bundle nowhere"),
    "convert nothing": ("convert --model nowhere/ --out o", "nowhere"),
    "convert a pickle with code": ("convert --model pickled --out o", "pickled"),
    "train on nothing": ("train lm --corpus nowhere.txt --out o", "nowhere.txt"),
    "train with odd heads": ("train lm --corpus words.txt --n-heads 5 --out o", "n_heads must divide d_model"),
    "train an SAE on an unknown hook": (
        "train sae --bundle B --corpus words.txt --hook h --out o",
        "no hook point 'h'",
    ),
    "truncated weights": ("attribute --bundle TRUNCATED --prompt w3", "damaged or no safetensors"),
    "an SAE of another width": ("attribute --bundle WIDE --prompt w3", "d_in is 32"),
    "an SAE of another hook": ("attribute --bundle DEEP --prompt w3", "no hook point 'blocks.2.mlp.hook_post'"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_gets_one_sentence_and_leaves_nothing(case: str, bundle: str, capsys) -> None:
    command, message = BAD[case]
    Path("words.json").write_text('["w3"]')
    Path("words.csv").write_text("w3")
    Path("words.txt").write_text("w3 w4 w5")
    Path("big.json").write_text("[0, 99]")
    Path("huge.json").write_text(f"[0, {10**30}]")
    Path("two.json").write_text("[[0, 3], [0, 4]]")
    Path("deep.json").write_text("[" * 100_000)
    Path("latin.txt").write_bytes("Größe".encode("latin-1"))
    Path("empty.txt").write_text("")
    Path("pickled").mkdir()
    Path("pickled/config.json").write_text(json.dumps({"model_type": "gpt_neo"}))
    Path("pickled/pytorch_model.bin").write_bytes(pickle.dumps(_Bomb()))
    words = {
        "B": bundle,
        "LONG": " ".join(["w3"] * 40),
        "EMPTY": "",
        "STRAY": b"w3\xff".decode(errors="surrogateescape"),
    }
    if "IDS" in command:
        saved_bundle("ids-only", tokenizer=False)
        words["IDS"] = "ids-only"
    for name, change in (("TRUNCATED", _truncated), ("WIDE", _other_width), ("DEEP", _other_hook)):
        if name in command:
            words[name] = _broken(bundle, change)
    before = {p for p in Path().rglob("*") if not p.as_posix().startswith(".cache")}

    code = run(*[words.get(word, word) for word in command.split()])

    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert captured.err.startswith("jaxcircuits")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    after = {p for p in Path().rglob("*") if not p.as_posix().startswith(".cache")}
    assert after == before


def test_an_interruption_has_no_traceback_and_leaves_nothing_or_whole_parts(
    bundle: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxcircuits.bulk.store import Store

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    command = ("attribute", "--bundle", bundle, "--prompt", "w3 w4", "--out", "r", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_part", interrupted)
        assert run(*command) == 130
        assert capsys.readouterr().err == "interrupted\n"
        assert list(Path().glob("r*")) + list(Path().glob(".r*")) == []
        patch.undo()
        patch.setattr(Store, "remove_notes", interrupted)
        assert run(*command) == 130
    assert run(*command) == 0
    assert load_run("r").finished
