"""Shapes are checked while the tests run, and every test writes into a directory of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook below looks it up by name)

# Thousands of tiny programs: compiling them takes nearly all the time, and half as long without what makes loops of
# several operations fast. An empty XLA_FLAGS gives those that users run.
QUICK = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in QUICK))

# Before anything imports the package: shapes and dtypes of annotated signatures are checked at each call.
install_import_hook("jaxcircuits", "tests.typechecker.check")


# No deadline: a first example may compile. Few examples: each is a call of a compiled program.
settings.register_profile("suite", deadline=None, max_examples=40)
settings.load_profile("suite")


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX in 64-bit mode for one test."""
    import jax

    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def _few_memory_maps() -> Iterator[None]:
    """Each compiled program takes hundreds of memory maps, of which Linux gives a process 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        import jax

        jax.clear_caches()


@pytest.fixture(autouse=True)
def _in_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctests and tests may write files by bare name."""
    monkeypatch.chdir(tmp_path)
