"""What a run keeps besides edges, against the model itself; and how little it reads and holds."""

import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import InputError, Settings, corpus, encode, forward
from jaxcircuits.bulk import attribute_to_run, prompts, read_prompts
from jaxcircuits.bulk.prompts import SAMPLE, Prompts, Survey, write_prompts
from jaxcircuits.bulk.record import Kept, check_kept
from jaxcircuits.places import Place

TEXTS = ["w3 w4 w5", "w9 w8", "w1 w2 w3 w4 w5 w6", "w11"]


def run_of(bundle, out: str = "run", texts=TEXTS, settings: Settings | None = None, **options):
    return attribute_to_run(
        bundle, settings or Settings(), read_prompts(bundle, texts=texts), out, quiet=True, **options
    )


def test_activations_are_all_that_are_above_the_threshold(bundle, two_prompts_a_part) -> None:
    settings = Settings(positions="all", source_threshold=0.1, target_threshold=0.2, top_k=1)
    texts = ["w3 w4 w5", "w9 w8 w3", "w5 w6 w7"]
    run, _ = run_of(bundle, texts=texts, settings=settings, activations=True)
    found = run.activations.to_table()
    saes = list(bundle.saes.values())
    taps = tuple(sae.cfg.hook_name for sae in saes)
    tokens = jnp.asarray(np.stack([bundle.tokenize(text) for text in texts]))
    _, values = jax.jit(lambda tokens: forward(bundle.params, bundle.cfg, tokens, taps=taps))(tokens)
    expected = {}
    for side, (sae, threshold) in enumerate(zip(saes, (0.1, 0.2), strict=True)):
        acts = np.array(encode(sae, values[sae.cfg.hook_name]))
        acts[:, 0] = 0  # BOS is left out
        expected |= {(side, *at): acts[tuple(at)] for at in np.argwhere(acts > threshold).tolist()}
    keys = list(zip(*(found.column(n).to_pylist() for n in ("side", "prompt", "pos", "feature")), strict=True))
    assert sorted(keys) == sorted(expected)  # a part's sources stand before its targets
    assert len(keys) == len(set(keys))
    np.testing.assert_allclose(found.column("activation"), [expected[key] for key in keys], rtol=1e-5, atol=1e-6)


def test_statistics_alone(bundle, two_prompts_a_part) -> None:
    whole, _ = run_of(bundle, "whole", statistics=True)
    alone, strongest = run_of(bundle, "alone", statistics=True, edges=False)
    assert strongest == {}
    assert not Path("alone/edges").exists()
    assert alone.targets.to_table() == whole.targets.to_table()
    assert alone.statistics.to_table() == whole.statistics.to_table()
    assert sum(alone.statistics.to_table()["edges"].to_pylist()) == whole.rows("edges")
    assert not Path("alone/statistics").exists()  # what they were merged from
    for kind in ("edges", "activations"):
        with pytest.raises(InputError, match=f"the run alone kept no {kind}"):
            getattr(alone, kind)


def test_what_makes_no_sense_to_keep_is_refused() -> None:
    for kept, settings, targets, words in (
        (Kept(edges=False), {}, None, "nothing would be kept"),
        (Kept(activations=True), {}, [(1, 2)], "are of all targets"),
        (Kept(statistics=True), {"source_threshold": "all"}, None, "are of active sources"),
    ):
        with pytest.raises(InputError, match=words):
            check_kept(kept, {"source_threshold": 0.0} | settings, targets)


@pytest.mark.parametrize("rows", [97, 2**17])
def test_the_strongest_edges_of_any_number_of_row_groups(bundle, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxcircuits.bulk import store

    monkeypatch.setattr(store, "ROWS", rows)
    run, strongest = run_of(bundle, keep=30)
    edges = run.to_pandas()
    expected = edges.loc[edges.attribution.abs().sort_values(ascending=False, kind="stable").index[:30]]
    np.testing.assert_array_equal(strongest["attribution"], expected.attribution)
    assert [len(v) for v in run.strongest(10**6).values()] == [len(edges)] * len(edges.columns)


def _every(tokens: np.ndarray) -> np.ndarray:
    return np.ones(len(tokens), bool)


def test_a_plan_by_a_sample_has_room_for_every_length(bundle) -> None:
    lengths = np.random.default_rng(0).integers(1, 15, 3 * SAMPLE)
    given = Prompts(bundle, rows=[[0, *[3] * n] for n in lengths])
    survey = write_prompts(Place("here"), given, _every, lambda _: None, lambda _: None)
    assert survey.number == len(lengths)
    rows = [row for row, _ in survey.sample]
    assert len(rows) == SAMPLE and rows == sorted(set(rows)) and max(rows) > 2 * SAMPLE
    assert all(len(tokens) == lengths[row] + 1 for row, tokens in survey.sample)
    few = survey.some_lengths(most=20)
    assert set(few) == {n + 1 for n in lengths} and len(few) < 40
    assert len(survey.some_lengths()) == len(lengths)


def test_prompts_pass_without_piling_up(bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the corpus, the same memory: one piece of the file and one row group are held at a time."""
    monkeypatch.setattr(corpus, "BLOCK", 4096)
    monkeypatch.setattr(prompts, "GROUP", 64)

    def peak(stories: int) -> int:
        Path("c.jsonl").write_text(f"{json.dumps({'text': 'w1 w2 w3 w4 w5 w6 w7 w8'})}\n" * stories)
        tracemalloc.start()
        write_prompts(Place("here"), read_prompts(bundle, corpus="c.jsonl"), _every, lambda _: None, lambda _: None)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(1600) < 1.3 * peak(400)


def test_what_is_skipped_is_counted_beyond_what_is_kept() -> None:
    survey = Survey(np.zeros(3, np.int64))
    for i in range(1500):
        survey.skip(str(i))
    assert survey.n_skipped == 1500 and len(survey.skipped) == 1000
