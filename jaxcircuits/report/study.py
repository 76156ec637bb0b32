"""The study's files: `study.npz`, `study.json`, figures; and its summary as a table."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from jaxcircuits.errors import InputError
from jaxcircuits.files import new_directory, write_json
from jaxcircuits.report.plots import histogram_marked, pair_map, save, scatter_absolute, scatter_signed, subplots
from jaxcircuits.study import Study


def write_study(study: Study, out: str | os.PathLike, *, mark: int | None = None, overwrite: bool = False) -> None:
    """Writes `study.npz`, `study.json` and four figures into a directory, whole or not at all.

    Args:
        study: From `run_study`.
        out: The directory to make.
        mark: A source feature to mark in the histogram; by default the one of largest derivative.
        overwrite: Whether to replace what is there.

    Raises:
        InputError: The place is taken, or there is no feature `mark`.
    """
    d_sae = len(study.arrays["decoder_grads"])
    if mark is not None and not 0 <= mark < d_sae:
        raise InputError(f"--mark: the source SAE has features 0..{d_sae - 1}, got {mark}.")
    with new_directory(out, overwrite) as new:
        np.savez_compressed(new / "study.npz", **study.arrays)  # pyright: ignore[reportArgumentType]
        agreements = {name: a.to_json() for name, a in study.agreements.items()}
        write_json(new / "study.json", json.loads(json.dumps({**study.facts, "agreement": agreements})))
        _figures(study, new, mark)


def _figures(study: Study, out: Path, mark: int | None) -> None:
    arrays, feature = study.arrays, study.facts["feature"]
    derivative = -arrays["decoder_grads"]
    mark = int(np.abs(derivative).argmax()) if mark is None else mark

    figure, ax = subplots(6, 3.6)
    title = f"Target feature {feature} at the last position, on all {len(derivative)} source directions"
    histogram_marked(ax, arrays["decoder_grads"], mark, xlabel="gradient of minus the activation", title=title)
    save(figure, out / "decoder_grads.png")

    active = arrays["active_source_features"]
    figure, ax = subplots(5.4, 4.2)
    title = f"{len(active)} active source features, target feature {feature}"
    cosines = arrays["cosine_sims"][active]
    axes: Any = {"xlabel": "cosine of the weights", "ylabel": "derivative of the target's activation"}
    scatter_signed(ax, cosines, derivative[active], title=title, labels=active.tolist(), **axes)
    save(figure, out / "gradient_against_cosine.png")

    figure, ax = subplots(5.4, 4.2)
    title = f"{len(arrays['story_pairs'])} active pairs of the story, same position"
    labels = {"xlabel": "|cosine of the weights|", "ylabel": "|gradient|"}
    scatter_absolute(ax, arrays["story_cosines"], arrays["story_gradients"], title=title, **labels)
    save(figure, out / "story_pairs.png")

    targets, sources = arrays["prompt_targets"], arrays["prompt_sources"]
    figure, ax = subplots(10, 5.2)
    title = f"{len(targets)} active targets × {len(sources)} active sources, every position"
    tokens = study.facts["prompt_tokens"]
    pair_map(ax, -arrays["prompt_gradients"], targets, sources, tokens, title=title)
    save(figure, out / "all_positions.png")


def summary_tables(study: Study) -> tuple[Table, Table]:
    """The numbers the notebook printed, and whether weights predict gradients."""
    facts = study.facts
    numbers = Table("quantity", "value", title="The study", title_justify="left")
    rows = [
        ("prompt", " ".join(repr(t) for t in facts["prompt_tokens"])),
        ("target feature at the last position", str(facts["feature"])),
        ("its activation, both SAEs spliced", f"{facts['feature_act']:.4f}"),
        (
            f"after the nudge of neuron {facts['nudge_neuron']}",
            f"{facts['nudged_act']:.4f} ({facts['nudged_act'] - facts['feature_act']:+.4f})",
        ),
        ("source features active there (> 0.1)", str(facts["active_source_features"])),
        ("largest source neurons there", " ".join(map(str, study.arrays["top_neurons"]))),
        ("active targets of the prompt (> 2)", str(facts["prompt_targets"])),
        ("their gradients at the source hook", str(list(study.arrays["prompt_hook_gradients"].shape))),
        ("active pairs of the story (both > 1)", str(facts["story_pairs"])),
    ]
    for row in rows:
        numbers.add_row(*row)
    answer = Table(
        "pairs",
        "n",
        "Spearman",
        "same sign (chance +0.5)",
        "top 5 % shared (chance +0.05)",
        title="Does the cosine of the weights predict the derivative?",
        caption="95 % bootstrap intervals: over features, or over positions where pairs share one",
        title_justify="left",
        caption_justify="left",
    )
    for name, a in study.agreements.items():
        answer.add_row(name, str(a.pairs), str(a.spearman), str(a.sign_agreement), str(a.top_overlap))
    return numbers, answer
