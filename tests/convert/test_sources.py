"""What a user may name: folders of hub repositories, bundles, forced formats, hooks; and state dicts in a backup."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle, load_sae
from jaxcircuits.cli import main
from jaxcircuits.cli.convert import FORMATS
from jaxcircuits.convert import SAESource, convert
from jaxcircuits.convert.api import SAE_FORMATS
from jaxcircuits.errors import InputError
from tests.convert.recorded import MANIFEST, READ, SAMPLES, source

RESID = "blocks.0.hook_resid_post"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["convert", *arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_every_kind_side_by_side(model: str, tmp_path: Path) -> None:
    """What one bundle holds is what each alone was; names are told apart."""
    names = [name for name in READ if MANIFEST[name]["hook"] == RESID and "raw" not in name and "processed" not in name]
    names = [name for name in names if name.split("/")[0] in ("sae_lens_6", "sae_lens_6_training", "sae_lens_5")]
    convert(model, [source(name) for name in names], tmp_path / "all")
    bundle = load_bundle(tmp_path / "all")
    assert len(bundle.saes) == len(names) + 2
    convert(str(tmp_path / "all"), [], tmp_path / "again")
    again = load_bundle(tmp_path / "again")
    assert list(again.saes) == list(bundle.saes)
    assert again.cfg == bundle.cfg
    for name, sae in bundle.saes.items():
        assert again.saes[name].cfg == sae.cfg == load_sae(tmp_path / "again" / "saes" / name).cfg
        for a, b in zip(jax.tree.leaves(sae), jax.tree.leaves(again.saes[name]), strict=True):
            assert np.array_equal(a, b)
    activations = {(sae.cfg.activation, sae.cfg.normalization) for sae in bundle.saes.values()}
    assert {("topk", "layer_norm"), ("jumprelu", "constant_norm_rescale"), ("relu", "none")} < activations


def test_a_bundle_is_taken_as_it_is(model: str, tmp_path: Path) -> None:
    half = str(tmp_path / "half")
    convert(model, [source("sae_lens_6/standard_bfloat16")], half)
    convert(half, [source("sae_lens_6/gated")], tmp_path / "larger")
    for part in ("model.safetensors", "saes/standard_bfloat16/sae.safetensors", "tokenizer.json"):
        assert (tmp_path / "larger" / part).read_bytes() == (Path(half) / part).read_bytes(), part
    manifest = json.loads((tmp_path / "larger" / "manifest.json").read_text())
    assert manifest["saes"] == {
        "blocks.0.mlp.hook_post": model,
        "blocks.1.mlp.hook_post": model,
        "gated": source("sae_lens_6/gated").path,
        "standard_bfloat16": source("sae_lens_6/standard_bfloat16").path,
    }
    with pytest.raises(InputError, match="is a bundle and stays as it is; leave --dtype"):
        convert(half, [], "other", dtype="float16")
    with pytest.raises(InputError, match="the output .* holds the source"):
        convert(half, [], half, overwrite=True)


def test_options_belong_to_the_sae_before_them(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = source("dictionary_learning/standard_asked").path
    plain = source("sae_lens_6/standard_none").path
    words = ["--sae", asked, "--hook", "blocks.1.hook_mlp_out", "--sae", plain, "--format", "sae_lens"]
    code, shown, errors = run(capsys, "--model", model, *words, "--out", "made")
    assert (code, errors) == (0, "")
    for sentence in ("dictionary_learning AutoEncoder", "sae_lens 6 standard", "blocks.1.hook_mlp_out", "- b_dec"):
        assert sentence in shown
    assert load_bundle("made").manifest["command"] == " ".join(
        ["jaxcircuits convert --model", model, *words, "--out made"]
    )
    for arguments, sentence in (
        (["--hook", RESID, "--sae", plain], "--hook belongs to the --sae before it, and there is none"),
        (["--sae", plain, "--format", "saelens"], "--format must be one of sae_lens, sparsify, dictionary_learning"),
        (["--sae", plain, "--format", "sparsify"], "expected a directory with cfg.json and sae.safetensors (Sparsify)"),
        (
            ["--sae", plain, "--hook", "blocks.1.hook_mlp_out"],
            f"its files say {RESID}, but --hook is blocks.1.hook_mlp_out",
        ),
        (["--sae", asked], "pass --hook NAME"),
        (["--sae", asked, "--hook", "blocks.0.hook_resid"], "has no hook point 'blocks.0.hook_resid'; did you mean"),
        (["--sae", asked, "--hook", "blocks.0.attn.hook_pattern"], "has no single vector a position"),
    ):
        try:
            code, _, errors = run(capsys, "--model", model, *arguments, "--out", "other")
        except SystemExit as end:  # what the parser refuses
            code, errors = int(end.code or 0), capsys.readouterr().err
        assert code == 2
        assert sentence in errors
        assert errors.count("\n") == 1
        assert not Path("other").exists()


def test_info_tells_kinds_apart(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sae_lens_6/topk_layer_norm", "sae_lens_6/gated", "sae_lens_6/skip_transcoder_wider"]
    convert(model, [source(name) for name in names], "made")
    assert main(["info", "--bundle", "made"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    rows = {line.split()[0]: line.partition(" ")[2] for line in lines}
    assert rows["topk_layer_norm"] == f"{RESID} 16 64 topk, k 8 layer_norm, - b_dec sae_lens 6 topk"
    assert rows["gated"] == f"{RESID} 16 64 jumprelu - b_dec sae_lens 6 gated"
    transcoder = next(i for i, line in enumerate(lines) if line.startswith("skip_transcoder_wider blocks"))
    assert lines[transcoder].endswith("blocks.1.ln2.hook_normalized 16 64 relu + skip sae_lens 6 skip_transcoder")
    assert lines[transcoder + 1] == "→ blocks.1.mlp.hook_post → 20"


def test_a_file_stands_for_its_directory(model: str, tmp_path: Path) -> None:
    for name, file in (("dictionary_learning/topk", "ae.pt"), ("gemma_scope/res", "params.npz")):
        out = tmp_path / name
        convert(model, [SAESource(f"{source(name).path}/{file}")], out / "file")
        convert(model, [source(name)], out / "directory")
        ours, theirs = (jax.tree.leaves(load_bundle(out / part).saes) for part in ("file", "directory"))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_old_sparsify_seeds_and_hooks(model: str, tmp_path: Path) -> None:
    """A transcoder in a directory of another name, with both its hooks said."""
    shutil.copytree(source("sparsify/transcoder").path, tmp_path / "best")
    hooks = ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    with pytest.raises(InputError, match="does not say which hook point it writes; pass --hook-out"):
        convert(model, [SAESource(str(tmp_path / "best"), hook=hooks[0])], "other")
    convert(model, [SAESource(str(tmp_path / "best"), None, *hooks)], tmp_path / "made")
    sae = load_bundle(tmp_path / "made").saes["best"]
    assert (sae.cfg.hook_name, sae.cfg.hook_written, sae.cfg.origin) == (*hooks, "sparsify topk transcoder")


@pytest.mark.torch
def test_what_a_training_leaves_behind(model: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    backup = SAMPLES / "dictionary_learning" / "standard_backup" / "trainer_0"

    def refused(change: Any, sentence: str, sample: Path = backup) -> None:
        path = tmp_path / "trainer_0"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(sample, path)
        state = torch.load(path / "ae.pt", weights_only=True)
        change(state)
        torch.save(state, path / "ae.pt")
        with pytest.raises(InputError, match=sentence):
            convert(model, [str(path)], "other")

    refused(lambda s: s.update(norm_factor=2.5), r"normalised activations \(norm_factor 2\.5\)")
    refused(lambda s: s.update(norm_factor=torch.tensor(0.5)), "normalised activations")
    refused(lambda s: s["ae"].update(bias=[1.0]), "must hold tensors by name, but 'bias' is of type list")
    refused(lambda s: s["ae"].pop("bias"), "the tensor bias of an AutoEncoder is missing")
    refused(lambda s: s["ae"].update(bias=s["ae"]["bias"][None]), "b_dec is missing or has not 1 axis")
    groups = SAMPLES / "dictionary_learning" / "matryoshka" / "trainer_0"
    refused(lambda s: s.pop("threshold"), "a MatryoshkaBatchTopKSAE without threshold", groups)
    refused(lambda s: s.update(group_sizes=torch.tensor([16, 16])), "group_sizes add up to 32, expected the 64", groups)
    refused(lambda s: s.update(k=torch.tensor(5)), "its k is 5, but that of its config 8", groups)


def test_the_command_names_every_format() -> None:
    assert FORMATS.split(", ") == [each.name for each in SAE_FORMATS]
