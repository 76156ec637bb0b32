"""Edges and targets as columns, and as Arrow tables for people."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcircuits.attribution.problem import Settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Columns = dict[str, np.ndarray]
"""Column name to values, all of one length; NaN in a float column stands for null."""

EDGE_COLUMNS: dict[str, type] = {
    "prompt": np.int32,
    "target_pos": np.int32,
    "target_feature": np.int32,
    "source_pos": np.int32,
    "source_feature": np.int32,
    "gradient": np.float32,
    "attribution": np.float32,
    "source_act": np.float32,
    "target_act": np.float32,
    "cosine_similarity": np.float32,
    "virtual_weight": np.float32,
}
"""One row an edge. `gradient`: d target / d source. `attribution`: gradient x source activation."""

TARGET_COLUMNS: dict[str, type] = {
    "prompt": np.int32,
    "target_pos": np.int32,
    "target_feature": np.int32,
    "activation": np.float32,
    "pre_activation": np.float32,
    "edges": np.int32,
    "edges_cut": np.int32,
    "attribution_sum": np.float32,
    "attribution_cut": np.float32,
}
"""One row a target: how many edges are listed and their sum; how many were cut, and the sum of what was."""

SOURCE_COLUMNS: dict[str, type] = {"prompt": np.int32, "pos": np.int32, "feature": np.int32, "activation": np.float32}
"""One row a source that is active at a position that counts, whether or not it drives anything."""

REMAINDER_COLUMNS = (
    "attribution_elsewhere",
    "attribution_bos",
    "sae_error",
    "b_dec",
    "residual_input",
    "model_bias",
    "gelu_constant",
    "held",
    "target_bias",
    "baseline",
    "unexplained",
)
"""What a target is made of besides: features at other positions and at BOS; at the source hook, the SAE's error and its
bias; the residual stream beside the hook; the model's biases; the constants of linear GELUs; values held in between;
the target SAE's own biases; the target where a path begins. `unexplained` is the target minus all of it and the edges.
A kind that the derivative does not define is null."""


def edge_columns(settings: Settings, n_heads: int) -> dict[str, type]:
    """The columns of edges: those of the contract, then parts and stages by option."""
    extra = part_names(settings.parts, n_heads) if settings.parts != "none" else ()
    stages = ("norm_stage",) if settings.stages else ()
    return EDGE_COLUMNS | dict.fromkeys((*extra, *stages), np.float32)


def part_names(parts: str, n_heads: int) -> tuple[str, ...]:
    """What an edge is made of: the residual stream, and attention through value, query and key."""
    if parts == "heads":
        return ("residual", *(f"{kind}_{head}" for kind in ("value", "query", "key") for head in range(n_heads)))
    return ("residual", "value", "query", "key")


def target_columns(settings: Settings) -> dict[str, type]:
    """The columns of targets; with the remainder by kind where it is computed."""
    return TARGET_COLUMNS | (dict.fromkeys(REMAINDER_COLUMNS, np.float32) if settings.complete else {})


_NULLABLE = ("cosine_similarity", "virtual_weight", "norm_stage", *REMAINDER_COLUMNS)


def empty(columns: Mapping[str, type]) -> Columns:
    """No rows."""
    return {name: np.zeros(0, dtype) for name, dtype in columns.items()}


def concatenate(parts: Iterable[Mapping[str, np.ndarray]], columns: Mapping[str, Any]) -> Columns:
    """Rows of all parts, in order."""
    parts = list(parts)
    if not parts:
        return empty(columns)
    return {name: np.concatenate([part[name] for part in parts]) for name in columns}


def to_arrow(part: Columns, columns: Mapping[str, type]) -> "pa.Table":
    """The columns as an Arrow table in the contract's types."""
    import pyarrow as pa

    arrays, fields = [], []
    for name, dtype in columns.items():
        values = part[name].astype(dtype, copy=False)
        nullable = name in _NULLABLE  # the others are written without saying of each row that it is there
        arrays.append(pa.array(values, mask=np.isnan(values) if nullable else None))
        fields.append(pa.field(name, arrays[-1].type, nullable))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


@dataclass(frozen=True)
class Result:
    """What `attribute` returns.

    Attributes:
        edges: Arrow table, one row an edge (`EDGE_COLUMNS`).
        targets: Arrow table, one row a target (`TARGET_COLUMNS`).
        prompts: Arrow table, one row a prompt: `prompt`, `text`, `tokens`, `token_strings`.
        settings: What was asked for and what was used.
    """

    edges: "pa.Table"
    targets: "pa.Table"
    prompts: "pa.Table"
    settings: Mapping[str, Any]

    def to_pandas(self) -> "pd.DataFrame":
        """The edges as a pandas frame."""
        return self.edges.to_pandas()
