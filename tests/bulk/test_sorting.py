"""Rows by key and sums of runs, against the plainest way."""

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
def test_runs_are_summed_and_their_greatest_is_the_first_of_equals(n: int) -> None:
    rng = np.random.default_rng(1)
    key, values = np.sort(rng.integers(0, 90, n)), rng.integers(0, 3, n).astype(np.float32)
    groups = Groups.of(key)
    runs = [np.flatnonzero(key == k) for k in np.unique(key)]
    np.testing.assert_array_equal(groups.starts, [run[0] for run in runs])
    np.testing.assert_array_equal(groups.sizes, [len(run) for run in runs])
    np.testing.assert_array_equal(groups.sums() @ values, [values[run].sum() for run in runs])
    order = rng.permutation(n)
    np.testing.assert_array_equal(groups.sums(order) @ values, [values[order[run]].sum() for run in runs])
    np.testing.assert_array_equal(groups.greatest(values), [run[np.argmax(values[run])] for run in runs])
