"""A graph's files, and its strongest nodes and edges as tables."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation.logits import logit_effects
from jaxcircuits.files import GRAPH, new_directory, read_json, write_bytes, write_json
from jaxcircuits.graph import (
    FeatureAt,
    Graph,
    Interaction,
    Labels,
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
ARCS_DRAWN = 12
_ENDS = ("target", "a", "b")


def write_graph_files(
    graph: Graph,
    pruned: Graph,
    out: str | os.PathLike,
    *,
    drawn_part: Graph | None = None,
    pairs: Sequence[Interaction] | None = None,
    slug: str = "graph",
    strict: bool = False,
    hints: Labels | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a graph, its pruned part for the viewers, and that part drawn, whole or not at all.

    Args:
        graph: All of it.
        pruned: The part that viewers see.
        out: The directory to make: `graph.json`, `graph.safetensors`, `circuit-tracer.json`, `circuit.png`, `.svg`,
            with `pairs` also `conjunctions.json`.
        drawn_part: The part that is drawn; by default `pruned`.
        pairs: From `conjunctions`: written, and drawn as arcs.
        slug: Its name in the viewers.
        strict: Whether that file's ids are circuit-tracer's own.
        hints: What stands in viewers for the name of a feature that has none (`promoted_tokens`).
        overwrite: Whether to replace what is there.

    Raises:
        InputError: The place is taken, or strict ids are not unique.
    """
    content = to_circuit_tracer(pruned, slug=slug, strict=strict, hints=hints)
    with new_directory(out, overwrite, GRAPH) as new:
        write_graph(graph, new)
        write_bytes(new / CIRCUIT_TRACER, json.dumps(content, ensure_ascii=False, allow_nan=False).encode())
        if pairs is not None:
            write_json(new / CONJUNCTIONS, [conjunction_row(graph, p) for p in pairs])
        shown = drawable(pruned if drawn_part is None else drawn_part)
        for name in ("circuit.png", "circuit.svg"):
            with drawn(new / name, *circuit_size(shown)) as ax:
                circuit(ax, shown, title=circuit_title(shown, graph), pairs=(pairs or ())[:ARCS_DRAWN])


def promoted_tokens(bundle: Bundle, graph: Graph, n: int = 3) -> dict[tuple[str, int], str]:
    """For each feature of a graph, the tokens that it promotes along the straight way to the logits, in words.

    A hint, not a name. Features whose hook no linear map leads from to the logits have none.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, prune
    >>> from jaxcircuits.report.graph import promoted_tokens
    >>> bundle = load_bundle()
    >>> hints = promoted_tokens(bundle, prune(build_graph(bundle, "The dog was", top_logits=2)))
    >>> all(" promotes " in hint for hint in hints.values())
    True
    """
    found: dict[tuple[str, int], str] = {}
    nodes = graph.nodes
    for i in np.flatnonzero(nodes.are("feature")).tolist():
        key = graph.saes[nodes.sae[i]], int(nodes.feature[i])
        if key in found or bundle.tokenizer is None:
            continue
        effects = logit_effects(bundle, bundle.saes[key[0]], key[1])
        if effects is not None:
            tokens = bundle.token_strings(np.argsort(-effects[1], kind="stable")[:n])
            found[key] = f"#{key[1]} promotes {', '.join(map(repr, tokens))}"
    return found


def conjunction_row(graph: Graph, pair: Interaction) -> dict[str, Any]:
    """A pair of drivers as JSON has it."""
    ends = {n: getattr(pair, n)._asdict() | {"token": graph.token_strings[getattr(pair, n).pos]} for n in _ENDS}
    return {**pair._asdict(), **ends, "kind": pair.kind}


def read_conjunctions(path: str | os.PathLike) -> list[Interaction]:
    """The pairs that `write_graph_files` wrote.

    Raises:
        InputError: The file holds something else.
    """
    try:
        found = []
        for row in read_json(path, "conjunctions"):
            ends = {n: FeatureAt(str(row[n]["sae"]), int(row[n]["pos"]), int(row[n]["feature"])) for n in _ENDS}
            numbers: Any = {name: float(row[name]) for name in Interaction._fields if name not in _ENDS}
            found.append(Interaction(**ends, **numbers))
        return found
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is no file of conjunctions; run jaxcircuits graph --conjunctions again.") from None


def conjunction_table(graph: Graph, pairs: Sequence[Interaction], n: int) -> Table:
    """Pairs of drivers as a person reads them."""
    table = Table(
        title="Drivers that do not add up: ablated alone, and both",
        caption="AND: each gives more where the other is there; OR: one stands in for the other;\n"
        "before: the interaction before the target's own nonlinearity",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("target", "a", "b", "act", "effect a", "effect b", "both", "interaction", "", "before"):
        table.add_column(name, justify="left" if name in _ENDS else "right")
    for p in pairs[:n]:
        ends = [f"#{e.feature} @ {e.pos} {graph.token_strings[e.pos]!r}" for e in (p.target, p.a, p.b)]
        effects = [f"{x:+.3f}" for x in (p.effect_a, p.effect_b, p.effect_both, p.interaction)]
        row = [f"{p.activation:.3f}", *effects, p.kind.upper(), f"{p.pre_activation:+.3f}"]
        table.add_row(*(escape(one_line(e)) for e in ends), *row)
    return table


def circuit_title(shown: Graph, graph: Graph) -> str:
    """What a drawn circuit is, in a line."""
    ends = "" if shown.nodes.are("logit").any() else f"to {shown.label(len(shown.nodes) - 1)}: "
    return (
        f"{ends}{int(shown.nodes.are('feature').sum())} of {int(graph.nodes.are('feature').sum())} features, "
        f"{len(shown.weight)} of {len(graph.weight):,} direct edges, {graph.settings['derivative']} derivative"
    )


def graph_json(graph: Graph, pruned: Graph, n: int, pairs: Sequence[Interaction] | None = None) -> dict[str, Any]:
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
        **({} if pairs is None else {"conjunctions": [conjunction_row(graph, p) for p in pairs[:n]]}),
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
