"""Which sources and targets count, and that none that counts is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.products import dots
from jaxcircuits.attribution.selection import (
    bucket,
    first_true,
    large_slots,
    named_targets,
    select_sources,
    select_targets,
    top_slots,
)
from jaxcircuits.errors import InputError
from tests.attribution.cases import bundle_of, edges_of, prompts_of

find, sources_of, targets_of = (
    jax.jit(f, static_argnums=n) for f, n in ((first_true, 1), (select_sources, (1, 3)), (select_targets, (2, 3, 5)))
)
products = jax.jit(dots, static_argnums=(4, 5))
top, large_of = jax.jit(top_slots, static_argnums=2), jax.jit(large_slots, static_argnums=1)

# One shape an array, or every example would be compiled anew.
ACTS = arrays(np.float32, (5, 40), elements=st.sampled_from([0.0, 0.0, 0.5, 1.0]))


@given(mask=arrays(bool, 77, elements=st.booleans()), sparse=st.booleans())
def test_first_true_finds_them_in_order(mask: np.ndarray, sparse: bool) -> None:
    mask = mask & (np.arange(77) % 9 == 4) if sparse else mask
    expected = np.flatnonzero(mask)
    for capacity in (1, 20, 77):
        index, count = find(jnp.asarray(mask), capacity)
        assert count == len(expected)
        n = min(capacity, len(expected))
        np.testing.assert_array_equal(np.asarray(index)[:n], expected[:n])
        assert (np.asarray(index) < 77).all()


def test_first_true_of_a_mask_of_many_words() -> None:
    mask = np.random.default_rng(0).random(100_003) < 0.01
    index, count = first_true(jnp.asarray(mask), 2000)
    np.testing.assert_array_equal(np.asarray(index)[: int(count)], np.flatnonzero(mask))


@given(acts=ACTS, threshold=st.sampled_from([-1.0, 0.0, 0.5]), first=st.integers(0, 2))
def test_every_source_above_the_threshold_is_listed_once(acts: np.ndarray, threshold: float, first: int) -> None:
    counted = np.arange(len(acts)) >= first
    sources = sources_of(jnp.asarray(acts), threshold, jnp.asarray(counted), acts.size)
    expected = np.flatnonzero((acts > threshold) & counted[:, None])
    assert sources.number == len(expected)
    np.testing.assert_array_equal(np.asarray(sources.flat)[: len(expected)], expected)
    np.testing.assert_array_equal(np.asarray(sources.act)[: len(expected)], acts.reshape(-1)[expected])
    by_pos = ((acts > threshold) & counted[:, None]).sum(1)
    np.testing.assert_array_equal(np.diff(np.asarray(sources.starts)), by_pos)
    cramped = sources_of(jnp.asarray(acts), threshold, jnp.asarray(counted), 3)
    assert cramped.number == sources.number
    np.testing.assert_array_equal(cramped.starts, sources.starts)


def test_all_sources_means_all() -> None:
    acts = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    sources = select_sources(jnp.asarray(acts), "all", jnp.ones(3, bool), 1)
    np.testing.assert_array_equal(sources.flat, np.arange(21))
    np.testing.assert_array_equal(sources.starts, [0, 7, 14, 21])


@given(acts=ACTS, threshold=st.sampled_from([-1.0, 0.0, 0.5]))
def test_targets_are_strictly_above_and_in_order(acts: np.ndarray, threshold: float) -> None:
    given_acts = jnp.asarray(acts)
    targets = targets_of(given_acts, given_acts, "activation", threshold, jnp.ones(len(acts), bool), acts.size)
    expected = np.argwhere(acts > threshold)
    assert targets.number == len(expected)
    found = np.stack([targets.pos, targets.feature], 1)[: len(expected)]
    np.testing.assert_array_equal(found, expected)


@given(n=st.integers(1, 5000))
def test_buckets_hold_what_they_are_for(n: int) -> None:
    assert n <= bucket(n) <= max(8, 2 * n - 1)


@given(
    sizes=arrays(np.float32, (4, 9), elements=st.floats(0, 4, width=16)),
    valid=arrays(bool, (4, 9)),
    n=st.sampled_from([1, 3, 20]),
)
def test_top_slots_are_each_targets_largest(sizes: np.ndarray, valid: np.ndarray, n: int) -> None:
    slots, kept = (np.asarray(x) for x in top(jnp.asarray(sizes), jnp.asarray(valid), n))
    for t in range(4):
        chosen = np.zeros(9, bool)
        chosen[slots[t][kept[t]]] = True
        assert chosen.sum() == kept[t].sum() == min(n, valid[t].sum())
        assert not (chosen & ~valid[t]).any()
        assert (np.diff(slots[t][kept[t]]) > 0).all()
        if chosen.any() and (valid[t] & ~chosen).any():
            assert sizes[t][chosen].min() >= sizes[t][valid[t] & ~chosen].max()


@given(large=arrays(bool, (3, 50)))
def test_large_slots_are_those_marked(large: np.ndarray) -> None:
    slots, kept, most = large_of(jnp.asarray(large), 50)
    assert most == large.sum(1).max()
    for t in range(3):
        np.testing.assert_array_equal(np.asarray(slots)[t][np.asarray(kept)[t]], np.flatnonzero(large[t]))


def test_top_k_counts_and_sums_what_it_cuts() -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 14)
    every, all_targets = Engine(bundle, Settings(positions="all")).run(prompts)
    kept, targets = Engine(bundle, Settings(positions="all", top_k=3)).run(prompts)
    assert len(kept["prompt"]) == targets["edges"].sum() < len(every["prompt"])
    np.testing.assert_array_equal(targets["edges"] + targets["edges_cut"], all_targets["edges"])
    np.testing.assert_allclose(
        targets["attribution_sum"] + targets["attribution_cut"], all_targets["attribution_sum"], rtol=1e-5, atol=1e-6
    )
    assert targets["edges"].max() == 3
    assert not all_targets["edges_cut"].any()


@pytest.mark.parametrize("positions", ["same", "all"])
def test_small_edges_are_counted_and_summed(positions: str) -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 14)
    every, all_targets = Engine(bundle, Settings(positions=positions)).run(prompts)
    kept, targets = Engine(bundle, Settings(positions=positions, min_attribution=0.1)).run(prompts)
    large = np.abs(every["attribution"]) > 0.1
    assert 0 < large.sum() < len(large)
    for name in ("target_pos", "target_feature", "source_pos", "source_feature"):
        np.testing.assert_array_equal(kept[name], every[name][large])
    np.testing.assert_array_equal(targets["edges"] + targets["edges_cut"], all_targets["edges"])
    np.testing.assert_allclose(
        targets["attribution_sum"] + targets["attribution_cut"], all_targets["attribution_sum"], rtol=1e-5, atol=1e-6
    )


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


@given(seed=st.integers(0, 2**31), n=st.sampled_from([1, 9, 40]))
def test_products_by_position_equal_products_target_by_target(seed: int, n: int) -> None:
    """Whether the targets of a position share its rows or not, and however many there are."""
    rng = np.random.default_rng(seed)
    acts = jnp.asarray(rng.standard_normal((12, 30)) - 0.5, jnp.float32)
    sources = sources_of(acts, 0.0, jnp.ones(12, bool), 400)
    table = jnp.asarray(rng.standard_normal((30, 7)), jnp.float32)
    pos = jnp.asarray(np.sort(rng.integers(0, 12, n)), jnp.int32)
    vectors = jnp.asarray(rng.standard_normal((n, 2, 7)), jnp.float32)
    shared, apart = (products(vectors, table, pos, sources, 30, at_once) for at_once in (1, 5))
    np.testing.assert_allclose(shared, apart, atol=1e-5)
