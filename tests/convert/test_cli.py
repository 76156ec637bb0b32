"""`jaxcircuits convert` from end to end: a bundle or one sentence, and nothing half-written."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from jaxcircuits.bundle import load_bundle
from jaxcircuits.cli import main

pytest.importorskip("torch")
from tests.convert.foreign import autoencoder, hugging_face, rewrite, save_mixin, save_old, save_original

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the study's two autoencoders, and one of another model."""
    path = tmp_path_factory.mktemp("sources")
    save_old(hugging_face(), path / "neo")
    save_original(path / "18_morning_sun.pt")
    save_original(path / "8_deep_brook.pt", autoencoder(seed=2), layer=1)
    save_mixin(path / "wide", autoencoder(24, 48))
    return path


@pytest.fixture
def here(sources: Path, tmp_path: Path) -> Path:
    """The sources, in the current directory, for a test to spoil."""
    shutil.copytree(sources, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_converts_and_shows_the_bundle(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "convert",
        "--model",
        "neo",
        "--sae",
        "18_morning_sun.pt",
        "--sae",
        "8_deep_brook.pt",
        "--out",
        "original",
    ]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for shown in ("18_morning_sun", "8_deep_brook", "blocks.1.mlp.hook_post"):
        assert shown in output.out
    assert list(load_bundle("original").saes) == ["18_morning_sun", "8_deep_brook"]
    assert main(arguments) == 2
    assert "exists already; pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--dtype", "bfloat16", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert load_bundle("original").manifest["command"].endswith("--dtype bfloat16 --out original")


def _field(name: str, value: object):
    def spoil(path: Path) -> None:
        config = json.loads((path / "neo" / "config.json").read_text())
        (path / "neo" / "config.json").write_text(json.dumps(config | {name: value}))

    return spoil


def _truncate(name: str):
    def spoil(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])

    return spoil


def _trap(name: str):
    """A pickle that would make a file here."""

    class Trap:
        def __reduce__(self):
            return os.system, ("touch executed",)

    def spoil(path: Path) -> None:
        program = pickle.dumps({"W_enc": Trap()}, protocol=2)
        rewrite(path / name, lambda entries: entries.update({"data.pkl": program}))

    return spoil


BAD = {
    "a model that is a program": (_trap("neo/pytorch_model.bin"), [], "asks for posix.system"),
    "an SAE that is a program": (_trap("18_morning_sun.pt"), [], "asks for posix.system"),
    "wrong activation": (_field("activation_function", "selu"), [], "gelu_pytorch_tanh, got 'selu'"),
    "unknown field": (_field("logit_cap", 30), [], "--ignore-config-field logit_cap"),
    "truncated model": (_truncate("neo/pytorch_model.bin"), [], "pytorch_model.bin is truncated"),
    "truncated SAE": (_truncate("18_morning_sun.pt"), [], "18_morning_sun.pt is truncated"),
    "no settings": (lambda path: (path / "18_morning_sun.json").unlink(), [], "needs its settings beside it"),
    "settings cut": (_truncate("18_morning_sun.json"), [], "18_morning_sun.json is not JSON"),
    "SAE of another model": (lambda path: None, ["--sae", "wide"], "its d_in is 24, but blocks.1.mlp.hook_post"),
    "revision of a directory": (lambda path: None, ["--revision", "main"], "--revision main is of a hub model"),
    "the output holds the source": (lambda path: None, ["--out", ".", "--overwrite"], "something else than a bundle"),
    "nowhere to write": (lambda path: None, ["--out", "/proc/bundle"], "cannot write to /proc"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_sentence_and_no_output(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    spoil, more, sentence = BAD[case]
    spoil(here)
    before = sorted(path.name for path in here.iterdir())
    assert main(["convert", "--model", "neo", "--sae", "18_morning_sun", "--out", "made", *more]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("jaxcircuits: error: ")
    assert output.err.count("\n") == 1
    assert sentence in output.err
    assert sorted(path.name for path in here.iterdir()) == before
