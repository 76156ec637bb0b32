"""`validate study`: the original run's numbers. Its weights cannot be had here, so the logic is tried on others'."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcircuits.bundle import load_bundle
from jaxcircuits.cli import main
from jaxcircuits.errors import InputError
from jaxcircuits.validation import validate_study
from jaxcircuits.validation.live import record
from jaxcircuits.validation.original import ORIGINAL, Printed, check_story, ids_sha256, readings
from jaxcircuits.validation.recorded import stored_bundle
from jaxcircuits.validation.reference import OTHER_DEVICE
from tests.validation.cases import texts, write_bundle

SOURCE_FEATURE = 5


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch").set_num_threads(1)
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def theirs(path: Path) -> dict[str, np.ndarray]:
    """PyTorch's arrays on the tiny bundle."""
    bundle = stored_bundle(path, "float32")
    reference = record(bundle, *texts(bundle.cfg))
    return reference.arrays | {"prompt": reference.prompt, "feature": np.array(reference.inputs["feature"])}


@pytest.fixture(scope="module")
def printed(path: Path, theirs: dict[str, np.ndarray]) -> Printed:
    """What a notebook on the tiny bundle would have printed: PyTorch's numbers, rounded alike."""
    bundle = load_bundle(path)
    prompt, story = texts(bundle.cfg)
    numbers = readings(theirs, SOURCE_FEATURE)
    numbers = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in numbers.items()}
    return Printed(
        model={"n_layers": 2, "d_model": bundle.cfg.d_model, "bos_token_id": 0},
        saes=[
            {"hook_name": s.cfg.hook_name, "d_in": s.cfg.d_in, "d_sae": s.cfg.d_sae, "activation": "relu"}
            for s in bundle.saes.values()
        ],
        prompt=prompt.tolist(),
        story_tokens=len(story),
        story_sha256=ids_sha256(story.tolist()),
        feature=int(theirs["feature"]),
        source_feature=SOURCE_FEATURE,
        numbers=numbers,
        digits={name: ORIGINAL.digits[name] for name in ("same_sign", "same_sign_active")} | {"rise": 4},
    )


@pytest.fixture
def story_file(path: Path, tmp_path: Path) -> Path:
    file = tmp_path / "story.json"
    file.write_text(json.dumps(texts(load_bundle(path).cfg)[1].tolist()))
    return file


@pytest.mark.torch
def test_another_implementation_s_numbers_hold(
    path: Path, theirs: dict[str, np.ndarray], printed: Printed, story_file: Path, tmp_path: Path
) -> None:
    order = np.lexsort(theirs["story_pairs"].T[[2, 1, 0]])
    plotted = {
        "decoder_grads": theirs["decoder_grads"],
        "cosine_sims": theirs["cosine_sims"],
        "active_l0_features": theirs["active_source_features"],
        "story_pair_abs_grad": np.abs(theirs["story_gradients"])[order],
        "story_pair_abs_cosine": np.abs(theirs["story_cosines"])[order],
    }
    np.savez(tmp_path / "plotted.npz", **plotted)
    report = validate_study(path, story_ids=story_file, arrays=tmp_path / "plotted.npz", printed=printed)
    assert report.ok, report.failed
    assert len(report.checks) == len(ORIGINAL.numbers) + len(plotted)

    plotted["story_pair_abs_grad"] = plotted["story_pair_abs_grad"][::-1]
    np.savez(tmp_path / "plotted.npz", **plotted)
    report = validate_study(path, story_ids=story_file, arrays=tmp_path / "plotted.npz", printed=printed)
    assert [check.quantity for check in report.failed] == ["array story_pair_abs_grad"]


ALTERED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "an activation": ("feature_act", lambda x: x * 1.001),
    "a sign": ("gradient", lambda x: -x),
    "a count": ("story_pairs", lambda x: x + 1),
    "an order": ("top_neurons", lambda x: [x[1], x[0], *x[2:]]),
    "a shape": ("hook_gradients_shape", lambda x: [x[0], x[1] + 1, x[2]]),
    "the rise": ("rise", lambda x: x + 2e-4),
}


@pytest.mark.torch
@pytest.mark.parametrize("what", list(ALTERED))
def test_each_number_is_compared(what: str, printed: Printed, theirs: dict[str, np.ndarray]) -> None:
    from jaxcircuits.validation.original import MEANING, compare_readings

    name, change = ALTERED[what]
    got = readings(theirs, SOURCE_FEATURE)
    assert all(check.ok for check in compare_readings(printed, got))
    failed = [c.quantity for c in compare_readings(printed, got | {name: change(got[name])}) if not c.ok]
    assert failed == [MEANING[name]]


def test_the_original_s_numbers_and_conditions() -> None:
    assert ORIGINAL.tolerance == OTHER_DEVICE == 5e-4
    assert ORIGINAL.numbers["positions"] == len(ORIGINAL.prompt) == 10
    shape = [ORIGINAL.numbers["prompt_targets"], len(ORIGINAL.prompt), ORIGINAL.saes[0]["d_in"]]
    assert ORIGINAL.numbers["hook_gradients_shape"] == shape
    assert len(ORIGINAL.numbers["top_neurons"]) == 10


def test_another_bundle_is_refused(capsys: pytest.CaptureFixture) -> None:
    weights = load_bundle().path
    assert main(["validate", "study", "--bundle", str(weights), "--story", "Once"]) == 2
    assert "this is not the original bundle: d_model is " in capsys.readouterr().err


def test_another_story_is_refused(path: Path, printed: Printed, tmp_path: Path) -> None:
    story = texts(load_bundle(path).cfg)[1]
    with pytest.raises(InputError, match="this is another story"):
        check_story(story[:-1], printed)
    with pytest.raises(InputError, match="lack BOS; put 0 first"):
        check_story(story[1:], printed)
    with pytest.raises(InputError, match="the story is not shipped"):
        validate_study(path, printed=printed)
    saes = [dict(printed.saes[0]) | {"d_sae": 61}, printed.saes[1]]
    with pytest.raises(InputError, match=r"d_sae of the SAE on blocks\.0\.mlp\.hook_post is 60, expected 61"):
        validate_study(path, story="w1", printed=replace(printed, saes=saes))
    (tmp_path / "bad.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"--reference: .*bad\.npz is no \.npz with decoder_grads"):
        validate_study(path, story="w1", arrays=tmp_path / "bad.npz", printed=printed)
