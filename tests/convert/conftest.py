"""Full precision on any device, since these tests are about the mathematics; and a model."""

from collections.abc import Iterator

import jax
import pytest

from tests.convert.recorded import save_plain_model


@pytest.fixture(autouse=True)
def _highest_precision() -> Iterator[None]:
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle that the recorded autoencoders fit."""
    path = tmp_path_factory.mktemp("model") / "bundle"
    save_plain_model(path)
    return str(path)
