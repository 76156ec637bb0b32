"""Which runs a sweep has: every combination of some settings' values."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from jaxcircuits.errors import InputError
from jaxcircuits.training.settings import SAETraining

SHARED = ("tokens", "batch_tokens", "buffer_tokens", "spliced", "text_seed")
"""What the batches depend on, which all runs of a sweep share."""


def parse_sweep(options: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Values by setting, from options such as `l0=10,20,40`.

    Raises:
        InputError: An option has another form, names no setting or one that all runs share, or repeats itself.

    >>> from jaxcircuits.training.sweep import parse_sweep
    >>> parse_sweep(["l0=10,20", "penalty=l1,l1+0.1*hoyer_square"])
    {'l0': (10.0, 20.0), 'penalty': ('l1', 'l1+0.1*hoyer_square')}
    """
    kinds = {field.name: type(field.default) for field in fields(SAETraining)}
    values: dict[str, tuple[Any, ...]] = {}
    for option in options:
        given, equals, listed = option.partition("=")
        name = given.strip().replace("-", "_")
        if not equals or name not in kinds or name in values:
            raise InputError(f"--sweep expected SETTING=VALUE,VALUE,... with each setting once, got {option!r}.")
        if name in SHARED:
            raise InputError(f"--sweep cannot vary {name}, on which the shared batches depend; run each by itself.")
        try:
            values[name] = tuple(kinds[name](word.strip()) for word in listed.split(","))
        except ValueError:
            raise InputError(f"--sweep {name} expected numbers separated by commas, got {listed!r}.") from None
        if len(set(values[name])) < len(values[name]):
            raise InputError(f"--sweep {name} expected different values, got {listed!r}.")
    return values


def sweep_runs(settings: SAETraining, values: Mapping[str, Sequence[Any]]) -> dict[str, SAETraining]:
    """The settings of each run, by a name that tells what it differs in.

    All read the text in the order of `settings`, whatever their seed.

    Raises:
        InputError: A combination is impossible.

    >>> from jaxcircuits.training.settings import SAETraining
    >>> from jaxcircuits.training.sweep import sweep_runs
    >>> list(sweep_runs(SAETraining(), {"l0": (10.0, 20.0), "seed": (0, 1)}))
    ['l0=10,seed=0', 'l0=10,seed=1', 'l0=20,seed=0', 'l0=20,seed=1']
    """
    runs = {}
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        # A name is a directory's: some file systems have no asterisk.
        name = ",".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in chosen.items())
        try:
            runs[name.replace("*", "x")] = replace(settings, **chosen, text_seed=settings.order)
        except InputError as error:
            raise InputError(f"the sweep's run {name}: {error}") from None
    return runs


def described_runs(runs: Mapping[str, SAETraining]) -> dict[str, Any]:
    """What all runs have in common, and under `runs` what each has of its own."""
    every = {name: asdict(run) for name, run in runs.items()}
    first = next(iter(every.values()))
    common = {k: v for k, v in first.items() if all(run[k] == v for run in every.values())}
    own = {name: {k: v for k, v in run.items() if k not in common} for name, run in every.items()}
    return {**common, "runs": own}
