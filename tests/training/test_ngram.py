"""The n-gram baseline is a probability distribution and knows what it has seen."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from ngram_baseline import KneserNey


@pytest.fixture
def rows() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.array([0, *rng.integers(1, 6, rng.integers(2, 9)), 0], np.int32) for _ in range(40)]


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_after_any_context(rows, order):
    model = KneserNey(rows, 7, order)
    for context in ([0], [0, 3], [0, 1, 2, 3], [0, 6, 6, 1]):  # 6 was never seen
        nexts = [model.nll(np.array([*context, token], np.int32))[-1] for token in range(7)]
        assert np.exp(-np.array(nexts)).sum() == pytest.approx(1, abs=1e-9)
        assert np.isfinite(nexts).all()


def test_bigrams_by_hand():
    # Discounts at these counts: n1 = 2, n2 = 1, so y = 1/2; D1 = 1/2 and D2 = 2 - 3/2 * n3 / n2 with n3 = 1 (never 0).
    rows = [np.array([0, 1, 0]), np.array([0, 1, 0]), np.array([0, 2, 0])]
    bigrams = KneserNey(rows, 3, 2)
    # Bigrams: (0,1) twice, (1,0) twice, (0,2) once, (2,0) once. Predecessors: 1 after {0}, 2 after {0}, 0 after {1, 2}.
    n1, n2, n3 = 2, 2, 1
    y = n1 / (n1 + 2 * n2)
    d1, d2 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2
    u1, u2 = 2, 1  # unigrams: tokens 1 and 2 have one predecessor, token 0 has two
    uy = u1 / (u1 + 2 * u2)
    e1, e2 = 1 - 2 * uy * u2 / u1, 2 - 3 * uy * 1 / u2
    unigram_1 = ((1 - e1) + (2 * e1 + e2) / 3) / 4
    expected = ((2 - d2) + (d1 + d2) * unigram_1) / 3
    assert np.exp(-bigrams.nll(np.array([0, 1, 0]))[0]) == pytest.approx(expected, rel=1e-12)


def test_a_higher_order_predicts_repeated_text_better(rows):
    scores = [sum(KneserNey(rows, 7, order).nll(row).sum() for row in rows) for order in (1, 2, 3)]
    assert scores[0] > scores[1] > scores[2]
