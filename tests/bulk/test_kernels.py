"""Compiled loops against the plainest way, and where what they were compiled to cannot be kept."""

from typing import Any

import numpy as np
import pytest
from numba import njit

from jaxcircuits.bulk.kernels import _compiled, add_rows, products


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
