"""Statistics of edges are what every edge, looked at one by one, says; however the corpus was cut."""

import json
import tracemalloc
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from jaxcircuits import InputError
from jaxcircuits.bulk import pair_sums
from jaxcircuits.bulk.edge_statistics import FILE, facts_of, merge_statistics, merge_sums
from jaxcircuits.bulk.scratch import write_scratch
from jaxcircuits.bulk.statistics_table import STATISTICS
from tests.bulk.corpora import FIRST, Corpus, statistics, write_parts
from tests.helpers import TOLERANCES

TOLERANCE = TOLERANCES["statistics"]["float64"]
OFFSETS = (0, 1, 3)


@pytest.fixture(scope="module")
def tables() -> tuple[pa.Table, pa.Table, pa.Table]:
    corpus = Corpus(np.random.default_rng(0), stories=24, sources=6, targets=5, length=14, offsets=OFFSETS)
    return corpus.edges, corpus.activations, corpus.prompts


def brute_force(edges: pa.Table, activations: pa.Table, prompts: pa.Table) -> dict[tuple, dict[str, float]]:
    """Every number from lists of edges and of position pairs, in the plainest way."""
    acts = [defaultdict(float) for _ in range(2)]
    for row in activations.to_pylist():
        acts[row["side"]][row["prompt"], row["pos"], row["feature"]] = row["activation"]
    lengths = {row["prompt"]: row["n_tokens"] for row in prompts.to_pylist()}
    grouped = defaultdict(list)
    for row in edges.to_pylist():
        grouped[row["target_feature"], row["source_feature"], row["target_pos"] - row["source_pos"]].append(row)
    out = {}
    for (target, source, offset), rows in grouped.items():
        places = [(g, p) for g, n in lengths.items() for p in range(FIRST + offset, n)]
        s = np.array([acts[0][g, p - offset, source] for g, p in places])
        t = np.array([acts[1][g, p, target] for g, p in places])
        a = np.array([row["attribution"] for row in rows])
        story = np.array([row["prompt"] for row in rows])
        mean, n, weights = a.mean(), len(a), np.array([row["target_act"] for row in rows])
        sums = np.array([a[story == g].sum() for g in np.unique(story)])
        sizes = np.array([(story == g).sum() for g in np.unique(story)])
        residuals = sums - mean * sizes
        projected = np.diag(sizes) - np.outer(sizes, sizes) / n  # of the working model, as a matrix
        several = len(sums) > 1
        centred = np.eye(len(sizes)) - np.outer(np.ones(len(sizes)), sizes) / n
        alike = np.trace(centred.T @ np.diag(sizes**2) @ centred)
        error = np.sqrt((residuals**2).sum() * (sizes**2).sum() / alike) / n if several else np.nan
        degrees = np.trace(projected) ** 2 / np.trace(projected @ projected) if several else np.nan
        reach = stats.t.ppf(0.975, degrees) * error
        largest = max(rows, key=lambda row: (abs(row["attribution"]), -row["prompt"], -row["target_pos"]))
        out[target, source, offset] = {
            "edges": n,
            "both_active": ((s > 0) & (t > 0)).sum(),
            "target_active": (t > 0).sum(),
            "source_active": (s > 0).sum(),
            "position_pairs": len(places),
            "stories": len(sums),
            "effective_stories": n**2 / (sizes**2).sum(),
            "mean": mean,
            "standard_error": error,
            "degrees": degrees,
            "mean_low": mean - reach,
            "mean_high": mean + reach,
            "mean_absolute": np.abs(a).mean(),
            "variance": a.var(),
            "share_positive": (a > 0).mean(),
            "sum": a.sum(),
            "expected": a.sum() / (t > 0).sum(),
            "twera": (weights * a).sum() / t.sum(),
            "z": sums.sum() / np.sqrt((sums**2).sum()),
            "correlation": np.corrcoef(s, t)[0, 1],
            "largest_attribution": largest["attribution"],
            "largest_prompt": largest["prompt"],
            "largest_target_pos": largest["target_pos"],
            "largest_source_pos": largest["source_pos"],
        }
    return out


@pytest.mark.parametrize("cuts", [(), (9,), range(1, 24)], ids=["whole", "halves", "every prompt"])
def test_they_equal_a_recomputation_from_every_edge(tables, cuts) -> None:
    found = statistics(Path(), *tables, cuts=cuts)
    expected = brute_force(*tables)
    assert found.column_names == list(STATISTICS)
    rows = found.to_pylist()
    assert [(r["target_feature"], r["source_feature"], r["offset"]) for r in rows] == sorted(expected)
    assert {r["offset"] for r in rows} == set(OFFSETS)
    for row in rows:
        want = expected[row["target_feature"], row["source_feature"], row["offset"]]
        scale = {name: want["mean_absolute"] for name in want}
        scale |= {"variance": want["mean_absolute"] ** 2, "sum": want["mean_absolute"] * want["edges"]}
        # What has no unit.
        scale |= dict.fromkeys(("correlation", "z", "share_positive", "degrees", "effective_stories"), 1.0)
        for name, value in want.items():
            if np.isnan(value):
                assert row[name] is None, name
            elif name in ("standard_error", "mean_low", "mean_high"):  # roots of differences: compared as squares
                reach = [abs(r[name] - r["mean"] * (name != "standard_error")) ** 2 for r in (row, want)]
                assert abs(reach[0] - reach[1]) <= 100 * TOLERANCE * (want["variance"] + want["mean"] ** 2), name
            else:
                assert abs(row[name] - value) <= TOLERANCE * max(scale[name], 0), (name, row[name], value)


def test_the_same_corpus_cut_otherwise_is_judged_the_same(tables) -> None:
    whole = statistics(Path("whole"), *tables, min_stories=3).to_pandas()
    parts = statistics(Path("parts"), *tables, cuts=(3, 11, 12), min_stories=3).to_pandas()
    assert whole.q_association.notna().sum() > 10 and whole.q_mean.notna().sum() > 10
    for name in whole:
        np.testing.assert_allclose(whole[name], parts[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_same_parts_are_the_same_bytes(tables) -> None:
    contents = []
    for name in ("a", "b"):
        statistics(Path(name), *tables, cuts=(5, 7))
        contents.append((Path(name) / FILE).read_bytes())
    assert contents[0] == contents[1]


def test_the_order_of_edges_does_not_matter(tables) -> None:
    edges, *others = tables
    mixed = edges.take(np.random.default_rng(1).permutation(edges.num_rows))
    assert statistics(Path("a"), edges, *others).equals(statistics(Path("b"), mixed, *others))


@pytest.mark.parametrize("block", [1, 50])
def test_how_many_edges_are_summed_at_once_does_not_matter(tables, block: int, monkeypatch) -> None:
    whole = statistics(Path("whole"), *tables, cuts=(9,))
    monkeypatch.setattr(pair_sums, "BLOCK", block)
    assert statistics(Path("blocks"), *tables, cuts=(9,)).equals(whole)


def test_of_equal_largest_edges_the_first_counts(tables) -> None:
    edges, *others = tables
    same = pa.array(np.where(np.arange(edges.num_rows) % 2, -1, 1), pa.float32())
    found = statistics(Path(), edges.set_column(5, "attribution", same), *others, cuts=(10, 20)).to_pandas()
    frame = edges.to_pandas().assign(offset=lambda e: e.target_pos - e.source_pos)
    first = frame.groupby(["target_feature", "source_feature", "offset"], as_index=False).first()
    np.testing.assert_array_equal(found.largest_prompt, first.prompt)
    np.testing.assert_array_equal(found.largest_target_pos, first.target_pos)
    np.testing.assert_array_equal(found.largest_source_pos, first.source_pos)


def test_pairs_of_few_stories_are_not_judged(tables) -> None:
    found = statistics(Path(), *tables, min_stories=6).to_pandas()
    judged = found[["mean_shrunk", "p_mean", "q_mean", "chance", "p_association", "q_association"]].notna()
    np.testing.assert_array_equal(judged, np.repeat((found.stories >= 6).to_numpy()[:, None], 6, axis=1))
    facts = facts_of(pq.read_table(FILE))
    assert facts["min_stories"] == 6 and facts["tested"] == (found.stories >= 6).sum()
    assert facts["hypotheses_association"] >= facts["tested"]
    prior, spread = facts["prior_mean"], facts["prior_variance"]
    relative = found["mean"] / found.mean_absolute
    share = spread / (spread + (found.standard_error / found.mean_absolute) ** 2)
    want = (prior + (relative - prior) * share) * found.mean_absolute
    np.testing.assert_allclose(found.mean_shrunk.dropna(), want[found.stories >= 6], rtol=1e-12)


def test_without_activations_nothing_is_said_that_needs_them(tables) -> None:
    edges, activations, prompts = tables
    found = statistics(Path(), edges, activations.slice(0, 0), prompts).to_pandas()
    unknown = ["target_active", "source_active", "position_pairs", "expected", "twera"]
    unknown += ["chance", "p_association", "q_association", "correlation"]
    assert found[unknown].isna().all(axis=None)
    assert found["mean"].notna().all() and found.q_mean.notna().any()


def test_cut_edges_are_said_and_not_compared_with_chance(tables) -> None:
    write_parts(Path(), *tables, cuts=(12,))
    Path("targets").mkdir()
    for i in range(2):
        pq.write_table(pa.table({"edges_cut": pa.array([4, 3], pa.int32())}), f"targets/part-{i:05d}.parquet")
    merge_statistics(Path())
    found = pq.read_table(FILE)
    assert facts_of(found)["edges_cut"] == 14
    frame = found.to_pandas()
    assert frame[["chance", "q_association", "correlation"]].isna().all(axis=None)
    assert frame[["target_active", "q_mean"]].notna().any().all()


def test_only_parts_that_are_named_count(tables) -> None:
    whole = statistics(Path("whole"), *tables, cuts=(12,))
    write_parts(Path("run"), *tables, cuts=(12,))
    for kind in ("pairs", "features"):
        (Path("run/statistics") / kind / "part-00002.arrow").write_bytes(b"half of a part")
    named = ["part-00000.arrow", "part-00001.arrow"]
    merge_statistics(Path("run"), sums={"pairs": named, "features": named})
    assert pq.read_table(Path("run") / FILE).equals(whole)
    with pytest.raises(InputError, match="cannot merge the statistics in run"):
        merge_statistics(Path("run"))
    assert pq.read_table(Path("run") / FILE).equals(whole)
    assert sorted(p.name for p in Path("run").iterdir()) == ["statistics", FILE]


def test_sums_of_another_version_are_said_so(tables) -> None:
    write_parts(Path("run"), *tables, cuts=(12,))
    write_scratch(Path("run/statistics/pairs/part-00000.arrow"), pa.table({"edges": [1.0]}))
    with pytest.raises(InputError, match=r"cannot merge the statistics in run .*run it again"):
        merge_statistics(Path("run"))


def test_nothing_to_merge_and_nothing_in_it(tables) -> None:
    with pytest.raises(InputError, match="no statistics to merge in nowhere"):
        merge_statistics(Path("nowhere"))
    with pytest.raises(InputError, match="at least 2"):
        merge_statistics(Path("nowhere"), min_stories=1)
    edges, activations, prompts = tables
    assert statistics(Path("run"), edges.slice(0, 0), activations, prompts).num_rows == 0


def test_the_columns_say_what_they_are(tables) -> None:
    schema = statistics(Path(), *tables).schema
    assert all(json.dumps(field.metadata[b"meaning"].decode()) for field in schema)


@pytest.mark.slow
def test_merging_takes_less_memory_than_the_sums() -> None:
    """The sums of four parts of 300,000 pairs, 160 MB, merged in 100 MB."""
    corpus = Corpus(np.random.default_rng(0), stories=4, sources=3, targets=3, length=8)
    edges, n = [], 300_000
    for prompt in range(4):
        pairs = corpus.rng.permutation(2 * n)[:n]
        ints = {"prompt": np.full(n, prompt), "target_pos": np.full(n, 3), "source_pos": np.full(n, 3)}
        ints |= {"target_feature": pairs // 2000, "source_feature": pairs % 2000}
        floats = {name: corpus.rng.random(n) for name in ("attribution", "source_act", "target_act")}
        types = dict.fromkeys(ints, np.int32) | dict.fromkeys(floats, np.float32)
        edges.append(pa.table({name: values.astype(types[name]) for name, values in (ints | floats).items()}))
    every = pa.concat_tables(edges)
    write_parts(Path(), every, corpus.activations, corpus.prompts, cuts=(1, 2, 3))
    files = sorted(Path("statistics/pairs").iterdir())
    for file in files:
        with file.with_suffix(".rows").open("wb") as summed:
            merge_sums(summed, "pairs", [file])
        file.unlink()
    sums = sum(file.stat().st_size for file in Path("statistics/pairs").iterdir())
    tracemalloc.start()
    merge_statistics(Path())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sums > 150e6 and peak < 100e6
    found = pq.read_table(FILE).to_pandas()
    by_pair = every.to_pandas().groupby(["target_feature", "source_feature"]).attribution
    np.testing.assert_array_equal(found.edges, by_pair.size())
    np.testing.assert_allclose(found["mean"], by_pair.mean(), rtol=1e-6)
