"""Autoencoders written as SAELens 6 reads them: read back here, and by SAELens itself where it is installed."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import export_sae
from jaxcircuits.bundle import load_bundle
from jaxcircuits.cli import main
from jaxcircuits.config import PROCESSING_STEPS
from jaxcircuits.convert import SAESource, convert
from jaxcircuits.errors import InputError
from jaxcircuits.sae import decode, encode
from tests.convert.recorded import source
from tests.helpers import TOLERANCES

KINDS = [
    *("sae_lens_6/standard_none", "sae_lens_6/standard_not_centred", "sae_lens_6/standard_layer_norm"),
    *("sae_lens_6/jumprelu_constant_norm", "sae_lens_6/topk_rescaled", "sae_lens_6/standard_hook_z"),
    *("sae_lens_6/transcoder_wider", "sae_lens_6/jumprelu_transcoder", "sae_lens_6/skip_transcoder_wider"),
    *("sae_lens_6/jumprelu_skip_transcoder", "sae_lens_6/gated", "dictionary_learning/batchtopk", "sparsify/topk"),
    *("dictionary_learning/new", "gemma_scope/embedding", "sae_lens_5/standard_finetuned"),
]


def added(bundle: str, sources: list[SAESource], out: Path) -> dict[str, Any]:
    convert(bundle, sources, out)
    return {name: sae for name, sae in load_bundle(out).saes.items() if name not in load_bundle(bundle).saes}


@pytest.fixture
def sae(request: pytest.FixtureRequest, model: str, tmp_path: Path) -> Any:
    """A sample as it is in a bundle."""
    (one,) = added(model, [source(request.param)], tmp_path / "first").values()
    return one


@pytest.mark.parametrize("sae", KINDS, indirect=True)
def test_read_back_here(sae: Any, model: str, tmp_path: Path) -> None:
    export_sae(sae, tmp_path / "exported", processing=PROCESSING_STEPS[:1], model_name="tiny")
    (again,) = added(model, [SAESource(str(tmp_path / "exported"))], tmp_path / "second").values()
    for name, tensor in sae.weights._asdict().items():
        other = getattr(again.weights, name)
        assert (tensor is None and other is None) or np.array_equal(tensor, other), name
    assert {**vars(again.cfg), "origin": ""} == {**vars(sae.cfg), "origin": ""}
    assert again.cfg.origin.startswith("sae_lens 6 ")


def test_processing_comes_back(model: str, tmp_path: Path) -> None:
    (one,) = added(model, [source("sae_lens_6/standard_none")], tmp_path / "first").values()
    for steps in (PROCESSING_STEPS, (), PROCESSING_STEPS[2:]):
        export_sae(one, tmp_path / "exported", processing=steps, overwrite=True)
        convert(model, [SAESource(str(tmp_path / "exported"))], tmp_path / "second", overwrite=True)
        kept = "center_writing_weights" in load_bundle(tmp_path / "second").cfg.processing
        assert kept == ("center_writing_weights" in steps)


def test_what_saelens_has_not_is_refused(model: str, tmp_path: Path) -> None:
    for sample, kind in (("sparsify/groupmax", "groupmax"), ("sparsify/transcoder", "topk transcoder")):
        (one,) = added(model, [source(sample)], tmp_path / sample).values()
        with pytest.raises(InputError, match=f"SAELens has no {kind}; it has standard, jumprelu, topk"):
            export_sae(one, "exported")
        assert not Path("exported").exists()


def test_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--sae", "blocks.1.mlp.hook_post", "--out", "exported"]
    assert main(arguments) == 0
    assert "sae_lens.SAE.load_from_disk('exported')" in capsys.readouterr().out
    fields = json.loads(Path("exported/cfg.json").read_text())
    assert fields["architecture"] == "jumprelu"
    assert fields["metadata"]["hook_name"] == "blocks.1.mlp.hook_post"
    assert fields["metadata"]["model_from_pretrained_kwargs"] == dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), True
    )
    assert main(arguments) == 2
    assert "exists already; pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["export", "--sae", "nothing", "--out", "other"]) == 2
    assert "the bundle has no SAE 'nothing'; it has blocks.0.mlp.hook_post" in capsys.readouterr().err
    assert not Path("other").exists()


def _saelens() -> str:
    try:
        return version("sae-lens")
    except PackageNotFoundError:
        return "0"


@pytest.mark.slow
@pytest.mark.skipif(int(_saelens().split(".")[0]) < 6, reason="SAELens 6 is not installed")
@pytest.mark.parametrize("sae", KINDS, indirect=True)
def test_read_by_saelens(sae: Any, tmp_path: Path) -> None:
    """Features and output are the same, and the metadata is not lost."""
    import torch
    from sae_lens import SAE

    export_sae(sae, tmp_path / "exported", processing=PROCESSING_STEPS[:1], model_name="tiny")
    theirs = SAE.load_from_disk(tmp_path / "exported")
    assert theirs.cfg.metadata.hook_name == sae.cfg.hook_name
    assert theirs.cfg.metadata.hook_name_out == sae.cfg.hook_out
    assert theirs.cfg.metadata.model_from_pretrained_kwargs["fold_ln"]
    assert not theirs.cfg.metadata.model_from_pretrained_kwargs["center_writing_weights"]
    x = 1.5 * np.random.default_rng(0).standard_normal((20, 16)).astype(np.float32)
    given = torch.tensor(x)
    given = given.unflatten(-1, (4, 4)) if sae.cfg.hook_name.endswith("hook_z") else given
    with torch.no_grad():
        features, output = theirs.encode(given).numpy(), theirs(given).flatten(1).numpy()
    ours = encode(sae, jnp.asarray(x))
    assert np.array_equal(np.asarray(ours) > 0, features > 0)
    for a, b in ((ours, features), (decode(sae, ours, jnp.asarray(x)), output)):
        assert float(np.abs(a - b).max()) <= TOLERANCES["sae"]["float32"] * np.abs(b).max()
