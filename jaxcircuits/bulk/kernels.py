"""Loops over rows that no array operation has: as machine code, made once a machine, that lets other threads run.

Numba is slow to import, so this is imported where a loop is first needed.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

# Numbers of a pair: `pair_sums.SUMS`, `sum_rows.LARGEST`, then the story at hand.
_EDGES, _BOTH_ACTIVE, _POSITIVE, _TOTAL, _ABSOLUTE, _SQUARES, _WEIGHTED, _PRODUCT = range(8)
_STORIES, _STORY_SQUARES, _STORY_CROSS, _EDGES_2, _EDGES_3 = range(8, 13)
_PROMPT, _POS, _VALUE, _STORY, _OF_STORY, _N_STORY, _WIDTH = range(13, 20)

_FREE = np.uint32(0xFFFFFFFF)
"""A slot that is not in use."""

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Knuth's multiplier: the highest bits of a product with it are spread evenly."""


def _compiled(**options: Any) -> Callable[[Callable], Any]:
    """Makes a function of arrays machine code, kept beside this file or in the user's cache."""

    def make(function: Callable) -> Any:
        plain = inspect.unwrap(function)  # without what checks shapes in tests
        try:
            return njit(plain, nogil=True, cache=True, **options)
        except RuntimeError:  # neither can be written to
            return njit(plain, nogil=True, **options)

    return make


@_compiled()
def _end_story(row):
    """Adds the story at hand to a row."""
    total, n = row[_OF_STORY], row[_N_STORY]
    row[_EDGES] += n
    row[_TOTAL] += total
    row[_STORIES] += 1
    row[_STORY_SQUARES] += total * total
    row[_STORY_CROSS] += total * n
    row[_EDGES_2] += n * n
    row[_EDGES_3] += n * n * n
    row[_OF_STORY] = row[_N_STORY] = 0


@_compiled()
def sum_edges(
    first,
    last,
    at,
    offset_bits,
    source_bits,
    feature,
    prompt,
    pos,
    act,
    start,
    stop,
    source_pos,
    source,
    attribution,
    source_act,
):
    """Sums over the edges of each pair.

    Args:
        first: Target feature.
        last: The one after the last.
        at: The first target that is such a feature.
        offset_bits: The lowest of a pair's number.
        source_bits: Those above; the target feature has the others.
        feature: This and what follows are `ByFeature`, array by array: a class would be part of what is kept on the
            disk, which then could not be read without it.

    Returns:
        Pairs, in no order, and their numbers: those of `pair_sums.PAIRS`, and some that are of no use any more.
    """
    slots = np.empty(1, np.uint32)
    pairs = np.empty(1024, np.int64)
    numbers = np.empty((1024, _WIDTH))
    n = 0
    for target in range(first, last):
        edges, sources, offsets, begin, end = 0, 0, 0, n, at
        while end < len(feature) and feature[end] == target:
            features, positions = source[start[end] : stop[end]], source_pos[start[end] : stop[end]]
            for e in range(len(features)):
                sources = max(sources, features[e] + 1)
                offsets = max(offsets, pos[end] - positions[e] + 1)
            edges += stop[end] - start[end]
            end += 1
        # Slots of an open hash table, no more than half of them in use; as few as can be stay in a cache.
        bits = np.uint64(1)
        while 1 << bits < 2 * min(edges, sources * offsets):
            bits += np.uint64(1)
        mask = (np.uint64(1) << bits) - np.uint64(1)
        if len(slots) <= mask:
            slots = np.empty(mask + 1, np.uint32)
        slots[: mask + 1] = _FREE
        for t in range(at, end):
            story, target_act = prompt[t], np.float64(act[t])
            features, positions = source[start[t] : stop[t]], source_pos[start[t] : stop[t]]
            values, acts = attribution[start[t] : stop[t]], source_act[start[t] : stop[t]]
            for e in range(len(features)):
                pair = np.int64(features[e]) << offset_bits | np.int64(pos[t] - positions[e])
                slot = np.uint64(pair) * _SPREAD >> (np.uint64(64) - bits)
                while slots[slot] != _FREE and pairs[slots[slot]] != pair:
                    slot = (slot + np.uint64(1)) & mask
                new = slots[slot] == _FREE
                if new:
                    if n == len(pairs):
                        pairs = np.concatenate((pairs, np.empty_like(pairs)))
                        numbers = np.concatenate((numbers, np.empty_like(numbers)))
                    slots[slot] = n
                    pairs[n] = pair
                    numbers[n] = 0
                    numbers[n, _STORY] = story
                    n += 1
                row = numbers[slots[slot]]
                if row[_STORY] != story:
                    _end_story(row)
                    row[_STORY] = story
                value, active = np.float64(values[e]), np.float64(acts[e])
                if active != 0 and target_act > 0:
                    row[_BOTH_ACTIVE] += 1
                if value > 0:
                    row[_POSITIVE] += 1
                row[_ABSOLUTE] += abs(value)
                row[_SQUARES] += value * value
                row[_WEIGHTED] += value * target_act
                row[_PRODUCT] += active * target_act
                row[_OF_STORY] += value
                row[_N_STORY] += 1
                if new or abs(value) > abs(row[_VALUE]):
                    row[_PROMPT], row[_POS], row[_VALUE] = story, pos[t], value
        at = end
        for i in range(begin, n):
            _end_story(numbers[i])
            pairs[i] |= np.int64(target) << offset_bits + source_bits
    return pairs[:n], numbers[:n]


@_compiled()
def take_rows(key, numbers, order, cells):
    """Rows of so many cells, a key and numbers, in an order."""
    out = np.empty((len(order), cells), np.int64)
    total = out.view(np.float64)
    for i in range(len(order)):
        out[i, 0] = key[order[i]]
        for cell in range(1, cells):
            total[i, cell] = numbers[order[i], cell - 1]
    return out


@_compiled()
def count_bins(width, in_stories, feature, prompt, pos, room, act):
    """Histograms of features: `feature_counts.FEATURES`, without the side.

    Args:
        width: More than any position or room.
        in_stories: Whether it is also counted how far apart activations of a prompt are, and in how many prompts.
        feature: Of each activation, ascending; those of a feature by prompt and position.
        prompt: Where it is.
        pos: Where in the prompt.
        room: How many positions it pairs with.
        act: The activation.

    Returns:
        Rows of the bins that are not empty, sorted.
    """
    count, sums, squares = np.zeros((3, width)), np.zeros(width), np.zeros(width)
    out = np.empty((4 * width, 4), np.int64)
    numbers = out.view(np.float64)
    n = first = 0
    while first < len(feature):
        last, stories, story = first, 0, first
        while last < len(feature) and feature[last] == feature[first]:
            value = np.float64(act[last])
            count[0, room[last]] += 1
            sums[room[last]] += value
            squares[room[last]] += value * value
            count[1, pos[last]] += 1
            if in_stories:
                if last == first or prompt[last] != prompt[story]:
                    stories += 1
                    story = last
                for earlier in range(story, last):
                    count[2, pos[last] - pos[earlier]] += 1
            last += 1
        if n + 3 * width + 1 > len(out):
            out = np.concatenate((out, np.empty_like(out)))
            numbers = out.view(np.float64)
        of = np.int64(feature[first]) << 34
        for kind in range(3):
            for at in range(width):
                if count[kind, at] > 0:
                    out[n, 0] = of | kind << 32 | at
                    numbers[n, 1] = count[kind, at]
                    numbers[n, 2] = sums[at] if kind == 0 else 0.0
                    numbers[n, 3] = squares[at] if kind == 0 else 0.0
                    n += 1
        if in_stories:
            out[n, 0] = of | 3 << 32
            numbers[n, 1] = stories
            numbers[n, 2] = numbers[n, 3] = 0
            n += 1
        count[:] = 0
        sums[:] = 0
        squares[:] = 0
        first = last
    return out[:n]


@_compiled()
def merge_rows(tables, at, stop, sums, out, n):
    """Adds rows of equal keys, key by key, until a table has no more of those that are here, or there is no room.

    Args:
        tables: Rows of each, sorted by their first cell, the key; each key once.
        at: Of each table, its first row that is not in `out`; moved on.
        stop: Of each table, the row after the last that is here.
        sums: Cells after the key that are added. Those after them are of the row whose last cell is greatest, sign
            apart, the first of such.
        out: Where merged rows go, from row `n` on.
        n: Rows that are there.

    Returns:
        Rows that are then there.
    """
    numbers, total = tables.view(np.float64), out.view(np.float64)
    last = tables.shape[2] - 1
    done = np.iinfo(np.int64).max
    keys = np.full(len(at), done)
    for i in range(len(at)):
        if at[i] < stop[i]:
            keys[i] = tables[i, at[i], 0]
    here = True
    while here and n < len(out):
        key = done
        for i in range(len(at)):
            key = min(key, keys[i])
        first = True
        for i in range(len(at)):
            if keys[i] != key:
                continue
            row = at[i]
            if first:
                for cell in range(last + 1):
                    out[n, cell] = tables[i, row, cell]
                first = False
            else:
                for cell in range(1, sums + 1):
                    total[n, cell] += numbers[i, row, cell]
                if sums < last and abs(numbers[i, row, last]) > abs(total[n, last]):
                    for cell in range(sums + 1, last + 1):
                        out[n, cell] = tables[i, row, cell]
            at[i] += 1
            here = here and at[i] < stop[i]
            keys[i] = tables[i, at[i], 0] if at[i] < stop[i] else done
        n += 1
    return n


@_compiled(fastmath=True)  # sums in any order, so that several products are made at once
def products(left, right, row, column, shift, order):
    """Entries of `left @ right.T`, one by one.

    Args:
        left: A matrix.
        right: Another.
        row: Of each entry.
        column: Of each entry.
        shift: Column of `left` that the first one of `right` goes with, for each entry.
        order: In which entries are made: if those of a column follow each other, it is read from memory once.
    """
    out = np.empty(len(order))
    for i in order:
        one, other, total = left[row[i], shift[i] :], right[column[i]], 0.0
        for k in range(len(one)):
            total += one[k] * other[k]
        out[i] = total
    return out
