"""`validate recorded`: what agrees is said to, planted port errors are caught and named, other weights are refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcircuits.bundle import Bundle
from jaxcircuits.cli import main
from jaxcircuits.errors import InputError
from jaxcircuits.sae import SAE
from jaxcircuits.study import Way
from jaxcircuits.validation import Reference, read_reference, validate_recorded, write_reference
from jaxcircuits.validation.live import record
from jaxcircuits.validation.quantities import GROUPS, HOW, SIGNED
from jaxcircuits.validation.recorded import compare_all, setup_of, stored_bundle
from jaxcircuits.validation.reference import TOLERANCES, make_reference
from tests.helpers import TOLERANCES as CONTRACT
from tests.validation.cases import SHAPES, texts, write_bundle

needs_torch = pytest.mark.torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    pytest.importorskip("torch").set_num_threads(1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def bundle(path: Path) -> Bundle:
    return stored_bundle(path, "float32")


@pytest.fixture(scope="module")
def reference(bundle: Bundle) -> Reference:
    return record(bundle, *texts(bundle.cfg))


def test_the_shipped_bundle_agrees_with_its_recording(capsys: pytest.CaptureFixture) -> None:
    """Without torch; in CI at every change."""
    assert main(["validate", "recorded", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    compared = set(report["findings"]["errors"])
    assert {name.split(".")[0] for name in compared} >= {name.split(".")[0] for name in HOW}
    assert "shorter than the story" in report["conditions"]["local window"]


FAST = [(shape, "float64") for shape in SHAPES] + [("global then local", "float32")]
SLOW = [(shape, "float32") for shape in SHAPES if (shape, "float32") not in FAST]


@needs_torch
@pytest.mark.parametrize(("shape", "dtype"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_every_quantity_agrees_with_torch(shape: str, dtype: str, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle", **SHAPES[shape])
    with jax.enable_x64(dtype == "float64"):
        stored = stored_bundle(path, dtype)
        reference = record(stored, *texts(stored.cfg), dtype=dtype)
    assert len(reference.arrays["prompt_targets"]) > 5
    assert len(reference.arrays["story_pairs"]) > 50
    report = validate_recorded(path, reference)
    assert report.ok, [(c.quantity, c.error, c.note) for c in report.failed]
    assert report.conditions["tolerance"] == CONTRACT["oracle"][dtype] == TOLERANCES[dtype]
    kinds = {name if name in HOW else name.split(".")[0] for name in report.findings["errors"]}
    assert kinds == set(HOW)


def _causes(reference: Reference, bundle: Bundle, *groups: str) -> list[str]:
    found = compare_all(reference, setup_of(bundle, reference), reference.tolerance, groups=groups or GROUPS)
    assert found.causes, [c for c in found.checks if not c.ok]
    assert any(found.causes[0] in check.note for check in found.checks if not check.ok)
    return found.causes


MODEL_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "attention scale": ({"use_attn_scale": True, "attn_scale": 2.0}, "scales attention scores by 1/sqrt(d_head)"),
    "window + 1": ({"window_size": 5}, "has a local window of one key more"),
    "window - 1": ({"window_size": 3}, "has a local window of one key fewer"),
    "GELU": ({"act_fn": "gelu"}, "uses the exact GELU (erf), not its tanh form"),
    "eps": ({"eps": 1e-3}, "has eps 0.001 in its layer norms, not 1e-05"),
    "writing weights": (
        {"steps": ("fold_layer_norm", "center_unembed", "fold_value_biases")},
        "does not centre the weights that write to the residual stream",
    ),
    "unembedding": (
        {"steps": ("fold_layer_norm", "center_writing_weights", "fold_value_biases")},
        "does not centre the unembedding",
    ),
}


@needs_torch
@pytest.mark.parametrize("error", list(MODEL_ERRORS))
def test_errors_of_the_model_are_named(error: str, bundle: Bundle) -> None:
    planted, name = MODEL_ERRORS[error]
    assert _causes(record(bundle, *texts(bundle.cfg), **planted), bundle, "weights", "model") == [name]


@needs_torch
def test_a_scale_that_is_missing_is_named(tmp_path: Path) -> None:
    bundle = stored_bundle(write_bundle(tmp_path / "bundle", attention_scale=0.5), "float32")
    planted = record(bundle, *texts(bundle.cfg), use_attn_scale=False)
    assert _causes(planted, bundle, "model") == ["does not scale attention scores by 1/sqrt(d_head)"]


@needs_torch
def test_norms_that_do_not_centre_are_named(tmp_path: Path, x64: None) -> None:
    """Where the stream is not centred by its writers, or nobody could tell."""
    bundle = stored_bundle(write_bundle(tmp_path / "bundle", processing=("fold_layer_norm",)), "float64")
    planted = record(bundle, *texts(bundle.cfg), dtype="float64", normalization_type="RMSPre")
    assert _causes(planted, bundle, "model") == ["does not subtract the mean in its layer norms"]


@needs_torch
def test_a_missing_bos_is_named(bundle: Bundle, reference: Reference) -> None:
    prompt, story = texts(bundle.cfg)
    planted = record(bundle, prompt[1:], story[1:], feature=reference.inputs["feature"])
    assert _causes(replace(planted, inputs=reference.inputs), bundle, "model") == ["is run without BOS"]


@needs_torch
@pytest.mark.parametrize("which", [(0, 1), (1,)], ids=["both", "target"])
def test_a_bias_that_is_not_subtracted_is_named(which: tuple[int, ...], bundle: Bundle) -> None:
    saes = {
        name: SAE(sae.weights, replace(sae.cfg, subtract_b_dec=i not in which))
        for i, (name, sae) in enumerate(bundle.saes.items())
    }
    ends = "source and target" if len(which) == 2 else "target"
    planted = record(replace(bundle, saes=saes), *texts(bundle.cfg))
    assert _causes(planted, bundle, "saes") == [f"does not subtract b_dec before encoding ({ends} SAE)"]


def _negated(reference: Reference, bundle: Bundle) -> Reference:
    arrays = {name: -a if name in SIGNED else a for name, a in reference.arrays.items()}
    return replace(reference, arrays=arrays)


def _before_the_splice(reference: Reference, bundle: Bundle) -> Reference:
    """Through the source SAE's encoder, in numpy."""
    weights = next(iter(bundle.saes.values())).weights
    W_enc, W_dec = np.asarray(weights.W_enc), np.asarray(weights.W_dec)
    on = reference.arrays["prompt_source_acts"] > 0
    arrays = dict(reference.arrays)
    whole = (arrays["prompt_hook_gradients"] @ W_dec.T * on) @ W_enc.T
    arrays["prompt_hook_gradients"] = whole
    sources = arrays["prompt_sources"]
    later = sources[None, :, 0] > arrays["prompt_targets"][:, None, 0]
    along = np.stack([whole[:, pos] @ W_dec[feature] for pos, feature in sources], axis=1)
    arrays["prompt_gradients"] = np.where(later, 0, along)
    del arrays["decoder_grads"], arrays["nudged_act"]  # of a target that need not be among those above 2
    quantities = {name: reference.quantities[name] for name in arrays}
    norms = {name: float(np.linalg.norm(arrays[name])) for name in ("prompt_hook_gradients", "prompt_gradients")}
    quantities |= {name: replace(quantities[name], norm=norm) for name, norm in norms.items()}
    return replace(reference, arrays=arrays, quantities=quantities)


def _in_torch(way: Way) -> Callable[[Reference, Bundle], Reference]:
    def plant(reference: Reference, bundle: Bundle) -> Reference:
        return record(bundle, *texts(bundle.cfg), feature=reference.inputs["feature"], way=way)

    return plant


STUDY_ERRORS: dict[str, tuple[Callable[[Reference, Bundle], Reference], str]] = {
    "sign": (_negated, "has the opposite sign"),
    "not spliced": (_in_torch(Way(splice="none")), "does not splice the source SAE in"),
    "only the target spliced": (_in_torch(Way(splice="target")), "does not splice the source SAE in"),
    "before the splice": (_before_the_splice, "takes gradients before the splice"),
    "story spliced": (_in_torch(Way(story_splice="both")), "splices the SAEs in on the story too"),
}


@needs_torch
@pytest.mark.parametrize("error", list(STUDY_ERRORS))
def test_errors_of_the_study_are_named(error: str, bundle: Bundle, reference: Reference) -> None:
    plant, name = STUDY_ERRORS[error]
    (cause,) = _causes(plant(reference, bundle), bundle, "saes", "study")
    assert cause.startswith(name)


@needs_torch
def test_a_second_error_is_found_behind_the_first(bundle: Bundle) -> None:
    saes = {n: SAE(s.weights, replace(s.cfg, subtract_b_dec=False)) for n, s in bundle.saes.items()}
    planted = record(replace(bundle, saes=saes), *texts(bundle.cfg), window_size=5)
    causes = _causes(planted, bundle, "weights", "model", "saes")
    assert [cause.split(" (")[0] for cause in causes] == [
        "has a local window of one key more",
        "does not subtract b_dec before encoding",
    ]


@needs_torch
def test_what_nothing_explains_is_said_to_be(bundle: Bundle, reference: Reference) -> None:
    arrays = reference.arrays | {"hook.blocks.0.mlp.hook_post": reference.arrays["hook.blocks.0.mlp.hook_post"] * 1.01}
    found = compare_all(replace(reference, arrays=arrays), setup_of(bundle, reference), 2e-5, groups=("model",))
    assert not found.causes
    (failed,) = [check for check in found.checks if not check.ok]
    assert failed.quantity == "hook.blocks.0.mlp.hook_post"
    assert failed.note == "no known port error explains it"


# --- files and commands ---------------------------------------------------------------------------


@needs_torch
def test_a_recording_is_read_as_it_was_written_and_thinned(reference: Reference, path: Path, tmp_path: Path) -> None:
    thin = make_reference(
        reference.arrays, 40, **{f: getattr(reference, f) for f in ("inputs", "weights", "dtype", "tolerance")},
        framework=reference.framework, device="cpu",
    )  # fmt: skip
    write_reference(thin, tmp_path / "mine")
    read = read_reference(tmp_path / "mine.json")
    assert read.quantities == thin.quantities
    assert read.arrays["logits"].size < reference.arrays["logits"].size
    assert all(np.array_equal(read.arrays[name], value) for name, value in thin.arrays.items())
    with pytest.raises(InputError, match="exists already"):
        write_reference(thin, tmp_path / "mine.npz")
    # A number that was not kept counts in the norm.
    arrays = dict(reference.arrays)
    arrays["logits"] = arrays["logits"].copy()
    arrays["logits"][3, 1] += 0.5
    altered = make_reference(arrays, 40, **{f: getattr(reference, f) for f in ("inputs", "weights", "dtype")},
                             tolerance=2e-5, framework={}, device="cpu")  # fmt: skip
    assert np.array_equal(altered.arrays["logits"], thin.arrays["logits"])
    checks = compare_all(altered, setup_of(stored_bundle(path, "float32"), altered), 2e-5, groups=("model",)).checks
    assert [check.quantity for check in checks if not check.ok] == ["logits"]


@needs_torch
def test_commands_and_their_exit_codes(reference: Reference, path: Path, tmp_path: Path, capsys) -> None:
    write_reference(reference, tmp_path / "mine")
    command = ["validate", "recorded", str(tmp_path / "mine.npz"), "--quiet"]
    assert main([*command, "--bundle", str(path)]) == 0
    assert "All " in capsys.readouterr().out

    write_reference(_negated(reference, stored_bundle(path, "float32")), tmp_path / "mine", overwrite=True)
    assert main([*command, "--bundle", str(path)]) == 1
    assert "It agrees if theirs has the opposite sign" in capsys.readouterr().out

    assert main(command) == 2
    assert "recorded on other weights" in capsys.readouterr().err


@needs_torch
def test_what_is_wrong_is_refused_in_a_sentence(reference: Reference, path: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", d_mlp=44)
    with pytest.raises(InputError, match=r"recorded on other weights: model\.safetensors"):
        validate_recorded(other, reference)
    write_reference(reference, tmp_path / "mine")
    (tmp_path / "mine.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        read_reference(tmp_path / "mine")
    with pytest.raises(InputError, match="there is no"):
        read_reference(tmp_path / "none.npz")
    write_reference(replace(reference, tolerance=0.1), tmp_path / "loose")
    with pytest.raises(InputError, match="a tolerance of at most"):
        read_reference(tmp_path / "loose")
    shutil.copy(tmp_path / "loose.npz", tmp_path / "bare.npz")
    (tmp_path / "bare.json").write_text("{}")
    with pytest.raises(InputError, match="expected a reference of schema 1"):
        read_reference(tmp_path / "bare")
