"""What `validate edges` writes and prints: `report.json`, `edges.parquet`, `pairs.parquet`, figures, tables."""

import os
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bundle import Bundle
from jaxcircuits.files import VALIDATION, new_directory, write_json
from jaxcircuits.report.effect_figures import write_figures
from jaxcircuits.report.tables import one_line
from jaxcircuits.statistics import without_nan
from jaxcircuits.validation.collapse import CHOICES
from jaxcircuits.validation.drivers import Drivers
from jaxcircuits.validation.edges import EdgeValidation
from jaxcircuits.validation.predictors import LABELS, PREDICTORS
from jaxcircuits.validation.sampling import STRATA

SCHEMA = 1


def report_json(bundle: Bundle, found: EdgeValidation, drivers: Drivers, pairs: Columns | None) -> dict[str, Any]:
    """Everything in `report.json`."""
    report = found.report
    return without_nan(
        {
            "schema": SCHEMA,
            "title": report.title,
            "ok": report.ok,
            "conditions": dict(report.conditions),
            "checks": [asdict(check) for check in report.checks],
            **report.findings,
            "drivers": _drivers_json(bundle, found, drivers),
            "pairs": None if pairs is None else _rows(pairs),
        }
    )


def _drivers_json(bundle: Bundle, found: EdgeValidation, drivers: Drivers) -> dict[str, Any]:
    return {
        "feature": drivers.feature,
        "rule": drivers.rule,
        "word": drivers.word,
        "on_word": drivers.on_word,
        "earlier": drivers.earlier,
        "choices": CHOICES,
        "left": {name: asdict(estimate) for name, estimate in drivers.left.items()},
        "candidates": [{"feature": feature, **left} for feature, left in drivers.candidates.items()],
        "examples": [
            {
                "story": e.story,
                "pos": e.pos,
                "text": sentence(bundle, found, drivers, number),
                "activation": e.activation,
                "drivers": {name: chosen.tolist() for name, chosen in e.drivers.items()},
                "left": e.left,
            }
            for number, e in enumerate(drivers.examples)
        ],
    }


def _rows(columns: Columns) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*(v.tolist() for v in columns.values()), strict=True)]


def sentence(bundle: Bundle, found: EdgeValidation, drivers: Drivers, number: int = 0, before: int = 12) -> str:
    """The text around an example of the drivers' feature, its token in guillemets."""
    example = drivers.examples[number]
    ids = found.activity.stories[example.story]
    start = max(0 if bundle.cfg.bos_token_id is None else 1, example.pos - before)
    strings = bundle.token_strings(ids[start : example.pos + 1])
    text = "".join(strings[:-1]) + strings[-1].replace(strings[-1].strip(), f"«{strings[-1].strip()}»")
    return one_line(("" if start <= 1 else "…") + text.lstrip())


def write_effects(
    bundle: Bundle,
    found: EdgeValidation,
    drivers: Drivers,
    pairs: Columns | None,
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
) -> None:
    """Writes the directory, whole or not at all.

    Args:
        bundle: Model and autoencoders.
        found: From `validate_edges`.
        drivers: From `ablate_drivers`.
        pairs: From `ablate_pairs`, or none.
        out: The directory to make.
        overwrite: Whether to replace what is there.

    Raises:
        InputError: The place is taken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with new_directory(out, overwrite, VALIDATION) as new:
        stratum = pa.DictionaryArray.from_arrays(pa.array(found.edges["stratum"], pa.int8()), list(STRATA))
        pq.write_table(pa.table({**found.edges, "stratum": stratum}), new / "edges.parquet")
        if pairs is not None:
            pq.write_table(pa.table(pairs), new / "pairs.parquet")
        (new / "figures").mkdir()
        write_figures(found, drivers, sentence(bundle, found, drivers), new / "figures")
        write_json(new / VALIDATION, report_json(bundle, found, drivers, pairs))


def effect_tables(bundle: Bundle, found: EdgeValidation, drivers: Drivers, pairs: Columns | None) -> tuple[Table, ...]:
    """The report as a person reads it."""
    tables = [_checks(found), _scores(found), _linearity(found), _drivers(bundle, found, drivers)]
    return (*tables, _pairs(pairs)) if pairs is not None else tuple(tables)


def _checks(found: EdgeValidation) -> Table:
    table = Table("check", "found", "error", "allowed", "", title=found.report.title, title_justify="left")
    for check in found.report.checks:
        numbers = ("" if x is None else f"{x:.1e}" for x in (check.error, check.tolerance))
        verdict = "held" if check.ok else f"FAILED {check.note}"
        table.add_row(escape(check.quantity), escape(str(check.got)), *numbers, escape(verdict))
    return table


def _scores(found: EdgeValidation) -> Table:
    findings, subsets = found.report.findings, [name for name in found.scores if name != "all edges"]
    table = Table(
        title=f"{findings['edges']:,} edges to {findings['targets']:,} targets: predicted and measured by ablation",
        caption="95 % bootstrap intervals over stories; columns from the sixth on: Spearman within targets again\n"
        "same sign: 0.5 is chance; explained: share of the effects' squares, below 0 if 0 were a better guess",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("prediction", no_wrap=True)
    table.add_column("Spearman within targets", no_wrap=True)
    for name in ("same sign", "slope", "explained"):
        table.add_column(name, no_wrap=True)
    for name in subsets:
        table.add_column(name, justify="right")
    for name in PREDICTORS:
        s = found.scores["all edges"][name]
        cells = [f"{s.spearman:+.3f}", f"{s.sign:.3f}", f"{s.slope.value:+.2f}", f"{s.explained.value:+.2f}"]
        cells += [f"{found.scores[subset][name].spearman.value:+.3f}" for subset in subsets]
        table.add_row(LABELS[name], *cells)
    return table


def _linearity(found: EdgeValidation) -> Table:
    up_to = found.report.findings["linear_up_to"]
    table = Table(
        "source lowered by",
        "edges",
        "median error",
        "90th percentile",
        title="How far a gradient holds: relative error of the exact prediction, strongest edges of each target",
        caption="the median is above 10 % already at the smallest step"
        if up_to is None
        else f"within 10 % at the median for steps up to {up_to:.0%}",
        title_justify="left",
        caption_justify="left",
    )
    for row in found.linearity:
        table.add_row(f"{row['step']:.0%}", f"{row['edges']:,}", f"{row['median']:.1%}", f"{row['ninetieth']:.1%}")
    return table


def _drivers(bundle: Bundle, found: EdgeValidation, drivers: Drivers) -> Table:
    word = one_line(drivers.word.strip())
    table = Table(
        "three sources ablated",
        "activation left",
        "of all targets drawn",
        title=f"Target feature {drivers.feature}, on «{escape(word)}» in {drivers.on_word:.0%} of its "
        f"{len(drivers.examples)} strongest examples: {escape(sentence(bundle, found, drivers))}",
        caption=f"{drivers.earlier:.0%} of the exact drivers are at earlier tokens; chosen: {drivers.rule}",
        title_justify="left",
        caption_justify="left",
    )
    for name, words in CHOICES.items():
        table.add_row(words, f"{drivers.left[name]:.3f}", f"{found.left[name]:.3f}")
    return table


def _pairs(pairs: Columns) -> Table:
    table = Table(title="Pairs of largest cosine, the source ablated on the target's examples", title_justify="left")
    names = ("source", "target", "cosine", "examples", "target act", "source ablated", "loss", "source ", "target ")
    for name in names:
        table.add_column(name, justify="right")
    for row in _rows(pairs)[:20]:
        ends = [str(row[n]) for n in ("source_feature", "target_feature")]
        numbers = list(row.values())[-5:]
        values = ["" if np.isnan(x) else f"{x:.3f}" for x in numbers]
        table.add_row(*ends, f"{row['cosine_similarity']:.3f}", str(row["examples"]), *values)
    return table
