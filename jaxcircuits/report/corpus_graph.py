"""Circuits of a corpus: tables, and a figure with a column a layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxcircuits.graph.corpus import TOKEN, CorpusGraph, Edge, Unit
from jaxcircuits.graph.corpus import Path as Way
from jaxcircuits.report.plots import BLUE, GREY, ORANGE, drawn
from jaxcircuits.report.tables import one_line

DRAWN = 60
"""Edges in a figure, at most."""


def edges_table(graph: CorpusGraph, edges: Sequence[Edge], title: str) -> Table:
    """Edges as a person reads them."""
    caption = "weight: shrunk mean of attribution, of a token its lift; strength: share of what enters the target"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for name in ("source", "target", "offset", "weight", "strength", "stories", "q"):
        table.add_column(name, justify="left" if name in ("source", "target") else "right")
    for e in edges:
        weight = f"× {e.weight:.1f}" if e.source.sae == TOKEN else f"{e.weight:+.4f}"
        q = "" if e.q != e.q else f"{e.q:.0e}"
        ends = (escape(one_line(graph.label(unit))) for unit in (e.source, e.target))
        table.add_row(*ends, str(e.offset), weight, f"{e.strength:.1%}", f"{e.times:,}", q)
    return table


def paths_table(graph: CorpusGraph, paths: Sequence[Way], title: str) -> Table:
    """Paths as a person reads them."""
    table = Table("score", "path", title=title, title_justify="left")
    for path in paths:
        words = graph.label(path.edges[0].source)
        for e in path.edges:
            words += f" → {graph.label(e.target)} ({e.strength:.1%}{f', {e.offset} later' if e.offset else ''})"
        table.add_row(f"{path.score:.2e}", escape(one_line(words)))
    return table


def draw_edges(path: Path, graph: CorpusGraph, edges: Sequence[Edge], title: str) -> None:
    """Draws edges from left to right, a column for tokens and each SAE; the strongest, as many as fit."""
    from matplotlib.lines import Line2D

    every = dict.fromkeys(edges)
    shown = sorted(every, key=lambda e: -e.strength)[:DRAWN]
    title = title if len(shown) == len(every) else f"{title}; the {DRAWN} of largest strength"
    columns: dict[str, list[Unit]] = {name: [] for name in (TOKEN, *graph.saes)}
    for e in shown:
        for unit in (e.source, e.target):
            if unit not in columns[unit.sae]:
                columns[unit.sae].append(unit)
    columns = {name: units for name, units in columns.items() if units}
    most = max(map(len, columns.values()))
    at: dict[Unit, tuple[float, float]] = {}
    for x, units in enumerate(columns.values()):
        units.sort(key=lambda unit: _height(unit, shown, at))
        at |= {unit: (3.0 * x, -(i + 0.5) * most / len(units)) for i, unit in enumerate(units)}
    with drawn(path, 2.6 + 2.6 * len(columns), max(2.6, 1.0 + 0.24 * most)) as ax:
        for e in reversed(shown):
            colour = GREY if e.source.sae == TOKEN else BLUE if e.weight > 0 else ORANGE
            look: Any = {"lw": 0.5 + 3 * e.strength, "alpha": 0.35 + 0.5 * e.strength, "color": colour}
            (x0, y0), (x1, y1) = at[e.source], at[e.target]
            t = np.linspace(0, 1, 30)
            ax.plot(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t * t * (3 - 2 * t), solid_capstyle="round", **look)
        for unit, (x, y) in at.items():
            text = one_line(graph.label(unit)) if unit.sae == TOKEN else str(unit.number)
            halo = {"facecolor": "white", "edgecolor": GREY, "lw": 0.5, "pad": 1.6}
            ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox=halo, parse_math=False)
        for x, name in enumerate(columns):
            ax.text(3.0 * x, 0.25, "tokens" if name == TOKEN else name, ha="center", fontsize=9, parse_math=False)
        ax.set(xlim=(-1.2, 3.0 * (len(columns) - 1) + 1.2), ylim=(-most - 0.3, 1.0), xticks=[], yticks=[])
        ax.set_title(title, parse_math=False)
        tokens = any(e.source.sae == TOKEN for e in shown)
        colours = {"drives": BLUE, "suppresses": ORANGE, **({"a token leads to": GREY} if tokens else {})}
        lines = [Line2D([], [], color=colour, lw=2, label=word) for word, colour in colours.items()]
        words = "the wider, the larger a share of what enters the target"
        look: Any = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, 0.0),
            "ncols": 3,
            "fontsize": 8.5,
            "title_fontsize": 8.5,
        }
        ax.legend(handles=lines, title=words, **look)
        for spine in ax.spines.values():
            spine.set_visible(False)


def _height(unit: Unit, edges: Sequence[Edge], at: Mapping[Unit, tuple[float, float]]) -> float:
    """How far down a unit stands: as its sources to the left do on the mean, so that few edges cross."""
    mine = [(e.strength, -at[e.source][1]) for e in edges if e.target == unit and e.source in at]
    weight = sum(strength for strength, _ in mine)
    return sum(strength * down for strength, down in mine) / weight if weight else 0.0
