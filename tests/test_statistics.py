"""Statistics against scipy and against what they must be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from jaxcircuits.statistics import agreement, sign_agreement, spearman, top_overlap

VALUES = arrays(np.float64, 25, elements=st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0]))


@given(VALUES, VALUES)
def test_spearman_is_scipys(a: np.ndarray, b: np.ndarray) -> None:
    if np.ptp(a) and np.ptp(b):
        assert abs(spearman(a, b) - spearmanr(a, b).statistic) <= 1e-12
    else:
        assert np.isnan(spearman(a, b))


@given(VALUES, VALUES)
def test_sign_agreement_counts(a: np.ndarray, b: np.ndarray) -> None:
    assert sign_agreement(a, b) == sum(np.sign(x) == np.sign(y) for x, y in zip(a, b, strict=True)) / 25


def test_top_overlap_by_hand() -> None:
    a, b = np.zeros(40), np.zeros(40)
    a[[3, 7]] = [-5, 4]
    b[[7, 9]] = [1, -2]
    assert top_overlap(a, b) == 0.5
    assert top_overlap(a, -a) == 1.0
    assert np.isnan(top_overlap(np.ones(5), np.ones(5)))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        a = rng.standard_normal(60)
        found = agreement(a, a + 2 * rng.standard_normal(60), resamples=100, seed=trial).sign_agreement
        covered += found.low <= 0.5 + np.arctan(0.5) / np.pi <= found.high
    assert 85 <= covered <= 100


def test_clusters_widen_intervals() -> None:
    """Copies of the same pairs are no new evidence."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 30))
    copies = [np.repeat(x, 20) for x in (a, b)]
    naive, honest = agreement(*copies), agreement(*copies, clusters=np.repeat(np.arange(30), 20))
    width = [x.spearman.high - x.spearman.low for x in (naive, honest)]
    assert width[1] > 2 * width[0]


def test_the_seed_decides() -> None:
    a, b = np.random.default_rng(2).standard_normal((2, 50))
    assert agreement(a, b, seed=1) == agreement(a, b, seed=1)
    assert agreement(a, b, seed=1) != agreement(a, b, seed=2)


@pytest.mark.parametrize("n", [0, 1])
def test_too_little_data_is_nan_and_null_in_json(n: int) -> None:
    found = agreement(np.ones(n), np.ones(n))
    assert found.pairs == n
    assert np.isnan(found.spearman.value)
    assert found.to_json()["spearman"]["value"] is None
