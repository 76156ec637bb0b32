"""`view` as a person types it."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxcircuits import Settings, load_bundle, load_run
from jaxcircuits.bulk import attribute_to_run, read_prompts
from jaxcircuits.bulk.record import weight_hashes
from jaxcircuits.cli import main
from jaxcircuits.errors import InputError
from jaxcircuits.graph import prune, save_graph
from jaxcircuits.report.explorer import run_to_graph
from tests.explorer.graphs import HOOKS, random_graph
from tests.explorer.test_page import carried
from tests.helpers import saved_bundle

TEXTS = ["w1 w2 w3 w4", "w5 w6 w7"]


pytestmark = pytest.mark.xdist_group("explorer")  # what is compiled once serves all


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle, a graph that says it was made with it, and a run."""
    place = tmp_path_factory.mktemp("view")
    saved_bundle(place / "tiny")
    bundle = load_bundle(place / "tiny")
    save_graph(random_graph(settings={"sha256": weight_hashes(bundle)}), place / "graph")
    prompts = read_prompts(bundle, texts=TEXTS)
    attribute_to_run(bundle, Settings(positions="all", top_k=4), prompts, place / "run", quiet=True)
    (place / "corpus.txt").write_text("\n".join(TEXTS))
    return place


@pytest.fixture(autouse=True)
def _no_compilation_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / ".cache"))


def view(*argv: str | Path) -> int:
    try:
        return main(["view", *map(str, argv)])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_a_graph_with_descriptions_and_names(place: Path, capsys) -> None:
    graph = random_graph()
    feature = str(graph.nodes.feature[graph.nodes.are("feature")][0])
    Path("names.json").write_text(json.dumps({HOOKS[0]: {feature: "a <name>"}}))
    options = ("--bundle", place / "tiny", "--corpus", place / "corpus.txt", "--cards", "3", "--examples", "1")
    assert view(place / "graph", *options, "--labels", "names.json", "--out", "page.html") == 0
    assert "3 features described" in capsys.readouterr().out
    data = carried(Path("page.html").read_text(encoding="utf-8"))
    assert len(data["cards"]) == 3 and data["corpus"] == "corpus.txt"
    assert data["labels"] == {f"0:{feature}": "a <name>"}
    assert all(len(card["examples"]) <= 1 and len(card["promoted"]) == 8 for card in data["cards"].values())
    assert view(place / "graph", "--no-cards", "--out", "page.html") == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert view(place / "graph", "--no-cards", "--out", "page.html", "--overwrite", "--quiet") == 0
    assert carried(Path("page.html").read_text(encoding="utf-8"))["cards"] == {}
    assert capsys.readouterr().out == ""


def test_a_pruned_page_is_the_pruned_graph(place: Path) -> None:
    options = ("--node-threshold", "0.5", "--top-k", "4", "--no-cards", "--out", "pruned.html")
    assert view(place / "graph", *options) == 0
    expected = prune(random_graph(), node_threshold=0.5, top_k=4)
    data = carried(Path("pruned.html").read_text(encoding="utf-8"))
    assert len(data["nodes"]["kind"]) == len(expected.nodes) < len(random_graph().nodes)
    assert len(data["edges"]["weight"]) == len(expected.weight) > 0 and "pruned" in data["about"]


def test_a_run_becomes_a_graph_of_its_features(place: Path, capsys) -> None:
    run = load_run(place / "run")
    edges = run.to_pandas()
    for prompt in range(len(TEXTS)):
        graph = run_to_graph(run, prompt)
        mine = edges[edges.prompt == prompt]
        nodes = graph.nodes
        found = {
            (*(int(v) for end in (s, t) for v in (nodes.pos[end], nodes.feature[end])), float(weight))
            for s, t, weight in zip(graph.source, graph.target, graph.weight, strict=True)
        }
        columns = ["source_pos", "source_feature", "target_pos", "target_feature", "attribution"]
        assert found == set(mine[columns].itertuples(index=False, name=None)) and len(found) == len(graph.weight)
        assert (graph.source < graph.target).all() and (np.diff(graph.target) >= 0).all()
        assert set(nodes.sae[graph.source]) == {0} and set(nodes.sae[graph.target]) == {1}
        targets = nodes[nodes.sae == 1]
        sums = np.bincount(graph.target, graph.weight, len(nodes))[nodes.sae == 1]
        np.testing.assert_allclose(targets.value, sums + targets.cut + targets.unexplained, atol=1e-5)
        acts = dict(zip(zip(mine.source_pos, mine.source_feature, strict=True), mine.source_act, strict=True))
        for pos, feature, value in zip(
            *(c[nodes.sae == 0] for c in (nodes.pos, nodes.feature, nodes.value)), strict=True
        ):
            assert acts[pos, feature] == pytest.approx(value)
    assert view(place / "run", "--prompt-row", "1", "--no-cards", "--out", "run.html") == 0
    data = carried(Path("run.html").read_text(encoding="utf-8"))
    assert [row["title"] for row in data["rows"]] == ["layer 0", "layer 1"]
    assert data["tokens"][1:] == TEXTS[1].split()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["nowhere"], "expected a directory that jaxcircuits graph or attribute wrote"),
        (["{graph}", "--prompt-row", "1"], "leave it out"),
        (["{run}"], "the run has 2 prompts"),
        (["{run}", "--prompt-row", "2"], "must lie in 0..1, got 2"),
        (["{run}", "--prompt-row", "0", "--top-k", "3"], "only a graph that ends in logits can be pruned"),
        (["{graph}", "--node-threshold", "2"], "node_threshold must lie above 0"),
        (["{graph}", "--out", "no/such/page.html"], "there is no directory"),
        (["{graph}", "--out", "."], "is a directory, expected a file"),
        (["{graph}"], "made with other weights"),  # the shipped bundle
        (["{graph}", "--labels", "list.json"], "got a list"),
        (["{graph}", "--labels", "other.json"], "there is no SAE 'other'"),
        (["{graph}", "--labels", "number.json"], "got '-1': 'x'"),
        (["{graph}", "--labels", "none.json"], "there is no file none.json"),
        (["{graph}", "--bundle", "nowhere"], "there is no bundle nowhere"),
    ],
)
def test_refusals_leave_nothing_behind(place: Path, capsys, argv: list[str], sentence: str) -> None:
    Path("list.json").write_text("[]")
    Path("other.json").write_text('{"other": {}}')
    Path("number.json").write_text(json.dumps({HOOKS[0]: {"-1": "x"}}))
    before = sorted(Path().rglob("*.html"))
    assert view(*(word.format(graph=place / "graph", run=place / "run") for word in argv)) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert sorted(Path().rglob("*.html")) == before and not (place / "graph" / "circuit.html").exists()


def test_neurons_are_no_features(place: Path) -> None:
    run = load_run(place / "run")
    run.record["settings"]["source_basis"] = "neurons"  # pyright: ignore[reportIndexIssue]
    with pytest.raises(InputError, match="sources are neurons"):
        run_to_graph(run, 0)
