"""Converted autoencoders are the foreign ones to the bit, and those that do not fit are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle
from jaxcircuits.convert import convert
from jaxcircuits.errors import InputError
from jaxcircuits.sae import decode, encode
from tests.helpers import assert_close
from tests.oracle import TorchSAE

torch = pytest.importorskip("torch")
from tests.convert.foreign import autoencoder, hugging_face, save_mixin, save_original  # noqa: E402

pytestmark = pytest.mark.torch

Change = Callable[[Any], None]


@pytest.fixture(scope="module")
def neo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("saved") / "neo"
    hugging_face().save_pretrained(path)
    return str(path)


def _original(path: Path, tensors: dict[str, Any]) -> str:
    return str(save_original(path / "8_deep_brook.pt", tensors, layer=1))


def _without_suffix(path: Path, tensors: dict[str, Any]) -> str:
    return str(
        save_original(path / "8_deep_brook.pt", tensors, layer=1, d_in=20, reg="l1", head_idx=None).with_suffix("")
    )


def _mixin(path: Path, tensors: dict[str, Any]) -> str:
    return str(save_mixin(path / "8_deep_brook", tensors, wandb_name=None))


def _old_mixin(path: Path, tensors: dict[str, Any]) -> str:
    return str(save_mixin(path / "repository", tensors, pickled=True, wandb_name="8_deep_brook"))


@pytest.mark.parametrize("save", [_original, _without_suffix, _mixin, _old_mixin])
@pytest.mark.parametrize("d_sae", [80, 20])
def test_equal_to_pytorch(neo: str, tmp_path: Path, save: Callable[[Path, dict[str, Any]], str], d_sae: int) -> None:
    tensors = autoencoder(d_sae=d_sae)
    if save is _original:
        tensors = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    settings = {"expansion_factor": 1} if d_sae == 20 else {}
    given = save(tmp_path, tensors)
    if settings and save in (_original, _without_suffix):
        _change_json(tmp_path / "8_deep_brook.json", lambda c: c.update(settings))
    convert(neo, [given], tmp_path / "bundle")
    saes = load_bundle(tmp_path / "bundle").saes
    assert list(saes) == ["8_deep_brook"]
    sae = saes["8_deep_brook"]
    assert sae.cfg.hook_name == "blocks.1.mlp.hook_post"
    assert sae.cfg.subtract_b_dec
    for name, tensor in tensors.items():
        assert np.array_equal(getattr(sae.weights, name), tensor.detach().numpy()), name
    x = torch.randn(7, 20, generator=torch.Generator().manual_seed(1))
    theirs = ((x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).relu()
    assert_close(encode(sae, jnp.asarray(x)), theirs, "sae", "features")
    oracle = TorchSAE(sae)
    assert_close(encode(sae, jnp.asarray(x)), oracle.encode(x), "sae", "features")
    assert_close(decode(sae, jnp.asarray(theirs.detach())), oracle.decode(theirs), "sae", "reconstruction")
    assert_close(
        decode(sae, jnp.asarray(theirs.detach())), theirs @ tensors["W_dec"] + tensors["b_dec"], "sae", "output"
    )


def test_several_autoencoders_get_names_of_their_own(neo: str, tmp_path: Path) -> None:
    first = save_original(tmp_path / "a" / "1_sun.pt", autoencoder(seed=1))
    second = save_original(tmp_path / "b" / "1_sun.pt", autoencoder(seed=2), layer=1)
    third = save_mixin(tmp_path / "c", autoencoder(seed=3), wandb_name="odd name/../x")
    fourth = save_original(
        tmp_path / "residual.pt", autoencoder(12, 24, seed=4), act="hook_resid_post", expansion_factor=2
    )
    convert(neo, [str(first), str(second), str(third), str(fourth)], tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert {name: sae.cfg.hook_name for name, sae in bundle.saes.items()} == {
        "1_sun": "blocks.0.mlp.hook_post",
        "1_sun-2": "blocks.1.mlp.hook_post",
        "odd_name_.._x": "blocks.1.mlp.hook_post",
        "residual": "blocks.0.hook_resid_post",
    }
    assert np.array_equal(bundle.saes["1_sun-2"].weights.W_dec, autoencoder(seed=2)["W_dec"])


def test_manifest_says_where_everything_came_from(neo: str, tmp_path: Path) -> None:
    given = str(save_original(tmp_path / "18_morning_sun.pt"))
    convert(neo, [given], tmp_path / "bundle", dtype="float16")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    out = tmp_path / "bundle"
    assert manifest["command"] == f"jaxcircuits convert --model {neo} --sae {given} --dtype float16 --out {out}"
    assert manifest["source"] == neo
    assert manifest["saes"] == {"18_morning_sun": given}
    assert set(manifest["source_sha256"]) == {
        *("model/config.json", "model/model.safetensors"),
        *("saes/18_morning_sun/18_morning_sun.pt", "saes/18_morning_sun/18_morning_sun.json"),
    }
    assert "revision" not in manifest


# --- what is refused --------------------------------------------------------------------------------------------------


def _refused(neo: str, given: Path | str, sentence: str, **options: Any) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        convert(neo, [str(given)], "bundle", **options)
    assert "\n" not in str(error.value)
    assert not [file for file in Path().iterdir() if "bundle" in file.name]


def _change_json(path: Path, change: Change) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


SETTINGS: dict[str, tuple[Change, str]] = {
    "unknown field": (lambda c: c.update(topk=32), r"the field 'topk' \('32'\) is not understood"),
    "no layer": (lambda c: c.pop("layer"), "the field 'layer' is missing"),
    "no act": (lambda c: c.pop("act"), "the field 'act' is missing"),
    "layer as text": (lambda c: c.update(layer="0"), "expected layer and act such as"),
    "a layer the model lacks": (lambda c: c.update(layer=2), r"no hook point 'blocks\.2\.mlp\.hook_post'"),
    "a hook the model lacks": (lambda c: c.update(act="mlp.hook_mid"), r"no hook point 'blocks\.0\.mlp\.hook_mid'"),
    "a hook without a vector": (lambda c: c.update(act="attn.hook_pattern"), "no single vector a position"),
    "heads apart": (lambda c: c.update(act="attn.hook_result", head_idx=1), "no single vector a position"),
    "another hook": (lambda c: c.update(act="hook_resid_post"), r"its d_in is 20, but .* has width 12"),
    "another width": (lambda c: c.update(d_in=4096), r"d_in is 4096, but W_enc of .* has shape \[20, 80\]"),
    "another expansion": (lambda c: c.update(expansion_factor=8), r"expansion_factor is 8, but W_enc"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_refused(neo: str, tmp_path: Path, case: str) -> None:
    change, sentence = SETTINGS[case]
    path = save_original(tmp_path / "18_morning_sun.pt")
    _change_json(path.with_suffix(".json"), change)
    _refused(neo, path, sentence)


TENSORS: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: t.pop("b_dec"), "the tensor b_dec is missing"),
    "no encoder": (lambda t: t.pop("W_enc"), "the tensor W_enc is missing"),
    "unknown": (lambda t: t.update(threshold=torch.ones(80)), r"unknown tensor threshold of shape \[80\]"),
    "transposed": (lambda t: t.update(W_dec=t["W_dec"].T), r"W_dec must have shape \[80, 20\], got \[20, 80\]"),
    "NaN": (lambda t: t["W_dec"].__setitem__((3, 4), torch.nan), "W_dec holds NaN or Inf"),
    "another width": (lambda t: t.update(autoencoder(16, 64)), "its d_in is 16, but .* has width 20"),
    "integers": (lambda t: t.update(b_enc=torch.ones(80, dtype=torch.int64)), "b_enc must be of .*, got int64"),
}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("layout", ["original", "mixin"])
def test_tensors_are_refused(neo: str, tmp_path: Path, case: str, layout: str) -> None:
    change, sentence = TENSORS[case]
    tensors = autoencoder()
    path = tmp_path / "sae.pt" if layout == "original" else save_mixin(tmp_path / "sae", tensors, pickled=True)
    change(tensors)
    if layout == "original":
        save_original(path, tensors)
    else:
        torch.save(tensors, path / "pytorch_model.bin")
    if case == "another width" and layout == "mixin":
        _change_json(path / "config.json", lambda c: c.update(d_in=16, d_hidden=64))
    _refused(neo, path, sentence)


MIXIN: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"architecture": "topk"}, r"the field 'architecture' \('topk'\) is not understood"),
    "hook as a number": ({"hook_name": 1}, "hook_name must be one such as"),
    "another layer": ({"layer": 0}, r"layer is 0, but hook_name is 'blocks\.1\.mlp\.hook_post'"),
    "another d_in": ({"d_in": 4096}, "d_in is 4096, but W_enc has shape"),
    "another d_hidden": ({"d_hidden": 16384}, "d_hidden is 16384, but W_enc has shape"),
}


@pytest.mark.parametrize("case", MIXIN)
def test_mixin_configs_are_refused(neo: str, tmp_path: Path, case: str) -> None:
    fields, sentence = MIXIN[case]
    _refused(neo, save_mixin(tmp_path / "sae", autoencoder(), **fields), sentence)


def test_an_unknown_field_can_be_ignored(neo: str, tmp_path: Path) -> None:
    path = save_original(tmp_path / "sae.pt", comment="made by hand")
    convert(neo, [str(path)], tmp_path / "bundle", ignore_config_fields=["comment"])
    assert list(load_bundle(tmp_path / "bundle").saes) == ["sae"]


def test_missing_files_are_refused(neo: str, tmp_path: Path) -> None:
    path = save_original(tmp_path / "18_morning_sun.pt")
    _refused(neo, tmp_path / "19_morning_sun.pt", r"there is no file .*19_morning_sun\.pt")
    path.with_suffix(".json").unlink()
    _refused(neo, path, r"needs its settings beside it, but there is no .*18_morning_sun\.json")
    (tmp_path / "empty").mkdir()
    _refused(
        neo, tmp_path / "empty", r"none of the known layouts; expected .*cfg\.json .*\[--format sae_lens\].*NAME\.pt"
    )
    sae = save_mixin(tmp_path / "sae", autoencoder())
    (sae / "model.safetensors").unlink()
    _refused(neo, sae, "SAE: .*sae has no weights; expected model.safetensors")
    _refused(neo, tmp_path / "no" / "such" / "directory", "SAE: there is no path")


def test_an_overflow_of_the_dtype_is_refused(neo: str, tmp_path: Path) -> None:
    tensors = autoencoder()
    tensors["W_enc"][0, 0] = -1e5
    path = save_original(tmp_path / "sae.pt", tensors)
    _refused(neo, path, r"float16 cannot hold W_enc \(up to 100000\)", dtype="float16")


def test_the_source_is_never_replaced(tmp_path: Path, neo: str) -> None:
    here = tmp_path / "place" / "neo"
    shutil.copytree(neo, here)
    for out in (here, here.parent):
        with pytest.raises(InputError, match="holds something else than a bundle"):
            convert(str(here), [], out, overwrite=True)
        (out / "manifest.json").write_text("{}")  # now it looks like one that may be replaced
        with pytest.raises(InputError, match=r"holds the source .* which it would replace"):
            convert(str(here), [], out, overwrite=True)
    with pytest.raises(InputError, match="exists already; pass --overwrite"):
        convert("no/such/place", [], here)
    assert (here / "model.safetensors").is_file()
