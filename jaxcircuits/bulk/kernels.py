"""Loops over rows that no array operation has: as machine code, made once a machine, that lets other threads run.

Importing this takes most of a second (Numba), so that it is done where a loop is first needed.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

N_SUMS = 13
"""Of `pair_sums.SUMS`, the first columns of a row; those after them are the largest edge's and of the story at hand."""

_SIZE, _PROMPT, _POS, _VALUE, _STORY, _STORY_TOTAL, _STORY_EDGES, _WIDTH = range(N_SUMS, N_SUMS + 8)

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Knuth's multiplier: the highest bits of a product with it are spread evenly."""


def _compiled(function: Callable) -> Any:
    """A function of arrays as machine code, kept beside this file or in the user's cache."""
    plain = inspect.unwrap(function)  # without what checks shapes in tests
    try:
        return njit(plain, nogil=True, cache=True)
    except RuntimeError:  # neither can be written to
        return njit(plain, nogil=True)


@_compiled
def _end_story(row):
    """Adds the story at hand to a row."""
    total, edges = row[_STORY_TOTAL], row[_STORY_EDGES]
    row[0] += edges
    row[3] += total
    row[8] += 1
    row[9] += total * total
    row[10] += total * edges
    row[11] += edges * edges
    row[12] += edges * edges * edges
    row[_STORY_TOTAL] = row[_STORY_EDGES] = 0


@_compiled
def sum_edges(first, last, parts, at):
    """Sums over the edges of each pair.

    Args:
        first: Target feature.
        last: The one after the last.
        parts: Some `PartEdges` of one size, in the order of their prompts.
        at: Of each, its first target that is such a feature.

    Returns:
        Of each pair `source << 16 | offset` and the target feature above both, and a row of `_WIDTH` numbers: `SUMS`,
        then size, prompt, position and value of its largest edge.
    """
    slots = np.empty(1, np.int32)
    pairs = np.empty(1024, np.int64)
    rows = np.empty((1024, _WIDTH))
    at, ends = at.copy(), at.copy()
    n = 0
    for feature in range(first, last):
        edges, sources, offsets, begin = 0, 0, 0, n
        for i, part in enumerate(parts):
            while ends[i] < len(part.feature) and part.feature[ends[i]] == feature:
                t = ends[i]
                for e in range(part.start[t], part.stop[t]):
                    sources = max(sources, part.source_feature[e] + 1)
                    offsets = max(offsets, part.pos[t] - part.source_pos[e] + 1)
                edges += part.stop[t] - part.start[t]
                ends[i] += 1
        # Slots of an open hash table, no more than half of them in use; as few as can be stay in a cache.
        bits = 1
        while 1 << bits < 2 * min(edges, sources * offsets):
            bits += 1
        if len(slots) < 1 << bits:
            slots = np.empty(1 << bits, np.int32)
        slots[: 1 << bits] = -1
        for i, part in enumerate(parts):
            for t in range(at[i], ends[i]):
                prompt, pos, target_act = part.prompt[t], part.pos[t], np.float64(part.act[t])
                for e in range(part.start[t], part.stop[t]):
                    pair = np.int64(part.source_feature[e]) << 16 | np.int64(pos - part.source_pos[e])
                    slot = np.int64(np.uint64(pair) * _SPREAD >> np.uint64(64 - bits))
                    while slots[slot] >= 0 and pairs[slots[slot]] != pair:
                        slot = (slot + 1) & ((1 << bits) - 1)
                    if slots[slot] < 0:
                        if n == len(rows):
                            pairs = np.concatenate((pairs, np.empty_like(pairs)))
                            rows = np.concatenate((rows, np.empty_like(rows)))
                        slots[slot] = n
                        pairs[n] = pair
                        rows[n] = 0
                        rows[n, _SIZE] = -1
                        rows[n, _STORY] = prompt
                        n += 1
                    row = rows[slots[slot]]
                    if row[_STORY] != prompt:
                        _end_story(row)
                        row[_STORY] = prompt
                    value, source_act = np.float64(part.attribution[e]), np.float64(part.source_act[e])
                    if source_act != 0 and target_act > 0:
                        row[1] += 1
                    if value > 0:
                        row[2] += 1
                    row[4] += abs(value)
                    row[5] += value * value
                    row[6] += value * target_act
                    row[7] += source_act * target_act
                    row[_STORY_TOTAL] += value
                    row[_STORY_EDGES] += 1
                    if abs(value) > row[_SIZE]:
                        row[_SIZE], row[_PROMPT], row[_POS], row[_VALUE] = abs(value), prompt, pos, value
            at[i] = ends[i]
        for i in range(begin, n):
            _end_story(rows[i])
            pairs[i] |= np.int64(feature) << 40
    return pairs[:n], rows[:n]


@_compiled
def add_rows(order, key, sums, size):
    """Rows of equal keys added.

    Args:
        order: Of rows, by key.
        key: Of each row.
        sums: Of each row, several.
        size: Of each row.

    Returns:
        Each key, its sums, and its first row of greatest size.
    """
    n = 0
    for i in range(len(order)):
        n += i == 0 or key[order[i]] != key[order[i - 1]]
    keys, total, greatest = np.empty(n, np.int64), np.zeros((n, sums.shape[1])), np.empty(n, np.int64)
    n = -1
    for i in range(len(order)):
        row = order[i]
        if i == 0 or key[row] != key[order[i - 1]]:
            n += 1
            keys[n] = key[row]
            greatest[n] = row
        for column in range(sums.shape[1]):
            total[n, column] += sums[row, column]
        if size[row] > size[greatest[n]]:
            greatest[n] = row
    return keys, total, greatest
