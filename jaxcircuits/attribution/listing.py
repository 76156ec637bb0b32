"""From a batch's arrays to columns of edges and targets, on the host."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcircuits.attribution.edges import REMAINDER_COLUMNS, Columns, part_names
from jaxcircuits.attribution.problem import Settings
from jaxcircuits.attribution.tables import Tables


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
    batch, target, slot = np.nonzero(found.valid)
    ordinal = found.source[batch, target, slot]
    index = sources.flat[batch, ordinal]
    source_pos, source = np.divmod(index, d_sae)
    source_act = sources.act[batch, ordinal]
    target_pos = targets.pos[:n, window][batch, target]
    feature = targets.feature[:n, window][batch, target]
    parts = found.parts.swapaxes(2, 3)[batch, target, slot]  # [edge, part]
    gradient = parts.sum(1)
    step = source_act if baseline is None else source_act - baseline[source]
    edges: Columns = {
        "prompt": rows[batch],
        "target_pos": target_pos,
        "target_feature": feature,
        "source_pos": source_pos,
        "source_feature": source,
        "gradient": gradient,
        "attribution": gradient * step,
        "source_act": source_act,
        "target_act": targets.act[:n, window][batch, target],
    }
    weights = found.weights.swapaxes(2, 3)[batch, target, slot]
    edges |= _weight_columns(weights, tables, source, feature)
    if settings.parts != "none":
        edges |= dict(zip(part_names(settings.parts, n_heads), parts.T, strict=True))
    if settings.stages:
        edges["norm_stage"] = weights[:, -1]
    return edges, _list_targets(rows, targets, found, first, edges["attribution"], batch, target, settings)


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
    weights: Float[np.ndarray, "edge stage"],
    tables: Tables,
    source: Int[np.ndarray, "edge"],
    feature: Int[np.ndarray, "edge"],
) -> Columns:
    if tables.products is None:
        return dict.fromkeys(("cosine_similarity", "virtual_weight"), np.full(len(source), np.nan, np.float32))
    norms = tables.products.writes_norm[source] * tables.products.reads_norm[feature]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.where(norms > 0, weights[:, 0] / norms, np.nan)  # no direction, no angle
    return {"cosine_similarity": cosine, "virtual_weight": weights[:, 0]}


def _list_targets(
    rows: Int[np.ndarray, "_n"],
    targets: Any,
    found: Any,
    first: int,
    attribution: Float[np.ndarray, "edge"],
    batch: Int[np.ndarray, "edge"],
    target: Int[np.ndarray, "edge"],
    settings: Settings,
) -> Columns:
    n, width = found.cut.shape
    there = first + np.arange(width) < targets.number[:n, None]
    flat = batch * width + target
    listed = np.bincount(flat, minlength=n * width).reshape(n, width)
    listed_sum = np.bincount(flat, attribution, n * width).reshape(n, width)
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
