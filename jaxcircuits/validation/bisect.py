"""`validate bisect`: the first hook point where two implementations part, and whether that is noise or a bug."""

import os
from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np

from jaxcircuits.errors import InputError
from jaxcircuits.model import hook_names
from jaxcircuits.validation.compare import error_of
from jaxcircuits.validation.quantities import Values
from jaxcircuits.validation.recorded import compare_all, conditions_of, setup_of, stored_bundle
from jaxcircuits.validation.reference import TOLERANCES, Reference, kept
from jaxcircuits.validation.report import Check, Report

NOISE = 30.0
"""A float32 difference of up to so many times what float32 costs this package alone is rounding."""


def bisect(bundle: str | os.PathLike | None, references: Mapping[str, Reference], *, quiet: bool = True) -> Report:
    """Compares hook by hook, in the order of the forward pass; the last row is the logits.

    Noise and bug are told apart in float64. Where theirs is known in float64, a difference that stays there is a bug,
    whatever float32 shows, and one that goes is noise. Where it is known in float32 alone, it is a bug if it exceeds
    the tolerance and is more than `NOISE` times the difference between this package's own float32 and float64.

    Args:
        bundle: A bundle's directory; the shipped one by default.
        references: Theirs, by dtype: `float32`, `float64` or both, on the same inputs, with hook activations.
        quiet: Whether to show no progress.

    Raises:
        InputError: A reference was recorded on other weights, or has no hook activations.
    """
    ours: dict[str, Values] = {}
    causes: list[str] = []
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            stored = stored_bundle(bundle, dtype)
            reference = references.get(dtype, next(iter(references.values())))
            setup = setup_of(stored, reference)
            ours[dtype] = setup.compute("model")
    names = [f"hook.{name}" for name in hook_names(stored.cfg)] + ["logits"]
    some = next(iter(references.values()))
    names = [name for name in names if name in some.quantities]
    if len(names) < 2:
        raise InputError("the reference has no hook activations to walk; record one with scripts/record_reference.py.")

    errors: dict[str, dict[str, float]] = {}
    for name in names:
        errors[name] = {
            dtype: error_of(kept(name, ours[dtype][name], r.quantities[name].stride), r.arrays[name])
            for dtype, r in references.items()
        }
        errors[name]["rounding"] = error_of(ours["float32"][name], ours["float64"][name])
    checks = [_check(name, errors[name], references) for name in names]
    first = next((check for check in checks if not check.ok), None)
    if first is not None:
        dtype = "float64" if "float64" in references else "float32"
        reference = _only(references[dtype], ("weights.", "hook.", "logits"))
        with jax.enable_x64(dtype == "float64"):
            setup = setup_of(stored_bundle(bundle, dtype), reference)
            causes = compare_all(
                reference, setup, references[dtype].tolerance, groups=("weights", "model"), quiet=quiet
            ).causes
        why = f"it agrees if theirs {causes[0]}" if causes else "no known port error explains it"
        checks = [replace(c, note=f"the first; {why}") if c is first else c for c in checks]
    loudest = max(names, key=lambda name: errors[name].get("float32", 0.0))
    findings = {
        "causes": causes,
        "first": None if first is None else first.quantity,
        "verdict": _verdict(checks, first, errors, loudest, references),
        "errors": errors,
    }
    dtypes = " and ".join(references)
    conditions = conditions_of(stored, some, dtypes)
    del conditions["target feature"]
    return Report("The first hook point where two implementations part", conditions, checks, findings)


def _only(reference: Reference, prefixes: tuple[str, ...]) -> Reference:
    names = [name for name in reference.quantities if name.startswith(prefixes)]
    arrays = {name: reference.arrays[name] for name in names}
    return replace(reference, arrays=arrays, quantities={name: reference.quantities[name] for name in names})


def _check(name: str, error: Mapping[str, float], references: Mapping[str, Reference]) -> Check:
    """Whether a hook's values are the same but for rounding."""
    rounding = error["rounding"]
    if "float64" in references:
        tolerance = references["float64"].tolerance
        ok, shown = error["float64"] <= tolerance, error["float64"]
        noisy = "float32" in references and error["float32"] > TOLERANCES["float32"]
        note = "noise: it goes away in float64" if ok and noisy else ""
    else:
        tolerance = references["float32"].tolerance
        shown = error["float32"]
        noisy = shown > tolerance
        ok = not noisy or shown <= NOISE * rounding
        note = "noise: as large as this package's own float32 rounding" if ok and noisy else ""
    expected = f"float32 {error['float32']:.1e}" if "float32" in error else ""
    return Check(name.removeprefix("hook."), expected, f"rounding {rounding:.1e}", shown, tolerance, ok, note)


def _verdict(
    checks: list[Check],
    first: Check | None,
    errors: Mapping[str, Mapping[str, float]],
    loudest: str,
    references: Mapping[str, Reference],
) -> str:
    if first is not None:
        before = next(i for i, check in enumerate(checks) if not check.ok)
        agree = f"the {before} before it agree" if before else "it is the first of all"
        kind = "a bug" if "float64" in references else "more than rounding"
        return f"They part at {first.quantity}: {kind} ({agree})."
    where = "float64" if "float64" in references else "float32"
    worst = max(float(np.max(errors[c][where])) for c in errors)
    return f"They do not part: at most {worst:.1e} apart in {where} over {len(checks)} hook points" + (
        f", and in float32 {errors[loudest]['float32']:.1e} at {loudest}, which is rounding."
        if where == "float64" and "float32" in references
        else "."
    )
