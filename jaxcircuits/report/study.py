"""The study's files: `study.npz`, `study.json`, figures; and its summary as a table."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxcircuits.errors import InputError
from jaxcircuits.files import STUDY, new_directory, write_json
from jaxcircuits.report.plots import drawn, histogram_marked, pair_map, pair_map_size, scatter_absolute, scatter_signed
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
    with new_directory(out, overwrite, STUDY) as new:
        np.savez_compressed(new / "study.npz", **study.arrays)  # pyright: ignore[reportArgumentType]
        agreements = {name: a.to_json() for name, a in study.agreements.items()}
        write_json(new / STUDY, json.loads(json.dumps({**study.facts, "agreement": agreements})))
        _figures(study, new, mark)


def _figures(study: Study, out: Path, mark: int | None) -> None:
    arrays, feature = study.arrays, study.facts["feature"]
    derivative = -arrays["decoder_grads"]
    mark = int(np.abs(derivative).argmax()) if mark is None else mark

    title = f"Target feature {feature} at the last position, on all {len(derivative)} source directions"
    with drawn(out / "decoder_grads.png", 6.4, 3.6) as ax:
        histogram_marked(ax, arrays["decoder_grads"], mark, xlabel="gradient of minus the activation", title=title)

    active = arrays["active_source_features"]
    title = f"{len(active)} active source features at the last position, target feature {feature}"
    axes: Any = {"xlabel": "cosine of the weights", "ylabel": "derivative of the target's activation"}
    with drawn(out / "gradient_against_cosine.png", 5.6, 4.2) as ax:
        cosines = arrays["cosine_sims"][active]
        scatter_signed(ax, cosines, derivative[active], title=title, labels=active.tolist(), **axes)

    title = f"{len(arrays['story_pairs']):,} active pairs of the story, same position"
    axes = {"xlabel": "|cosine of the weights|", "ylabel": "|gradient|"}
    with drawn(out / "story_pairs.png", 5.6, 4.2) as ax:
        scatter_absolute(ax, arrays["story_cosines"], arrays["story_gradients"], title=title, **axes)

    targets, sources = arrays["prompt_targets"], arrays["prompt_sources"]
    title = f"{len(targets)} active targets × {len(sources)} active sources, every position"
    with drawn(out / "all_positions.png", *pair_map_size(len(targets), len(sources))) as ax:
        pair_map(ax, -arrays["prompt_gradients"], targets, sources, study.facts["prompt_tokens"], title=title)


def summary_tables(study: Study) -> tuple[Table, Table]:
    """The numbers the notebook printed, and whether weights predict gradients."""
    facts = study.facts
    numbers = Table("quantity", "value", title="The study", title_justify="left")
    rows = [
        ("prompt", "".join(facts["prompt_tokens"])),
        ("its tokens", str(len(facts["prompt_tokens"]))),
        ("target feature at the last position", str(facts["feature"])),
        ("its activation, both SAEs spliced", f"{facts['feature_act']:.4f}"),
        (
            f"after neuron {facts['nudge_neuron']} is nudged, before the source SAE",
            f"{facts['nudged_act']:.4f} ({facts['nudged_act'] - facts['feature_act']:+.1e})",
        ),
        ("source features active there (> 0.1)", str(facts["active_source_features"])),
        ("largest source neurons there", " ".join(map(str, study.arrays["top_neurons"]))),
        (
            "active targets and sources of the prompt (> 2, > 1)",
            f"{facts['prompt_targets']}, {facts['prompt_sources']}",
        ),
        ("their gradients at the source hook", str(list(study.arrays["prompt_hook_gradients"].shape))),
        ("active pairs of the story (both > 1)", str(facts["story_pairs"])),
    ]
    for name, value in rows:
        numbers.add_row(name, escape(value.replace("\n", "⏎")))
    answer = Table(
        "pairs",
        "n",
        "Spearman",
        "same sign (chance 0.5)",
        "top 5 % shared (chance 0.05)",
        title="Does the cosine of the weights predict the derivative?",
        caption="95 % bootstrap intervals: over features, or over positions where pairs share one\n"
        "undefined: the top 5 % are fewer than three pairs, or one side does not vary",
        title_justify="left",
        caption_justify="left",
    )
    for name, a in study.agreements.items():
        answer.add_row(name, str(a.pairs), f"{a.spearman:+.3f}", f"{a.sign_agreement:.3f}", f"{a.top_overlap:.3f}")
    return numbers, answer
