"""Intervals cover, false discoveries are as rare as they are said to be, shrinking helps: on data whose truth is known.

Bounds leave the simulation's own error; each would fail for the formula it replaces (edges taken as independent,
independence of positions, t statistics under sign flips): see the tests that show it.
"""

from pathlib import Path

import numpy as np
import pytest

from jaxcircuits.bulk import estimates
from jaxcircuits.bulk.estimates import (
    clustered_mean,
    confidence_interval,
    false_discovery,
    fit_prior,
    held_out_interval,
    shrink,
    zero_mean,
)
from jaxcircuits.bulk.feature_counts import active_features, counts_of, feature_counts
from tests.bulk.corpora import Corpus, statistics

PAIRS, TRUTH = 6000, 0.3


def stories(rng: np.random.Generator, number: int, *, large: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sums and edges `[pair, story]` whose attribution has mean `TRUTH`, a skewed share of the story, and noise."""
    edges = 1 + rng.geometric(0.3, (PAIRS, number)) * (1 + 5 * large * (rng.random((PAIRS, number)) < 0.1))
    own = rng.gamma(3, 1 / 3, edges.shape) - 1
    return edges * (TRUTH + own) + np.sqrt(edges) * rng.standard_normal(edges.shape), edges.astype(float)


def mean_of(sums: np.ndarray, edges: np.ndarray) -> estimates.Mean:
    added = (edges, sums, sums**2, sums * edges, edges**2, edges**3)
    return clustered_mean(*(a.sum(1) for a in added))


def covered(interval: tuple[np.ndarray, np.ndarray], value: np.ndarray | float) -> float:
    return float(((interval[0] <= value) & (value <= interval[1])).mean())


@pytest.mark.parametrize("large", [False, True], ids=["stories alike", "some stories much longer"])
@pytest.mark.parametrize("number", [20, 60])
def test_intervals_cover_the_truth_and_a_held_out_mean(number: int, large: bool) -> None:
    rng = np.random.default_rng(number)
    sums, edges = stories(rng, number, large=large)
    other_sums, other_edges = stories(rng, number // 2, large=large)
    mean, other = mean_of(sums, edges), mean_of(other_sums, other_edges)
    assert 0.93 < covered(confidence_interval(mean), TRUTH) < 0.97
    assert 0.93 < covered(held_out_interval(mean, other), other.mean) < 0.97
    assert covered(confidence_interval(mean), other.mean) < 0.9  # it is not meant for that


def test_edges_taken_as_independent_would_not_cover() -> None:
    sums, edges = stories(np.random.default_rng(0), 60)
    independent = np.sqrt((1 / 3 + 1) / edges.sum(1))  # the variance of one edge: the story's share and noise
    mean = mean_of(sums, edges)
    reach = 1.96 * independent
    assert covered((mean.mean - reach, mean.mean + reach), TRUTH) < 0.85


def test_one_story_has_no_error() -> None:
    mean = mean_of(np.ones((1, 1)), np.full((1, 1), 3.0))
    assert mean.mean[0] == 1 / 3
    assert np.isnan(mean.error[0]) and np.isnan(mean.degrees[0])
    assert np.isnan(confidence_interval(mean)[0][0])
    assert np.isnan(shrink(mean.mean, mean.error, mean.mean, estimates.Prior(0.0, 1.0))[0])


@pytest.mark.parametrize("null_share", [1.0, 0.5])
def test_false_discoveries_of_means_under_flips_of_stories(null_share: float) -> None:
    """Attributions that hardly vary in size, whose sign a coin decides in each story: the hardest case."""
    rates, found = [], 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pairs, number = 2000, rng.integers(5, 60, 2000)
        there = np.arange(60)[None] < number[:, None]
        sums = there * (1 + 0.1 * rng.standard_normal((pairs, 60)))
        null = np.arange(pairs) < null_share * pairs
        sums = np.where(null[:, None], sums * rng.choice([-1, 1], sums.shape), sums)
        q = false_discovery(zero_mean(sums.sum(1), (sums**2).sum(1), number.astype(float))[1])
        rates.append((null & (q < 0.05)).sum() / max(1, (q < 0.05).sum()))
        found += (~null & (q < 0.05)).sum()
    assert np.mean(rates) < 0.05 * null_share + 2 * np.std(rates) / len(rates) ** 0.5
    assert found > 0.7 * 20 * 2000 * (1 - null_share) or null_share == 1


def test_q_values_are_scipys() -> None:
    from scipy import stats

    p = np.random.default_rng(0).integers(0, 50, 200) / 50
    np.testing.assert_allclose(false_discovery(p), stats.false_discovery_control(p), rtol=1e-15)
    others = false_discovery(np.append(p, np.ones(100)))[:200]
    np.testing.assert_allclose(false_discovery(p, 300), others, rtol=1e-15)


def test_a_t_statistic_would_discover_much_under_flips() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    sums = rng.choice([-1, 1], (20_000, 12)) * (1 + 0.02 * rng.standard_normal((20_000, 12)))
    naive = false_discovery(stats.ttest_1samp(sums, 0, axis=1).pvalue)
    mine = false_discovery(zero_mean(sums.sum(1), (sums**2).sum(1), np.full(len(sums), 12.0))[1])
    assert (naive < 0.05).sum() > 5
    assert (mine < 0.05).sum() == 0


def dealt(seed: int, *, real: int = 0, offset: int = 0) -> tuple[Corpus, np.ndarray]:
    """A corpus whose targets follow sources of their own story in the first `real` targets only."""
    corpus = Corpus(np.random.default_rng(seed), stories=150, sources=40, targets=40, length=40, rate=0.05)
    late = np.roll(corpus.source, offset, axis=2) * (np.arange(40) >= offset + 1)
    inside = np.arange(40)[None] < corpus.lengths[:, None]
    kept = corpus.rng.random(late[:, :real].shape) < 0.7
    corpus.target[:, :real] = late[:, :real] * kept * inside[:, None]
    return corpus, np.eye(40, dtype=bool) & (np.arange(40) < real)


def judged(corpus: Corpus, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """p and chance of every pair `[source, target]`."""
    active = active_features(corpus.activations, corpus.prompts)
    counts = counts_of(feature_counts({name: active[name].to_numpy() for name in active.column_names}))
    assert counts is not None
    late, early = corpus.target[:, :, offset:] > 0, corpus.source[:, :, : 40 - offset] > 0
    both = np.einsum("gsp,gtp->st", early.astype(float), late.astype(float))
    source, target = (x.reshape(-1) for x in np.mgrid[:40, :40])
    chance, p = estimates.association(counts, source, target, np.full(1600, offset), both.reshape(-1))
    return p.reshape(40, 40), chance.reshape(40, 40)


def test_features_of_far_apart_numbers_are_counted_the_same() -> None:
    """With bins by far more than activations, none is kept for those that do not occur."""
    corpus, _ = dealt(0)
    table = active_features(corpus.activations, corpus.prompts)
    active = {name: table[name].to_numpy() for name in table.column_names}
    near = counts_of(feature_counts(active))
    far = counts_of(feature_counts(active | {"feature": active["feature"] * np.int32(100_000)}))
    assert near is not None and far is not None
    for one, other in ((near.source, far.source), (near.target, far.target)):
        np.testing.assert_array_equal(one.features * 100_000, other.features)
        for name in ("count", "total", "squares", "position", "lag", "stories"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("offset", [0, 2])
def test_chance_is_what_dealing_targets_to_other_stories_gives(offset: int) -> None:
    """The mean number of joint activations over shuffles, all stories being of one length."""
    corpus, _ = dealt(0)
    corpus.lengths[:] = 40
    _, chance = judged(corpus, offset)
    early, late = corpus.source[:, :, : 40 - offset] > 0, corpus.target[:, :, offset:] > 0
    everywhere = np.einsum("gsp,htp->st", early.astype(float), late.astype(float)) / 150  # over all ways to deal
    np.testing.assert_allclose(chance, everywhere, rtol=1e-12)


@pytest.mark.parametrize(("real", "offset"), [(0, 0), (20, 0), (20, 2)])
def test_false_discoveries_of_associations_of_shuffled_targets(real: int, offset: int) -> None:
    rates, found = [], 0
    for seed in range(12):
        corpus, linked = dealt(seed, real=real, offset=offset)
        order = np.random.default_rng(1000 + seed).permutation(150)
        corpus.target[:, real:] = corpus.target[order, real:] * (np.arange(40)[None] < corpus.lengths[:, None])[:, None]
        p, _ = judged(corpus, offset)
        called = false_discovery(p.reshape(-1)).reshape(p.shape) < 0.05
        false = called & ~(linked | linked.any(0)[None])  # a source may meet a real target by way of another source
        rates.append(false.sum() / max(1, called.sum()))
        found += (called & linked).sum()
    assert np.mean(rates) < 0.05 + 2 * np.std(rates) / len(rates) ** 0.5
    assert found >= 0.8 * 12 * real


def test_bursts_taken_as_independent_positions_would_be_discovered() -> None:
    """Two features that stay on for most of the stories they are in, without regard for each other."""
    rng = np.random.default_rng(0)
    clustered = 0
    poisson = 0
    for _ in range(3):
        corpus, _ = dealt(int(rng.integers(1000)))
        corpus.lengths[:] = 40
        for name in ("source", "target"):
            setattr(
                corpus, name, np.broadcast_to(rng.random((150, 40, 1)) < 0.1, (150, 40, 40)) * 1.0 * (np.arange(40) > 0)
            )
        p, chance = judged(corpus, 0)
        both = np.einsum("gsp,gtp->st", corpus.source, corpus.target)
        independent = estimates._two_sided(both.reshape(-1), chance.reshape(-1), np.ones(1600))
        clustered += (false_discovery(p.reshape(-1)) < 0.05).sum()
        poisson += (false_discovery(independent) < 0.05).sum()
    assert poisson > 1000
    assert clustered <= 3


def test_shrinking_comes_closer_to_the_truth() -> None:
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0, 1, 5000)
    truth, error = scale * rng.normal(0.1, 0.3, 5000), scale * rng.uniform(0.05, 1.0, 5000)
    seen = truth + error * rng.standard_normal(5000)
    prior = fit_prior(seen, error, scale)
    assert abs(prior.mean - 0.1) < 0.05 and abs(prior.variance - 0.09) < 0.02
    assert ((shrink(seen, error, scale, prior) - truth) ** 2).mean() < 0.5 * ((seen - truth) ** 2).mean()
    assert fit_prior(*np.zeros((3, 0))) == fit_prior(*np.zeros((3, 2))) == (0.0, 0.0)


def test_the_whole_way_finds_what_is_there_in_a_mixed_corpus() -> None:
    corpus, linked = dealt(3, real=20)
    table = statistics(Path(), corpus.edges, corpus.activations, corpus.prompts, cuts=(50, 100)).to_pandas()
    called = table[table.q_association < 0.05]
    hits = linked[called.source_feature, called.target_feature]
    assert hits.sum() >= 15
    others = ~linked.any(0)[called.target_feature]
    assert others.sum() <= 0.1 * len(called) + 1
