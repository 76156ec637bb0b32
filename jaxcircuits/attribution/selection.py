"""Which sources and targets count: from dense activations to lists of fixed capacity, counted so that none is lost."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.errors import InputError


class Sources(NamedTuple):
    """The sources of one sequence, by position, then feature. Past `number`, entries are valid indices of nothing."""

    flat: Int[Array, "_source"]  # pos * d_sae + feature
    act: Float[Array, "_source"]
    starts: Int[Array, "pos+1"]  # where each position's sources begin; the last entry is where all end
    number: Int[Array, ""]  # how many there are, whether or not they fit


class Targets(NamedTuple):
    """The targets of one sequence, by position, then feature. Past `number`, entries have no meaning."""

    pos: Int[Array, "target"]
    feature: Int[Array, "target"]
    pre_act: Float[Array, "target"]
    act: Float[Array, "target"]
    number: Int[Array, ""]


def first_true(mask: Bool[Array, "n"], capacity: int) -> tuple[Int[Array, "_capacity"], Int[Array, ""]]:
    """Indices of the first `capacity` true entries, ascending, and how many true ones there are in all.

    Past their number, entries are valid indices of no meaning.

    >>> import jax.numpy as jnp
    >>> from jaxcircuits.attribution.selection import first_true
    >>> index, count = first_true(jnp.array([False, True, False, True, True]), 2)
    >>> index.tolist(), int(count)
    ([1, 3], 3)
    """
    index, counts = first_true_of_rows(mask[None], capacity)
    return index, counts[0]


def first_true_of_rows(mask: Bool[Array, "row n"], capacity: int) -> tuple[Int[Array, "_capacity"], Int[Array, "row"]]:
    """Indices `row * n + column` of the first `capacity` true entries, ascending, and how many a row has in all.

    Bits are packed into words and counted: one pass over the mask and no sort, for masks of millions of which hundreds
    are true.
    """
    rows, n = mask.shape
    in_row = -(-n // 32)
    bits = jnp.pad(mask, ((0, 0), (0, -n % 32))).reshape(-1, 32)
    words = (bits.astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)).sum(1, dtype=jnp.uint32)
    words = lax.optimization_barrier(words)  # else XLA packs them again for each reader
    of_word = lax.population_count(words).astype(jnp.int32)
    before_next = jnp.cumsum(of_word)
    rank = jnp.arange(capacity, dtype=jnp.int32)
    at_word = jnp.minimum(jnp.searchsorted(before_next, rank, side="right"), len(words) - 1)
    word = words[at_word]
    rank_in_word = rank - (before_next[at_word] - of_word[at_word])
    bit = jnp.zeros_like(rank)
    for step in (16, 8, 4, 2, 1):
        lower = (jnp.uint32(1) << (bit + step).astype(jnp.uint32)) - 1
        below = lax.population_count(word & lower).astype(jnp.int32)
        bit = jnp.where(below <= rank_in_word, bit + step, bit)
    column = jnp.minimum(at_word % in_row * 32 + bit, n - 1)
    return (at_word // in_row * n + column).astype(jnp.int32), of_word.reshape(rows, in_row).sum(1)


def select_sources(
    acts: Float[Array, "pos d_sae"], threshold: float | str, counted: Bool[Array, "pos"], capacity: int
) -> Sources:
    """Sources whose activation is strictly greater than the threshold, at the positions that count.

    `threshold="all"` lists every source of every position; those of positions that do not count are no sources all
    the same, see `counted`.
    """
    pos, d_sae = acts.shape
    if threshold == "all":
        starts = d_sae * jnp.arange(pos + 1, dtype=jnp.int32)
        return Sources(jnp.arange(pos * d_sae, dtype=jnp.int32), acts.reshape(-1), starts, starts[-1])
    active = (acts > float(threshold)) & counted[:, None]
    index, counts = first_true_of_rows(active, capacity)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts)])
    return Sources(index, acts.reshape(-1)[index], starts, starts[-1])


def select_targets(
    pre_acts: Float[Array, "pos d_sae"],
    acts: Float[Array, "pos d_sae"],
    quantity: str,
    threshold: float,
    counted: Bool[Array, "pos"],
    capacity: int,
) -> Targets:
    """Targets whose quantity is strictly greater than the threshold, at the positions that count."""
    d_sae = acts.shape[1]
    on = ((acts if quantity == "activation" else pre_acts) > threshold) & counted[:, None]
    index, counts = first_true_of_rows(on, capacity)
    return targets_at(pre_acts, acts, index // d_sae, index % d_sae, counts.sum())


def targets_at(
    pre_acts: Float[Array, "pos d_sae"],
    acts: Float[Array, "pos d_sae"],
    pos: Int[Array, "target"],
    feature: Int[Array, "target"],
    count: Int[Array, ""],
) -> Targets:
    """Targets that are known by name."""
    return Targets(pos, feature, pre_acts[pos, feature], acts[pos, feature], count)


def bucket(n: int, smallest: int = 8) -> int:
    """The power of two at or above `n`: shapes come in few sizes, so few programs are compiled."""
    return max(smallest, 1 << max(0, n - 1).bit_length())


def named_targets(
    targets: Sequence[tuple[int, int]], d_sae: int, counted: Bool[np.ndarray, "pos"]
) -> tuple[Int[np.ndarray, "target"], Int[np.ndarray, "target"]]:
    """Positions and features of targets that a user named; a negative position counts from the end.

    Raises:
        InputError: One lies outside the prompt or the SAE, or at a BOS that is left out.
    """
    length = len(counted)
    resolved = []
    for pos, feature in targets:
        if not -length <= pos < length:
            raise InputError(f"target {pos}:{feature}: the prompt has positions 0..{length - 1}, got {pos}.")
        if not 0 <= feature < d_sae:
            raise InputError(f"target {pos}:{feature}: the target SAE has features 0..{d_sae - 1}, got {feature}.")
        if not counted[pos]:
            raise InputError(f"target {pos}:{feature} sits on BOS, which is left out; pass --include-bos to have it.")
        resolved.append((pos % length, feature))
    resolved = sorted(set(resolved))
    return np.array([p for p, _ in resolved], np.int32), np.array([f for _, f in resolved], np.int32)


def top_slots(
    size: Float[Array, "target slot"], valid: Bool[Array, "target slot"], k: int
) -> tuple[Int[Array, "target kept"], Bool[Array, "target kept"]]:
    """Each target's `k` slots of largest size, ascending; of equal ones the earlier. And which of them are valid."""
    k = min(k, size.shape[1])
    _, slots = lax.top_k(jnp.where(valid, size, -1), k)
    slots = jnp.sort(slots, axis=1)
    return slots, jnp.take_along_axis(valid, slots, axis=1)


def large_slots(
    large: Bool[Array, "target slot"], capacity: int
) -> tuple[Int[Array, "target kept"], Bool[Array, "target kept"], Int[Array, ""]]:
    """Each target's slots that are marked, ascending; which of them are valid; the largest number of any target."""
    slots, counts = jax.vmap(lambda row: first_true(row, min(capacity, large.shape[1])))(large)
    return slots, jnp.arange(slots.shape[1]) < counts[:, None], counts.max(initial=0)
