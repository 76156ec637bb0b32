"""Runs on disk: complete, described, readable by everyone's tools."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits import InputError, Settings, attribute, load_run
from jaxcircuits.bulk import attribute_to_run, read_prompts

TEXTS = ["w3 w4 w5", "w9 w8", "w1 w2 w3 w4 w5 w6", "w11", "w12 w13 w14"]


@pytest.fixture
def run(bundle, two_prompts_a_part):
    settings = Settings(positions="all")
    return attribute_to_run(bundle, settings, read_prompts(bundle, texts=TEXTS), "run", quiet=True)


def test_it_holds_what_attribute_returns(bundle, run) -> None:
    whole = attribute(bundle, TEXTS, positions="all")
    assert len(run[0].record["parts"]) == 3
    for mine, expected in (
        (run[0].edges, whole.edges),
        (run[0].targets, whole.targets),
        (run[0].prompts, whole.prompts),
    ):
        mine = mine.to_table(columns=expected.column_names)
        assert mine.schema.remove_metadata() == expected.schema
        for name in expected.column_names:
            a, b = (table.column(name).to_pylist() for table in (mine, expected))
            if "float" in str(expected.schema.field(name).type):
                assert [x is None for x in a] == [x is None for x in b]
                a, b = (np.array([x for x in values if x is not None]) for values in (a, b))
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max(initial=1e-9))
            else:
                assert a == b


def test_the_strongest_edges_are_the_strongest(run) -> None:
    loaded, strongest = run
    every = np.sort(np.abs(loaded.to_pandas().attribution.to_numpy()))[::-1][:20]
    np.testing.assert_array_equal(np.abs(strongest["attribution"]).astype(np.float32), every)


def test_the_record_names_everything(bundle, run) -> None:
    record = json.loads(Path("run/run.json").read_text())
    assert record["schema"] == 3
    assert record["settings"]["precision"] == "highest"
    assert record["bundle"]["sha256"] == bundle.manifest["sha256"]
    assert set(record) >= {"settings", "versions", "device", "inputs", "plan", "parts", "prompts"}
    assert {p.as_posix() for p in Path("run").rglob("*.parquet")} == {
        "run/prompts.parquet",
        *(f"run/{part[kind]['file']}" for part in record["parts"] for kind in ("edges", "targets")),
    }


def test_a_part_that_the_record_does_not_name_is_not_read(run) -> None:
    rows = run[0].edges.count_rows()
    part = Path("run/edges/part-00000.parquet")
    part.with_name("part-99999.parquet").write_bytes(part.read_bytes())
    assert load_run("run").edges.count_rows() == rows


def test_pandas_polars_and_duckdb_open_it(run) -> None:
    duckdb, polars, pandas = (pytest.importorskip(name) for name in ("duckdb", "polars", "pandas"))
    rows = run[0].edges.count_rows()
    assert len(pandas.read_parquet("run/edges")) == rows
    assert len(polars.read_parquet("run/edges/*.parquet")) == rows
    ((count, cosines),) = duckdb.sql("select count(*), count(cosine_similarity) from 'run/edges/*.parquet'").fetchall()
    assert count == rows
    same = run[0].to_pandas().query("source_pos == target_pos")
    assert cosines == len(same)


def test_the_same_run_twice_is_the_same_bytes(bundle, run) -> None:
    attribute_to_run(bundle, Settings(positions="all"), read_prompts(bundle, texts=TEXTS), "again", quiet=True)
    hashes = [
        [p[k]["sha256"] for p in load_run(d).record["parts"] for k in ("edges", "targets")] for d in ("run", "again")
    ]
    assert hashes[0] == hashes[1]


def test_damage_and_absence_are_said(run) -> None:
    with pytest.raises(InputError, match="no run in nowhere"):
        load_run("nowhere")
    Path("run/edges/part-00001.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        _ = load_run("run").edges
    Path("run/run.json").write_text('{"schema": 99}')
    with pytest.raises(InputError, match="schema 3"):
        load_run("run")
