"""From a batch's arrays to columns of edges and targets, on the host."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcircuits.attribution.edges import REMAINDER_COLUMNS, Columns, concatenate, part_names
from jaxcircuits.attribution.problem import Settings
from jaxcircuits.attribution.tables import Tables


class Listed(NamedTuple):
    """What some prompts give: `edge_columns`, `target_columns`, and the sources that are active (`SOURCE_COLUMNS`)."""

    edges: Columns
    targets: Columns
    sources: Columns


def list_edges(
    rows: Int[np.ndarray, "_n"],
    sources: Any,
    targets: Any,
    found: Any,
    first: int,
    tables: Tables,
    baseline: Float[np.ndarray, "d_sae"] | None,
    settings: Settings,
    n_heads: int,
) -> tuple[Columns, Columns]:
    """The edges and targets of a chunk, by prompt, target position, target feature, source position, source feature.

    Args:
        rows: Prompt numbers of the batch's first sequences; the others only fill it up.
        sources: `Sources` of the batch, its arrays numpy's.
        targets: `Targets`, likewise.
        found: `Found` of targets `first` and on.
        first: See there.
        tables: For cosines.
        baseline: Where paths begin; sources move by what lies above.
        settings: What was asked for.
        n_heads: The model's.
    """
    n = len(rows)
    found = jax.tree.map(lambda x: np.asarray(x)[:n], found)
    width, d_sae = found.valid.shape[1], tables.directions.shape[0]
    window = slice(first, first + width)
    # Columns of millions of rows: one flat index, and what a target's edges have in common is repeated.
    at, per_target = np.flatnonzero(found.valid), np.count_nonzero(found.valid, axis=-1).ravel()

    def of_target(values: np.ndarray) -> np.ndarray:
        return np.repeat(values.ravel(), per_target)

    def of_edge(values: np.ndarray) -> np.ndarray:
        return values.reshape(-1)[at]

    ordinal = of_edge(found.source)
    ordinal = ordinal + of_target(np.repeat(np.arange(n) * sources.flat.shape[1], width))  # among all sequences'
    index, source_act = sources.flat.ravel()[ordinal], sources.act.ravel()[ordinal]
    source_pos = index // d_sae
    source = index - source_pos * d_sae
    feature = of_target(targets.feature[:n, window])
    parts = [of_edge(found.parts[:, :, i]) for i in range(found.parts.shape[2])]
    gradient = parts[0] if len(parts) == 1 else np.stack(parts, 1).sum(1)
    step = source_act if baseline is None else source_act - baseline[source]
    edges: Columns = {
        "prompt": of_target(np.repeat(rows, width)),
        "target_pos": of_target(targets.pos[:n, window]),
        "target_feature": feature,
        "source_pos": source_pos,
        "source_feature": source,
        "gradient": gradient,
        "attribution": gradient * step,
        "source_act": source_act,
        "target_act": of_target(targets.act[:n, window]),
    }
    weights = [of_edge(found.weights[:, :, i]) for i in range(found.weights.shape[2])]
    edges |= _weight_columns(weights, tables, source, feature)
    if settings.parts != "none":
        edges |= dict(zip(part_names(settings.parts, n_heads), parts, strict=True))
    if settings.stages:
        edges["norm_stage"] = weights[-1]
    return edges, _list_targets(rows, targets, found, first, edges["attribution"], per_target, settings)


def list_sources(rows: Int[np.ndarray, "_n"], sources: Any, counted: Bool[np.ndarray, "_n pos"], d_sae: int) -> Columns:
    """The sources that are active at positions that count, by prompt, position and feature.

    Where every feature is a source, active or not, those that are zero are left out.
    """
    n = len(rows)
    there = np.arange(sources.flat.shape[1]) < sources.number[:n, None]
    there &= np.take_along_axis(counted, sources.flat[:n] // d_sae, 1) & (sources.act[:n] != 0)
    at = np.nonzero(there)
    pos, feature = np.divmod(sources.flat[at], d_sae)
    return {"prompt": rows[at[0]], "pos": pos, "feature": feature, "activation": sources.act[at]}


def _weight_columns(
    weights: Sequence[Float[np.ndarray, "edge"]],
    tables: Tables,
    source: Int[np.ndarray, "edge"],
    feature: Int[np.ndarray, "edge"],
) -> Columns:
    if tables.products is None:
        return dict.fromkeys(("cosine_similarity", "virtual_weight"), np.full(len(source), np.nan, np.float32))
    norms = tables.products.writes_norm[source] * tables.products.reads_norm[feature]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(norms > 0, weights[0] / norms, np.nan)  # no direction, no angle
    return {"cosine_similarity": cosine, "virtual_weight": weights[0]}


def _list_targets(
    rows: Int[np.ndarray, "_n"],
    targets: Any,
    found: Any,
    first: int,
    attribution: Float[np.ndarray, "edge"],
    per_target: Int[np.ndarray, "target"],
    settings: Settings,
) -> Columns:
    n, width = found.cut.shape
    there = first + np.arange(width) < targets.number[:n, None]
    of = np.repeat(np.arange(n * width), per_target)
    listed = per_target.reshape(n, width)
    listed_sum = np.bincount(of, attribution, n * width).reshape(n, width)
    at = np.nonzero(there)
    window = slice(first, first + width)
    columns: Columns = {
        "prompt": rows[at[0]],
        "target_pos": targets.pos[:n, window][at],
        "target_feature": targets.feature[:n, window][at],
        "activation": targets.act[:n, window][at],
        "pre_activation": targets.pre_act[:n, window][at],
        "edges": listed[at],
        "edges_cut": found.cut[at],
        "attribution_sum": listed_sum[at],
        "attribution_cut": found.cut_sum[at],
    }
    if settings.complete:
        kinds = {name: np.asarray(values, np.float64)[at] for name, values in found.remainder.items()}
        columns |= _remainder(columns, kinds, settings)
    return columns


def _remainder(targets: Columns, kinds: Mapping[str, np.ndarray], settings: Settings) -> Columns:
    """The remainder's columns: features are split by where they are, and what was cut is what the listed ones leave."""
    elsewhere = np.zeros_like(targets["attribution_sum"])
    if settings.positions == "same":
        elsewhere = kinds["features"] - kinds["own_position"] - kinds["bos"]
    cut = kinds["features"] - kinds["bos"] - elsewhere - targets["attribution_sum"]
    columns = {"attribution_cut": cut, "attribution_elsewhere": elsewhere, "attribution_bos": kinds["bos"]}
    nothing = np.full(len(cut), np.nan)
    columns |= {name: kinds.get(name, nothing) for name in REMAINDER_COLUMNS[2:-1]}
    quantity = "activation" if settings.target_quantity == "activation" else "pre_activation"
    explained = sum(np.nan_to_num(values) for values in columns.values()) + targets["attribution_sum"]
    return columns | {"unexplained": targets[quantity] - explained}


def by_prompt(parts: Sequence[Columns], columns: Mapping[str, type]) -> Columns:
    """Rows of all parts by prompt number; those of one prompt keep their order."""
    runs = []  # of rows of one prompt
    for part in parts:
        prompt = part["prompt"]
        starts = np.flatnonzero(np.diff(prompt, prepend=-1))
        bounds = pairwise([*starts.tolist(), len(prompt)])
        runs += [(number, part, slice(*ends)) for number, ends in zip(prompt[starts].tolist(), bounds, strict=True)]
    runs.sort(key=lambda run: run[0])
    return concatenate([{name: part[name][rows] for name in columns} for _, part, rows in runs], columns)
