"""Compiled loops against the plainest way, and where what they were compiled to cannot be kept."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numba import njit

from jaxcircuits.attribution.edges import EDGE_COLUMNS
from jaxcircuits.bulk.kernels import _compiled, add_rows, products
from jaxcircuits.bulk.pair_edges import by_target
from jaxcircuits.bulk.pair_sums import SUMS, edge_sums, pair_of


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
    blocks = list(edge_sums([by_target(table)]))
    found = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    frame = table.to_pandas()
    frame["offset"] = frame.target_pos - frame.source_pos
    frame["pair"] = pair_of(*(frame[name].to_numpy() for name in ("target_feature", "source_feature", "offset")))
    frame["attribution"] = frame.attribution.astype(float)
    by_pair, by_story = frame.groupby("pair"), frame.groupby(["pair", "prompt"]).attribution
    np.testing.assert_array_equal(found["pair"], list(by_pair.groups))
    assert len(found["pair"]) > 4096
    sums = dict(zip(SUMS, found["sums"].T, strict=True))
    np.testing.assert_array_equal(sums["edges"], by_pair.size())
    np.testing.assert_allclose(sums["total"], by_pair.attribution.sum(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(sums["squares"], by_pair.attribution.agg(lambda a: (a**2).sum()))
    np.testing.assert_allclose(sums["story_squares"], (by_story.sum() ** 2).groupby("pair").sum())
    np.testing.assert_array_equal(sums["edges_2"], (by_story.size() ** 2).groupby("pair").sum())
    np.testing.assert_allclose(found["largest_size"], by_pair.attribution.agg(lambda a: a.abs().max()))


@pytest.mark.parametrize("n", [0, 1, 300])
def test_rows_of_equal_keys_are_added_and_the_first_of_the_greatest_counts(n: int) -> None:
    rng = np.random.default_rng(0)
    key, sums = rng.integers(0, 90, n), rng.integers(0, 9, (n, 3)).astype(float)
    size = rng.integers(0, 3, n).astype(np.float32)
    keys, total, greatest = add_rows(np.argsort(key, kind="stable"), key, sums, size)
    runs = [np.flatnonzero(key == k) for k in np.unique(key)]
    np.testing.assert_array_equal(keys, np.unique(key))
    np.testing.assert_array_equal(total.reshape(-1, 3), [sums[run].sum(0) for run in runs] or np.zeros((0, 3)))
    np.testing.assert_array_equal(greatest, [run[np.argmax(size[run])] for run in runs])


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
