"""Full precision on any device: these tests are about the mathematics."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield
