"""`validate bisect`: the first hook point that differs, noise told from bugs."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcircuits.cli import main
from jaxcircuits.validation import Reference, bisect, write_reference
from jaxcircuits.validation.live import record
from jaxcircuits.validation.recorded import stored_bundle
from tests.validation.cases import texts, write_bundle

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch").set_num_threads(1)
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


def recorded(path: Path, dtype: str, **planted) -> Reference:
    with jax.enable_x64(dtype == "float64"):
        bundle = stored_bundle(path, dtype)
        return record(bundle, *texts(bundle.cfg), dtype=dtype, **planted)


@pytest.mark.slow
def test_equal_implementations_do_not_part(path: Path) -> None:
    report = bisect(path, {dtype: recorded(path, dtype) for dtype in ("float32", "float64")})
    assert report.ok
    assert report.findings["first"] is None
    assert report.findings["verdict"].startswith("They do not part")
    assert [check.quantity for check in report.checks][:3] == [
        "hook_embed",
        "hook_pos_embed",
        "blocks.0.hook_resid_pre",
    ]
    assert max(e["float64"] for e in report.findings["errors"].values()) < 1e-12


def test_a_bug_that_float32_hides_is_found_in_float64(path: Path) -> None:
    """eps of 1e-6: within float32's tolerance of a stream of order one."""
    planted = {dtype: recorded(path, dtype, eps=1e-6) for dtype in ("float32", "float64")}
    report = bisect(path, planted)
    assert report.findings["first"] == "blocks.0.ln1.hook_scale"
    assert report.findings["errors"]["hook.blocks.0.ln1.hook_scale"]["float32"] < 2e-5
    assert report.findings["causes"] == ["has eps 1e-06 in its layer norms, not 1e-05"]
    assert "They part at blocks.0.ln1.hook_scale: a bug" in report.findings["verdict"]


@pytest.mark.slow
def test_noise_is_told_from_a_bug(path: Path) -> None:
    """A float32 difference beyond the tolerance that float64 does not have."""
    both = {dtype: recorded(path, dtype) for dtype in ("float32", "float64")}
    name = "hook.blocks.1.mlp.hook_pre"
    noisy = both["float32"].arrays | {name: both["float32"].arrays[name] * np.float32(1 + 1e-4)}
    report = bisect(path, both | {"float32": replace(both["float32"], arrays=noisy)})
    assert report.ok
    assert [c.quantity for c in report.checks if "noise" in c.note] == ["blocks.1.mlp.hook_pre"]


def test_a_recording_in_float32_alone(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What exceeds this package's own rounding many times is no noise; the window shows in the local layer first."""
    write_reference(recorded(path, "float32", window_size=5), tmp_path / "planted")
    assert main(["validate", "bisect", str(tmp_path / "planted"), "--bundle", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["findings"]["first"] == "blocks.1.attn.hook_attn_scores"
    assert report["findings"]["causes"] == ["has a local window of one key more"]
    assert sum(check["ok"] for check in report["checks"]) > 20


def test_the_shipped_recording_does_not_part(capsys: pytest.CaptureFixture) -> None:
    assert main(["validate", "bisect"]) == 0
    assert "They do not part" in capsys.readouterr().out


def test_live_by_command(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    story = tmp_path / "story.json"
    story.write_text(json.dumps(texts(stored_bundle(path, "float32").cfg)[1].tolist()))
    live = ["--against", "torch", "--bundle", str(path), "--prompt", "w3 w4 w5 w6 w7 w8 w9", "--story-ids", str(story)]
    assert main(["validate", "bisect", *live, "--quiet"]) == 0
    assert main(["validate", "bisect", "mine.npz", *live]) == 2
    assert "give one of the two" in capsys.readouterr().err
    assert main(["validate", "recorded", "--prompt", "w1"]) == 2
    assert "give yours with --against torch" in capsys.readouterr().err
