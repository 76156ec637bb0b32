"""`validate recorded`: every quantity of a bundle against a reference, and the name of what differs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcircuits.bundle import Bundle, load_bundle, shipped_bundle
from jaxcircuits.errors import InputError
from jaxcircuits.progress import progress
from jaxcircuits.types import named_weights
from jaxcircuits.validation.compare import compare, hold, merged, tolerance_of
from jaxcircuits.validation.hypotheses import hypotheses
from jaxcircuits.validation.quantities import GROUPS, Setup, Values
from jaxcircuits.validation.reference import Reference, read_reference
from jaxcircuits.validation.report import Check, Report


def shipped_reference() -> Path:
    """The recording of the shipped bundle."""
    return shipped_bundle() / "reference.npz"


def group_of(quantity: str) -> str:
    """The group a quantity belongs to."""
    kind = quantity.split(".")[0]
    if kind == "weights":
        return "weights"
    if kind in ("hook", "logits", "token_losses", "loss"):
        return "model"
    return "saes" if kind == "features" else "study"


def stored_bundle(path: str | os.PathLike | None, dtype: str) -> Bundle:
    """A bundle with its unprocessed weights, in a dtype; `float64` within JAX's x64 mode."""
    return load_bundle(path, dtype=jnp.dtype(dtype), processed=False)


def weight_hashes(bundle: Bundle, saes: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files that hold the model and some SAEs, as the manifest has them."""
    sums = bundle.manifest["sha256"]
    return {name: sums[name] for name in ("model.safetensors", *(f"saes/{sae}/sae.safetensors" for sae in saes))}


def setup_of(bundle: Bundle, reference: Reference) -> Setup:
    """What this package computes to compare with a reference.

    Raises:
        InputError: The weights, an SAE or the inputs are not those that it was recorded on.
    """
    names = [reference.inputs["source_sae"], reference.inputs["target_sae"]]
    for name in names:
        if name not in bundle.saes:
            raise InputError(
                f"the reference is of the SAE {name}, which the bundle lacks; it has {', '.join(bundle.saes)}."
            )
    ours = weight_hashes(bundle, names) if reference.weights else {}
    for file, expected in reference.weights.items():
        if ours.get(file) != expected:
            raise InputError(
                f"the reference was recorded on other weights: {file} has sha256 {expected[:12]}… there and "
                f"{(ours.get(file) or 'none')[:12]}… in the bundle; name the bundle it is of, or record this one."
            )
    for what in ("prompt", "story"):
        ids = getattr(reference, what)
        if len(ids) > bundle.cfg.n_ctx or not all(0 <= i < bundle.cfg.d_vocab for i in ids):
            raise InputError(
                f"the reference's {what} does not fit the model, which has a context of {bundle.cfg.n_ctx} tokens and "
                f"ids below {bundle.cfg.d_vocab}; name the bundle it is of."
            )
    saes = {name: bundle.saes[name] for name in names}
    return Setup(bundle.cfg, bundle.params, saes, reference.prompt, reference.story, reference.inputs["feature"])


@dataclass(frozen=True)
class Comparison:
    """A reference and our side of it.

    Attributes:
        checks: One for each quantity.
        causes: What the other implementation does differently, as far as hypotheses explain it.
    """

    checks: list[Check]
    causes: list[str]


def compare_all(
    reference: Reference, setup: Setup, tolerance: float, *, groups: Sequence[str] = GROUPS, quiet: bool = True
) -> Comparison:
    """Compares group by group; where one disagrees, looks for a hypothesis under which it agrees.

    Groups build on each other, so one that disagrees is looked at under the hypotheses that held before: what follows
    from an earlier cause is said to, and a second cause is found behind a first.

    Raises:
        InputError: The reference has a quantity that a model of this kind has not.
    """
    ours: Values = {}
    checks: list[Check] = []
    causes: list[str] = []
    supposed = setup
    with progress(quiet) as bar:
        task = bar.add_task("comparing", total=len(groups))
        for group in groups:
            names = [name for name in reference.quantities if group_of(name) == group]
            if names:
                ours |= setup.compute(group)
                unknown = [name for name in names if name not in ours]
                if unknown:
                    raise InputError(
                        f"the reference has {unknown[0]}, which this model has not; name the bundle it is of."
                    )
                made = _compare(reference, setup, ours, names, tolerance)
                if not hold(made):
                    why, supposed = _explain(reference, supposed, group, names, tolerance, causes)
                    made = [c if c.ok else replace(c, note="; ".join(filter(None, (c.note, why)))) for c in made]
                checks += made
            bar.advance(task)
    return Comparison(checks, causes)


def _compare(
    reference: Reference, setup: Setup, ours: Mapping[str, np.ndarray], names: Sequence[str], tolerance: float
) -> list[Check]:
    # Biases that folding adds up may cancel, so rounding is judged by what went in.
    stored = named_weights(setup.stored)
    units = {f"weights.{n}": float(jnp.abs(w).max()) for n, w in stored.items() if n.endswith(("b_O", "b_U"))}
    return compare(reference, ours, names, tolerance, units)


def _explain(
    reference: Reference, supposed: Setup, group: str, names: Sequence[str], tolerance: float, causes: list[str]
) -> tuple[str, Setup]:
    """Why a group disagrees, in words, and the setup under which it does not; new causes are added to `causes`."""

    def agrees(setup: Setup) -> bool:
        # Lists of what is active are compared by activations, which another group holds.
        groups = [group] if group != "study" else ["saes", "study"]
        ours: Values = {}
        for one in groups:
            ours |= setup.compute(one)
        return hold(_compare(reference, setup, ours, names, tolerance))

    if supposed.edits is not None and group == "study":
        return "the study is not recomputed under that", supposed
    if causes and agrees(supposed):
        return f"it agrees if theirs {causes[-1]}", supposed
    for hypothesis in hypotheses(supposed):
        # One of a later group leaves this as it is; one of an earlier would have been found there, were that compared.
        if GROUPS.index(hypothesis.group) > GROUPS.index(group) or not _applies(hypothesis.group, reference, group):
            continue
        changed = hypothesis.change(supposed)
        if changed.edits is not None and group == "study":
            continue
        if agrees(changed):
            causes.append(hypothesis.name)
            return f"it agrees if theirs {hypothesis.name}", changed
    return "no known port error explains it", supposed


def _applies(of: str, reference: Reference, group: str) -> bool:
    return of == group or not any(group_of(name) == of for name in reference.quantities)


def validate_recorded(
    bundle: str | os.PathLike | None = None,
    reference: Reference | str | os.PathLike | None = None,
    *,
    dtype: str | None = None,
    quiet: bool = True,
) -> Report:
    """Compares everything that a reference holds with what this package computes.

    Args:
        bundle: A bundle's directory; the shipped one by default.
        reference: A reference, or its file; by default the recording of the shipped bundle.
        dtype: What to compute in; what the reference was computed in by default.
        quiet: Whether to show no progress.

    Raises:
        InputError: The reference cannot be read, or was recorded on other weights.
    """
    if not isinstance(reference, Reference):
        reference = read_reference(reference or shipped_reference())
    dtype = dtype or reference.dtype
    with jax.enable_x64(dtype == "float64"):
        stored = stored_bundle(bundle, dtype)
        setup = setup_of(stored, reference)
        tolerance = tolerance_of(reference, dtype)
        tokens = _check_tokens(stored, reference)
        found = compare_all(reference, setup, tolerance, quiet=quiet)
    conditions = conditions_of(stored, reference, dtype) | {"tolerance": tolerance}
    findings = {"causes": found.causes, "errors": {c.quantity: c.error for c in found.checks}}
    return Report("Numbers against another implementation", conditions, [*tokens, *merged(found.checks)], findings)


def _check_tokens(bundle: Bundle, reference: Reference) -> list[Check]:
    """Whether this package makes the recorded token ids of the recorded texts; nothing where only ids were given."""
    checks = []
    for what in ("prompt", "story"):
        text = reference.inputs.get(f"{what}_text")
        if text is None or bundle.tokenizer is None:
            continue
        theirs, ours = getattr(reference, what).tolist(), bundle.tokenize(text).tolist()
        note = "" if theirs == ours else "the texts are cut into other tokens"
        if theirs == ours[1:]:
            note = "theirs is without BOS"
        expected, got = (f"{len(ids)} ids: {' '.join(map(str, ids[:4]))} …" for ids in (theirs, ours))
        checks.append(Check(f"tokens of the {what}", expected, got, None, None, theirs == ours, note))
    return checks


def conditions_of(bundle: Bundle, reference: Reference, dtype: str) -> dict[str, Any]:
    """What a report says of where its numbers come from."""
    cfg = bundle.cfg
    local = "local" in cfg.attention
    window = (
        f"{cfg.window}, shorter than the story" if cfg.window < len(reference.story) else f"{cfg.window}, not reached"
    )
    versions = ", ".join(f"{name} {version}" for name, version in reference.framework.items())
    return {
        "bundle": str(bundle.path),
        "model": f"{cfg.n_layers} layers, d_model {cfg.d_model}, d_mlp {cfg.d_mlp}, vocabulary {cfg.d_vocab}",
        "SAEs": ", ".join(f"{reference.inputs[end]}" for end in ("source_sae", "target_sae")),
        "prompt, story": f"{len(reference.prompt)} and {len(reference.story)} tokens",
        "target feature": reference.inputs["feature"],
        **({"local window": window} if local else {}),
        "theirs": f"{versions} on {reference.device}, {reference.dtype}",
        "ours": f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {dtype}",
    }
