"""Two graphs in float64, built once: most of what tests here ask is asked of them."""

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.graph import Graph, build_graph
from tests.graph.cases import mixed, plain, prompt_of

Case = tuple[Bundle, np.ndarray, Graph]


@pytest.fixture(scope="session")
def plain_case() -> Case:
    """Features at BOS are nodes."""
    with jax.enable_x64(True):
        bundle = plain()
        tokens = prompt_of(bundle)
        return bundle, tokens, build_graph(bundle, tokens, include_bos=True)


@pytest.fixture(scope="session")
def mixed_case() -> Case:
    """Features at BOS are not; edges are in parts."""
    with jax.enable_x64(True):
        bundle = mixed()
        tokens = prompt_of(bundle)
        return bundle, tokens, build_graph(bundle, tokens, parts=True)


@pytest.fixture(autouse=True)
def _in_float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of these cases run in 64-bit mode, and leave it."""
    with jax.enable_x64(bool({"plain_case", "mixed_case", "made"} & set(request.fixturenames))):
        yield
