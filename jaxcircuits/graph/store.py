"""A graph as a directory: arrays in safetensors, words in JSON. No pickle, nothing lost, written whole or not."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxcircuits.bundle import read_safetensors, write_safetensors
from jaxcircuits.errors import InputError
from jaxcircuits.files import GRAPH, new_directory, read_json, sha256, write_json
from jaxcircuits.graph.graph import KINDS, Graph, Nodes

SCHEMA = 1
ARRAYS = "graph.safetensors"
"""Beside `graph.json`: `nodes.*`, a row a node (`nodes.kind` counts through `KINDS`); `source`, `target`, `weight` and
`parts.*`, a row an edge; `tokens`."""


def save_graph(graph: Graph, out: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes a graph to a directory of its own.

    Raises:
        InputError: The place is taken.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph, load_graph, save_graph
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save_graph(graph, f"{place}/dog")
    ...     bool((load_graph(f"{place}/dog").weight == graph.weight).all())
    True
    """
    with new_directory(out, overwrite, GRAPH) as new:
        write_graph(graph, new)


def write_graph(graph: Graph, directory: Path) -> None:
    """Writes a graph's two files into a directory that is being made."""
    columns = {f"nodes.{f.name}": getattr(graph.nodes, f.name) for f in fields(Nodes)}
    columns["nodes.kind"] = np.array([KINDS.index(kind) for kind in graph.nodes.kind.tolist()], np.int8)
    columns |= {name: getattr(graph, name) for name in ("tokens", "source", "target", "weight")}
    columns |= {f"parts.{name}": part for name, part in graph.parts.items()}
    write_safetensors(directory / ARRAYS, columns)
    write_json(
        directory / GRAPH,
        {
            "schema": SCHEMA,
            "kinds": list(KINDS),
            "nodes": len(graph.nodes),
            "edges": len(graph.weight),
            "parts": list(graph.parts),
            "token_strings": list(graph.token_strings),
            "saes": list(graph.saes),
            "biases": list(graph.biases),
            "settings": json.loads(json.dumps(dict(graph.settings))),
            "sha256": {ARRAYS: sha256(directory / ARRAYS)},
        },
    )


def load_graph(directory: str | os.PathLike) -> Graph:
    """Reads what `save_graph` wrote.

    Raises:
        InputError: It is no graph, or damaged.
    """
    directory = Path(directory)
    words: Any = read_json(directory / GRAPH, "graph")
    if not isinstance(words, dict) or words.get("schema") != SCHEMA or words.get("kinds") != list(KINDS):
        raise InputError(f"{directory / GRAPH}: expected a graph of schema {SCHEMA}; build it again.")
    file = directory / ARRAYS
    if not file.is_file() or sha256(file) != words["sha256"][ARRAYS]:
        raise InputError(f"{file} is missing or damaged: its checksum is not that of {GRAPH}; build the graph again.")
    arrays = read_safetensors(file)
    columns = {f.name: arrays[f"nodes.{f.name}"] for f in fields(Nodes)}
    columns["kind"] = np.array(KINDS)[columns["kind"]]
    return Graph(
        tokens=arrays["tokens"],
        token_strings=tuple(words["token_strings"]),
        saes=tuple(words["saes"]),
        biases=tuple(words["biases"]),
        nodes=Nodes(**columns),
        source=arrays["source"],
        target=arrays["target"],
        weight=arrays["weight"],
        parts={name: arrays[f"parts.{name}"] for name in words["parts"]},
        settings=words["settings"],
    )
