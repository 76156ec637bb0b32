"""The figure of a training run's metrics."""

import json
from collections.abc import Mapping
from pathlib import Path


def plot_metrics(logs: Mapping[str, Path], to: Path) -> None:
    """Draws every metric of some `metrics.jsonl` against the step, one panel a metric, one line a log."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    runs = {}
    for label, path in logs.items():
        runs[label] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = list(dict.fromkeys(key for lines in runs.values() for key in lines[0] if key != "step"))
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 3), layout="constrained", squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        for label, lines in runs.items():
            ax.plot([line["step"] for line in lines], [line[name] for line in lines], lw=1.2, label=label)
        ax.set(xlabel="step", title=name)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False)
    figure.savefig(to, dpi=130, metadata={"Software": None})
    plt.close(figure)
