"""`sae_from_arrays`: every architecture by its formula, and what does not fit together is refused."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxcircuits import decode, encode, sae_from_arrays
from jaxcircuits.errors import InputError
from tests.helpers import assert_close

HOOK, OUT = "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out"
RNG = np.random.default_rng(0)
ARRAYS = {
    "W_enc": RNG.standard_normal((5, 12)),
    "b_enc": RNG.standard_normal(12),
    "W_dec": RNG.standard_normal((12, 5)),
    "b_dec": RNG.standard_normal(5),
}
THRESHOLD, GATE = (
    RNG.uniform(-0.5, 1, 12),
    {name: 0.5 * RNG.standard_normal(12) for name in ("b_gate", "r_mag", "b_mag")},
)
X = 2 * RNG.standard_normal((9, 5))


def pre(x: np.ndarray) -> np.ndarray:
    return x @ ARRAYS["W_enc"] + ARRAYS["b_enc"]


def topk(h: np.ndarray, k: int) -> np.ndarray:
    return np.where(h >= np.sort(h)[:, [-k]], np.maximum(h, 0), 0)


def groups(h: np.ndarray, k: int) -> np.ndarray:
    split = np.maximum(h, 0).reshape(len(h), k, -1)
    return np.where(split == split.max(-1, keepdims=True), split, 0).reshape(h.shape)


def gated(x: np.ndarray) -> np.ndarray:
    e = x @ ARRAYS["W_enc"]
    return np.where(e + GATE["b_gate"] > 0, np.maximum(np.exp(GATE["r_mag"]) * e + GATE["b_mag"], 0), 0)


B = ARRAYS["b_dec"]
FEATURES: dict[str, tuple[dict[str, Any], np.ndarray]] = {
    "relu": ({}, np.maximum(pre(X - B), 0)),
    "standard": ({"subtract_b_dec": False}, np.maximum(pre(X), 0)),
    "jumprelu": ({"threshold": THRESHOLD}, np.where(pre(X - B) > THRESHOLD, np.maximum(pre(X - B), 0), 0)),
    "batchtopk": ({"threshold": 0.8}, np.where(pre(X - B) > 0.8, pre(X - B), 0)),
    "topk": ({"k": 4}, topk(pre(X - B), 4)),
    "groupmax": ({"k": 4}, groups(pre(X - B), 4)),
    "gated": (GATE, gated(X - B)),
}


@pytest.mark.parametrize("architecture", FEATURES)
def test_each_architecture_by_its_formula(architecture: str, x64: None) -> None:
    more, expected = FEATURES[architecture]
    given = {name: array for name, array in ARRAYS.items() if name != "b_enc" or architecture != "gated"}
    sae = sae_from_arrays(**given, **more, hook_name=HOOK, architecture=architecture, dtype="float64")
    assert 0 < (expected > 0).mean() < 1
    features = encode(sae, jax.numpy.asarray(X))
    assert_close(features, expected, "sae", "features")
    assert_close(decode(sae, features), expected @ ARRAYS["W_dec"] + B, "sae", "output")


def test_a_transcoder_with_a_skip_connection(x64: None) -> None:
    W_dec, b_dec, W_skip = RNG.standard_normal((12, 7)), RNG.standard_normal(7), RNG.standard_normal((5, 7))
    given = ARRAYS | {"W_dec": W_dec, "b_dec": b_dec, "W_skip": W_skip}
    sae = sae_from_arrays(**given, hook_name=HOOK, hook_out=OUT, dtype="float64")
    assert (sae.cfg.d_in, sae.cfg.width_written, sae.cfg.skip, sae.cfg.subtract_b_dec) == (5, 7, True, False)
    features = np.maximum(pre(X), 0)
    x = jax.numpy.asarray(X)
    assert_close(decode(sae, encode(sae, x), x), features @ W_dec + b_dec + X @ W_skip, "sae", "output")


def test_what_lies_on_its_threshold_is_off() -> None:
    identity = {"W_enc": np.eye(3), "b_enc": np.zeros(3), "W_dec": np.eye(3), "b_dec": np.zeros(3)}
    sae = sae_from_arrays(**identity, hook_name=HOOK, architecture="jumprelu", threshold=np.array([1, 1, -2]))
    assert encode(sae, jax.numpy.array([1.0, 1.25, -1.0])).tolist() == [0, 1.25, 0]


NAN = ARRAYS["W_dec"].copy()
NAN[2, 3] = np.nan
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "encoder transposed": (
        {"W_enc": ARRAYS["W_enc"].T},
        r"W_enc must have shape \[5, 12\], got its transpose; transpose it",
    ),
    "decoder transposed": ({"W_dec": ARRAYS["W_dec"].T}, r"W_dec must have shape \[12, 5\], got its transpose"),
    "skip transposed": (
        {"hook_out": OUT, "b_dec": np.zeros(7), "W_dec": np.zeros((12, 7)), "W_skip": np.zeros((7, 5))},
        r"W_skip must have shape \[5, 7\], got its transpose",
    ),
    "an encoder of another width": ({"W_enc": np.zeros((6, 12))}, r"W_enc must have shape \[5, 12\], got \[6, 12\]"),
    "no bias": ({"b_enc": None}, "the tensor b_enc is missing"),
    "a bias that is a matrix": ({"b_enc": np.zeros((12, 1))}, "b_enc is missing or has not 1 axis"),
    "not finite": ({"W_dec": NAN}, "W_dec holds NaN or Inf"),
    "complex": ({"b_enc": np.zeros(12, complex)}, "b_enc must be of .*, got complex128"),
    "words": ({"b_enc": np.array(["a"] * 12)}, "b_enc must be of float"),
    "an unknown architecture": ({"architecture": "softmax"}, "the architecture must be one of relu, .*, got 'softmax'"),
    "a threshold too many": ({"threshold": THRESHOLD}, "unknown tensor threshold"),
    "a threshold missing": ({"architecture": "jumprelu"}, "the tensor threshold is missing"),
    "a threshold for all": (
        {"architecture": "jumprelu", "threshold": 1.0},
        r"threshold must have shape \[12\], got \[\]",
    ),
    "a threshold each": (
        {"architecture": "batchtopk", "threshold": THRESHOLD},
        r"threshold must have shape \[\], got \[12\]",
    ),
    "k missing": ({"architecture": "topk"}, "k belongs to the activations topk and groupmax"),
    "k too many": ({"k": 3}, "k belongs to the activations topk and groupmax"),
    "gate missing": ({"architecture": "gated", "b_enc": None, "b_gate": GATE["b_gate"]}, "the tensor r_mag is missing"),
    "an unknown normalization": ({"normalization": "rms"}, "normalization must be one of"),
    "a transcoder that centres": ({"hook_out": OUT, "subtract_b_dec": True}, "a transcoder neither subtracts b_dec"),
    "a skip of an autoencoder": ({"W_skip": np.zeros((5, 5))}, "W_skip belongs to a transcoder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    change, sentence = REFUSED[case]
    with pytest.raises(InputError, match=sentence):
        sae_from_arrays(**(ARRAYS | {"hook_name": HOOK} | change))
