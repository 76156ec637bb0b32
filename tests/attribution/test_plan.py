"""Plans: few shapes that fit the memory; room that grows where it was too small; halves where memory ran out."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution import engine as engine_module
from jaxcircuits.attribution.plan import LENGTHS, bytes_of, halved, padded_lengths, parse_memory, rungs
from jaxcircuits.attribution.task import Shape
from jaxcircuits.errors import InputError
from tests.attribution.cases import assert_same_edges, bundle_of, edges_of, prompts_of
from tests.helpers import tiny_bundle, tiny_config


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=200))
def test_every_prompt_has_a_length_and_they_are_few(lengths: list[int]) -> None:
    padded = padded_lengths(lengths, 512)
    assert padded[-1] >= max(lengths)
    assert padded == tuple(sorted(set(padded)))
    if len(lengths) >= 32:
        assert len(padded) <= LENGTHS


def test_lengths_are_the_best_of_all_choices() -> None:
    from itertools import combinations

    lengths = np.random.default_rng(0).integers(60, 300, 400).tolist()

    def cost(chosen: tuple[int, ...]) -> int:
        return sum(min(c for c in chosen if c >= n) for n in lengths)

    ladder = [n for n in rungs(512, 8) if n >= 60]
    top = next(n for n in ladder if n >= max(lengths))
    below = [n for n in ladder if n < top]
    best = min(cost((*c, top)) for c in combinations(below, LENGTHS - 1))
    assert cost(padded_lengths(lengths, 512)) == best


@pytest.mark.parametrize(("text", "size"), [("8GB", 2**33), ("500mb", 500 * 2**20), ("2g", 2**31), ("1048576", 2**20)])
def test_memory_as_people_write_it(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "1XB", "10", "GB", "nan", "infGB"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="size such as 8GB"):
        parse_memory(text)


@pytest.mark.parametrize("positions", ["same", "all"])
@pytest.mark.parametrize("method", ["structured", pytest.param("reference", marks=pytest.mark.slow)])
def test_less_memory_makes_smaller_programs_and_the_same_edges(method: str, positions: str) -> None:
    bundle = tiny_bundle(tiny_config(n_ctx=64))
    prompts = prompts_of(bundle, 20, 33, 47, 55)
    settings = Settings(method=method, positions=positions)
    plenty, little = Engine(bundle, settings, 2**30), Engine(bundle, settings, 2**20)
    expected, found = plenty.run(prompts)[0], little.run(prompts)[0]
    assert plenty.plan and little.plan
    assert plenty.report.regrown == little.report.regrown == 0  # all prompts were looked at
    for shape in little.plan.shapes:
        assert bytes_of(shape, little.task, {"d_sae": 24, "d_sae_target": 26, "d_in": 20, "bytes": 4}) <= 2**20
    assert max(s.batch for s in little.plan.shapes) < max(s.batch for s in plenty.plan.shapes)
    assert_same_edges(found, expected, "methods")


@pytest.mark.parametrize("room", ["sources", "per_position", "targets", "kept"])
def test_room_grows_and_nothing_is_cut(room: str) -> None:
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 16, 9, 13)
    settings = Settings(positions="all", min_attribution=0.0)
    expected = Engine(bundle, settings).run(prompts)
    small = Engine(bundle, settings)
    plan = small.make_plan(prompts)
    less = {"sources": 8, "per_position": 2, "targets": 8, "kept": 4}
    shapes = tuple(replace(s, **{room: less[room]}, chunk=8 if room == "targets" else s.chunk) for s in plan.shapes)
    small.plan = replace(plan, shapes=shapes)
    found = small.run(prompts)
    assert small.report.regrown > 0
    assert_same_edges(found[0], expected[0], "methods")
    np.testing.assert_array_equal(found[1]["edges"], expected[1]["edges"])


def test_memory_that_runs_out_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device says so here only in name: a CPU has no such error to give."""
    bundle = bundle_of("global then local")
    prompts = prompts_of(bundle, 16, 9, 13, 12)
    expected = edges_of(bundle, prompts)
    run = engine_module.same_position

    def short_of_memory(*args, shape, **kwargs):
        if shape.batch > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return run(*args, shape=shape, **kwargs)

    monkeypatch.setattr(engine_module, "same_position", short_of_memory)
    engine = Engine(bundle, Settings())
    assert_same_edges(engine.run(prompts)[0], expected, "methods")
    assert engine.report.split > 0


@given(chunk=st.integers(1, 256), times=st.integers(1, 5))
def test_halves_divide_the_room(chunk: int, times: int) -> None:
    shape = Shape(1, 8, 8, 8, chunk * times, chunk, 8, 1, 1, 4096)
    while shape.chunk > 1:
        shape = halved(shape)
        assert shape.targets % shape.chunk == 0
        assert shape.targets >= chunk * times


def test_a_plan_repeats_itself() -> None:
    bundle = tiny_bundle(tiny_config(n_ctx=64))
    prompts = prompts_of(bundle, *range(5, 64))
    first, second = Engine(bundle, Settings(), 2**30), Engine(bundle, Settings(), 2**30)
    assert first.make_plan(prompts) == second.make_plan(prompts)


def test_programs_are_few() -> None:
    """A corpus of natural lengths compiles one program a length, and one to look at it first."""
    bundle = tiny_bundle(tiny_config(n_ctx=128), seed=3)
    lengths = np.clip(np.random.default_rng(0).normal(60, 25, 100), 5, 128).astype(int)
    prompts = prompts_of(bundle, *lengths)
    engine = Engine(bundle, Settings())
    before = engine_module.same_position._cache_size(), engine_module.forward_pass._cache_size()
    engine.run(prompts)
    after = engine_module.same_position._cache_size(), engine_module.forward_pass._cache_size()
    assert sum(after) - sum(before) <= 8


def test_sequences_side_by_side_give_what_they_give_one_by_one() -> None:
    """As on accelerators. With a condition mapped over 20 sequences or more, XLA on a CPU gave other gradients."""
    bundle = tiny_bundle()
    prompts = prompts_of(bundle, *np.random.default_rng(0).integers(4, 16, 24))
    one_by_one = Engine(bundle, Settings(), 2**30)
    expected = one_by_one.run(prompts)[0]
    side_by_side = Engine(bundle, Settings(), 2**30)
    plan = side_by_side.make_plan(prompts)
    shapes = tuple(replace(shape, batch=24, sequences_at_once=24) for shape in plan.shapes)
    side_by_side.plan = replace(plan, shapes=shapes)
    assert_same_edges(side_by_side.run(prompts)[0], expected, "methods")
