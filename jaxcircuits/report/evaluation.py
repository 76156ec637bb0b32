"""Evaluations as tables, figures and files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxcircuits.evaluation import Evaluation, TextLosses
from jaxcircuits.files import EVALUATION, LOSSES, new_directory, write_json
from jaxcircuits.report.plots import bars, densities, drawn, token_lines
from jaxcircuits.report.tables import one_line

STATISTICS, LOSS, SPLICE, NONE = "statistics", "loss", "splice", ""
ROWS: Sequence[tuple[str, str, str, str]] = (
    ("features", "features", ",", NONE),
    ("features active a token (L0)", "l0", ".2f", STATISTICS),
    ("sum of activations a token (L1)", "l1", ".2f", STATISTICS),
    ("dead on this text", "dead", ",", STATISTICS),
    ("dense: on over a tenth of the tokens", "dense", ",", STATISTICS),
    ("variance explained", "variance_explained", ".4f", STATISTICS),
    ("squared error a token (MSE)", "mse", ".4g", STATISTICS),
    ("cosine of value and reconstruction", "cosine", ".4f", STATISTICS),
    ("norm of the reconstruction, relative", "norm_ratio", ".4f", STATISTICS),
    ("loss, spliced (nats)", "ce_spliced", ".4f", LOSS),
    ("loss, hook at zero", "ce_zero_ablated", ".4f", LOSS),
    ("loss, hook at its mean", "ce_mean_ablated", ".4f", LOSS),
    ("rise of the loss by splicing (ΔCE)", "delta_ce", "+.4f", LOSS),
    ("loss recovered, against zero", "recovery_zero", ".4f", LOSS),
    ("loss recovered, against the mean", "recovery_mean", ".4f", LOSS),
    ("KL, spliced (nats)", "kl_spliced", ".4f", LOSS),
    ("KL, hook at zero", "kl_zero_ablated", ".4f", LOSS),
    ("norm of decoder rows", "decoder_norm_mean", ".3f", NONE),
    ("norm of encoder columns", "encoder_norm_mean", ".3f", NONE),
    ("cosine of encoder and decoder", "encoder_decoder_cosine_mean", ".3f", NONE),
    ("cosine of nearest decoder row", "nearest_cosine_mean", ".3f", NONE),
    ("share of features with one above 0.9", "nearest_above_0.9", ".3f", NONE),
)
"""What it is called, its key, how it is printed, and which of the settings for BOS it follows."""
COLUMNS = 4
"""Autoencoders beside each other in one table."""


def evaluation_tables(report: Mapping[str, Any]) -> list[Table]:
    """One column an autoencoder; few of them in one table."""
    names = list(report["saes"])
    tables = []
    for start in range(0, len(names), COLUMNS):
        some = names[start : start + COLUMNS]
        title = f"{report['tokens']:,} tokens, {report['texts']:,} texts · loss {report['ce_clean']:.4f} nats a token"
        if report["ce_all_spliced"] is not None and len(names) > 1:
            title += (
                f" · all SAEs spliced {report['ce_all_spliced']:.4f} ({report['delta_ce_all_spliced']:+.4f}, "
                f"KL {report['kl_all_spliced']:.4f})"
            )
        caption = f"BOS in splicing: {report['bos']['splice']}; where a hook is ablated: in"
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
        table.add_column("figure")
        table.add_column("BOS")
        for name in some:
            table.add_column(escape(name), justify="right", overflow="fold")
        for label, key, form, bos in ROWS:
            found = [report["saes"][name] for name in some]
            values = [sae[key] if key in sae else sae["geometry"][key] for sae in found]
            cells = ["–" if value is None else f"{value:{form}}" for value in values]
            table.add_row(label, report["bos"].get(bos, ""), *cells)
        tables.append(table)
    return tables


def write_evaluation(evaluation: Evaluation, out: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes `evaluate.json`, `features.parquet` (a row a feature) and two figures, whole or not at all.

    Raises:
        InputError: The place is taken.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    report = evaluation.report
    with new_directory(out, overwrite, EVALUATION) as new:
        write_json(new / EVALUATION, report)
        tables = [
            pa.table(
                {"sae": [name] * len(columns["density"]), "feature": np.arange(len(columns["density"])), **columns}
            )
            for name, columns in evaluation.features.items()
        ]
        pq.write_table(pa.concat_tables(tables), new / "features.parquet", compression="zstd")
        _figures(report, new)


def _figures(report: Mapping[str, Any], out: Path) -> None:
    saes = report["saes"]
    histograms = {
        f"{name} ({sae['dead']:,} dead)": tuple(np.asarray(sae["log10_density"][k]) for k in ("edges", "counts"))
        for name, sae in saes.items()
    }
    title = f"Densities on {report['tokens']:,} tokens, BOS {report['bos']['statistics']}"
    with drawn(out / "densities.png", 6.4, 3.8) as ax:
        densities(ax, histograms, title=title)  # pyright: ignore[reportArgumentType]
    kinds = {"spliced": "ce_spliced", "hook at its mean": "ce_mean_ablated", "hook at zero": "ce_zero_ablated"}
    rises = {label: [sae[key] - report["ce_clean"] for sae in saes.values()] for label, key in kinds.items()}
    title = f"Rise of the loss over {report['ce_clean']:.3f} nats a token, BOS {report['bos']['loss']}"
    with drawn(out / "losses.png", 6.8, 1.4 + 0.9 * len(saes)) as ax:
        bars(ax, list(saes), rises, xlabel="nats a token", title=title)


def token_table(found: TextLosses) -> Table:
    """A row a token, a column a way to run the model; what rises by more than half a nat is marked."""
    table = Table(title="Loss of each token, in nats", title_justify="left")
    table.add_column("pos", justify="right")
    table.add_column("token")
    for name in found.losses:
        table.add_column(escape(name), justify="right", overflow="fold")
    for pos, string in enumerate(found.strings):
        cells = []
        for name, values in found.losses.items():
            if pos == 0:
                cells.append("")
                continue
            rise = values[pos - 1] - found.losses["original"][pos - 1]
            style = "bold red" if rise > 0.5 else "green" if rise < -0.5 else ""
            cell = f"{values[pos - 1]:.3f}"
            cells.append(f"[{style}]{cell}[/]" if style and name != "original" else cell)
        table.add_row(str(pos), escape(one_line(string)), *cells)
    table.add_section()
    table.add_row("", "mean", *(f"{values.mean():.3f}" for values in found.losses.values()))
    return table


def write_token_losses(found: TextLosses, out: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Writes `losses.json` and a figure, whole or not at all.

    Raises:
        InputError: The place is taken.
    """
    with new_directory(out, overwrite, LOSSES) as new:
        write_json(new / LOSSES, found.to_json())
        width = min(40.0, max(6.4, 1.5 + 0.16 * len(found.strings)))
        with drawn(new / "losses.png", width, 4.2) as ax:
            token_lines(ax, found.strings[1:], found.losses, ylabel="nats", title="Loss of each token")
