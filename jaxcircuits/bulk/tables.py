"""The tables of a part, from what the engine lists."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcircuits.attribution import Engine
from jaxcircuits.attribution.edges import Columns, to_arrow
from jaxcircuits.attribution.listing import Listed
from jaxcircuits.attribution.prompts import Prompts
from jaxcircuits.bulk.record import Kept
from jaxcircuits.bulk.store import SUMS

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE, TARGET = 0, 1
"""The sides of an attribution, as the column `side` has them."""

ACTIVATION_COLUMNS: dict[str, type] = {
    "side": np.int8,
    "prompt": np.int32,
    "pos": np.int32,
    "feature": np.int32,
    "activation": np.float32,
}
"""One row a feature that is active, above its side's threshold, at a position that counts."""

LENGTH_COLUMNS: dict[str, type] = {"prompt": np.int32, "n_tokens": np.int32, "first_counted": np.int32}
"""One row a prompt: positions `first_counted` up to, not including, `n_tokens` count."""


@dataclass(frozen=True)
class Part:
    """Some prompts and what the engine lists of them.

    Attributes:
        number: Which part.
        entry: What the record says of it besides its files.
        prompts: Row number and token ids of each.
        listed: Edges, targets and active sources.
    """

    number: int
    entry: Mapping[str, Any]
    prompts: Prompts
    listed: Listed


Summary = Callable[["pa.Table", "pa.Table", "pa.Table"], dict[str, "pa.Table"]]


def tables_of(engine: Engine, part: Part, kept: Kept, summary: Summary | None) -> dict[str, "pa.Table"]:
    """The tables that are kept, by the directory that they go to.

    Args:
        engine: The engine that listed them.
        part: What it listed.
        kept: Which are kept.
        summary: Sums up edges, active features and lengths of prompts.
    """
    edges = to_arrow(part.listed.edges, engine.edge_columns)
    tables = {}
    if kept.edges:
        tables["edges"] = edges
    if "targets" in kept.names:
        tables["targets"] = to_arrow(part.listed.targets, engine.target_columns)
    if kept.activations or summary is not None:
        activations = to_arrow(_activations(part.listed), ACTIVATION_COLUMNS)
        if kept.activations:
            tables["activations"] = activations
        if summary is not None:
            lengths = to_arrow(_lengths(engine, part.prompts), LENGTH_COLUMNS)
            tables |= {f"{SUMS}/{name}": t for name, t in summary(edges, activations, lengths).items()}
    return tables


def _activations(listed: Listed) -> Columns:
    """Active features of both sides, the source's first, each by prompt, position and feature."""
    sources, targets = listed.sources, listed.targets
    sides = {"prompt": "prompt", "pos": "target_pos", "feature": "target_feature", "activation": "activation"}
    side = np.repeat(np.array([SOURCE, TARGET], np.int8), [len(sources["prompt"]), len(targets["prompt"])])
    return {"side": side} | {mine: np.concatenate([sources[mine], targets[name]]) for mine, name in sides.items()}


def _lengths(engine: Engine, prompts: Prompts) -> Columns:
    return {
        "prompt": np.array([row for row, _ in prompts], np.int32),
        "n_tokens": np.array([len(tokens) for _, tokens in prompts], np.int32),
        "first_counted": np.array([int(np.argmax(engine.counted(tokens))) for _, tokens in prompts], np.int32),
    }
