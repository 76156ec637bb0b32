"""Figures of a graph's edges show the edges."""

from pathlib import Path

import numpy as np
import pytest

from jaxcircuits.cli import main
from jaxcircuits.graph import Graph, save_graph
from jaxcircuits.report.edge_figures import edge_values, heat_map, strongest_targets, sums_by_position
from jaxcircuits.report.plots import drawn
from tests.explorer.graphs import random_graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_graph()


def test_sums_by_position_are_those_of_the_edges(graph: Graph) -> None:
    targets = strongest_targets(graph, 12)
    assert graph.nodes.kind[targets[:3]].tolist() == ["logit"] * 3
    assert set(graph.nodes.kind[targets[3:]]) == {"feature"} and len(targets) == 12
    expected = np.zeros((12, len(graph.tokens)))
    for source, target, weight in zip(graph.source, graph.target, graph.weight, strict=True):
        if target in targets and graph.nodes.kind[source] != "bias":
            expected[targets.tolist().index(target), graph.nodes.pos[source]] += weight
    np.testing.assert_allclose(sums_by_position(graph, targets), expected, rtol=1e-6, atol=1e-6)
    assert np.abs(expected).sum() > 1


def test_a_heat_map_hides_what_comes_later(graph: Graph, tmp_path: Path) -> None:
    targets = strongest_targets(graph, 12)
    sums, ends = sums_by_position(graph, targets), graph.nodes.pos[targets]
    with drawn(tmp_path / "heat.png", 6, 4) as ax:
        heat_map(ax, sums, ends, [str(t) for t in targets], graph.token_strings, title="$x")
        (image,) = ax.images
        shown = image.get_array()
        assert shown is not None
        mask = np.ma.getmaskarray(shown)
        assert (mask == (np.arange(len(graph.tokens)) > ends[:, None])).all() and mask.any()
        assert (np.asarray(shown)[~mask] == sums[~mask]).all()
        assert [label.get_text() for label in ax.get_xticklabels()][-1] == "⏎"
        low, high = image.get_clim()
        assert low == -high


def test_edge_values_counts_every_edge(tmp_path: Path) -> None:
    weights = np.array([0.0, 1e-6, -3.0, -3.0, 2.0])
    with drawn(tmp_path / "values.svg", 6, 4) as ax:
        edge_values(ax, weights, xlabel="|weight|", title="")
        legend = ax.get_legend()
        assert legend is not None
        said = [text.get_text() for text in legend.get_texts()]
        assert said == ["2 positive, median 1", "2 negative, median 3", "1 of zero, not drawn"]
        assert [int(patch.get_data().values.sum()) for patch in ax.patches] == [2, 2]  # pyright: ignore


def test_the_command_draws_and_refuses(graph: Graph, capsys) -> None:
    save_graph(graph, "graph")
    options = ["view", "graph", "--no-cards", "--quiet", "--heat-map", "heat.svg", "--edge-values", "values.pdf"]
    assert main(options) == 0
    assert Path("heat.svg").read_bytes().startswith(b"<?xml") and Path("values.pdf").read_bytes().startswith(b"%PDF")
    assert main([*options, "--out", "other.html"]) == 2
    assert "heat.svg exists already" in capsys.readouterr().err and not Path("other.html").exists()
    for name, sentence in (("heat.gif", "ends in .png, .svg, .pdf"), ("no/heat.png", "there is no directory no")):
        assert main(["view", "graph", "--no-cards", "--out", "other.html", "--heat-map", name]) == 2
        assert sentence in capsys.readouterr().err and not Path("other.html").exists()
