"""What the runs of a sweep are worth: sparsity against faithfulness, as a table and as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcircuits.bundle import Bundle
from jaxcircuits.evaluation import evaluate
from jaxcircuits.training.settings import SAETraining

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8a8a8a")  # Okabe and Ito
MARKERS = "osD^vP*X"
MEASURES = {"recovery_zero": "loss recovered", "variance_explained": "variance explained"}


def sae_name(hook_name: str, run: str) -> str:
    """What a bundle calls the autoencoder of a sweep's run."""
    return f"{hook_name},{run}"


def pareto_points(
    bundle: Bundle, hook_names: Sequence[str], runs: Mapping[str, SAETraining], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """What each run is worth on texts, one entry a hook point and run.

    Args:
        bundle: The model with every run's autoencoders, as `sae_name` calls them.
        hook_names: The hook points.
        runs: Settings by name.
        texts: What they are judged on.

    Returns:
        `hook_name`, `run`, `activation`, `penalty`, what `evaluate` says, and `front`: whether no other run at
        this hook point is at most as dense and at least as good, by loss recovered, and better in one of the two.
    """
    measured = evaluate(bundle, texts).report["saes"]
    points = []
    for hook in hook_names:
        of_hook = [
            {
                "hook_name": hook,
                "run": name,
                "activation": run.activation,
                "penalty": "+".join(p if c == 1 else f"{c:g}*{p}" for p, c in run.penalties.items()),
                **measured[sae_name(hook, name)],
            }
            for name, run in runs.items()
        ]
        points += [point | {"front": not any(_better(other, point) for other in of_hook)} for point in of_hook]
    return points


def _better(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    pair = ((-a["l0"], a["recovery_zero"]), (-b["l0"], b["recovery_zero"]))
    return all(x >= y for x, y in zip(*pair, strict=True)) and pair[0] != pair[1]


def plot_pareto(points: Sequence[Mapping[str, Any]], to: Path) -> None:
    """Draws L0 against what is kept, a row a hook point; one colour an activation and penalty, the front ringed."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    hooks = list(dict.fromkeys(point["hook_name"] for point in points))
    kinds = list(dict.fromkeys(_kind(point) for point in points))
    figure, axes = plt.subplots(
        len(hooks), 2, figsize=(10, 3.6 * len(hooks)), layout="constrained", squeeze=False, sharex=True
    )
    for row, hook in zip(axes, hooks, strict=True):
        for ax, (measure, label) in zip(row, MEASURES.items(), strict=True):
            for i, kind in enumerate(kinds):
                of_kind = [p for p in points if p["hook_name"] == hook and _kind(p) == kind]
                of_kind.sort(key=lambda p: p["l0"])
                x, y = [p["l0"] for p in of_kind], [p[measure] for p in of_kind]
                style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
                ax.plot(x, y, lw=1.2, ms=5, label=kind, **style)
                if measure == "recovery_zero":
                    front = [p for p in of_kind if p["front"]]
                    ax.scatter([p["l0"] for p in front], [p[measure] for p in front], s=110, fc="none", ec="#8a8a8a")
            ax.set_xscale("log")
            ax.set_xlabel("features active a token (L0)", fontsize=9)
            ax.set_ylabel(label, fontsize=9)
            ax.set_title(hook, fontsize=10, loc="left")
            ax.xaxis.set_major_formatter(plain)
            ax.xaxis.set_minor_formatter(plain)
            ax.tick_params(which="both", labelsize=8)
            ax.grid(color="#e5e5e5", lw=0.6)
            ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8, title="rings: on the front", title_fontsize=8)
    figure.savefig(to, dpi=130, metadata={"Software": None})
    plt.close(figure)


def _kind(point: Mapping[str, Any]) -> str:
    return f"{point['activation']}, {point['penalty']}" if point["penalty"] else point["activation"]
