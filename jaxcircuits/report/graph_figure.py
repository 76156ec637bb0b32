"""A circuit drawn: tokens across, layers up, edges in signed colours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxcircuits.graph import Graph, Interaction, edge_influence, influence
from jaxcircuits.graph.interactions import feature_at
from jaxcircuits.report.plots import BLUE, COLOURS, GREY, ORANGE
from jaxcircuits.report.tables import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_NODES, SHOWN_EDGES, SHOWN_LOGITS = 36, 110, 6
ARCS: Any = {"and": "-", "or": (0, (3, 2))}
"""Lines of pairs of drivers."""

NAME = 14
"""Letters of a feature's name that have room under its node."""

IN_A_LINE = 4
"""Nodes side by side in one cell; more stand in further lines."""

MARKS = {
    "feature": "o",
    "token": "s",
    "position": "P",
    "error": "D",
    "rest": "X",
    "bias": "v",
    "gelu": "^",
    "logit": "o",
}
NAMES = {
    "error": "SAE error",
    "rest": "other features",
    "position": "position",
    "bias": "bias",
    "gelu": "GELU constant",
}


class Places(NamedTuple):
    """Where things are, in units of a node's width and height."""

    x: Float[np.ndarray, "node"]
    y: Float[np.ndarray, "node"]
    columns: Float[np.ndarray, "pos"]  # centre of each token
    rows: list[tuple[str, float]]  # name and height of each layer
    width: float
    height: float


def drawable(graph: Graph, nodes: int = SHOWN_NODES, edges: int = SHOWN_EDGES, logits: int = SHOWN_LOGITS) -> Graph:
    """The part of a graph, usually pruned already, that a page has room for: of largest influence. Tokens all stay."""
    kinds, found = graph.nodes, influence(graph)
    keep = kinds.are("token")
    keep[np.flatnonzero(kinds.are("logit"))[:logits]] = True
    if not kinds.are("logit").any():  # it ends in its last node
        keep[-1] = True
    others = np.flatnonzero(~keep & ~kinds.are("logit") & (found > 0))
    keep[others[np.argsort(-found[others], kind="stable")[:nodes]]] = True
    graph = graph.keep(keep)
    size = edge_influence(graph)
    most = np.zeros(len(size), bool)
    most[np.argsort(-size, kind="stable")[:edges]] = True
    graph = graph.keep(np.ones(len(graph.nodes), bool), most)
    joined = np.zeros(len(graph.nodes), bool)
    joined[np.concatenate([graph.source, graph.target])] = True
    return graph.keep(joined | graph.nodes.are("token", "logit"))


def places(graph: Graph) -> Places:
    """Lays a graph out: a column a token, as wide as its widest cell; a row for embeddings, each SAE, and logits."""
    nodes, n_saes = graph.nodes, len(graph.saes)
    row = np.where(nodes.are("token", "position"), 0, np.where(nodes.sae >= 0, nodes.sae + 1, nodes.layer + 1))
    row = np.where(nodes.are("logit"), n_saes + 1, np.minimum(row, n_saes + 1))
    pos = np.maximum(nodes.pos, 0)
    widths, lines = np.full(len(graph.tokens), 0.8), np.ones(n_saes + 2)
    cells: dict[tuple[int, int], np.ndarray] = {}
    for r, p in sorted(set(zip(row.tolist(), pos.tolist(), strict=True))):
        inside = np.flatnonzero((row == r) & (pos == p))
        if r == n_saes + 1:
            continue
        cells[r, p] = inside
        widths[p] = max(widths[p], 0.3 + 0.85 * min(len(inside), IN_A_LINE))
        lines[r] = max(lines[r], -(-len(inside) // IN_A_LINE))
    columns = np.cumsum(widths) - widths / 2
    heights = np.cumsum(np.r_[0, 1.35 + 0.55 * (lines[:-1] - 1) + 0.55 * (lines[1:] - 1) / 2])
    x, y = np.zeros(len(nodes)), np.zeros(len(nodes))
    for (r, p), inside in cells.items():
        for i, node in enumerate(inside):
            line, at = divmod(i, IN_A_LINE)
            n = min(len(inside) - line * IN_A_LINE, IN_A_LINE)
            aside = 0.42 * (line % 2) * (n == min(len(inside), IN_A_LINE))  # so that no edge runs through a node below
            x[node], y[node] = columns[p] + 0.85 * (at - (n - 1) / 2) + aside, heights[r] + 0.55 * line
    ends = np.flatnonzero(nodes.are("logit"))
    total = widths.sum()
    step = 0.95
    centre = min(columns[pos[ends[0]]], total - step * (len(ends) - 1) / 2 - 0.2) if len(ends) else 0.0
    x[ends] = max(centre, step * (len(ends) - 1) / 2) + step * (np.arange(len(ends)) - (len(ends) - 1) / 2)
    y[ends] = heights[-1]
    names = ["embeddings", *graph.saes, *(["logits"] if len(ends) else [])]
    heights = heights[: len(names)]
    width = max(total, float(x.max(initial=0)) + 0.5)
    return Places(x, y, columns, list(zip(names, heights.tolist(), strict=True)), width, float(heights[-1]))


def circuit_size(graph: Graph) -> tuple[float, float]:
    """Width and height in inches at which `circuit` can be read."""
    at = places(graph)
    return float(np.clip(2.2 + 0.52 * at.width, 6.5, 24)), float(np.clip(2.0 + 0.95 * at.height, 3.8, 16))


def circuit(ax: "Axes", graph: Graph, *, title: str, pairs: Sequence[Interaction] = ()) -> "Axes":
    """Draws a graph of some dozens of nodes; see `drawable`.

    An edge's colour is its sign; its width, its share of what enters its target in absolute value, of all edges that
    the target had. Of `pairs` (`graph.conjunctions`) those whose both ends are drawn are joined by arcs.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    nodes, at = graph.nodes, places(graph)
    entering = np.bincount(graph.target, np.abs(graph.weight), len(nodes))
    share = np.abs(graph.weight) / np.maximum(entering[graph.target], 1e-300)
    for e in np.argsort(share, kind="stable"):
        s, t = graph.source[e], graph.target[e]
        (x0, y0), (x1, y1) = (at.x[s], at.y[s] + 0.1), (at.x[t], at.y[t] - 0.1)
        bend = 0.45 * (y1 - y0)
        path = Path(
            [(x0, y0), (x0, y0 + bend), (x1, y1 - bend), (x1, y1)], [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
        )
        colour = BLUE if graph.weight[e] > 0 else ORANGE
        look: Any = {"lw": 0.3 + 3.2 * share[e], "alpha": 0.25 + 0.6 * min(1.0, 2 * share[e])}
        ax.add_patch(PathPatch(path, fill=False, edgecolor=colour, capstyle="round", **look))
    found = influence(graph)
    largest = max(float(found.max(initial=0)), 1e-300)
    for kind in dict.fromkeys(nodes.kind.tolist()):
        mine = nodes.are(kind)
        size = 34 + 90 * np.sqrt(found[mine] / largest)
        face = {"feature": "white", "logit": "black"}.get(kind, "#d9d9d9")
        ax.scatter(
            at.x[mine], at.y[mine], s=size, marker=MARKS[kind], facecolor=face, edgecolor="black", lw=0.9, zorder=3
        )
    for i in range(len(nodes)):
        _name(ax, graph, at, i)
    kinds = _arcs(ax, graph, at, pairs)
    for name, y in at.rows:
        ax.text(-0.35, y, name, ha="right", va="center", fontsize=8.5, parse_math=False)
        ax.axhline(y, color=GREY, lw=0.4, alpha=0.35, zorder=0)
    above = 0.95 if nodes.are("logit").any() else 0.35
    ax.set(xlim=(-0.3, at.width + 0.2), ylim=(-1.0, at.height + above), title=title)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    handles = [Line2D([], [], color=BLUE, lw=2, label="drives"), Line2D([], [], color=ORANGE, lw=2, label="suppresses")]
    handles += [Line2D([], [], color=COLOURS[2], ls=ARCS[kind], label=f"{kind.upper()}-like pair") for kind in kinds]
    for kind in dict.fromkeys(k for k in nodes.kind.tolist() if k in NAMES):
        look = {"marker": MARKS[kind], "mfc": "#d9d9d9", "mec": "black", "ls": "", "label": NAMES[kind]}
        handles.append(Line2D([], [], **look))
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles), fontsize=8.5)
    return ax


def _arcs(ax: "Axes", graph: Graph, at: Places, pairs: Sequence[Interaction]) -> list[str]:
    """Draws the pairs, below their nodes, the wider the larger the interaction; which kinds there are."""
    from matplotlib.patches import FancyArrowPatch

    number = {feature_at(graph, int(i)): int(i) for i in np.flatnonzero(graph.nodes.are("feature"))}
    shown = [p for p in pairs if p.a in number and p.b in number and p.target in number and p.kind in ARCS]
    largest = max((abs(p.interaction) for p in shown), default=1.0)
    for p in shown:
        ends = sorted((number[p.a], number[p.b]), key=lambda i: at.x[i])
        look: Any = {"lw": 0.6 + 1.8 * abs(p.interaction) / largest, "ls": ARCS[p.kind], "color": COLOURS[2]}
        places = [(at.x[i], at.y[i]) for i in ends]
        bend = min(0.35, 0.9 / max(abs(places[1][0] - places[0][0]), 1))
        ax.add_patch(FancyArrowPatch(*places, arrowstyle="-", connectionstyle=f"arc3,rad={bend}", zorder=2, **look))
    return [kind for kind in ARCS if any(p.kind == kind for p in shown)]


def _name(ax: "Axes", graph: Graph, at: Places, node: int) -> None:
    nodes, x, y = graph.nodes, at.x[node], at.y[node]
    kind = str(nodes.kind[node])
    plain: Any = {"ha": "center", "fontsize": 6.5, "parse_math": False, "zorder": 4}
    if kind == "token":
        text = one_line(repr(graph.token_strings[nodes.pos[node]])[1:-1])
        ax.text(x, y - 0.22, text, rotation=35, rotation_mode="anchor", **(plain | {"ha": "right", "fontsize": 8.5}))
    elif kind == "feature":
        halo = {"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.75}
        name = graph.feature_name(node)
        text = str(nodes.feature[node]) if name is None else _cut(one_line(name))
        ax.text(x, y - 0.3, text, bbox=halo, **plain)
    elif kind == "logit":
        text = one_line(graph.label(node).removeprefix("logit "))
        if nodes.probability[node] == nodes.probability[node]:
            text += f" {nodes.probability[node]:.0%}"
        ax.text(
            x - 0.05, y + 0.2, text, rotation=35, rotation_mode="anchor", **(plain | {"ha": "left", "fontsize": 8.5})
        )


def _cut(text: str) -> str:
    """A name as far as there is room between two nodes."""
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"
