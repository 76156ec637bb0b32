"""The original's files at its full size, of random numbers: converted, recorded and validated by the same commands."""

import json
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle
from jaxcircuits.cli import main
from jaxcircuits.validation import read_reference, validate_study
from jaxcircuits.validation.original import ORIGINAL, ids_sha256, readings
from tests.helpers import random_tokens, tiny_config, tiny_sae

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.xdist_group("full size")]

CFG = tiny_config(
    d_model=1024, n_heads=16, d_head=64, d_mlp=4096, d_vocab=50257, n_ctx=2048, window=256, bos_token_id=50256
)
SCRIPT = str(Path(__file__).parents[2] / "scripts" / "record_reference.py")


def _write_files(path: Path) -> None:
    """`pytorch_model.bin` of that era, with mask buffers and without the tied head; `.pt` with `.json`, no `d_in`."""
    torch = pytest.importorskip("torch")
    from tests.convert.foreign import hugging_face, save_old, save_original

    model = hugging_face(
        vocab_size=CFG.d_vocab,
        max_position_embeddings=CFG.n_ctx,
        hidden_size=CFG.d_model,
        num_heads=CFG.n_heads,
        intermediate_size=None,
        window_size=CFG.window,
        bos_token_id=CFG.bos_token_id,
        eos_token_id=CFG.bos_token_id,
    )
    save_old(model, path / "neo")
    for layer, name in enumerate(("18_morning_sun", "8_deep_brook")):
        weights = tiny_sae(CFG, f"blocks.{layer}.mlp.hook_post", 16384, seed=layer).weights
        loud = weights._replace(W_enc=6 * weights.W_enc, b_enc=weights.b_enc - 15.0, W_dec=0.2 * weights.W_dec)
        tensors = {k: torch.tensor(np.asarray(v)) for k, v in loud._asdict().items() if v is not None}
        save_original(path / f"{name}.pt", tensors, layer=layer, save_name=name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("original")
    _write_files(path)
    saes = [word for name in ("18_morning_sun", "8_deep_brook") for word in ("--sae", str(path / name))]
    assert main(["convert", "--model", str(path / "neo"), *saes, "--out", str(path / "bundle")]) == 0
    for name, length in (("prompt", 10), ("story-float32", 24), ("story-float64", 12)):
        ids = np.asarray(random_tokens(CFG, length, seed=length)).tolist()
        (path / f"{name}.json").write_text(json.dumps(ids))
    yield path
    for file in (*path.glob("*.pt"), *path.rglob("*.safetensors"), *path.rglob("*.bin")):  # 2 GB
        file.unlink()


def _record(files: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    options = ["--bundle", "bundle", "--prompt-ids", "prompt.json", "--story-ids", f"story-{dtype}.json"]
    options += ["--dtype", dtype]
    monkeypatch.chdir(files)
    monkeypatch.setattr(sys, "argv", [SCRIPT, *options, "--keep", "5000", "--out", f"recorded-{dtype}"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert not stop.value.code
    return read_reference(files / f"recorded-{dtype}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_whole_study_from_the_original_s_files(
    dtype: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reference = _record(files, dtype, monkeypatch)
    assert 5 < len(reference.arrays["prompt_targets"]) < 1000
    assert 200 < len(reference.arrays["story_pairs"]) < 100_000
    capsys.readouterr()
    assert main(["validate", "recorded", f"recorded-{dtype}.npz", "--bundle", "bundle", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    if dtype == "float64":
        return

    assert main(["validate", "bisect", f"recorded-{dtype}.npz", "--bundle", "bundle", "--quiet"]) == 0
    # The built-in table's shape is this bundle's, and its story is not: it is asked for.
    assert main(["validate", "study", "--bundle", "bundle", "--story-ids", f"story-{dtype}.json"]) == 2
    assert "this is another story: its 24 token ids" in capsys.readouterr().err
    arrays = reference.arrays | {"prompt": reference.prompt}
    # Of thinned gradients the shape is the recording's own.
    numbers = readings(arrays, source_feature=7105)
    numbers["hook_gradients_shape"] = list(reference.quantities["prompt_hook_gradients"].shape)
    printed = replace(
        ORIGINAL,
        prompt=reference.prompt.tolist(),
        story_tokens=24,
        story_sha256=ids_sha256(reference.story.tolist()),
        feature=reference.inputs["feature"],
        numbers=numbers,
        digits={},
    )
    numbers.pop("rise")  # a difference of two float32 numbers; each is compared
    report = validate_study("bundle", story_ids=f"story-{dtype}.json", printed=printed)
    assert report.ok, report.failed
    assert load_bundle("bundle").manifest["source_sha256"]["saes/18_morning_sun/18_morning_sun.pt"]
