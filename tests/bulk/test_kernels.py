"""Compiled loops against the plainest way, and where what they were compiled to cannot be kept."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numba import njit

from jaxcircuits.attribution.edges import EDGE_COLUMNS
from jaxcircuits.bulk.kernels import _compiled, merge_rows, products, take_rows
from jaxcircuits.bulk.pair_edges import Edges, by_target
from jaxcircuits.bulk.pair_sums import PAIRS, edge_sums, pair_of


def test_edges_of_more_pairs_than_there_is_room_for_at_first() -> None:
    """Tables and rows grow; features far apart, and colliding ones, are kept apart."""
    rng = np.random.default_rng(0)
    n = 20_000
    edges = {
        "prompt": np.sort(rng.integers(0, 40, n)),
        "target_pos": np.full(n, 300),
        "target_feature": rng.choice([0, 7, 2**20], n),
        "target_act": rng.random(n),
        "source_pos": 300 - rng.integers(0, 200, n),
        "source_feature": rng.integers(0, 30, n) * 2**16,
        "attribution": rng.normal(size=n),
        "source_act": rng.random(n),
    }
    table = pa.table({name: values.astype(EDGE_COLUMNS[name]) for name, values in edges.items()})
    held = Edges()
    for first, last in pairwise([0, *np.flatnonzero(np.isin(edges["prompt"], (10, 11)))[[0, -1]].tolist(), n]):
        held.add(by_target(table.slice(first, last - first)))
    found = PAIRS.columns(np.concatenate(list(edge_sums(held))))
    frame = table.to_pandas()
    frame["offset"] = frame.target_pos - frame.source_pos
    frame["pair"] = pair_of(*(frame[name].to_numpy() for name in ("target_feature", "source_feature", "offset")))
    frame["attribution"] = frame.attribution.astype(float)
    by_pair, by_story = frame.groupby("pair"), frame.groupby(["pair", "prompt"]).attribution
    np.testing.assert_array_equal(found["pair"], list(by_pair.groups))
    assert len(found["pair"]) > 4096
    np.testing.assert_array_equal(found["edges"], by_pair.size())
    np.testing.assert_allclose(found["total"], by_pair.attribution.sum(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["squares"], by_pair.attribution.agg(lambda a: (a**2).sum()))
    np.testing.assert_allclose(found["story_squares"], (by_story.sum() ** 2).groupby("pair").sum())
    np.testing.assert_array_equal(found["edges_2"], (by_story.size() ** 2).groupby("pair").sum())
    largest = frame.loc[by_pair.attribution.agg(lambda a: a.abs().idxmax())]
    for name, column in {"prompt": "prompt", "pos": "target_pos", "value": "attribution"}.items():
        np.testing.assert_array_equal(found[f"largest_{name}"], largest[column])


def test_rows_in_order() -> None:
    rng = np.random.default_rng(0)
    key, numbers, order = rng.integers(0, 99, 40), rng.normal(size=(40, 5)), rng.permutation(40)
    rows = take_rows(key, numbers, order, 4)
    np.testing.assert_array_equal(rows[:, 0], key[order])
    np.testing.assert_array_equal(rows.view(np.float64)[:, 1:], numbers[order, :3])


def test_merging_stops_where_a_table_must_be_read_on_and_where_there_is_no_room() -> None:
    """Two tables of keys and one sum: 1, 3, 5 and 3, 5, of which the second has the last."""
    keys = np.array([[1, 3, 5], [3, 5, 0]])
    tables = np.empty((2, 3, 2), np.int64)
    tables[..., 0] = keys
    tables.view(np.float64)[..., 1] = 10.0 * keys
    at, stop = np.zeros(2, np.int64), np.array([3, 1])
    out = np.zeros((2, 2), np.int64)
    assert merge_rows(tables, at, stop, 1, out, 0) == 2  # the second may have more of what follows 3
    assert at.tolist() == [2, 1]
    np.testing.assert_array_equal(out[:, 0], [1, 3])
    np.testing.assert_array_equal(out.view(np.float64)[:, 1], [10, 60])
    at, stop = np.zeros(2, np.int64), np.array([3, 2])
    assert merge_rows(tables, at, stop, 1, out, 1) == 2
    assert at.tolist() == [1, 0]
    assert out[1, 0] == 1


def test_products_are_entries_of_the_matrix_product() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(5, 40)), rng.normal(size=(7, 40))
    row, column = rng.integers(0, 5, 60), rng.integers(0, 7, 60)
    shift = rng.integers(0, 3, 60)
    wanted = np.stack([np.pad(left[:, k:], ((0, 0), (0, k))) @ right.T for k in range(3)])[shift, row, column]
    np.testing.assert_allclose(products(left, right, row, column, shift, np.argsort(column)), wanted, atol=1e-12)


def test_they_work_where_they_cannot_be_kept() -> None:
    """A function of no file has no place, as one of a package has none in some containers."""
    names: dict[str, Any] = {}
    exec("def twice(n): return 2 * n", names)
    with pytest.raises(RuntimeError, match="cannot cache"):
        njit(names["twice"], cache=True)
    assert _compiled()(names["twice"])(2) == 4
