"""Answers of `top`: tables for the terminal, rows for machines, figures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxcircuits.bulk.questions import Order, Pair, Statistics
from jaxcircuits.report.plots import distribution, drawn, interval_bars

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]
AROUND = 8  # tokens on either side of an example
_HOW = {"effect": "|shrunk mean|", "evidence": "|z| of the mean", "absolute": "mean |attribution|"}
_SIGN = {"positive": ", driving only", "negative": ", suppressing only", "both": ""}


def feature_table(rows: Sequence[Row], end: str, feature: int, order: Order) -> Table:
    """What drives a target (`end` is "source"), or what a source drives (`end` is "target")."""
    what = f"Drivers of target {feature}" if end == "source" else f"Driven by source {feature}"
    table = Table(title=f"{what}, by {_HOW[order.by]}{_SIGN[order.sign]}", title_justify="left", caption=_CAPTION)
    table.caption_justify, table.pad_edge, table.padding = "left", False, (0, 1, 0, 0)
    several = any(r["offset"] for r in rows)
    columns: list[tuple[str, Callable[[Row], str]]] = [
        (end, lambda r: str(r[f"{end}_feature"])),
        ("offset", lambda r: str(r["offset"]) if several else ""),
        ("mean", lambda r: f"{r['mean']:+.4f}{_reach(r)}"),
        ("shrunk", lambda r: _number(r["mean_shrunk"], "+.4f")),
        ("|a|", lambda r: f"{r['mean_absolute']:.4f}"),
        ("> 0", lambda r: f"{r['share_positive']:.0%}"),
        ("edges", lambda r: f"{r['edges']:,}"),
        ("stories", lambda r: f"{r['stories']:,}"),
        ("both on", lambda r: f"{r['both_active'] / r['edges']:.0%}"),
        ("/target", lambda r: _share(r["both_active"], r["target_active"])),
        ("/source", lambda r: _share(r["both_active"], r["source_active"])),
        ("r", lambda r: _number(r["correlation"], "+.2f")),
        ("q mean", lambda r: _probability(r["q_mean"])),
        ("q both", lambda r: _probability(r["q_association"])),
    ]
    cells = {name: [shown(r) for r in rows] for name, shown in columns}
    # A column that says nothing is left out.
    cells = {n: c for n, c in cells.items() if any(c) and not (n == "both on" and set(c) == {"100%"})}
    for name in cells:
        table.add_column(name, justify="right", no_wrap=True)
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    return table


_CAPTION = (
    "mean of attribution where both are active, ± its 95 % interval; |a|: of its absolute value;\n"
    "/target, /source: the share of its activations that this is; r: correlation of activations;\n"
    "q: false-discovery rate, of the mean and of both being active more or less often than by chance"
)


def pair_tables(answer: Pair, source: int, target: int) -> tuple[Table, Table]:
    """The statistics of a pair, one column an offset; and examples."""
    rows = answer.statistics.to_pylist()[:8]
    title = f"Source {source} → target {target}"
    numbers = Table("attribution", *(f"offset {r['offset']}" for r in rows), title=title, title_justify="left")
    for name, shown in (
        ("mean", lambda r: f"{r['mean']:+.4f}"),
        ("95 % interval of the mean", _interval),
        ("mean, shrunk", lambda r: _number(r["mean_shrunk"], "+.4f")),
        ("mean |attribution|", lambda r: f"{r['mean_absolute']:.4f}"),
        ("standard deviation", lambda r: f"{r['variance'] ** 0.5:.4f}"),
        ("share positive", lambda r: f"{r['share_positive']:.1%}"),
        ("sum", lambda r: f"{r['sum']:+.2f}"),
        ("edges, stories", lambda r: f"{r['edges']:,}, {r['stories']:,}"),
        ("both active", lambda r: f"{r['both_active']:,}"),
        ("target active", lambda r: _number(r["target_active"], ",")),
        ("source active", lambda r: _number(r["source_active"], ",")),
        ("position pairs", lambda r: _number(r["position_pairs"], ",")),
        ("both active by chance", lambda r: _number(r["chance"], ",.1f")),
        ("a target activation's mean", lambda r: _number(r["expected"], "+.4f")),
        ("the same, target-weighted", lambda r: _number(r["twera"], "+.4f")),
        ("correlation of activations", lambda r: _number(r["correlation"], "+.3f")),
        ("q of the mean", lambda r: _probability(r["q_mean"])),
        ("q of being active together", lambda r: _probability(r["q_association"])),
    ):
        cells = [shown(r) for r in rows]
        if any(cells):
            numbers.add_row(name, *cells)
    return numbers, example_table(
        example_rows(answer.examples, answer.prompts), "Examples, largest |attribution| first"
    )


def example_table(rows: Sequence[Row], title: str, *, features: bool = False) -> Table:
    """Edges in their text: ‹source›, «target», ‹«both»›."""
    table = Table(title=title, title_justify="left", caption="‹source›, «target»", caption_justify="left")
    for name in ("prompt", "pos", *(("source", "target") if features else ())):
        table.add_column(name, justify="right")
    table.add_column("text", overflow="fold")
    for name in ("source act", "target act", "gradient", "attribution"):
        table.add_column(name, justify="right")
    for r in rows:
        pos = str(r["target_pos"]) if r["source_pos"] == r["target_pos"] else f"{r['source_pos']}→{r['target_pos']}"
        names = [str(r["source_feature"]), str(r["target_feature"])] if features else []
        acts = [f"{r['source_act']:.3f}", f"{r['target_act']:.3f}" if r["target_act"] > 0 else "off"]
        values = [f"{r['gradient']:+.4f}", f"{r['attribution']:+.4f}"]
        table.add_row(str(r["prompt"]), pos, *names, _marked(r, coloured=True), *acts, *values)
    return table


def example_rows(edges: "pa.Table", prompts: "pa.Table") -> list[Row]:
    """Edges with the tokens around them, for tables and machines."""
    tokens = {r["prompt"]: r.get("token_strings") or list(map(str, r["tokens"])) for r in prompts.to_pylist()}
    rows = []
    for r in edges.to_pylist():
        first = max(0, min(r["source_pos"], r["target_pos"]) - AROUND)
        row = {**r, "tokens": tokens[r["prompt"]][first : r["target_pos"] + AROUND + 1], "first_token": first}
        rows.append({**row, "text": _marked(row, coloured=False)})
    return rows


def _marked(row: Mapping[str, Any], *, coloured: bool) -> str:
    """The text around an edge in which both ends stand out, also where there is no colour. A long way is cut."""
    out = []
    at = range(row["first_token"], row["first_token"] + len(row["tokens"]))
    between = range(row["source_pos"] + AROUND + 1, row["target_pos"] - AROUND)
    for pos, token in zip(at, row["tokens"], strict=True):
        if pos in between:
            out.append(" … " if pos == between[0] else "")
            continue
        shown = token.replace("\n", "⏎")
        shown = escape(shown) if coloured else shown
        if pos == row["source_pos"]:
            shown = f"[bold cyan]‹{shown}›[/]" if coloured else f"‹{shown}›"
        if pos == row["target_pos"]:
            shown = f"[bold yellow]«{shown}»[/]" if coloured else f"«{shown}»"
        out.append(shown)
    return "".join(out)


def _interval(row: Row) -> str:
    return "" if row["mean_low"] is None else f"{row['mean_low']:+.4f} … {row['mean_high']:+.4f}"


def _reach(row: Row) -> str:
    return "" if row["mean_low"] is None else f" ±{(row['mean_high'] - row['mean_low']) / 2:.4f}"


def _number(value: float | None, spec: str) -> str:
    return "" if value is None or value != value else f"{value:{spec}}"


def _share(part: int, whole: int | None) -> str:
    return f"{part / whole:.0%}" if whole else ""


def _probability(value: float | None) -> str:
    if value is None or value != value:
        return ""
    return "< 1e-99" if value < 1e-99 else f"{value:.0e}" if value < 0.01 else f"{value:.2f}"


def notes(statistics: Statistics) -> list[str]:
    """What has to be known of the numbers."""
    out = []
    if not statistics.stored:
        out.append(
            "the run kept no statistics: these come from its edges; shrinkage and q are among these pairs alone."
        )
    if statistics.edges_cut:
        out.append(
            f"{statistics.edges_cut:,} edges were cut by the run's settings: counts and means are of the kept ones."
        )
    return out


# --- figures ------------------------------------------------------------------------------------------


def draw_features(path: Path, rows: Sequence[Row], end: str, feature: int) -> None:
    """Bars of means with their intervals, as listed."""
    offsets = any(r["offset"] for r in rows)
    labels = [f"{r[f'{end}_feature']}" + (f" (offset {r['offset']})" if offsets else "") for r in rows]
    title = f"Drivers of target {feature}" if end == "source" else f"Driven by source {feature}"
    ends = [
        np.array([np.nan if r[n] is None else r[n] for r in rows], float) for n in ("mean", "mean_low", "mean_high")
    ]
    with drawn(path, 5.6, 1.4 + 0.24 * len(rows)) as ax:
        interval_bars(
            ax, labels, *ends, xlabel="mean attribution where both are active, 95 % interval", ylabel=end, title=title
        )


def draw_pair(path: Path, answer: Pair, source: int, target: int) -> None:
    """How the attribution of a pair is distributed."""
    values = answer.values
    with drawn(path, 5.6, 3.4) as ax:
        title = f"Source {source} → target {target}: {len(values):,} edges"
        distribution(ax, values, xlabel="attribution", ylabel="edges", title=title)


def draw_prompt(path: Path, rows: Sequence[Row], prompt: int) -> None:
    """The strongest edges of a prompt."""
    labels = []
    for r in rows:
        ends = [(r[f"{e}_pos"], r[f"{e}_feature"]) for e in ("source", "target")]
        names = [f"{r['tokens'][p - r['first_token']]!r}@{p}:{f}" for p, f in ends]
        labels.append(" → ".join(names))
    nothing = np.full(len(rows), np.nan)
    values = np.array([r["attribution"] for r in rows], float)
    with drawn(path, 7.0, 1.4 + 0.24 * len(rows)) as ax:
        title = f"Strongest edges of prompt {prompt}"
        axes = {"xlabel": "attribution", "ylabel": "token@position:feature", "title": title}
        interval_bars(ax, labels, values, nothing, nothing, **axes)
