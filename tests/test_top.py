"""`top`: answers equal what the edges say; tables, JSON, CSV and figures; refusals."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jaxcircuits import Settings, load_bundle, load_run
from jaxcircuits.bulk import attribute_to_run, read_prompts
from jaxcircuits.bulk.edge_statistics import FILE, statistics_of
from jaxcircuits.cli import main
from jaxcircuits.report import top
from tests.helpers import saved_bundle

TEXTS = [" ".join(f"w{1 + (7 * i + 3 * j) % 30}" for j in range(3 + i % 5)) for i in range(10)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    saved_bundle(place / "tiny")
    bundle = load_bundle(place / "tiny")
    prompts = read_prompts(bundle, texts=TEXTS)
    attribute_to_run(bundle, Settings(positions="all"), prompts, place / "all", quiet=True)
    off = Settings(target_quantity="pre_activation", target_threshold=-0.5, top_k=5)
    attribute_to_run(bundle, off, prompts, place / "off", quiet=True)
    return place


@pytest.fixture(autouse=True)
def _copies(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / ".cache"))
    for name in ("all", "off"):
        shutil.copytree(stored / name, tmp_path / name)


def ask(*argv: str) -> int:
    try:
        return main(["top", *argv])
    except SystemExit as stop:
        return int(stop.code or 0)


def answer(capsys, *argv: str) -> dict:
    assert ask(*argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


def edges_of(name: str = "all"):
    return load_run(name).to_pandas().assign(offset=lambda e: e.target_pos - e.source_pos)


def busiest(end: str, name: str = "all") -> int:
    return int(edges_of(name)[f"{end}_feature"].mode()[0])


@pytest.mark.parametrize(
    ("option", "end", "other"), [("--drivers-of", "target", "source"), ("--driven-by", "source", "target")]
)
def test_a_feature_s_pairs_are_those_of_the_edges(capsys, option: str, end: str, other: str) -> None:
    feature = busiest(end)
    rows = answer(capsys, "all", option, str(feature), "--limit", "1000", "--min-stories", "2")["statistics"]
    edges = edges_of()
    mine = edges[edges[f"{end}_feature"] == feature].groupby([f"{other}_feature", "offset"])
    expected = mine.attribution.agg(["mean", "size"])[mine.prompt.nunique() >= 2]
    assert len(rows) == len(expected) > 20
    for row in rows:
        mean, number = expected.loc[(row[f"{other}_feature"], row["offset"])]
        assert row["mean"] == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert row["edges"] == number
    effects = [abs(row["mean_shrunk"]) for row in rows]
    assert effects == sorted(effects, reverse=True)


@pytest.mark.parametrize(
    ("by", "column"), [("effect", "mean_shrunk"), ("evidence", "z"), ("absolute", "mean_absolute")]
)
def test_order_sign_offset_and_limit(capsys, by: str, column: str) -> None:
    feature, options = busiest("target"), ("--sign", "negative", "--offset", "1", "--limit", "3")
    rows = answer(capsys, "all", "--drivers-of", str(feature), "--by", by, *options, "--min-stories", "2")["statistics"]
    every = answer(capsys, "all", "--drivers-of", str(feature), "--limit", "1000", "--min-stories", "2")["statistics"]
    fitting = [row for row in every if row["mean"] < 0 and row["offset"] == 1]
    expected = sorted((abs(row[column]) for row in fitting), reverse=True)[:3]
    assert [abs(row[column]) for row in rows] == expected
    assert len(rows) == 3


def test_statistics_that_the_run_kept_are_taken(capsys) -> None:
    feature = str(busiest("target"))
    computed = answer(capsys, "all", "--drivers-of", feature, "--by", "evidence")["statistics"]
    assert "kept no statistics" in _said(capsys, "all", "--drivers-of", feature)
    run = load_run("all")
    pq.write_table(statistics_of(run, quiet=True), Path("all") / FILE)
    assert ask("all", "--drivers-of", feature) == 0
    printed = capsys.readouterr()
    assert "kept no statistics" not in printed.err
    assert f"Drivers of target {feature}" in printed.out
    kept = answer(capsys, "all", "--drivers-of", feature, "--by", "evidence")["statistics"]
    judged_alike = ("q_mean", "mean_shrunk")  # among all pairs, not these alone
    assert [{k: v for k, v in r.items() if k not in judged_alike} for r in kept] == [
        {k: v for k, v in r.items() if k not in judged_alike} for r in computed
    ]


def _said(capsys, *argv: str) -> str:
    capsys.readouterr()
    ask(*argv)
    return capsys.readouterr().err


def test_a_pair_with_its_examples(capsys) -> None:
    edges = edges_of()
    source, target = map(int, edges.groupby(["source_feature", "target_feature"]).size().idxmax())
    found = answer(capsys, "all", "--pair", str(source), str(target), "--limit", "4")
    mine = edges[(edges.source_feature == source) & (edges.target_feature == target)]
    assert [r["offset"] for r in found["statistics"]] == sorted(mine.offset.unique())
    strongest = mine.reindex(mine.attribution.abs().sort_values(ascending=False, kind="stable").index)[:4]
    assert [r["attribution"] for r in found["edges"]] == pytest.approx(strongest.attribution.tolist())
    for row in found["edges"]:
        tokens = (
            row["tokens"][row["source_pos"] - row["first_token"]],
            row["tokens"][row["target_pos"] - row["first_token"]],
        )
        assert f"‹{tokens[0]}›" in row["text"] and "«" in row["text"] and "»" in row["text"]
        words = [f"w{i}" for i in ([0] + [1 + (7 * row["prompt"] + 3 * j) % 30 for j in range(8)])]
        assert tokens[1].strip() == words[row["target_pos"]]
    assert ask("all", "--pair", str(source), str(target), "--offset", "0", "--figure", "pair.png") == 0
    printed = capsys.readouterr().out
    assert f"Source {source} → target {target}" in printed and "offset 0" in printed and "offset 1" not in printed
    assert Path("pair.png").read_bytes().startswith(b"\x89PNG")


def test_the_edges_of_a_prompt_as_csv(capsys) -> None:
    assert ask("all", "--prompt-row", "3", "--sign", "negative", "--limit", "5", "--csv", "--figure", "p.svg") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    edges = edges_of()
    mine = np.sort(edges[edges.prompt == 3].attribution)[:5]
    assert [float(r["attribution"]) for r in rows] == pytest.approx(mine.tolist())
    assert json.loads(rows[0]["tokens"])
    assert "<svg" in Path("p.svg").read_text()
    assert ask("all", "--prompt-row", "3", "--offset", "1") == 0
    assert "→" in capsys.readouterr().out


def test_targets_that_are_off_are_seen(capsys) -> None:
    edges = edges_of("off")
    off = edges[edges.target_act == 0]
    target = int(off.target_feature.mode()[0])
    assert ask("off", "--drivers-of", str(target), "--sign", "negative", "--min-stories", "1", "--figure", "d.png") == 0
    printed = capsys.readouterr()
    assert "both on" in printed.out and "suppressing only" in printed.out
    assert "edges were cut" in printed.err
    rows = answer(capsys, "off", "--drivers-of", str(target), "--sign", "negative", "--min-stories", "1")["statistics"]
    assert any(row["both_active"] < row["edges"] for row in rows)
    example = off[off.target_feature == target].iloc[0]
    assert ask("off", "--pair", str(int(example.source_feature)), str(target), "--limit", "99") == 0
    assert " off " in capsys.readouterr().out


def test_denominators_where_the_run_kept_activations(stored: Path) -> None:
    """Statistics that a run kept are those of its edges and activations, and count what they say they count."""
    bundle = load_bundle(stored / "tiny")
    prompts = read_prompts(bundle, texts=TEXTS)
    options = {"activations": True, "statistics": True, "quiet": True}
    run, _ = attribute_to_run(bundle, Settings(positions="all"), prompts, "kept", **options)
    kept = run.statistics.to_table()
    assert kept.equals(statistics_of(run, quiet=True))
    frame, activations = kept.to_pandas(), run.activations.to_table()
    assert (frame.both_active <= frame[["target_active", "source_active"]].min(axis=1)).all()
    near = frame[frame.offset == 0]
    for side, end in enumerate(("source", "target")):
        acts = activations.filter(pc.field("side") == side).to_pandas().groupby("feature").size()
        assert (near[f"{end}_active"].to_numpy() == acts.loc[near[f"{end}_feature"]].to_numpy()).all()
    assert (near.position_pairs == sum(len(t) - 1 for t in run.tokens)).all()


def test_without_edges_there_are_statistics_alone(capsys) -> None:
    pq.write_table(statistics_of(load_run("all"), quiet=True), Path("all") / FILE)
    edges = edges_of()
    source, target = map(str, edges.groupby(["source_feature", "target_feature"]).size().idxmax())
    record = json.loads(Path("all/run.json").read_text())
    for part in record["parts"]:
        del part["edges"]
    Path("all/run.json").write_text(json.dumps(record))
    found = answer(capsys, "all", "--pair", source, target)
    assert found["edges"] == [] and found["statistics"]
    assert ask("all", "--pair", source, target) == 0
    assert "no distribution" in _said(capsys, "all", "--pair", source, target, "--figure", "x.png")
    assert "kept no edges" in _said(capsys, "all", "--prompt-row", "0")
    (Path("all") / FILE).unlink()
    assert "neither statistics nor edges" in _said(capsys, "all", "--drivers-of", target)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("nowhere --drivers-of 1", "there is no run in nowhere"),
        ("all --drivers-of 9999", "no edge with target feature 9999"),
        ("all --driven-by 9999", "no edge with source feature 9999"),
        ("all --drivers-of 3 --min-stories 99", "lower --min-stories"),
        ("all --pair 9999 3", "no edge leads from source 9999 to target 3"),
        ("all --prompt-row 10", "prompts 0..9, got 10"),
        ("all --prompt-row 0 --offset 12", "no such edge"),
        ("all --drivers-of 3 --figure x.gif", "ends in .png"),
        ("all --drivers-of 3 --figure all/run.json", "ends in .png"),
        ("all --prompt-row 0 --figure taken.png", "taken.png exists already"),
        ("all --drivers-of -3", "0 or more"),
        ("all", "one of the arguments"),
        ("all --drivers-of 3 --by size", "invalid choice"),
    ],
)
def test_refusals(capsys, options: str, sentence: str) -> None:
    Path("taken.png").write_bytes(b"something")
    assert ask(*options.split()) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("x.gif").exists()
    assert Path("taken.png").read_bytes() == b"something"


def test_a_long_way_between_the_two_is_cut() -> None:
    row = {"source_pos": 0, "target_pos": 40, "first_token": 0, "tokens": [f" t{i}" for i in range(45)]}
    text = top._marked(row, coloured=False)
    assert text.startswith("‹ t0› t1") and "« t40»" in text and " … " in text
    assert " t20" not in text and text.endswith(" t44")
