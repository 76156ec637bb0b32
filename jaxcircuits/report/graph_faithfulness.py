"""What `jaxcircuits graph --faithfulness` writes: a table, its JSON, curves as a figure and as Parquet."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from jaxcircuits.files import FAITHFULNESS, new_directory, write_json
from jaxcircuits.graph import Faithfulness
from jaxcircuits.report.plots import COLOURS, GREY, drawn

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

AREAS = {"cmd": "distance", "gap": "of each prompt", "completeness": "completeness"}
"""What the table shows, 0 being best in each; `cpr` is in the files."""

STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)), (0, (8, 3)))
MARKERS = "osD^vPX*"
LINES = (*COLOURS[:6], "#000000", GREY)  # yellow is lost on white


def methods_of(found: Faithfulness) -> list[str]:
    """The ways to choose circuits, in the order asked for."""
    return list(dict.fromkeys(method for _, method in found.circuit))


def _prompts(found: Faithfulness) -> str:
    n = len(found.model)
    return "1 prompt" if n == 1 else f"{n} prompts"


def faithfulness_tables(found: Faithfulness) -> list[Table]:
    """Two tables a unit: faithfulness at each size; areas of each way to choose, and how far the first is ahead."""
    first, *_ = methods = methods_of(found)
    tables = []
    for unit in found.empty:
        least, most = int(found.sizes[unit].min()), int(found.sizes[unit].max())
        title = (
            f"Circuits of {unit} ({least if least == most else f'{least} to {most}'} a prompt, {_prompts(found)}, "
            f"{found.settings['fill']} ablation, metric {found.settings['metric']})"
        )
        inside = [i for i, share in enumerate(found.shares.tolist()) if 0 < share < 1]
        sizes = Table(
            title=title,
            caption=f"faithfulness: how much of the model is left when that share of {unit} is kept; 1 is all",
            title_justify="left",
            caption_justify="left",
        )
        sizes.add_column("chosen by")
        for i in inside:
            sizes.add_column(f"{100 * found.shares[i]:g}%", justify="right")
        for method in methods:
            curve = found.curve(unit, method)
            sizes.add_row(method, *(f"{curve[i].value:.2f}" for i in inside))
        table = Table(
            caption=f"areas over the share of {unit}, 0 is best [95 % intervals over prompts]; Δ: {first} minus this, "
            "below 0 is better",
            title_justify="left",
            caption_justify="left",
        )
        table.add_column("chosen by")
        for name, words in AREAS.items():
            table.add_column(words, justify="right")
            if name != "completeness":
                table.add_column("Δ", justify="right")
        for method in methods:
            areas, ahead = found.areas(unit, method), found.against(unit, first, method)
            cells = [f"{areas['cmd']:.3f}", f"{ahead['cmd']:+.3f}", f"{areas['gap']:.3f}", f"{ahead['gap']:+.3f}"]
            cells[1::2] = ["", ""] if method == first else cells[1::2]
            table.add_row(method, *cells, f"{areas['completeness']:.3f}")
        tables += [sizes, table]
    return tables


def faithfulness_rows(found: Faithfulness) -> "pa.Table":
    """Every measured number, a row a prompt, unit, way to choose and share."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for (unit, method), circuit in found.circuit.items():
        for prompt in range(len(circuit)):
            for i, share in enumerate(found.shares.tolist()):
                rows.append(
                    {
                        "prompt": prompt,
                        "unit": unit,
                        "method": method,
                        "share": share,
                        "size": round(share * int(found.sizes[unit][prompt])),
                        "model": float(found.model[prompt]),
                        "ablated": float(found.empty[unit][prompt]),
                        "circuit": float(circuit[prompt, i]),
                        "complement": float(found.complement[unit, method][prompt, i]),
                    }
                )
    return pa.Table.from_pylist(rows)


def write_faithfulness(found: Faithfulness, out: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes `faithfulness.json`, `.parquet` and a figure a unit, whole or not at all.

    Raises:
        InputError: The place is taken.
    """
    import pyarrow.parquet as pq

    with new_directory(out, overwrite, FAITHFULNESS) as new:
        write_json(new / FAITHFULNESS, found.to_json())
        pq.write_table(faithfulness_rows(found), new / "faithfulness.parquet")
        for unit in found.empty:
            for complete, name in ((False, "faithfulness"), (True, "completeness")):
                with drawn(new / f"{name}-{unit}.png", 7.6, 4.2) as ax:
                    curves(ax, found, unit, complete=complete)


def curves(ax: "Axes", found: Faithfulness, unit: str, *, complete: bool) -> "Axes":
    """Faithfulness, or completeness, against the share that a circuit has; the first way's with its interval."""
    shares, ends = found.shares, (0.0, 1.0) if complete else (1.0, 0.0)
    for end in ends:
        ax.axhline(end, color=GREY, lw=0.7)
    low, high = 0.0, 1.0
    for number, method in enumerate(methods_of(found)):
        estimates = found.curve(unit, method, complete=complete)
        value, lower, upper = (np.array([getattr(e, name) for e in estimates]) for name in ("value", "low", "high"))
        look: Any = {"color": LINES[number % len(LINES)], "ls": STYLES[number % len(STYLES)]}
        ax.plot(shares, value, marker=MARKERS[number % len(MARKERS)], ms=3.5, lw=1.5, label=method, **look)
        if number == 0 and np.isfinite(lower).all():  # the others' would hide each other; the table has every interval
            ax.fill_between(shares, lower, upper, color=look["color"], alpha=0.15, lw=0, label="its 95 % interval")
        low, high = min(low, float(value.min())), max(high, float(value.max()))
    name = "completeness (model without the circuit)" if complete else "faithfulness"
    smallest = float(shares[shares > 0].min())
    ax.set_xscale("symlog", linthresh=smallest)
    ticks = [s for s in shares.tolist() if s in (0.0, smallest, 0.01, 0.1, 0.5, 1.0) or len(shares) < 8]
    ax.set_xticks(ticks, [f"{100 * t:g}%" for t in ticks])
    ax.minorticks_off()
    margin = 0.12 * (high - low)
    ax.set(
        xlabel=f"share of {unit} in the circuit",
        ylabel=name,
        title=f"Circuits of {unit}, {found.settings['fill']} ablation, {_prompts(found)}",
        ylim=(low - margin, high + margin),
        xlim=(0, 1),
    )
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax
