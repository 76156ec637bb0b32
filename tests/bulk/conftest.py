"""A bundle on disk, and jobs of several parts."""

from pathlib import Path

import pytest

from jaxcircuits.attribution import plan
from jaxcircuits.bundle import Bundle, load_bundle
from tests.helpers import saved_bundle


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    saved_bundle(path)
    return path


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> Bundle:
    return load_bundle(bundle_path)


@pytest.fixture
def two_prompts_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_prompts_a_part", lambda *_: 2)
