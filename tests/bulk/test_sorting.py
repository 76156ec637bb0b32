"""Rows by key, against the plainest way."""

import numpy as np
import pytest

from jaxcircuits.bulk.sorting import Groups, in_order


@pytest.mark.parametrize("scale", [1, 2**8, 2**28], ids=["counted", "in one number", "too large for one number"])
@pytest.mark.parametrize("n", [0, 1, 500])
def test_keys_are_sorted_and_equal_ones_stay_in_order(scale: int, n: int) -> None:
    rng = np.random.default_rng(0)
    keys = [rng.integers(low, low + 5, n) * scale for low in (0, 7, 3)]
    number, order = in_order(*keys)
    np.testing.assert_array_equal(order, np.lexsort(keys[::-1]))
    assert np.all(np.diff(number) >= 0)
    np.testing.assert_array_equal(Groups.of(number).starts, Groups.of(*(key[order] for key in keys)).starts)


@pytest.mark.parametrize("n", [0, 1, 300])
def test_runs_begin_where_a_key_first_is(n: int) -> None:
    key = np.sort(np.random.default_rng(1).integers(0, 90, n))
    runs = [np.flatnonzero(key == k) for k in np.unique(key)]
    groups = Groups.of(key)
    np.testing.assert_array_equal(groups.starts, [run[0] for run in runs])
    np.testing.assert_array_equal(groups.row, np.unique(key, return_inverse=True)[1])
