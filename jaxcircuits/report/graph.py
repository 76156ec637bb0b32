"""A graph's files, and its strongest nodes and edges as tables."""

import json
import os
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxcircuits.files import GRAPH, new_directory, write_bytes, write_json
from jaxcircuits.graph import (
    Conjunctions,
    Graph,
    conjunction_rows,
    edge_influence,
    effect,
    influence,
    scores,
    to_circuit_tracer,
    write_graph,
)
from jaxcircuits.report.graph_figure import circuit, circuit_size, drawable
from jaxcircuits.report.plots import drawn
from jaxcircuits.report.tables import one_line

CIRCUIT_TRACER, CONJUNCTIONS = "circuit-tracer.json", "conjunctions.json"


def write_graph_files(
    graph: Graph, pruned: Graph, out: str | os.PathLike, *, slug: str = "graph", strict: bool = False,
    conjunctions: Conjunctions | None = None, overwrite: bool = False,
) -> None:  # fmt: skip
    """Writes a graph, its pruned part for the viewers, and that part drawn, whole or not at all.

    Args:
        graph: All of it.
        pruned: The part that is shown.
        out: The directory to make: `graph.json`, `graph.safetensors`, `circuit-tracer.json`, `circuit.png`, `.svg`,
            and `conjunctions.json` where there are some.
        slug: Its name in the viewers.
        strict: Whether that file's ids are circuit-tracer's own.
        conjunctions: Pairs of drivers.
        overwrite: Whether to replace what is there.

    Raises:
        InputError: The place is taken, or strict ids are not unique.
    """
    content = to_circuit_tracer(pruned, slug=slug, strict=strict)
    with new_directory(out, overwrite, GRAPH) as new:
        write_graph(graph, new)
        write_bytes(new / CIRCUIT_TRACER, json.dumps(content, ensure_ascii=False, allow_nan=False).encode())
        if conjunctions is not None:
            write_json(new / CONJUNCTIONS, conjunction_rows(conjunctions))
        shown = drawable(pruned)
        for name in ("circuit.png", "circuit.svg"):
            with drawn(new / name, *circuit_size(shown)) as ax:
                circuit(ax, shown, title=circuit_title(shown, graph))


def circuit_title(shown: Graph, graph: Graph) -> str:
    """What a drawn circuit is, in a line."""
    return (
        f"{int(shown.nodes.are('feature').sum())} of {int(graph.nodes.are('feature').sum())} features, "
        f"{len(shown.weight)} of {len(graph.weight):,} direct edges, {graph.settings['derivative']} derivative"
    )


def graph_json(graph: Graph, pruned: Graph, n: int) -> dict[str, Any]:
    """What the command prints with `--json`: sizes, scores, the strongest nodes and edges."""
    return {
        "prompt": list(graph.token_strings),
        "derivative": graph.settings["derivative"],
        "nodes": len(graph.nodes),
        "edges": len(graph.weight),
        "scores": scores(graph)._asdict(),
        "pruned": {"nodes": len(pruned.nodes), "edges": len(pruned.weight), "scores": scores(pruned)._asdict()},
        "strongest_nodes": node_rows(graph, n),
        "strongest_edges": edge_rows(graph, n),
    }


def node_rows(graph: Graph, n: int) -> list[dict[str, Any]]:
    """The nodes of largest influence, logits left out."""
    found, signed = influence(graph), effect(graph)
    order = [int(i) for i in np.argsort(-found, kind="stable") if graph.nodes.kind[i] != "logit"][:n]
    return [
        {
            "node": i,
            "label": graph.label(i),
            "kind": str(graph.nodes.kind[i]),
            "value": None if np.isnan(graph.nodes.value[i]) else float(graph.nodes.value[i]),
            "influence": float(found[i]),
            "effect": float(signed[i]),
        }
        for i in order
    ]


def edge_rows(graph: Graph, n: int) -> list[dict[str, Any]]:
    """The edges of largest influence."""
    found = edge_influence(graph)
    return [
        {
            "source": graph.label(int(graph.source[e])),
            "target": graph.label(int(graph.target[e])),
            "weight": float(graph.weight[e]),
            "influence": float(found[e]),
            **{name: float(part[e]) for name, part in graph.parts.items()},
        }
        for e in np.argsort(-found, kind="stable")[:n]
    ]


def graph_tables(graph: Graph, n: int) -> tuple[Table, Table]:
    """The strongest nodes and edges as a person reads them."""
    nodes = Table(title="Nodes of largest influence on the logits", title_justify="left")
    for name in ("node", "activation", "influence", "effect"):
        nodes.add_column(name, justify="left" if name == "node" else "right")
    for row in node_rows(graph, n):
        value = "" if row["value"] is None else f"{row['value']:.3f}"
        nodes.add_row(escape(one_line(row["label"])), value, f"{row['influence']:.4f}", f"{row['effect']:+.4f}")
    edges = Table(title="Edges of largest influence", title_justify="left")
    for name in ("source", "target", "weight", "influence", *graph.parts):
        edges.add_column(name, justify="left" if name in ("source", "target") else "right")
    for row in edge_rows(graph, n):
        values = [f"{row['weight']:+.4f}", f"{row['influence']:.4f}", *(f"{row[name]:+.4f}" for name in graph.parts)]
        edges.add_row(escape(one_line(row["source"])), escape(one_line(row["target"])), *values)
    return nodes, edges


def conjunction_table(found: Conjunctions, n: int) -> Table:
    """The pairs of drivers that interact most."""
    table = Table(
        title=f"Pairs of drivers of {escape(one_line(found.graph.label(found.target)))} ({found.value:.3f})",
        caption="what the target loses without the first, the second, both; interaction: what the two lose\n"
        "alone minus what they lose together; above zero a conjunction, below zero either would do",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("first", "second", "without first", "without second", "without both", "interaction"):
        table.add_column(name, justify="left" if name in ("first", "second") else "right")
    for row in conjunction_rows(found, n):
        words = [escape(one_line(row[name])) for name in ("first", "second")]
        numbers = [f"{row[name]:+.4f}" for name in ("first_alone", "second_alone", "together", "interaction")]
        table.add_row(*words, *numbers)
    return table
