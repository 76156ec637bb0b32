"""Figures: arrays in, matplotlib axes out. One style, colours that colour-blind eyes tell apart."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.errors import InputError
from jaxcircuits.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8a8a8a"  # Okabe and Ito
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442", "#000000")
LEAST_OF_A_MEDIAN = 10
LABEL = 0.15  # inches that a label of one line takes
FORMATS = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}
"""What a figure's name may end in, and what of its metadata changes without the numbers."""
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "svg.hashsalt": "jaxcircuits",
}


def check_figures(paths: Iterable[str | None], *, overwrite: bool) -> None:
    """Refuses names of figures that cannot be drawn, or are taken.

    Raises:
        InputError: See there.
    """
    for path in filter(None, paths):
        if Path(path).suffix not in FORMATS:
            raise InputError(f"expected a figure's name that ends in {', '.join(FORMATS)}, got {path}.")
        if not Path(path).absolute().parent.is_dir():
            raise InputError(f"the figure {path}: there is no directory {Path(path).parent}; make it or name another.")
        if Path(path).exists() and not overwrite:
            raise InputError(f"the figure {path} exists already; pass --overwrite to replace it or name another.")


@contextmanager
def drawn(path: Path, width: float, height: float) -> Iterator["Axes"]:
    """Axes in the project's style, without a window; what is drawn on them in the block becomes the file.

    Its name ends in one of `FORMATS`. Without a date in it, so that the same numbers give the same bytes.
    """
    with drawn_panels(path, width, height, [1]) as (ax,):
        yield ax


@contextmanager
def drawn_panels(path: Path, width: float, height: float, ratios: Sequence[float]) -> Iterator[list["Axes"]]:
    """As `drawn`, with several axes beside each other, of these relative widths."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        size: Any = {"figsize": (width, height), "width_ratios": ratios, "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(1, len(ratios), **size)
        try:
            yield list(axes[0])
            content = BytesIO()
            figure.savefig(content, format=path.suffix[1:], metadata={FORMATS[path.suffix]: None})
            write_bytes(path, content.getvalue())
        finally:
            plt.close(figure)


def histogram_marked(
    ax: "Axes", values: Float[np.ndarray, "n"], marked: int | None, *, xlabel: str, title: str, name: str = "feature"
) -> "Axes":
    """Counts of values on a logarithmic axis, one of them marked."""
    ax.hist(values, bins=120, color=BLUE, log=True)
    if marked is not None:
        ax.axvline(values[marked], color=ORANGE, lw=1.8, label=f"{name} {marked}: {values[marked]:+.3f}")
        ax.legend()
    ax.set(xlabel=xlabel, ylabel="features", title=title)
    return ax


def scatter_signed(
    ax: "Axes",
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    labels: Sequence[int] | None = None,
    label_top: int = 6,
) -> "Axes":
    """Points with both zero lines; the largest |y| carry their number. Rasterised, so that millions stay small."""
    size = float(np.clip(4000 / max(len(x), 1), 2, 22))
    ax.axhline(0, color=GREY, lw=0.7)
    ax.axvline(0, color=GREY, lw=0.7)
    ax.scatter(x, y, s=size, color=BLUE, alpha=0.6, linewidths=0, rasterized=True)
    if labels is not None:
        for i in np.argsort(-np.abs(y))[:label_top]:
            ax.annotate(str(labels[i]), (x[i], y[i]), xytext=(4, 3), textcoords="offset points", fontsize=8)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return ax


def scatter_absolute(
    ax: "Axes", x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], *, xlabel: str, ylabel: str, title: str
) -> "Axes":
    """Absolute values against each other, with the median of |y| where there are points enough for one."""
    x, y = np.abs(x), np.abs(y)
    size = float(np.clip(4000 / max(len(x), 1), 2, 22))
    ax.scatter(x, y, s=size, color=BLUE, alpha=0.5, linewidths=0, rasterized=True)
    if len(x) >= 20 * LEAST_OF_A_MEDIAN:
        bins = np.array_split(np.argsort(x), 20)
        medians = [[np.median(v[i]) for i in bins] for v in (x, y)]
        ax.plot(*medians, color=ORANGE, lw=1.8, label="median, 20 bins of equal count")
        ax.legend()
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xlim=(0, None), ylim=(0, None))
    return ax


def pair_map_size(n_targets: int, n_sources: int) -> tuple[float, float]:
    """Width and height in inches at which `pair_map` can label every row and column, within reason."""
    return min(22.0, max(6.5, 2.5 + LABEL * n_sources)), min(15.0, max(3.5, 1.5 + LABEL * n_targets))


def pair_map(
    ax: "Axes",
    gradients: Float[np.ndarray, "target source"],
    targets: Int[np.ndarray, "target 2"],
    sources: Int[np.ndarray, "source 2"],
    tokens: Sequence[str],
    *,
    title: str,
) -> "Axes":
    """Every target (rows) against every source of every position (columns), both grouped by token.

    Zero is white; colour saturates at the 99th percentile. Where sources come later the cell is grey. A token whose
    label would lie on its neighbour's has none.
    """
    ax.set(xlabel="active sources, by token", ylabel="active targets, by token", title=title)
    if not gradients.size:
        ax.text(0.5, 0.5, "no active pair", ha="center", va="center", transform=ax.transAxes)
        ax.set(xticks=[], yticks=[])
        return ax
    later = sources[None, :, 0] > targets[:, None, 0]
    limit = float(np.quantile(np.abs(gradients[~later]), 0.99)) if not later.all() else 0.0
    shown = np.ma.masked_array(gradients, later)
    ax.set_facecolor("#e4e4e4")
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-limit or -1, vmax=limit or 1, aspect="auto", interpolation="nearest")
    width, height = ax.figure.get_size_inches()  # pyright: ignore[reportAttributeAccessIssue]
    for axis, ends, inches in ((ax.xaxis, sources[:, 0], width - 2.5), (ax.yaxis, targets[:, 0], height - 1.5)):
        positions, first = np.unique(ends, return_index=True)
        edges = np.append(first, len(ends))
        centres = (edges[:-1] + edges[1:]) / 2 - 0.5
        labelled: list[int] = []
        free_from = -np.inf
        for i, centre in enumerate(centres):
            if centre >= free_from:
                labelled.append(i)
                free_from = centre + 0.9 * LABEL * len(ends) / inches
        names = [repr(tokens[positions[i]]) for i in labelled]
        axis.set_ticks(np.take(centres, labelled), names, parse_math=False)
        for edge in edges[1:-1]:
            (ax.axvline if axis is ax.xaxis else ax.axhline)(edge - 0.5, color="black", lw=0.3)
    ax.tick_params(length=0)
    ax.tick_params(axis="x", rotation=90)
    saturated = "both" if (np.abs(shown) > limit).any() else "neither"
    bar = ax.figure.colorbar(image, ax=ax, extend=saturated, shrink=0.8)
    bar.set_label("derivative (grey: the source comes later)")
    return ax


def densities(
    ax: "Axes", histograms: dict[str, tuple[Float[np.ndarray, "_n"], Int[np.ndarray, "_row"]]], *, title: str
) -> "Axes":
    """How many features are active at which share of tokens: one outline a name, from edges of log10 and counts."""
    for colour, (name, (edges, counts)) in zip(_cycled(len(histograms)), histograms.items(), strict=True):
        ax.stairs(counts, edges, color=colour, lw=1.6, label=name)
    low = [float(edges[np.flatnonzero(counts)[0]]) for edges, counts in histograms.values() if np.any(counts)]
    ax.set(xlabel="share of tokens at which a feature is active", ylabel="features", title=title)
    ax.set_xlim(min(low, default=-1.0) - 0.25, 0)
    ax.xaxis.set_major_formatter(lambda x, _: f"$10^{{{x:g}}}$")
    ax.xaxis.set_major_locator(_whole_numbers())
    ax.set_ylim(0, ax.get_ylim()[1] * (1 + 0.08 * len(histograms)))  # room for the legend
    ax.legend(loc="upper left", fontsize=8)
    return ax


def bars(ax: "Axes", names: Sequence[str], groups: Mapping[str, Sequence[float]], *, xlabel: str, title: str) -> "Axes":
    """Horizontal bars with their numbers: a group of them a name, one a key."""
    height = 0.8 / len(groups)
    for number, (colour, (label, values)) in enumerate(zip(_cycled(len(groups)), groups.items(), strict=True)):
        at = np.arange(len(names)) + (number - (len(groups) - 1) / 2) * height
        drawn_bars = ax.barh(at, values, height=0.9 * height, color=colour, label=label)
        ax.bar_label(drawn_bars, fmt="%.3f", padding=3, fontsize=8)
    ax.set(xlabel=xlabel, title=title)
    ax.set_yticks(np.arange(len(names)), names)
    ax.invert_yaxis()
    ax.margins(x=0.14)
    ax.axvline(0, color=GREY, lw=0.7)
    ax.legend(fontsize=8)
    return ax


def token_lines(
    ax: "Axes", tokens: Sequence[str], lines: dict[str, Float[np.ndarray, "_n"]], *, ylabel: str, title: str
) -> "Axes":
    """One value a token and line, tokens written below; the first line, with which others are compared, is dotted."""
    for number, (colour, name) in enumerate(zip(["#000000", *_cycled(len(lines) - 1)], lines, strict=True)):
        style: Any = {"lw": 1.3} if number else {"lw": 2.2, "zorder": 3, "ls": ":"}
        ax.plot(np.arange(len(tokens)), lines[name], color=colour, marker="o", ms=2.5, label=name, **style)
    ax.set(ylabel=ylabel, title=title, ylim=(0, None))
    ax.set_xticks(np.arange(len(tokens)), [token.replace("\n", "⏎") for token in tokens], parse_math=False)
    ax.tick_params(axis="x", rotation=90, labelsize=8, length=0)
    ax.margins(x=0.01)
    ax.legend(fontsize=8)
    return ax


def _cycled(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True)


def interval_bars(
    ax: "Axes",
    labels: Sequence[str],
    values: Float[np.ndarray, "n"],
    low: Float[np.ndarray, "n"],
    high: Float[np.ndarray, "n"],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
) -> "Axes":
    """One bar a row, the first on top; negative ones in another colour; intervals where there are some (not NaN)."""
    at = np.arange(len(values))
    ax.barh(at, values, color=[BLUE if v >= 0 else ORANGE for v in values], height=0.72)
    there = ~np.isnan(low)
    reach = np.stack([values - low, high - values])[:, there]
    ax.errorbar(values[there], at[there], xerr=reach, fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
    ax.axvline(0, color=GREY, lw=0.7)
    ax.set_yticks(at, labels, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.margins(y=0.02)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return ax


def waterfall(
    ax: "Axes", names: Sequence[str], values: Float[np.ndarray, "n"], total: str, *, ylabel: str, title: str
) -> "Axes":
    """How a number changes from step to step: a bar from each value to the next, then the last one whole.

    Args:
        ax: Where.
        names: Of the first value, and of each step.
        values: The first value, and that after each step.
        total: Name of the last value.
        ylabel: What they are.
        title: Of the figure.
    """
    ends, starts = np.r_[values, values[-1]], np.r_[0, values[:-1], 0]
    change = ends - starts
    colours = ["black" if i in (0, len(values)) else BLUE if c >= 0 else ORANGE for i, c in enumerate(change)]
    ax.bar(np.arange(len(ends)), change, bottom=starts, color=colours, width=0.62)
    for i, end in enumerate(ends):
        if i < len(values):
            ax.plot([i + 0.31, i + 0.69], [end, end], color=GREY, lw=0.9)
        up = change[i] >= 0
        text = f"{end:+.3f}" if i in (0, len(values)) else f"{change[i]:+.3f}"
        ax.annotate(text, (i, end), xytext=(0, 4 if up else -4), textcoords="offset points", ha="center",
                    va="bottom" if up else "top", fontsize=8.5)  # fmt: skip
    ax.axhline(0, color=GREY, lw=0.9)
    ax.set_xticks(np.arange(len(ends)), [*names, total], fontsize=8.5)
    ax.tick_params(axis="x", length=0)
    low, high = min(ends.min(), 0), max(ends.max(), 0)
    room = 0.12 * (high - low or 1)
    ax.set(ylabel=ylabel, title=title, ylim=(low - room, high + room))
    return ax


def distribution(ax: "Axes", values: Float[np.ndarray, "n"], *, xlabel: str, ylabel: str, title: str) -> "Axes":
    """A histogram with zero, which no bin contains within it, and the mean marked."""
    low, high = min(values.min(), 0), max(values.max(), 0)
    width = (high - low or 1) / min(80, max(10, int(len(values) ** 0.5)))
    ax.hist(values, bins=(width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)).tolist(), color=BLUE)
    ax.axvline(0, color=GREY, lw=0.9)
    ax.axvline(values.mean(), color=ORANGE, lw=1.8, label=f"mean {values.mean():+.4f}")
    ax.legend()
    ax.locator_params(axis="y", integer=True)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return ax
