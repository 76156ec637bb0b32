"""`validate study`: the numbers that the original notebook printed, and the conditions they hold under.

Scalars only. The arrays that it plotted are compared where a user has them.
"""

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxcircuits.bundle import Bundle, load_bundle
from jaxcircuits.errors import InputError
from jaxcircuits.study import study_arrays
from jaxcircuits.validation.compare import error_of
from jaxcircuits.validation.reference import OTHER_DEVICE
from jaxcircuits.validation.report import Check, Report

Reading = Mapping[str, Any]
"""Numbers by name, as `readings` takes them from a study."""


@dataclass(frozen=True)
class Printed:
    """A run of the notebook of which only what it printed is known.

    Attributes:
        model: Fields of the model's config, all of which must be equal.
        saes: `hook_name`, `d_in`, `d_sae`, `activation` and `subtract_b_dec` of the source SAE and the target's.
        prompt: Token ids of the prompt.
        story_tokens: Length of the story.
        story_sha256: SHA-256 of its token ids, written as numbers with spaces between.
        feature: The target feature.
        source_feature: The source whose gradient and cosine were printed.
        numbers: What it printed, by the names of `readings`.
        digits: Decimals of those that were printed rounded to few.
        tolerance: Largest relative error of the others; it ran on another device.
    """

    model: Mapping[str, Any]
    saes: Sequence[Mapping[str, Any]]
    prompt: Sequence[int]
    story_tokens: int
    story_sha256: str
    feature: int
    source_feature: int
    numbers: Reading
    digits: Mapping[str, int] = field(default_factory=dict)
    tolerance: float = OTHER_DEVICE


_SAE = {"d_in": 4096, "d_sae": 16384, "activation": "relu", "subtract_b_dec": True}

ORIGINAL = Printed(
    model={
        "n_layers": 2,
        "d_model": 1024,
        "n_heads": 16,
        "d_head": 64,
        "d_mlp": 4096,
        "d_vocab": 50257,
        "attention": ("global", "local"),
        "window": 256,
        "eps": 1e-5,
        "attention_scale": 1.0,
        "bos_token_id": 50256,
    },
    saes=[{"hook_name": f"blocks.{layer}.mlp.hook_post", **_SAE} for layer in range(2)],
    prompt=[50256, 1544, 550, 284, 1037, 40355, 13, 679, 373, 546],  # "He had to help Daisy. He was about"
    story_tokens=83,
    story_sha256="46f73850cb49af46c3a9d9f045c220d9ec30e59bb2bda12207eeea8cfe422377",
    feature=880,
    source_feature=7105,
    numbers={
        "positions": 10,
        "feature_act": 7.4160,
        "nudged_act": 7.4174,
        "rise": 0.0014,
        "gradient": -0.56612,
        "cosine": 0.43066,
        "active_source_features": 75,
        "top_neurons": [2084, 4089, 1671, 3506, 3018, 1117, 1261, 2340, 888, 3920],
        "prompt_targets": 13,
        "hook_gradients_shape": [13, 10, 4096],
        "story_pairs": 2435,
        "same_sign": 0.49,
        "same_sign_active": 0.52,
    },
    digits={"rise": 4, "same_sign": 2, "same_sign_active": 2},
)
"""TinyStories-2Layers-33M with 18_morning_sun on layer 0 and 8_deep_brook on layer 1, float32 on CUDA."""

MEANING = {
    "positions": "positions of the prompt, BOS first",
    "feature_act": "target feature at the last position, both SAEs spliced in",
    "nudged_act": "the same after the strongest neuron is nudged",
    "rise": "by how much the nudge raises it",
    "gradient": "gradient of minus the target on the source feature's direction",
    "cosine": "cosine of the two features' weights",
    "active_source_features": "source features above 0.1 at the last position",
    "top_neurons": "ten largest source neurons there, in order",
    "prompt_targets": "targets above 2 over all positions",
    "hook_gradients_shape": "shape of their gradients at the source hook",
    "story_pairs": "pairs above 1 at one position of the story, BOS left out",
    "same_sign": "derivative and cosine of one sign, of all source features",
    "same_sign_active": "the same, of the active ones",
}
"""What each number is."""


def readings(arrays: Mapping[str, np.ndarray], source_feature: int) -> dict[str, Any]:
    """The printed numbers, from a study's arrays: this package's, or another implementation's."""
    gradients, cosines = arrays["decoder_grads"], arrays["cosine_sims"]
    active = arrays["active_source_features"]
    same = np.sign(-gradients) == np.sign(cosines)
    return {
        "positions": len(arrays["prompt"]),
        "feature_act": float(arrays["feature_act"]),
        "nudged_act": float(arrays["nudged_act"]),
        "rise": float(arrays["nudged_act"]) - float(arrays["feature_act"]),
        "gradient": float(gradients[source_feature]),
        "cosine": float(cosines[source_feature]),
        "active_source_features": len(active),
        "top_neurons": arrays["top_neurons"].tolist(),
        "prompt_targets": len(arrays["prompt_targets"]),
        "hook_gradients_shape": list(arrays["prompt_hook_gradients"].shape),
        "story_pairs": len(arrays["story_pairs"]),
        "same_sign": float(same.mean()),
        "same_sign_active": float(same[active].mean()) if len(active) else 0.0,
    }


def compare_readings(printed: Printed, got: Reading) -> list[Check]:
    """A check a number: counts and lists are equal, rounded numbers within half a decimal, others relatively close."""
    checks = []
    for name, expected in printed.numbers.items():
        mine, what = got[name], MEANING[name]
        if name in printed.digits:
            allowed = 0.5 * 10.0 ** -printed.digits[name]
            allowed = 2 * allowed if name == "rise" else allowed  # a difference of two rounded numbers
            error = abs(mine - expected)
            checks.append(Check(what, expected, _short(mine), error, allowed, error <= allowed))
        elif isinstance(expected, float):
            error = error_of(np.array(mine), np.array(expected))
            checks.append(Check(what, expected, _short(mine), error, printed.tolerance, error <= printed.tolerance))
        else:
            checks.append(Check(what, _words(expected), _words(mine), None, None, mine == expected))
    return checks


def _short(number: float) -> float:
    return float(f"{number:.5g}")


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def check_bundle(bundle: Bundle, printed: Printed) -> None:
    """Refuses a bundle of another shape.

    Raises:
        InputError: The first field that differs is named.
    """

    def refuse(what: str, got: Any, expected: Any) -> None:
        raise InputError(
            f"this is not the original bundle: {what} is {got}, expected {expected}; convert the original weights, or "
            "use `jaxcircuits validate recorded` for others."
        )

    for name, expected in printed.model.items():
        if getattr(bundle.cfg, name) != expected:
            refuse(name, getattr(bundle.cfg, name), expected)
    by_hook = {sae.cfg.hook_name: sae.cfg for sae in bundle.saes.values()}
    if len(bundle.saes) != len(printed.saes):
        refuse("the number of SAEs", len(bundle.saes), len(printed.saes))
    for expected in printed.saes:
        cfg = by_hook.get(expected["hook_name"])
        if cfg is None:
            refuse("an SAE's hook", sorted(by_hook), expected["hook_name"])
        for name, value in expected.items():
            if getattr(cfg, name) != value:
                refuse(f"{name} of the SAE on {expected['hook_name']}", getattr(cfg, name), value)


def ids_sha256(ids: Sequence[int]) -> str:
    """SHA-256 of token ids, written as numbers with spaces between."""
    return hashlib.sha256(" ".join(str(int(i)) for i in ids).encode()).hexdigest()


def check_story(ids: np.ndarray, printed: Printed) -> None:
    """Refuses another story.

    Raises:
        InputError: It has other token ids; where it only lacks BOS, that is said.
    """
    if ids_sha256(ids.tolist()) == printed.story_sha256:
        return
    bos = printed.model.get("bos_token_id")
    if bos is not None and ids_sha256([bos, *ids.tolist()]) == printed.story_sha256:
        raise InputError(f"the story's token ids lack BOS; put {bos} first.")
    raise InputError(
        f"this is another story: its {len(ids)} token ids have sha256 {ids_sha256(ids.tolist())[:12]}…, expected "
        f"{printed.story_tokens} of {printed.story_sha256[:12]}…; give the first story of the TinyStories validation "
        "split, exactly."
    )


def validate_study(
    bundle: str | os.PathLike,
    *,
    story: str | None = None,
    story_ids: str | os.PathLike | None = None,
    arrays: str | os.PathLike | None = None,
    printed: Printed = ORIGINAL,
    quiet: bool = True,
) -> Report:
    """Compares the study of the original weights with what the original notebook printed and, where given, plotted.

    Args:
        bundle: The directory of the converted weights.
        story: The story's text.
        story_ids: Or a JSON file of its token ids.
        arrays: An .npz of what it plotted: `decoder_grads`, `cosine_sims`, `active_l0_features`,
            `story_pair_abs_grad` and `story_pair_abs_cosine`.
        printed: The run; another one's numbers may be given.
        quiet: Whether to show no progress.

    Raises:
        InputError: The bundle or the story is another, no story was given, or the arrays cannot be read.
    """
    plotted = None if arrays is None else read_plotted(arrays)
    loaded = load_bundle(bundle)
    check_bundle(loaded, printed)
    ids = _story_ids(loaded, story, story_ids)
    check_story(ids, printed)
    checks = []
    if loaded.tokenizer is not None and printed is ORIGINAL:
        cut = loaded.tokenize("He had to help Daisy. He was about").tolist()
        checks.append(
            Check(
                "token ids of the prompt",
                _words(list(printed.prompt)),
                _words(cut),
                None,
                None,
                cut == list(printed.prompt),
            )
        )
    computed, _, _ = study_arrays(loaded, np.array(printed.prompt, np.int32), ids, feature=printed.feature)
    checks += compare_readings(printed, readings(computed, printed.source_feature))
    if plotted is not None:
        checks += compare_plotted(plotted, computed, printed.tolerance)
    conditions = {
        "bundle": str(loaded.path),
        "expected": "what the original notebook printed: float32 on CUDA, PyTorch and TransformerLens",
        "target feature, source feature": f"{printed.feature}, {printed.source_feature}",
        "prompt, story": f"{len(printed.prompt)} and {len(ids)} tokens, BOS first",
        "sign": "gradients are of minus the activation",
        "arrays": "not given, so scalars only" if arrays is None else str(arrays),
        "ours": f"jax {jax.__version__} on {jax.devices()[0].device_kind}, float32",
    }
    return Report("The original study", conditions, checks)


def _story_ids(bundle: Bundle, text: str | None, file: str | os.PathLike | None) -> np.ndarray:
    from jaxcircuits.bulk import read_prompts

    if text is None and file is None:
        raise InputError(
            "the story is not shipped; give the first of the TinyStories validation split with --story TEXT, or its "
            "token ids with --story-ids FILE."
        )
    return read_prompts(bundle, texts=() if text is None else [text], ids_file=file).ids[0]


PLOTTED = ("decoder_grads", "cosine_sims", "active_l0_features", "story_pair_abs_grad", "story_pair_abs_cosine")
"""Arrays that the notebook plotted."""


def read_plotted(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays that the notebook plotted.

    Raises:
        InputError: The file is missing, damaged, or lacks one.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in PLOTTED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"--reference: {path} is no .npz with {', '.join(PLOTTED)} ({error}); check the path."
        ) from None
    return arrays


def compare_plotted(
    plotted: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], tolerance: float
) -> list[Check]:
    """A check an array; of the pairs the notebook kept absolute values, in order of position, target and source."""
    pairs = arrays["story_pairs"]
    order = np.lexsort((pairs[:, 2], pairs[:, 1], pairs[:, 0]))
    mine = {
        "decoder_grads": arrays["decoder_grads"],
        "cosine_sims": arrays["cosine_sims"],
        "story_pair_abs_grad": np.abs(arrays["story_gradients"])[order],
        "story_pair_abs_cosine": np.abs(arrays["story_cosines"])[order],
    }
    checks = []
    for name, value in mine.items():
        error = error_of(value, plotted[name])
        expected, got = (" × ".join(map(str, x.shape)) for x in (plotted[name], value))
        checks.append(Check(f"array {name}", expected, got, error, tolerance, error <= tolerance))
    theirs, ours = plotted["active_l0_features"].tolist(), arrays["active_source_features"].tolist()
    apart = sorted(set(theirs) ^ set(ours))
    note = f"listed on one side only: {' '.join(map(str, apart))}" if apart else ""
    checks.append(
        Check("array active_l0_features", f"{len(theirs)} listed", f"{len(ours)} listed", None, None, not apart, note)
    )
    return checks
