"""`evaluate`, `features` and `generate` as a person types them."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits import generate, load_bundle, set_feature
from jaxcircuits.cli import main
from tests.helpers import saved_bundle

HOOK = "blocks.0.mlp.hook_post"


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


def test_evaluate_prints_a_table_and_writes_json_parquet_and_figures(bundle, capsys):
    import pyarrow.parquet as pq

    text = ("evaluate", "--bundle", bundle, "--prompt", "w3 w4 w5 w9", "w7 w1", "--out", "e")
    assert run(*text) == 0
    printed = capsys.readouterr().out
    report = json.loads(Path("e/evaluate.json").read_text())
    for sae in report["saes"].values():
        assert f"{sae['l0']:.2f}" in printed and f"{sae['recovery_zero']:.4f}" in printed
    assert "8 tokens, 2 texts" in printed and "written to e" in printed
    table = pq.read_table("e/features.parquet")
    assert table.num_rows == 24 + 26 and "density" in table.column_names
    assert {p.name for p in Path("e").glob("*.png")} == {"densities.png", "losses.png"}
    assert run(*text) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    Path("ids.json").write_text("[[0, 3, 4], [5, 6]]")
    assert run("evaluate", "--bundle", bundle, "--prompt-ids", "ids.json", "--sae", HOOK, "--bos", "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["saes"]) == [HOOK] and set(report["bos"].values()) == {"in", "out"}
    assert report["tokens"] == 2  # BOS predicts none here, and 5 does


def test_losses_by_token(bundle, capsys):
    options = ("evaluate", "--bundle", bundle, "--per-token", "--prompt", "w3 w4")
    assert run(*options, "--out", "l") == 0
    printed = capsys.readouterr().out
    found = json.loads(Path("l/losses.json").read_text())
    assert found["strings"] == ["<|endoftext|>", "w3", "w4"]
    assert all(f"{values[2]:.3f}" in printed for values in found["losses"].values())
    assert Path("l/losses.png").is_file()
    assert run(*options, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found


def test_features_print_and_write(bundle, capsys):
    Path("c.txt").write_text("w3 w4 w5\nw9 w2 w3 w20\nw7\n")
    options = ("features", "3", "8", "--bundle", bundle, "--corpus", "c.txt", "--top", "2")
    assert run(*options, "--out", "f") == 0
    printed = capsys.readouterr().out
    found = json.loads(Path("f/features.json").read_text())
    assert [f["feature"] for f in found] == [3, 8] and {f["sae"] for f in found} == {HOOK}
    for feature in found:
        assert f"active on {feature['density']:.4%}" in printed
        example = feature["examples"][0]
        assert f"«{example['tokens'][example['at']]}»" in printed
    assert {p.name for p in Path("f").glob("*.png")} == {"feature-3.png", "feature-8.png"}
    assert run(*options, "--json") == 0
    assert json.loads(capsys.readouterr().out) == found


def test_generate_with_features_set(bundle, capsys):
    loaded = load_bundle(bundle)
    options = ("generate", "--bundle", bundle, "--prompt", "w3 w4", "--max-tokens", "6", "--quiet", "--json")
    assert run(*options, "--set", f"{HOOK}:4=20@1-2,5-", "--splice", "all") == 0
    found = json.loads(capsys.readouterr().out)
    change = set_feature(HOOK, 4, 20.0, [1, 2, *range(5, 16)])
    (row,) = generate(loaded, "w3 w4", max_tokens=6, changes=[change], splice=list(loaded.saes))
    assert found["rows"][0]["tokens"] == row.tolist() and found["prompt_tokens"] == 3
    assert run(*options, "--n", "2", "--temperature", "1", "--seed", "3") == 0
    rows = [r["tokens"] for r in json.loads(capsys.readouterr().out)["rows"]]
    expected = generate(loaded, "w3 w4", max_tokens=6, n=2, temperature=1.0, seed=3)
    assert rows == [row.tolist() for row in expected]
    assert run(*options[:-1]) == 0
    (row,) = generate(loaded, "w3 w4", max_tokens=6)
    inner = row[1:-1] if row[-1] == 0 else row[1:]
    assert capsys.readouterr().out == "".join(loaded.token_strings(np.array(inner))) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--sae", "x"], "the bundle has no SAE 'x'"),
        (["evaluate", "--corpus", "missing.txt"], "there is no file missing.txt"),
        (["evaluate", "--prompt", ""], "the prompt is empty"),
        (["features", "99"], "has features 0..23, got 99"),
        (["features", "x"], "expected a number of 0 or more"),
        (["features", "1", "--sae", "x"], "the bundle has no SAE 'x'"),
        (["generate", "--splice", "x"], "there is no SAE 'x'"),
        (["generate", "--set", "x:1=2"], "there is no SAE 'x'"),
        (["generate", "--set", f"{HOOK}:1"], "--set: expected SAE:FEATURE=VALUE"),
        (["generate", "--ablate", f"{HOOK}:1=0"], "--ablate: expected SAE:FEATURE, with"),
        (["generate", "--steer", f"{HOOK}:1=much"], "expected a number behind ="),
        (["generate", "--scale", f"{HOOK}:1=2@5-3"], "hold none of 0..15"),
        (["generate", "--scale", f"{HOOK}:1=2@-3"], "expected positions such as"),
        (["generate", "--ablate", f"{HOOK}:24"], "has features 0..23, got 24"),
        (["generate", "--max-tokens", "99"], "max_tokens in 1.."),
        (["generate", "--n", "0"], "n above 0"),
        (["generate", "--temperature", "-1"], "temperature 0 or above"),
    ],
)
def test_bad_input_is_one_sentence(bundle, arguments, message, capsys):
    prompt = [] if arguments[0] != "generate" else ["--prompt", "w3"]
    corpus = [] if arguments[0] == "generate" or {"--corpus", "--prompt"} & set(arguments) else ["--prompt", "w3 w4"]
    out = [] if arguments[0] == "generate" else ["--out", "o"]
    assert run(*arguments, "--bundle", bundle, "--quiet", *prompt, *corpus, *out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("o").exists()
