"""Features as people read them: text with tokens highlighted, counts, tokens, neighbours; figures and files."""

import os
from collections.abc import Sequence

import numpy as np
from rich.text import Text

from jaxcircuits.evaluation import Example, FeatureSummary
from jaxcircuits.files import FEATURES, new_directory, write_json
from jaxcircuits.report.plots import BLUE, drawn
from jaxcircuits.report.tables import one_line

BLOCKS = "▁▂▃▄▅▆▇█"
MARKED = 0.5
"""Without colours, tokens at this share of an example's largest activation and above are marked «so»."""


def feature_text(summary: FeatureSummary, *, colours: bool) -> Text:
    """One feature as a paragraph of lines.

    Args:
        summary: The feature.
        colours: Whether tokens are coloured by activation, or marked «so».
    """
    mean = "–" if summary.mean_activation is None else f"{summary.mean_activation:.3f}"
    text = Text()
    text.append(f"{summary.sae} · feature {summary.feature}\n", style="bold")
    text.append(f"  active on {summary.density:.4%} of tokens, mean {mean} where active, largest ")
    text.append(f"{summary.max_activation:.3f}\n")
    if summary.density:
        top = summary.histogram["edges"][-1]
        text.append(f"  activations 0 {bar_line(summary.histogram['counts'])} {top:g} (log scale)\n")
    if summary.path is None:
        text.append("  logits: no straight way leads from this hook to them\n")
    else:
        text.append(f"  logits along {summary.path}, without the final norm's scale\n")
        for label, tokens in (("promotes", summary.promoted), ("suppresses", summary.suppressed)):
            text.append(f"  {label:10} " + "  ".join(f"{t!r} {effect:+.2f}" for t, effect in tokens) + "\n")
    near = "  ".join(f"{feature} ({cosine:.2f})" for feature, cosine in summary.neighbours)
    text.append(f"  neighbours by decoder cosine: {near}\n")
    for example in summary.examples:
        text.append(f"  {example.activation:7.3f}  ")
        text.append_text(highlighted(example, summary.max_activation, colours=colours))
        text.append("\n")
    if not summary.examples:
        text.append("  never active on this text\n")
    return text


def highlighted(example: Example, largest: float, *, colours: bool) -> Text:
    """An example with its tokens coloured by activation, the deeper the larger; or the large ones marked «so»."""
    text = Text()
    for token, activation in zip(example.tokens, example.activations, strict=True):
        shown = one_line(token)
        if colours:
            share = min(1.0, activation / largest) if largest > 0 else 0.0
            paper = tuple(round(255 - share * (255 - c)) for c in (213, 94, 0))
            text.append(shown, style=f"black on rgb({paper[0]},{paper[1]},{paper[2]})" if activation > 0 else "")
        else:
            marked = activation > 0 and activation >= MARKED * example.activation
            text.append(f"«{shown}»" if marked else shown)
    return text


def bar_line(counts: Sequence[int]) -> str:
    """Counts as a line of blocks, on a logarithmic scale; an empty bin is a blank."""
    logs = np.log1p(np.asarray(counts, float))
    scaled = np.ceil(logs / max(logs.max(), 1e-9) * len(BLOCKS)).astype(int)
    return "".join(" " if level == 0 else BLOCKS[level - 1] for level in scaled)


def write_features(summaries: Sequence[FeatureSummary], out: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes `features.json` and a histogram a feature, whole or not at all.

    Raises:
        InputError: The place is taken.
    """
    with new_directory(out, overwrite, FEATURES) as new:
        write_json(new / FEATURES, [summary.to_json() for summary in summaries])
        for summary in summaries:
            with drawn(new / f"feature-{summary.feature}.png", 5.6, 3.4) as ax:
                ax.stairs(summary.histogram["counts"], summary.histogram["edges"], fill=True, color=BLUE)
                ax.set(
                    xlabel="activation, where active",
                    ylabel="tokens",
                    title=f"{summary.sae}, feature {summary.feature}: active on {summary.density:.3%} of tokens",
                    yscale="log" if any(summary.histogram["counts"]) else "linear",
                )
