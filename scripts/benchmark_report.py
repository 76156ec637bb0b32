"""The benchmark's result: for people, as Markdown, and as JSON with every sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from benchmark_clock import Row
from benchmark_corpus import ATTRIBUTED, CORPUS, ENCODED
from benchmark_growth import PROGRAMS
from benchmark_rows import ALL, CELL, EVERYWHERE, PLAIN, PROJECTED, SAME, STRUCTURED, VMAP, WHOLE


@dataclass(frozen=True)
class Goal:
    """A ratio that must hold: how much faster one row is than another of the same table."""

    shape: str
    group: str
    what: str
    against: str
    least: float


GOALS = (
    Goal("original", SAME, STRUCTURED, PLAIN, 150),
    Goal("original", SAME, STRUCTURED, VMAP, 50),
    Goal("original", WHOLE, "structured: Engine.run", CELL, 800),
    Goal("original", ALL, EVERYWHERE, PROJECTED, 15),
    Goal("original", CORPUS, ATTRIBUTED, ENCODED, 0.85),
)
MOST_PROGRAMS = 8


@dataclass(frozen=True)
class Section:
    """The rows of one shape at one precision.

    Attributes:
        shape: The case's name.
        precision: Of matrix products.
        rows: In the order of the tables.
        agreement: Of each contender, the largest difference to the baseline, relative to each target's largest edge.
    """

    shape: str
    precision: str
    rows: Sequence[Row]
    agreement: Mapping[str, float]

    @property
    def goals(self) -> list[dict[str, Any]]:
        """What must hold, and what was measured; at full precision only."""
        found = []
        at = {(row.group, row.what): row for row in self.rows}
        for goal in GOALS if self.precision == "highest" else ():
            pair = [at.get((goal.group, name)) for name in (goal.what, goal.against)]
            if goal.shape == self.shape and None not in pair:
                ours, other = (row.median for row in pair if row is not None)
                what = f"{goal.group}: {goal.what} against {goal.against}"
                held = bool(other / ours >= goal.least)
                found.append(
                    {"what": what, "measured": float(other / ours), "wanted": f"≥ {goal.least:g}", "held": held}
                )
        for row in self.rows:
            if row.group == PROGRAMS:
                held = bool(row.median <= MOST_PROGRAMS)
                wanted = f"≤ {MOST_PROGRAMS}"
                found.append({"what": row.note, "measured": row.median, "wanted": wanted, "held": held})
        return found

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        rows = [row.to_json() for row in self.rows]
        names = {"shape": self.shape, "precision": self.precision}
        return {**names, "agreement": dict(self.agreement), "goals": self.goals, "rows": rows}


def tables(section: Section) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and cells of each table."""
    found = []
    for group, members in groupby(section.rows, key=lambda row: row.group):
        rows = list(members)
        more = list(dict.fromkeys(name for row in rows for name in row.more))
        ratio = any(row.ratio is not None for row in rows)
        unit = rows[0].unit
        header = ["", f"median, {unit}", f"min, {unit}", *(["ratio"] if ratio else []), *more]
        cells = []
        for row in rows:
            numbers = [_number(row.median), _number(min(row.samples))]
            numbers += [] if not ratio else ["" if row.ratio is None else f"{row.ratio:.3g}"]
            numbers += [_number(row.more[name]) if name in row.more else "" for name in more]
            cells.append([row.what, *numbers])
        found.append((group, header, cells))
    return found


def _number(x: float) -> str:
    return f"{x:.0f}" if x >= 1000 or x == int(x) else f"{x:.3g}"


def to_markdown(run: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Tables for the README."""
    lines = [f"Measured on {describe(run)}."]
    for section in sections:
        for title, header, cells in tables(section):
            lines += ["", f"### {section.shape}, {section.precision}: {title}", ""]
            lines += [_line(header), _line(["---"] + ["---:"] * (len(header) - 1)), *map(_line, cells)]
            notes = [f"- {row.what}: {row.note}" for row in section.rows if row.group == title and row.note]
            lines += ["", *notes] if notes else []
        if section.agreement:
            worst = max(section.agreement.values())
            lines += ["", f"Largest difference of any contender: {worst:.1e} of the target's largest edge."]
        if section.goals:
            lines += ["", _line(["must hold", "measured", "wanted", ""]), _line(["---", "---:", "---:", "---"])]
            verdict = {True: "held", False: "missed"}
            for goal in section.goals:
                lines.append(_line([goal["what"], f"{goal['measured']:.3g}", goal["wanted"], verdict[goal["held"]]]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def describe(run: Mapping[str, Any]) -> str:
    """The machine in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    threads = f"{run['cores']} cores" + (f", {run['torch_threads']} PyTorch threads" if run["torch_threads"] else "")
    return f"{run['device']} ({threads}; {versions}), medians of {run['repeats']}"


def show(section: Section) -> None:
    """Prints a section's tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=150)
    for title, header, cells in tables(section):
        table = Table(
            *header, title=f"{section.shape}, {section.precision}: {title}", box=box.SIMPLE, title_justify="left"
        )
        for column in table.columns[1:]:
            column.justify = "right"
        for row in cells:
            table.add_row(*row)
        console.print(table)
        for row in section.rows:
            if row.group == title and row.note:
                console.print(f"  {row.what}: {row.note}", style="dim", highlight=False)
    for name, value in section.agreement.items():
        console.print(f"  difference, {name}: {value:.1e}", highlight=False)
    for goal in section.goals:
        verdict = "held" if goal["held"] else "missed"
        console.print(f"  {verdict}: {goal['what']}: {goal['measured']:.3g}, wanted {goal['wanted']}", highlight=False)
