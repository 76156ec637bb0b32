"""Figures of `validate edges`: predicted against measured, who ranks best, how far gradients hold, a collapse."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxcircuits.report.plots import BLUE, GREY, ORANGE, drawn, drawn_panels
from jaxcircuits.statistics import Estimate
from jaxcircuits.validation.collapse import ABLATED, CHOICES
from jaxcircuits.validation.drivers import Drivers
from jaxcircuits.validation.edges import LINEAR, EdgeValidation
from jaxcircuits.validation.predictors import LABELS, PREDICTORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 0.01
"""Effects smaller than that are drawn on a linear scale, larger ones on a logarithmic one."""

SHOWN = {"exact": "exact gradient × activation", "cosine": "cosine of weights × activation"}


def write_figures(found: EdgeValidation, drivers: Drivers, sentence: str, out: Path) -> None:
    """Writes every figure of a validation into a directory.

    Args:
        found: From `validate_edges`.
        drivers: From `ablate_drivers`.
        sentence: The text of its first example.
        out: The directory.
    """
    with drawn_panels(out / "edges.png", 12.6, 4.1, [1, 1, 1.05]) as axes:
        _scatters(axes[:2], found)
        _ranks(axes[2], found)
    with drawn(out / "linearity.png", 5.6, 3.8) as ax:
        _linearity(ax, found)
    with drawn(out / "drivers.png", 6.8, 3.2) as ax:
        collapse(ax, drivers)
        ax.set_title(f"Target feature {drivers.feature}: {sentence}", loc="left", wrap=True, parse_math=False)
    for ending in (".png", ".svg"):
        with drawn_panels(out / f"picture{ending}", 13.2, 4.0, [1, 1, 1.15]) as axes:
            _scatters(axes[:2], found)
            collapse(axes[2], drivers)
            axes[2].set_title(_wrapped(sentence, 52), loc="left", parse_math=False)


def _scatters(axes: Sequence["Axes"], found: EdgeValidation) -> None:
    """Predicted against measured effects, for exact and for cosine, on one scale."""
    effect = found.edges["effect"]
    limit = 1.3 * max(np.abs(effect).max(), LEAST)
    for ax, (name, words) in zip(axes, SHOWN.items(), strict=True):
        predicted = np.clip(found.edges[f"predicted_{name}"], -limit, limit)
        _scatter(ax, predicted, effect, limit)
        rho = found.scores["all edges"][name].spearman
        ax.set_title(f"{words}\nSpearman within targets {rho.value:.2f} [{rho.low:.2f}, {rho.high:.2f}]")
        ax.set(xlabel=f"predicted by {name}")
    axes[0].set(ylabel="measured: target's activation after − before")
    axes[1].tick_params(labelleft=False)


def _scatter(ax: "Axes", x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], limit: float) -> None:
    size = float(np.clip(12_000 / max(len(x), 1), 1.5, 14))
    ax.axhline(0, color=GREY, lw=0.7)
    ax.axvline(0, color=GREY, lw=0.7)
    ax.plot([-limit, limit], [-limit, limit], color=ORANGE, lw=1.2, zorder=3)
    ax.scatter(x, y, s=size, color=BLUE, alpha=0.35, linewidths=0, rasterized=True)
    powers = [10.0**p for p in range(round(np.log10(LEAST)), 3) if 10.0**p < limit]
    ticks = [*(-p for p in reversed(powers)), 0, *powers]
    ax.set_xscale("symlog", linthresh=LEAST)
    ax.set_yscale("symlog", linthresh=LEAST)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
        axis.set_minor_locator(_none())
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))


def _ranks(ax: "Axes", found: EdgeValidation) -> None:
    """Each predictor's rank correlation within targets: over all measured edges, and at the target's own position."""
    names = list(PREDICTORS)
    subsets = [s for s in ("all edges", "same position") if s in found.scores]
    for number, (subset, colour) in enumerate(zip(subsets, (BLUE, ORANGE), strict=False)):
        at = np.arange(len(names)) + (number - (len(subsets) - 1) / 2) * 0.28
        _intervals(ax, at, [found.scores[subset][name].spearman for name in names], colour, subset)
    ax.set_yticks(np.arange(len(names)), [LABELS[name] for name in names])
    ax.invert_yaxis()
    ax.axvline(0, color=GREY, lw=0.7)
    ax.set(xlabel="Spearman, predicted and measured, within a target", title="Which prediction ranks sources best?")
    ax.set_xlim(None, 1)
    ax.legend(loc="lower right", fontsize=8)


def _intervals(ax: "Axes", at: Float[np.ndarray, "n"], estimates: Sequence[Estimate], colour: str, label: str) -> None:
    values = np.array([(e.value, e.low, e.high) for e in estimates]).T
    reach = np.nan_to_num(np.stack([values[0] - values[1], values[2] - values[0]]))
    ax.errorbar(values[0], at, xerr=reach, fmt="o", ms=5, color=colour, elinewidth=1.4, capsize=2.5, label=label)


def _linearity(ax: "Axes", found: EdgeValidation) -> None:
    steps = [row["step"] for row in found.linearity]
    for name, words, colour in (("median", "median edge", BLUE), ("ninetieth", "90th percentile", ORANGE)):
        ax.plot(steps, [row[name] for row in found.linearity], color=colour, marker="o", ms=4, lw=1.8, label=words)
    ax.axhline(LINEAR, color=GREY, lw=0.9, ls="--")
    ax.set(xscale="log", yscale="log", xlabel="share by which the source is lowered; 1 is its ablation")
    ax.set(ylabel="relative error of gradient × step", title="How far a gradient predicts")
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.yaxis.set_major_formatter(lambda y, _: f"{y:.0%}" if y >= 0.01 else f"{y:.1%}")
    ax.legend()


def collapse(ax: "Axes", drivers: Drivers) -> None:
    """What is left of the activation, by how the ablated sources were chosen."""
    at = np.arange(len(CHOICES))
    means = [drivers.left[name] for name in CHOICES]
    ax.barh(at, [e.value for e in means], color=[ORANGE, *[BLUE] * (len(CHOICES) - 1)], height=0.62)
    reach = np.nan_to_num([[e.value - e.low for e in means], [e.high - e.value for e in means]])
    ax.errorbar([e.value for e in means], at, xerr=reach, fmt="none", ecolor="black", elinewidth=1.1, capsize=3)
    for y, e in zip(at, means, strict=True):
        ax.annotate(f"{e.value:.0%}", (max(e.high if e.high == e.high else e.value, 0), y), xytext=(5, 0),
                    textcoords="offset points", va="center", fontsize=8.5)  # fmt: skip
    ax.axvline(1, color=GREY, lw=0.9, ls="--")
    ax.set_yticks(at, [_wrapped(words, 24) for words in CHOICES.values()])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.18)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    ax.set(
        xlabel=f"activation of feature {drivers.feature} left when {ABLATED} sources are ablated,\n"
        f"mean of {len(drivers.examples)} examples with 95 % interval"
    )


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _none():
    from matplotlib.ticker import NullLocator

    return NullLocator()
