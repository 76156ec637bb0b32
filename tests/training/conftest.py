"""A tiny corpus, a tiny model and settings of runs that take a second."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.training.settings import LMTraining, SAETraining
from tests.helpers import random_params, tiny_config, tiny_tokenizer

LM = LMTraining(
    d_model=12, n_heads=3, d_vocab=280, n_ctx=16, window=4, epochs=2.0, batch_tokens=64, muon_lr=0.01, adam_lr=0.01
)
SAE = SAETraining(
    expansion=2, l0=6.0, tokens=64 * 40, batch_tokens=64, buffer_tokens=256, resamplings=2, lr=0.01, spliced=0.5
)

SHORT = dataclasses.replace(SAE, tokens=64 * 12, expansion=1, seed=8, text_seed=0)
"""Two ways to its weights can be compared: with this seed, or 21, no first bias lies on a value of the many equal ones
at BOS, where rounding would decide whether a feature is on; and after a dozen steps rounding is still rounding."""


@pytest.fixture
def stories() -> list[str]:
    """Sentences of a few words in an order that can be learnt."""
    rng = np.random.default_rng(0)
    subjects, verbs, things = ("Tom", "Ann", "a dog"), ("saw", "found", "liked"), ("the big red ball", "a small cat")
    return [
        f"One day {subjects[a]} {verbs[a]} {things[b]} and {subjects[b]} {verbs[c]} it."
        for a, b, c in zip(*(rng.integers(0, n, 60) for n in (3, 2, 3)), strict=True)
    ]


@pytest.fixture
def words() -> list[str]:
    """Texts for the bundle below, whose tokens are the words w1 w2 …; some are longer than its context."""
    rng = np.random.default_rng(1)
    return [" ".join(f"w{i}" for i in rng.integers(1, 31, length)) for length in rng.integers(3, 40, 40)]


@pytest.fixture
def bundle() -> Bundle:
    """A random model with a tokenizer and without autoencoders."""
    cfg = tiny_config()
    return Bundle(cfg, random_params(cfg), {}, tiny_tokenizer(cfg))


@pytest.fixture
def exact_bundle(x64: None) -> Bundle:
    """The same in float64, where a training's rounding stays small for some steps."""
    cfg = tiny_config()
    return Bundle(cfg, random_params(cfg, dtype=jnp.float64), {}, tiny_tokenizer(cfg))


def changed(settings, **fields):
    return dataclasses.replace(settings, **fields)
