"""Two implementations' quantities side by side: an error for each array, and what is present in one alone."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxcircuits.study import LISTED_SOURCE, PROMPT_SOURCE, PROMPT_TARGET, STORY_SOURCE, STORY_TARGET
from jaxcircuits.validation.reference import OTHER_DEVICE, ROWS, TOLERANCES, Reference, kept, norm
from jaxcircuits.validation.report import Check

BORDER = 1e-5
"""An edge's presence may differ where an activation lies so close to its threshold, relatively."""

_LISTED = {
    "active_source_features": [("prompt_source_acts", LISTED_SOURCE, None)],
    "prompt_targets": [("prompt_target_acts", PROMPT_TARGET, (0, 1))],
    "prompt_sources": [("prompt_source_acts", PROMPT_SOURCE, (0, 1))],
    "story_pairs": [("features.target", STORY_TARGET, (0, 1)), ("features.source", STORY_SOURCE, (0, 2))],
}
"""Lists of what is above a threshold: of which activations, and which columns index them (`None`: the last row)."""

_AXES = {
    "prompt_gradients": ("prompt_targets", "prompt_sources"),
    "prompt_hook_gradients": ("prompt_targets",),
    "story_gradients": ("story_pairs",),
    "story_cosines": ("story_pairs",),
}
"""Which list each axis of an array follows."""


def error_of(ours: np.ndarray, theirs: np.ndarray, unit: float = 0.0) -> float:
    """max |a - b| / max |b| over finite numbers; infinite where shapes, infinities or NaN differ.

    Args:
        ours: What is checked.
        theirs: What it is compared with.
        unit: The least that counts as the largest of them; for sums whose terms may cancel.

    >>> import numpy as np
    >>> round(error_of(np.array([1.0, 2.0]), np.array([1.0, 2.5])), 3)
    0.2
    """
    if ours.shape != theirs.shape:
        return float("inf")
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite]):
        return float("inf")
    a, b = a[finite], b[finite]
    difference = np.abs(a - b).max(initial=0.0)
    if not difference:
        return 0.0
    scale = max(np.abs(b).max(), unit)
    return float(difference / scale) if scale and np.isfinite(difference) else float("inf")


def border_of(tolerance: float) -> float:
    """How near its threshold an activation may be present on one side only."""
    return BORDER if tolerance < OTHER_DEVICE else tolerance


def compare(
    reference: Reference,
    ours: Mapping[str, np.ndarray],
    names: Sequence[str],
    tolerance: float,
    units: Mapping[str, float],
) -> list[Check]:
    """One check a quantity.

    Args:
        reference: What is compared with.
        ours: Quantities by name, whole; activations too where lists are compared.
        names: Which of the reference's quantities.
        tolerance: Largest error that holds.
        units: `error_of`'s unit, of some.
    """
    rows = {name: _common(reference.arrays[name], ours[name]) for name in _LISTED if name in names}
    return [_check(reference, ours, name, tolerance, units.get(name, 0.0), rows) for name in names]


def _check(
    reference: Reference,
    ours: Mapping[str, np.ndarray],
    name: str,
    tolerance: float,
    unit: float,
    rows: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Check:
    theirs, mine, about = reference.arrays[name], ours[name], reference.quantities[name]
    if name in _LISTED:
        return _check_list(name, theirs, ours, tolerance)
    if name == "top_neurons":
        return _check_order(theirs, mine, ours["prompt_neurons"], tolerance)
    axes = [rows[listed] for listed in _AXES.get(name, ()) if listed in rows]
    whole = all(len(a) == n and len(b) == m for (a, b), n, m in zip(axes, mine.shape, about.shape, strict=False))
    expected_shape = about.shape
    if not whole:  # what both list
        for axis, (at_mine, at_theirs) in enumerate(axes):
            mine = np.take(mine, at_mine, axis)
            theirs = np.take(theirs, at_theirs, axis)
            expected_shape = (*expected_shape[:axis], len(at_theirs), *expected_shape[axis + 1 :])
    if mine.shape != expected_shape:
        return Check(name, f"shape {list(about.shape)}", f"shape {list(mine.shape)}", None, tolerance, False)
    sampled = kept(name, mine, about.stride)
    if name in ROWS:
        errors = [error_of(a, b, unit) for a, b in zip(sampled, theirs, strict=True)]
        error = max(errors, default=0.0)
    else:
        error = error_of(sampled, theirs, unit)
    if whole and about.stride > 1:  # the numbers that were not kept count too
        error = max(error, error_of(np.array(norm(mine)), np.array(about.norm), unit))
    if mine.size == 1:
        expected, got = (f"{np.asarray(x).item():.6g}" for x in (theirs, mine))
    else:
        expected, got = _words(about.shape), _words(mine.shape)
    return Check(name, expected, got, error, tolerance, error <= tolerance)


def _words(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "1"


def _common(theirs: np.ndarray, mine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions, in ours and in theirs, of what both list."""
    place = {row: i for i, row in enumerate(map(tuple, mine.reshape(len(mine), -1).tolist()))}
    both = [(place[r], i) for i, r in enumerate(map(tuple, theirs.reshape(len(theirs), -1).tolist())) if r in place]
    at = np.array(both, np.int64).reshape(-1, 2)
    return at[:, 0], at[:, 1]


def _check_list(name: str, theirs: np.ndarray, ours: Mapping[str, np.ndarray], tolerance: float) -> Check:
    """Equal but for what lies within rounding of a threshold, which is listed."""
    listed = [set(map(tuple, x.reshape(len(x), -1).tolist())) for x in (theirs, ours[name])]
    apart = sorted(listed[0] ^ listed[1])
    far = [row for row in apart if not _at_border(name, row, ours, border_of(tolerance))]
    note = ""
    if far:
        where = "the reference" if far[0] in listed[0] else "ours"
        note = f"{len(far)} listed on one side only, such as {list(far[0])} in {where}"
    elif apart:
        note = f"at the threshold, listed on one side only: {', '.join(str(list(row)) for row in apart)}"
    return Check(name, f"{len(theirs)} listed", f"{len(ours[name])} listed", None, None, not far, note)


def _at_border(name: str, row: tuple[int, ...], ours: Mapping[str, np.ndarray], border: float) -> bool:
    for acts, threshold, columns in _LISTED[name]:
        at = (-1, row[0]) if columns is None else tuple(row[c] for c in columns)
        array = ours[acts]
        if (
            all(i < n for i, n in zip(at, array.shape, strict=True))
            and abs(array[at] - threshold) <= border * threshold
        ):
            return True
    return False


def _check_order(theirs: np.ndarray, mine: np.ndarray, values: np.ndarray, tolerance: float) -> Check:
    """The same order but for values that rounding can swap."""
    same = theirs.shape == mine.shape
    if same and not np.array_equal(theirs, mine):
        apart = np.abs(values[theirs] - values[mine]).max()
        same = bool(apart <= border_of(tolerance) * np.abs(values).max())
    expected, got = (" ".join(map(str, x.tolist())) for x in (theirs, mine))
    return Check("top_neurons", expected, got, None, None, same)


def tolerance_of(reference: Reference, dtype: str) -> float:
    """What holds against a reference when this package computes in `dtype`."""
    return max(reference.tolerance, TOLERANCES[dtype])


def hold(checks: Sequence[Check]) -> bool:
    """Whether all do."""
    return all(check.ok for check in checks)


def merged(checks: Sequence[Check]) -> list[Check]:
    """Weights, and hooks, as one check each that names the worst; the rest as they are."""
    found: list[Check] = []
    for kind, what in (("weights.", "processed weights"), ("hook.", "hook activations")):
        of_kind = [check for check in checks if check.quantity.startswith(kind)]
        if not of_kind:
            continue
        worst = max(of_kind, key=lambda c: (not c.ok, float("inf") if c.error is None else c.error))
        failed = [c for c in of_kind if not c.ok]
        note = f"{'first to fail' if failed else 'largest'}: {(failed or [worst])[0].quantity.removeprefix(kind)}"
        note = f"{len(failed)} fail; {note}" if failed else note
        held = f"{len(of_kind) - len(failed)} agree"
        found.append(Check(what, f"{len(of_kind)} arrays", held, worst.error, worst.tolerance, not failed, note))
    return [*found, *(c for c in checks if not c.quantity.startswith(("weights.", "hook.")))]
