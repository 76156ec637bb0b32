"""Autoencoders that their own packages wrote: features and outputs agree with what these packages computed.

`scripts/record_sae_samples.py` made the samples; `manifest.json` beside them says with which versions.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle, load_sae
from jaxcircuits.convert import convert
from jaxcircuits.convert.api import SAE_FORMATS
from jaxcircuits.errors import InputError
from jaxcircuits.sae import decode, encode
from tests.convert.recorded import MANIFEST, READ, SAMPLES, source
from tests.helpers import assert_close

NEAR_THRESHOLD: dict[str, set[tuple[int, int]]] = {}
"""Features (input, feature) that are on in one computation alone, since they lie within rounding of their threshold."""


@pytest.mark.parametrize("name", READ)
def test_equal_to_the_package(name: str, model: str, tmp_path: Path) -> None:
    convert(model, [source(name)], tmp_path / "bundle")
    (added,) = set(load_bundle(tmp_path / "bundle").saes) - set(load_bundle(model).saes)
    sae = load_sae(tmp_path / "bundle" / "saes" / added)
    assert sae.cfg.hook_name == MANIFEST[name]["hook"]
    assert sae.cfg.origin
    expected = np.load(SAMPLES / name / "expected.npz")
    x = jnp.asarray(expected["x"])
    features = encode(sae, x)
    assert 0.01 < float((expected["features"] > 0).mean()) < 0.9, "a sample that shows nothing"
    differing = {(int(i), int(j)) for i, j in np.argwhere((np.asarray(features) > 0) != (expected["features"] > 0))}
    assert differing == NEAR_THRESHOLD.get(name, set())
    assert_close(features, expected["features"], "sae", "features")
    assert_close(decode(sae, jnp.asarray(expected["features"]), x), expected["output"], "sae", "output")


@pytest.mark.parametrize("name", [name for name in MANIFEST if name not in READ])
def test_refused_by_name(name: str, model: str) -> None:
    with pytest.raises(InputError, match=MANIFEST[name]["refused"]):
        convert(model, [source(name)], "bundle")
    assert not Path("bundle").exists()


def test_every_format_has_samples() -> None:
    """The study's own two formats are written by other tests, with PyTorch."""
    formats = {next(each.name for each in SAE_FORMATS if each.matches(Path(source(name).path))) for name in MANIFEST}
    assert formats == {each.name for each in SAE_FORMATS} - {"original", "hub_mixin"}
