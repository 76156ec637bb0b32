"""Figures: arrays in, matplotlib axes out. One style, colours that colour-blind eyes tell apart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8a8a8a"  # Okabe and Ito
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 9.5,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
}


def subplots(width: float, height: float):
    """A figure and its axes in the project's style, without a window."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        return plt.subplots(figsize=(width, height), layout="constrained")


def save(figure, path) -> None:
    """Writes a figure and forgets it; without a date, so that the same numbers give the same bytes."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure.savefig(path, metadata={"Software": None})
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
    """Absolute values against each other."""
    size = float(np.clip(4000 / max(len(x), 1), 2, 22))
    ax.scatter(np.abs(x), np.abs(y), s=size, color=BLUE, alpha=0.5, linewidths=0, rasterized=True)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xlim=(0, None), ylim=(0, None))
    return ax


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

    Zero is white; colour saturates at the 99th percentile. Where sources come later the cell is grey.
    """
    ax.set(xlabel="active sources, by token", ylabel="active targets, by token", title=title)
    if not gradients.size:
        ax.text(0.5, 0.5, "no active pair", ha="center", va="center", transform=ax.transAxes)
        return ax
    limit = float(np.quantile(np.abs(gradients), 0.99))
    later = sources[None, :, 0] > targets[:, None, 0]
    shown = np.ma.masked_array(gradients, later)
    ax.set_facecolor("#eeeeee")
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-limit or -1, vmax=limit or 1, aspect="auto", interpolation="nearest")
    for axis, ends in (("x", sources[:, 0]), ("y", targets[:, 0])):
        positions, first = np.unique(ends, return_index=True)
        edges = np.append(first, len(ends))
        names = [f"{tokens[p]!r}" for p in positions]
        centres = (edges[:-1] + edges[1:]) / 2 - 0.5
        if axis == "x":
            ax.set_xticks(centres, names, rotation=90)
            for edge in edges[1:-1]:
                ax.axvline(edge - 0.5, color="black", lw=0.3)
        else:
            ax.set_yticks(centres, names)
            for edge in edges[1:-1]:
                ax.axhline(edge - 0.5, color="black", lw=0.3)
    ax.tick_params(length=0)
    ax.figure.colorbar(image, ax=ax, label="derivative", shrink=0.8)
    return ax
