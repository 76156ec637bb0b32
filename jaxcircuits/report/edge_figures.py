"""Figures of a graph's edges: what each token gives to logits and features, and how large edges are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.graph import Graph
from jaxcircuits.graph.influence import CONSTANT
from jaxcircuits.report.explorer.content import importance, place_of, short_name
from jaxcircuits.report.plots import BLUE, GREY, ORANGE, drawn
from jaxcircuits.report.tables import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 24
"""Nodes of a heat map, the logits among them."""

WRITTEN = 26
"""Tokens up to which a heat map's cells have their numbers in them."""


def strongest_targets(graph: Graph, n: int = ROWS) -> Int[np.ndarray, "target"]:
    """Logits, then the most important features that edges lead into."""
    entered = np.bincount(graph.target, minlength=len(graph.nodes)) > 0
    order = np.argsort(-importance(graph), kind="stable")
    logits = [i for i in order if graph.nodes.kind[i] == "logit"]
    features = [i for i in order if graph.nodes.kind[i] == "feature" and entered[i]]
    return np.array([*logits, *features][:n], int)


def sums_by_position(graph: Graph, targets: Int[np.ndarray, "target"]) -> Float[np.ndarray, "target pos"]:
    """What nodes at each position give to each target directly; biases and GELU constants are left out.

    >>> import numpy as np
    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import build_graph
    >>> from jaxcircuits.report.edge_figures import strongest_targets, sums_by_position
    >>> graph = build_graph(load_bundle(), "The dog was", top_logits=2)
    >>> targets = strongest_targets(graph, 5)
    >>> sums_by_position(graph, targets).shape == (5, len(graph.tokens))
    True
    """
    row = np.full(len(graph.nodes), -1)
    row[targets] = np.arange(len(targets))
    counts = (row[graph.target] >= 0) & ~graph.nodes.are(*CONSTANT)[graph.source]
    sums = np.zeros((len(targets), len(graph.tokens)))
    np.add.at(sums, (row[graph.target[counts]], graph.nodes.pos[graph.source[counts]]), graph.weight[counts])
    return sums


def heat_map(
    ax: "Axes",
    sums: Float[np.ndarray, "target pos"],
    ends: Int[np.ndarray, "target"],
    names: Sequence[str],
    tokens: Sequence[str],
    *,
    title: str,
) -> "Axes":
    """Targets (rows) against the tokens of the sentence (columns), in signed colours.

    Zero is white; colour saturates at the 99th percentile. Tokens after a target's own position are grey.

    Args:
        ax: Where to draw.
        sums: What each token gives to each target.
        ends: Each target's position.
        names: Of the targets.
        tokens: The sentence.
        title: Of the figure.
    """
    from matplotlib.colors import LinearSegmentedColormap

    later = np.arange(len(tokens)) > ends[:, None]
    limit = float(np.quantile(np.abs(sums[~later]), 0.99)) if sums.size else 0.0
    signed = LinearSegmentedColormap.from_list("signed", [ORANGE, "white", BLUE])
    shown = np.ma.masked_array(sums, later)
    ax.set_facecolor("#e4e4e4")
    image = ax.imshow(shown, cmap=signed, vmin=-limit or -1, vmax=limit or 1, aspect="auto", interpolation="nearest")
    if len(tokens) <= WRITTEN:
        for row, column in np.argwhere(~later & (np.abs(sums) >= 0.02 * limit)):
            value = sums[row, column]
            colour = "white" if abs(value) > 0.6 * limit else "black"
            ax.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(np.arange(len(tokens)), [one_line(token).strip() or "␣" for token in tokens], parse_math=False)
    ax.set_yticks(np.arange(len(names)), names, parse_math=False, fontsize=8)
    ax.tick_params(length=0)
    ax.tick_params(axis="x", rotation=90)
    ax.set_title(title)
    saturated = "both" if (np.abs(shown) > limit).any() else "neither"
    bar = ax.figure.colorbar(image, ax=ax, extend=saturated, shrink=0.8)
    bar.set_label("sum of edges from there (grey: comes later)")
    return ax


def edge_values(ax: "Axes", weights: Float[np.ndarray, "edge"], *, xlabel: str, title: str) -> "Axes":
    """How many edges are how large, on logarithmic axes, one outline a sign, with the median of each."""
    size = np.abs(weights)
    some = size[size > 0]
    low, high = (float(some.min()), float(some.max())) if len(some) else (0.1, 1.0)
    steps = np.linspace(np.log10(low) - 1e-9, np.log10(max(high, low * 1.001)) + 1e-9, 61)
    for sign, colour, name in ((1, BLUE, "positive"), (-1, ORANGE, "negative")):
        mine = size[np.sign(weights) == sign]
        middle = f", median {np.median(mine):.2g}" if len(mine) else ""
        ax.stairs(
            np.histogram(np.log10(mine), steps)[0],
            10**steps,
            color=colour,
            lw=1.6,
            label=f"{len(mine):,} {name}{middle}",
        )
        if len(mine):
            ax.axvline(float(np.median(mine)), color=colour, lw=0.9, ls=":")
    none = int((size == 0).sum())
    if none:
        ax.plot([], [], color=GREY, label=f"{none:,} of zero, not drawn")
    ax.set(xscale="log", yscale="log" if len(some) else "linear", xlabel=xlabel, ylabel="edges", title=title)
    ax.legend()
    return ax


def draw_heat_map(path: Path, graph: Graph) -> None:
    """Draws what each token gives to a graph's logits and most important features into a file."""
    targets = strongest_targets(graph)
    logit = graph.nodes.are("logit")
    names = [
        one_line(graph.label(i) if logit[i] else f"{short_name(graph, i)}  {place_of(graph, i)}")
        for i in targets.tolist()
    ]
    what = "directly to logits and features" if logit.any() else "to the features of a later layer"
    width = float(np.clip(4.2 + 0.47 * len(graph.tokens), 6.5, 30))
    with drawn(path, width, 2.0 + 0.25 * len(targets)) as ax:
        heat_map(
            ax,
            sums_by_position(graph, targets),
            graph.nodes.pos[targets],
            names,
            graph.token_strings,
            title=f"What each token gives {what}",
        )


def draw_edge_values(path: Path, graph: Graph) -> None:
    """Draws how large a graph's edges are into a file."""
    with drawn(path, 6.4, 3.8) as ax:
        edge_values(ax, graph.weight, xlabel="|weight|", title=f"{len(graph.weight):,} edges by size and sign")
