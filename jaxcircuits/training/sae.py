"""Training of autoencoders on one hook point: one run, or several at once on the same activations.

Two phases. First the values themselves are reconstructed, at shuffled tokens of many stories. Then the autoencoder is
spliced into the model, which it shall change as little as possible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.model import hook_width
from jaxcircuits.rows import bundle_rows
from jaxcircuits.sae import SAE
from jaxcircuits.training.activations import ActivationBuffer, StoryBatches
from jaxcircuits.training.coding import Form, Knobs
from jaxcircuits.training.devices import all_devices
from jaxcircuits.training.loop import CHECKPOINT_EVERY, Metrics, train
from jaxcircuits.training.sae_state import SAEState, form_of, initial_state, trained, with_numbers
from jaxcircuits.training.sae_update import reconstruction_update, spliced_update
from jaxcircuits.training.settings import SAETraining
from jaxcircuits.types import ModelWeights

STACKED = (*(name for name in Knobs._fields if name != "penalties"), "penalty", "sparsity", "seed")
"""Settings in which runs may differ that one compiled step advances together."""


class _Group(NamedTuple):
    """Runs that are stacked; one alone is not."""

    form: Form
    runs: Mapping[str, SAETraining]


class _Runs(NamedTuple):
    """What a training goes on from: the state of each group."""

    step: Int[Array, ""] | Any
    groups: tuple[SAEState, ...]


def train_sae(
    bundle: Bundle,
    hook_name: str,
    texts: Sequence[str],
    settings: SAETraining,
    out: Path,
    *,
    quiet: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> SAE:
    """Trains an autoencoder, or goes on where a run in `out` stopped.

    Args:
        bundle: The model that is read; its own autoencoders play no part.
        hook_name: The hook point; one with a vector a position, not one a head.
        texts: One story each.
        settings: The run's settings.
        out: Its directory, made by `run_directory`.
        quiet: No progress bar.
        checkpoint_every: Steps between checkpoints.

    Raises:
        InputError: The model has no such hook point, training diverged, or the devices cannot share a batch.
    """
    logs = {"": out / "metrics.jsonl"}
    runs = {"": settings}
    return train_saes(bundle, hook_name, texts, runs, out, logs, quiet=quiet, checkpoint_every=checkpoint_every)[""]


def train_saes(
    bundle: Bundle,
    hook_name: str,
    texts: Sequence[str],
    runs: Mapping[str, SAETraining],
    out: Path,
    logs: Mapping[str, Path],
    *,
    quiet: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> dict[str, SAE]:
    """Trains several autoencoders at once on the same batches; arguments and errors as of `train_sae`.

    Args:
        bundle: The model that is read.
        hook_name: The hook point.
        texts: One story each.
        runs: Settings by name. Those that the batches depend on are the same for all.
        out: Where the checkpoint is.
        logs: Where each run's metrics are.
        quiet: No progress bar.
        checkpoint_every: Steps between checkpoints.
    """
    hook_width(bundle.cfg, hook_name)
    settings = next(iter(runs.values()))
    devices = all_devices(settings.batch_tokens)
    rows = bundle_rows(bundle, texts)
    buffer = ActivationBuffer(bundle, hook_name, rows, settings)
    stories = StoryBatches(rows, bundle.cfg.n_ctx, settings)
    model = devices.everywhere(bundle.params)
    first = settings.reconstruction_steps
    groups = _grouped(runs)

    def batch_at(number: int) -> tuple[Any, int]:
        return devices.spread(buffer(number) if number < first else stories(number - first)), number

    def step(state: _Runs, batch: tuple[Any, int]) -> tuple[_Runs, tuple[Metrics, ...]]:
        values, number = batch
        states, metrics = [], []
        for group, of_group in zip(groups, state.groups, strict=True):
            stacked = len(group.runs) > 1
            if number < first:
                new, its_metrics = reconstruction_step(of_group, values, jnp.int32(number), group.form, stacked)
            else:
                new, its_metrics = _spliced(of_group, values, model, bundle.cfg, hook_name, group.form, stacked)
            states.append(new)
            metrics.append(its_metrics)
        return _Runs(np.int32(number + 1), tuple(states)), tuple(metrics)

    def split(means: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
        lines = {}
        for group, of_group in zip(groups, means, strict=True):
            for i, name in enumerate(group.runs):
                lines[name] = {k: v[i] if isinstance(v, list) else v for k, v in of_group.items()}
        return lines

    start = _Runs(np.int32(0), _first_states(bundle, hook_name, buffer, groups))
    state = train(
        devices.everywhere(start),
        step,
        batch_at,
        settings.steps,
        out,
        label=hook_name,
        logs=logs,
        split=split,
        checkpoint_every=checkpoint_every,
        quiet=quiet,
    )
    saes = {}
    for group, of_group in zip(groups, state.groups, strict=True):
        for i, (name, run) in enumerate(group.runs.items()):
            alone = of_group if len(group.runs) == 1 else jax.tree.map(lambda leaf, i=i: leaf[i], of_group)
            saes[name] = trained(alone, hook_name, run)
    return {name: saes[name] for name in runs}


def _grouped(runs: Mapping[str, SAETraining]) -> list[_Group]:
    """Runs that may be stacked, together."""
    found: dict[Any, dict[str, SAETraining]] = {}
    for name, run in runs.items():
        key = tuple((k, v) for k, v in asdict(run).items() if k not in STACKED)
        found.setdefault(key, {})[name] = run
    return [_Group(form_of(list(of_group.values())), of_group) for of_group in found.values()]


def _first_states(
    bundle: Bundle, hook_name: str, buffer: ActivationBuffer, groups: Sequence[_Group]
) -> tuple[SAEState, ...]:
    """The stacked states before the first step; equal beginnings are computed once."""
    begun: dict[Any, SAEState] = {}
    states = []
    for form, runs in groups:
        of_group = []
        for run in runs.values():
            key = (run.seed, run.expansion, run.activation)
            if key not in begun:
                begun[key] = initial_state(bundle, hook_name, buffer, run, form)
            of_group.append(with_numbers(begun[key], run, form))
        states.append(jax.tree.map(_stacked, *of_group))
    return tuple(states)


def _stacked(*leaves: Array) -> Array:
    """One run's leaf alone has no axis of runs. A copy: a step gives the memory of the old state to the new one."""
    one, *others = leaves
    return jnp.stack(leaves) if others else jnp.copy(one)


@partial(jax.jit, static_argnames=("form", "stacked"), donate_argnums=0)
def reconstruction_step(
    state: SAEState, values: Float[Array, "tokens d_in"], number: Int[Array, ""], form: Form, stacked: bool
) -> tuple[SAEState, Metrics]:
    """One step of the first phase, of one run or of runs that are stacked."""
    update = partial(reconstruction_update, form=form)
    return (jax.vmap(update, (0, None, None)) if stacked else update)(state, values, number)


@partial(jax.jit, static_argnames=("cfg", "hook_name", "form", "stacked"), donate_argnums=0)
def _spliced(
    state: SAEState,
    rows: Int[Array, "batch row"],
    model: ModelWeights,
    cfg: ModelConfig,
    hook_name: str,
    form: Form,
    stacked: bool,
) -> tuple[SAEState, Metrics]:
    update = partial(spliced_update, rows=rows, model=model, cfg=cfg, hook_name=hook_name, form=form)
    return (jax.vmap(update) if stacked else update)(state)
