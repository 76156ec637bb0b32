"""How a job is cut into programs of few shapes that fit the memory: decided once, before it starts, and recorded.

Everything a batch computes depends on the plan and on the batch alone, so a run that is resumed repeats it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
import psutil

from jaxcircuits.attribution.between import collapsed_numbers, collapses, direction_of
from jaxcircuits.attribution.links import blocks_between
from jaxcircuits.attribution.selection import bucket
from jaxcircuits.attribution.task import Shape, Task
from jaxcircuits.errors import InputError

LENGTHS = 5
"""Padded lengths of a large job: each is one more program to compile."""

MANY = 32
"""Prompts from which on a job has lengths of its own; fewer take those that other small jobs have compiled."""

TOKENS = 8192
"""Tokens a batch at most: by then products are as fast as they get."""

EDGES_A_PART = 4_000_000
"""Edges that are held before they are written, about; a row takes some 50 bytes, several times over on its way."""

UNIT = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


@dataclass(frozen=True)
class Counts:
    """The most that was seen: sources and targets a token, sources at one position."""

    sources: float
    per_position: int
    targets: float


@dataclass(frozen=True)
class Plan:
    """The shapes of a job.

    Attributes:
        memory: Bytes it was made for.
        shapes: One a padded length, ascending.
        counts: What room was made for.
        prompts_a_part: Prompts whose edges are written together: those of some batches, bounded by their edges.
    """

    memory: int
    shapes: tuple[Shape, ...]
    counts: Counts
    prompts_a_part: int

    def shape(self, length: int) -> Shape:
        """The shape of prompts of some length."""
        return next(shape for shape in self.shapes if shape.length >= length)

    def to_json(self) -> dict[str, Any]:
        """As `run.json` has it."""
        return asdict(self)

    def __str__(self) -> str:
        first, last = self.shapes[0], self.shapes[-1]
        lengths = ", ".join(str(s.length) for s in self.shapes)
        return (
            f"{self.memory / 2**30:.1f} GB: prompts padded to {lengths} tokens, {first.batch} to {last.batch} a batch, "
            f"{last.chunk} targets of a prompt at a time, room for {last.per_position} sources a position"
        )


def parse_memory(text: str) -> int:
    """Bytes of a size such as `8GB` or `500MB`.

    Raises:
        InputError: It is not one.

    >>> from jaxcircuits.attribution.plan import parse_memory
    >>> parse_memory("1.5GB")
    1610612736
    """
    number = text.upper().rstrip("BKMGT")
    unit = text.upper()[len(number) :] or "B"
    unit = unit if unit.endswith("B") else f"{unit}B"
    try:
        size = int(float(number) * UNIT[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 2**20:
        raise InputError(f"the memory must be a size such as 8GB, at least 1MB, got {text!r}.")
    return size


def device_memory() -> int:
    """Bytes a job may take: most of an accelerator's memory, half of what the machine has free."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and stats.get("bytes_limit"):
        return int(0.8 * stats["bytes_limit"])
    return psutil.virtual_memory().available // 2


def rungs(n_ctx: int, steps: int) -> list[int]:
    """Lengths up to the context's end, `steps` of them from one power of two to the next."""
    lengths, power = [], 16
    while power < n_ctx:
        lengths += [power + power * i // steps for i in range(steps)]
        power *= 2
    return [n for n in lengths if n < n_ctx] + [n_ctx]


def padded_lengths(lengths: Sequence[int], n_ctx: int) -> tuple[int, ...]:
    """The lengths that prompts are padded to: few, and such that little is padded.

    >>> from jaxcircuits.attribution.plan import padded_lengths
    >>> padded_lengths([5, 30, 31], 512)
    (16, 32)
    """
    ladder = np.array(rungs(n_ctx, 2 if len(lengths) < MANY else 8))
    at = np.searchsorted(ladder, np.asarray(lengths))
    used, number = np.unique(at, return_counts=True)
    if len(used) <= LENGTHS or len(lengths) < MANY:
        return tuple(int(ladder[i]) for i in used)
    # The best of all choices, by dynamic programming: cost[j] pads the first j rungs' prompts with k lengths.
    cost = np.full(len(used) + 1, np.inf)
    cost[0] = 0
    choices = []
    for _ in range(LENGTHS):
        options = np.array(
            [
                [cost[i] + ladder[used[j - 1]] * number[i:j].sum() if i < j else np.inf for i in range(len(used))]
                for j in range(len(used) + 1)
            ]
        )
        choices.append(options.argmin(1))
        cost = options.min(1)
        cost[0] = np.inf
    chosen, j = [], len(used)
    for best in reversed(choices):
        if j == 0:
            break
        chosen.append(int(ladder[used[j - 1]]))
        j = int(best[j])
    return tuple(sorted(chosen))


def make_plan(
    task: Task, widths: dict[str, int], lengths: Sequence[int], counts: Counts, memory: int, *, exact: bool
) -> Plan:
    """Chooses shapes.

    Args:
        task: What is computed.
        widths: `d_sae`, `d_sae_target`, `d_in`, `bytes` a number.
        lengths: Of all prompts.
        counts: From some of them.
        memory: Bytes.
        exact: Whether `counts` is of all prompts, so that no margin is needed.
    """
    padded = padded_lengths(lengths, task.problem.cfg.n_ctx)
    number = np.bincount(np.searchsorted(padded, np.asarray(lengths)), minlength=len(padded))
    shapes = [
        _shape(task, widths, length, int(n), counts, memory, 1.0 if exact else 1.5)
        for length, n in zip(padded, number, strict=True)
    ]
    return Plan(memory, tuple(shapes), counts, _prompts_a_part(task, shapes, lengths, counts))


def _prompts_a_part(task: Task, shapes: Sequence[Shape], lengths: Sequence[int], counts: Counts) -> int:
    """Enough to fill batches of every length, unless their edges are too many to hold."""
    length = float(np.mean(lengths))
    sources = counts.sources * (length if task.settings.positions == "all" else 1)
    edges = length * counts.targets * min(sources, task.settings.top_k or sources)
    wanted = 4 * len(shapes) * max(shape.batch for shape in shapes)
    return int(max(1, min(wanted, EDGES_A_PART / max(edges, 1))))


def _shape(
    task: Task, widths: dict[str, int], length: int, prompts: int, counts: Counts, memory: int, margin: float
) -> Shape:
    settings, d_sae = task.settings, widths["d_sae"]
    every = settings.source_threshold == "all"
    everywhere = settings.positions == "all"
    sources = length * d_sae if every else min(_round_up(counts.sources * margin * length, 128), length * d_sae)
    per_position = d_sae if every else min(d_sae, _round_up(counts.per_position * margin, 8))
    accelerator = jax.default_backend() != "cpu"
    slots = sources if everywhere else per_position
    targets = max(1, counts.targets * margin * length)
    between = task.way == "between" and everywhere
    # Through layers between what all targets share costs most, so all of them share it if they can.
    most = 64 if task.way == "reference" else 8192 if between else 256
    # Chunks of one size that fill the room: by powers of two where it is small, else in equal parts.
    chunk = bucket(int(targets)) if targets <= 64 else _round_up(targets / -(-targets // most), 8)
    chunk = min(chunk, most)
    shape = Shape(
        batch=1,
        length=length,
        sources=sources,
        per_position=per_position,
        targets=0,
        chunk=chunk,
        kept=min(slots, 64),
        sequences_at_once=1,
        targets_at_once=1,
        sources_at_once=min(sources, 4096),
    )
    if between:
        shape = _through_layers(shape, task, widths, int(targets), memory)
    batch = min(bucket(prompts, 1), max(1, TOKENS // length))
    budget = memory * 0.7
    while True:
        at_once = batch if accelerator and not between else 1
        trial = replace(
            shape,
            batch=batch,
            sequences_at_once=at_once,
            targets_at_once=shape.chunk if accelerator else 1,
            targets=_round_up(targets, shape.chunk),
        )
        if bytes_of(trial, task, widths) <= budget or (batch == 1 and shape.chunk == 1):
            return trial
        if batch > 1:
            batch //= 2
        else:
            shape = halved(shape)


def _through_layers(shape: Shape, task: Task, widths: dict[str, int], targets: int, memory: int) -> Shape:
    """How targets or sources are taken through layers between: by cost, and where a matrix a position has its place."""
    problem = task.problem
    direction = direction_of(problem, targets, shape.sources)
    passes = targets if direction == "reverse" else shape.sources
    fits = collapsed_numbers(problem, shape.length) * widths["bytes"] <= memory / 4
    return replace(shape, direction=direction, collapse=fits and collapses(problem, passes))


def bytes_of(shape: Shape, task: Task, widths: dict[str, int]) -> int:
    """An estimate, rather high, of what a program's values take besides the weights."""
    cfg, settings = task.problem.cfg, task.settings
    L, B, T = shape.length, shape.batch, shape.chunk
    everywhere = settings.positions == "all"
    slots = shape.sources if everywhere else shape.per_position
    parts = {"none": 1, "kinds": 4, "heads": 1 + 3 * cfg.n_heads}[settings.parts] + 2
    kept = min(slots, settings.top_k or slots)
    # Activations of both SAEs, and what lies between the hooks.
    token = widths["d_sae"] * 2.5 + widths["d_sae_target"] * 3.5 + 6 * widths["d_in"] + 3 * cfg.d_mlp + 17 * cfg.d_model
    attention = 3 * cfg.n_heads * L
    numbers = B * L * (token + attention) + B * (T if everywhere else shape.targets) * kept * (parts + 2)
    if task.way == "reference":
        one = T * L * (2 * widths["d_in"] + 8 * cfg.d_model + 4 * cfg.d_mlp + attention)
    else:
        one = T * (5 * cfg.d_mlp + 10 * cfg.d_model + 5 * cfg.n_heads * L)
        if everywhere:
            one += T * slots * (parts + 4) + shape.sources_at_once * 3 * cfg.d_model
        if task.way == "between":
            one += _between_numbers(shape, task)
    one += T * slots * (parts + 3) + shape.targets_at_once * shape.per_position * cfg.d_model
    return int(widths["bytes"] * (numbers + shape.sequences_at_once * one))


def _between_numbers(shape: Shape, task: Task) -> int:
    """What is kept of the layers between, and what passes through them take."""
    problem, cfg, L = task.problem, task.problem.cfg, shape.length
    heads, width = cfg.n_heads, cfg.n_heads * cfg.d_head
    kept = L * (3 * width + 3 * cfg.d_model + 3 * cfg.d_mlp + heads * L) + 3 * width * cfg.d_model
    kept *= len(blocks_between(problem)) + 1
    if task.settings.positions != "all":
        return kept + shape.chunk * (8 * cfg.d_model + 3 * cfg.d_mlp)
    a_pass = L * (5 * cfg.d_model + 6 * width + 2 * heads * L + (0 if shape.collapse else 2 * cfg.d_mlp))
    mlps = collapsed_numbers(problem, L) if shape.collapse else 0
    return kept + mlps + shape.passes_at_once * a_pass


def halved(shape: Shape) -> Shape:
    """A shape with smaller chunks; the room stays a multiple of them, or the last would be moved, silently."""
    chunk = max(1, shape.chunk // 2)
    at_once = max(128, shape.sources_at_once // 2)
    return replace(
        shape,
        chunk=chunk,
        targets=_round_up(shape.targets, chunk),
        sources_at_once=at_once,
        passes_at_once=max(8, shape.passes_at_once // 2),
    )


def grown(shape: Shape, most: Shape) -> Shape:
    """A shape with more room, where what was found (`most`) did not fit."""
    sources = max(shape.sources, _round_up(most.sources, 128))
    targets = max(shape.targets, _round_up(bucket(most.targets), shape.chunk))
    per_position = max(shape.per_position, _round_up(most.per_position, 8))
    return replace(shape, sources=sources, per_position=per_position, targets=targets, kept=max(shape.kept, most.kept))


def _round_up(n: float, step: int) -> int:
    return max(step, int(-(-n // step) * step))
