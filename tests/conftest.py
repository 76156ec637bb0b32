"""Shapes are checked while the tests run, and every test writes into a directory of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook below looks it up by name)

# Before anything imports the package: shapes and dtypes of annotated signatures are checked at each call.
install_import_hook("jaxcircuits", "tests.typechecker.check")


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX in 64-bit mode for one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _in_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctests and tests may write files by bare name."""
    monkeypatch.chdir(tmp_path)
