"""One training loop: steps, metrics as JSONL, checkpoints, exact resume.

A batch is a function of the step's number, so a resumed run sees what an uninterrupted one would.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import from_bytes, to_bytes

from jaxcircuits.errors import InputError
from jaxcircuits.files import absent_parents, read_json, remove_empty, write_bytes, write_json
from jaxcircuits.progress import progress

SETTINGS, CHECKPOINT = "settings.json", "checkpoint.msgpack"

CHECKPOINT_EVERY = 200
"""Steps between checkpoints, unless said otherwise."""

Metrics = dict[str, jax.Array]
State = TypeVar("State")
"""A pytree whose field `step` is the number of steps that are done."""


@contextmanager
def run_directory(out: Path, settings: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """Makes a run's directory, or checks that the run in it is this one.

    Where the block refuses its input before there is a checkpoint, all is as it was before: the directory is gone, or
    the run that was to be replaced is back.

    Args:
        out: The directory.
        settings: What the run depends on, its `kind` among it.
        overwrite: Whether another run of that kind is replaced.

    Raises:
        InputError: It holds a run with other settings (the first difference is named), or something else.
    """
    given, out = out, out.resolve()
    aside = out.with_name(f".{out.name}.{os.getpid()}.old")
    new = json.loads(json.dumps(settings))
    old = read_json(out / SETTINGS, "training run") if (out / SETTINGS).is_file() else None
    if isinstance(old, dict) and old.get("kind") == new["kind"]:
        different = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        if different and not overwrite:
            key = different[0]
            raise InputError(
                f"{given} holds a training run with {key}={old.get(key)!r}, not {new.get(key)!r}; "
                "use its settings to resume it, pass --overwrite to start anew, or name another directory."
            )
        if overwrite:
            out.rename(aside)
    elif out.is_dir() and any(out.iterdir()):
        what = f"a training run of kind {old['kind']}" if isinstance(old, dict) and "kind" in old else "no training run"
        expected = f"expected one of kind {new['kind']}"
        raise InputError(f"the output {given} holds {what}, {expected}; name another directory.")
    begun, absent = not (out / SETTINGS).is_file(), absent_parents(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {given} ({error.strerror}); choose another place.") from None
    if begun:
        write_json(out / SETTINGS, settings)
    try:
        yield
    except InputError:
        if begun and not any(out.rglob(CHECKPOINT)):
            shutil.rmtree(out)
            remove_empty(absent)
            if aside.exists():
                aside.rename(out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _alone(means: Any) -> Mapping[str, Mapping[str, float]]:
    return {"": means}


def train(
    state: State,
    step: Callable[[State, Any], tuple[State, Any]],
    batch_at: Callable[[int], Any],
    n_steps: int,
    out: Path,
    *,
    label: str,
    logs: Mapping[str, Path] | None = None,
    split: Callable[[Any], Mapping[str, Mapping[str, float]]] = _alone,
    checkpoint_every: int = CHECKPOINT_EVERY,
    log_every: int = 20,
    quiet: bool = False,
) -> State:
    """Runs steps `state.step .. n_steps`, beginning with the newest checkpoint in `out`, if there is one.

    Args:
        state: The state before the first step; gives the checkpoint its structure.
        step: One jitted update; gives the new state and metrics.
        batch_at: The batch of a step.
        n_steps: Steps in all.
        out: Directory of the checkpoint and, for a run alone, `metrics.jsonl`.
        label: What the progress bar says.
        logs: Where each of several runs that are trained at once has its metrics, by name.
        split: The metrics of each of them, from what `step` gives.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of metrics, which are means over these steps. A checkpoint ends such a stretch.
        quiet: No progress bar.

    Raises:
        InputError: The checkpoint is damaged, or the loss is no longer finite.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.is_file():
        try:
            state = jax.tree.map(jnp.asarray, from_bytes(state, checkpoint.read_bytes()))
        except Exception as error:  # msgpack and flax raise many kinds
            raise InputError(f"{checkpoint} is damaged ({error}); delete it to start anew.") from None
    for left in out.glob(f".{CHECKPOINT}.*.partial"):  # of a process that was ended while it wrote
        left.unlink()
    start = int(state.step)  # pyright: ignore[reportAttributeAccessIssue]
    logs = logs or {"": out / "metrics.jsonl"}
    for path in logs.values():
        _cut_log(path, start)
    pending: list[Any] = []
    with progress(quiet) as bar, ExitStack() as opened:
        files = {name: opened.enter_context(open(path, "a", encoding="utf-8")) for name, path in logs.items()}
        task = bar.add_task(label, total=n_steps, completed=start)
        for number in range(start, n_steps):
            state, metrics = step(state, batch_at(number))
            pending.append(metrics)
            done = number + 1
            kept = done % checkpoint_every == 0 or done == n_steps
            if done % log_every == 0 or kept:
                means = split(jax.tree.map(_mean, *pending))
                pending.clear()
                for name, line in means.items():
                    if not all(abs(v) < float("inf") for v in line.values()):
                        of_run = f" of {name}" if name else ""
                        raise InputError(f"training{of_run} diverged at step {done} ({line}); lower the learning rate.")
                    files[name].write(json.dumps({"step": done, **line}) + "\n")
                    files[name].flush()
                bar.update(task, completed=done, description=f"{label} · " + _short(next(iter(means.values()))))
            if kept:
                for file in files.values():
                    os.fsync(file.fileno())
                write_bytes(checkpoint, to_bytes(state))
    return state


def _mean(*values: jax.Array) -> Any:
    """The mean of a metric over some steps, as a float or a list of them."""
    return np.asarray(sum(np.asarray(v, np.float64) for v in values) / len(values)).tolist()


def _short(means: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in list(means.items())[:4])


def _cut_log(path: Path, step: int) -> None:
    """Drops what was logged after the checkpoint, which will be logged again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        write_bytes(path, "".join(line + "\n" for line in kept).encode())
