"""Which sources and targets count, and that none that counts is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.engine import _top_n
from jaxcircuits.attribution.selection import (
    bucket,
    length_bucket,
    named_targets,
    select_sources,
    select_targets,
)
from jaxcircuits.errors import InputError
from tests.attribution.cases import bundle_of, edges_of, prompts_of

ACTS = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 40)), elements=st.sampled_from([0.0, 0.5, 1.0]))


@given(acts=ACTS, threshold=st.sampled_from([-1.0, 0.0, 0.5]), first=st.integers(0, 2))
def test_every_source_above_the_threshold_is_listed_once(acts: np.ndarray, threshold: float, first: int) -> None:
    counted = np.arange(len(acts)) >= first
    sources = select_sources(acts, threshold, counted)
    for pos in range(len(acts)):
        listed = sources.feature[pos, sources.valid[pos]]
        expected = np.flatnonzero(acts[pos] > threshold) if counted[pos] else []
        np.testing.assert_array_equal(listed, expected)


@given(acts=ACTS, first=st.integers(0, 2))
def test_all_sources_means_all(acts: np.ndarray, first: int) -> None:
    counted = np.arange(len(acts)) >= first
    sources = select_sources(acts, "all", counted)
    assert sources.valid.sum() == counted.sum() * acts.shape[1]


@given(acts=ACTS, threshold=st.sampled_from([-1.0, 0.0, 0.5]))
def test_targets_are_strictly_above_and_in_order(acts: np.ndarray, threshold: float) -> None:
    targets = select_targets(acts, threshold, np.ones(len(acts), bool))
    np.testing.assert_array_equal(np.stack(targets, 1), np.argwhere(acts > threshold))


@given(n=st.integers(1, 5000))
def test_buckets_hold_what_they_are_for(n: int) -> None:
    assert n <= bucket(n) <= max(8, 2 * n - 1)
    assert n <= length_bucket(n, 5000) <= max(16, 2 * n)
    assert length_bucket(n, n) == n if n <= 16 else length_bucket(n, n) <= 2 * n


@given(
    sizes=arrays(np.float32, st.integers(0, 30), elements=st.floats(0, 4, width=16)),
    n=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_top_n_keeps_each_targets_largest(sizes: np.ndarray, n: int, seed: int) -> None:
    target = np.sort(np.random.default_rng(seed).integers(0, 5, len(sizes)))
    kept = _top_n(target, sizes, n)
    for t in range(5):
        mine, chosen = sizes[target == t], kept[target == t]
        assert chosen.sum() == min(n, len(mine))
        if chosen.any() and not chosen.all():
            assert mine[chosen].min() >= mine[~chosen].max()


def test_top_n_counts_and_sums_what_it_cuts() -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 14)
    every, all_targets = Engine(bundle, Settings(positions="all")).run(prompts)
    kept, targets = Engine(bundle, Settings(positions="all", top_n=3)).run(prompts)
    assert len(kept["prompt"]) == targets["edges"].sum() < len(every["prompt"])
    np.testing.assert_array_equal(targets["edges"] + targets["edges_cut"], all_targets["edges"])
    np.testing.assert_allclose(
        targets["attribution_sum"] + targets["attribution_cut"], all_targets["attribution_sum"], rtol=1e-5, atol=1e-6
    )
    assert targets["edges"].max() == 3
    assert not all_targets["edges_cut"].any()


def test_thresholds_are_strict() -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 9)
    every = edges_of(bundle, prompts)
    source, target = float(np.median(every["source_act"])), float(np.median(every["target_act"]))
    above = edges_of(bundle, prompts, source_threshold=source, target_threshold=target)
    assert (every["source_act"] == source).any()
    assert (every["target_act"] == target).any()
    expected = (every["source_act"] > source) & (every["target_act"] > target)
    assert len(above["prompt"]) == expected.sum()
    np.testing.assert_array_equal(above["source_feature"], every["source_feature"][expected])


@pytest.mark.parametrize("method", ["reference", "structured"])
def test_bos_counts_only_when_asked(method: str) -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 8)
    without = edges_of(bundle, prompts, positions="all", method=method)
    with_bos = edges_of(bundle, prompts, positions="all", method=method, include_bos=True)
    assert without["source_pos"].min() == without["target_pos"].min() == 1
    later = (with_bos["source_pos"] > 0) & (with_bos["target_pos"] > 0)
    np.testing.assert_array_equal(with_bos["source_feature"][later], without["source_feature"])
    assert (with_bos["target_pos"] == 0).any()


def test_a_first_token_that_is_not_bos_counts() -> None:
    bundle = bundle_of("global then local")
    tokens = np.array([5, 3, 8], np.int32)
    assert edges_of(bundle, [(0, tokens)])["target_pos"].min() == 0


def test_named_targets_may_be_off_and_count_from_the_end() -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 8)
    _, targets = Engine(bundle, Settings()).run(prompts, [(-1, 3), (2, 7), (7, 3)])
    np.testing.assert_array_equal(np.stack([targets["target_pos"], targets["target_feature"]], 1), [[2, 7], [7, 3]])
    every = edges_of(bundle, prompts, positions="all")
    one = edges_of(bundle, prompts, [(-1, int(every["target_feature"][-1]))], positions="all")
    last = (every["target_pos"] == 7) & (every["target_feature"] == every["target_feature"][-1])
    np.testing.assert_allclose(one["gradient"], every["gradient"][last], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("target", "message"),
    [((8, 0), "positions 0..7"), ((-9, 0), "positions 0..7"), ((1, 99), "features 0..25"), ((0, 1), "include-bos")],
)
def test_named_targets_that_do_not_exist(target: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        named_targets([target], 26, np.arange(8) > 0)


def test_nothing_active_is_an_empty_valid_result() -> None:
    bundle = bundle_of("global then local")
    edges, targets = Engine(bundle, Settings(target_threshold=1e6)).run(prompts_of(bundle, 8, 3))
    assert {len(values) for values in (*edges.values(), *targets.values())} == {0}
    edges, targets = Engine(bundle, Settings(source_threshold=1e6, positions="all")).run(prompts_of(bundle, 8))
    assert len(edges["prompt"]) == 0
    assert len(targets["prompt"]) > 0
    assert not targets["edges"].any()
