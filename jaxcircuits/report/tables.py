"""Printed tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxcircuits.attribution.edges import Columns
from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.readings import Checked


def console() -> Console:
    """Standard output; where that is a file or a pipe, wide enough that nothing is cut."""
    here = Console()
    return here if here.is_terminal else Console(width=160)


def print_tables(*tables: Table) -> None:
    """Prints tables to standard output."""
    for table in tables:
        table.box = box.SIMPLE_HEAD
        console().print(table)


def edge_table(bundle: Bundle, prompts: Sequence[np.ndarray], edges: Columns) -> Table:
    """Edges as a person reads them: which token, which feature, which values."""
    table = Table(title="Strongest edges, by |attribution|", title_justify="left")
    several = len(prompts) > 1
    if several:
        table.add_column("prompt", justify="right")
    for name in ("source token", "target token"):
        table.add_column(name)
        table.add_column("feature", justify="right")
    for name in ("source act", "target act", "gradient", "attribution", "cosine"):
        table.add_column(name, justify="right")

    def token(row: int, pos: int) -> str:
        strings = bundle.token_strings(prompts[row][max(0, pos - 2) : pos + 1])
        before, here = "".join(strings[:-1]), strings[-1]
        return f"{pos} [dim]{escape(one_line(before))}[/dim][bold]{escape(one_line(here))}[/bold]"

    for i in range(len(edges["prompt"])):
        row = int(edges["prompt"][i])
        cells = [str(row)] if several else []
        for end in ("source", "target"):
            cells += [token(row, int(edges[f"{end}_pos"][i])), str(edges[f"{end}_feature"][i])]
        cosine = edges["cosine_similarity"][i]
        values = [f"{edges[n][i]:.3f}" for n in ("source_act", "target_act")]
        values += [f"{edges[n][i]:+.4f}" for n in ("gradient", "attribution")]
        table.add_row(*cells, *values, "" if np.isnan(cosine) else f"{cosine:+.3f}")
    return table


def sweep_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """What each run of a sweep is worth."""
    table = Table(title="Runs, by hook point and sparsity; * is on the front", title_justify="left")
    for name in ("hook point", "run"):
        table.add_column(name)
    for name in ("L0", "loss recovered", "loss added", "variance explained", "dead", ""):
        table.add_column(name, justify="right")
    for p in sorted(points, key=lambda p: (p["hook_name"], p["l0"])):
        values = [f"{p['l0']:.1f}", f"{p['recovery_zero']:.4f}", f"{p['delta_ce']:+.4f}"]
        values += [f"{p['variance_explained']:.4f}", f"{p['dead'] / p['features']:.1%}"]
        table.add_row(escape(p["hook_name"]), escape(p["run"]), *values, "*" if p["front"] else "")
    return table


def _one_value(value: Any) -> str:
    """A manifest's entry on few lines: one a nested entry, its numbers behind each other; checksums left out."""
    if not isinstance(value, dict):
        return str(value)
    if not any(isinstance(v, dict) for v in value.values()):
        return ", ".join(f"{k} {v}" for k, v in value.items() if not k.endswith("sha256"))
    return "\n".join(f"{k}: {_one_value(v)}" for k, v in value.items())


def one_line(text: str) -> str:
    """A text with its line breaks as signs."""
    return text.replace("\n", "⏎")


def bundle_tables(bundle: Bundle) -> tuple[Table, ...]:
    """What a bundle holds: model, SAEs, origin, device. Its weights as they were stored, or the count is another."""
    cfg = bundle.cfg
    model = Table("model", "", title=str(bundle.path), title_justify="left")
    # What a family lacks is stored as zeros (GPT-Neo: biases of query, key, value and unembedding).
    parameters = sum(w.size for w in jax.tree.leaves(bundle.params) if np.asarray(w).any())
    parameters -= bundle.params.W_U.size if cfg.tied_unembedding else 0
    device = jax.devices()[0]
    for name, value in (
        ("family", cfg.family),
        ("parameters", f"{parameters:,}"),
        ("layers", f"{cfg.n_layers} ({', '.join(cfg.attention)}; window {cfg.window})"),
        ("d_model, heads, d_mlp", f"{cfg.d_model}, {cfg.n_heads} × {cfg.d_head}{_shared(cfg)}, {cfg.d_mlp}"),
        ("vocabulary, context", f"{cfg.d_vocab:,}, {cfg.n_ctx}"),
        ("positions, MLP", f"{_positions(cfg)}; {_mlp(cfg)}"),
        ("norms", f"{cfg.norm}{', also behind attention and MLP' * cfg.norms_behind}"),
        *((("caps", f"scores {cfg.score_cap}, logits {cfg.logit_cap}"),) if cfg.score_cap or cfg.logit_cap else ()),
        ("tokenizer", "yes, BOS first" if bundle.tokenizer is not None else "none: takes token ids"),
        ("processed on loading", ", ".join(cfg.processing) or "none"),
        *((k, _one_value(v)) for k, v in bundle.manifest.items() if k not in ("schema", "sha256", "source_sha256")),
        ("runs on", f"{device.platform} ({device.device_kind}) × {jax.device_count()}"),
    ):
        model.add_row(name, escape(value))
    saes = Table(title="Autoencoders", title_justify="left")
    for column in ("SAE", "hook point", "d_in", "d_sae", "activation", "input", "from"):
        saes.add_column(column, overflow="fold")
    for name, sae in bundle.saes.items():
        saes.add_row(escape(name), *(escape(cell) for cell in _sae_cells(sae.cfg)))
    return model, saes


def _positions(cfg: ModelConfig) -> str:
    return f"rotary, {cfg.rotary_dim} of {cfg.d_head}, base {cfg.rotary_base:g}" if cfg.rotary else cfg.positions


def _shared(cfg: ModelConfig) -> str:
    return "" if cfg.kv_heads == cfg.n_heads else f" on {cfg.kv_heads} keys and values"


def _mlp(cfg: ModelConfig) -> str:
    return f"{cfg.activation}{', gated' * cfg.gated}{', beside attention' * cfg.parallel_residual}"


def checked_table(found: Mapping[str, Checked]) -> Table:
    """What autoencoders are worth on a little text, and under which other reading one would be plainly right."""
    tokens = max(one.tokens for one in found.values())
    table = Table(title=f"Checked on {tokens} tokens", title_justify="left")
    table.add_column("SAE", overflow="fold")
    for column in ("L0", "squared error", "variance explained"):
        table.add_column(column, justify="right")
    table.add_column("finding")
    for name, one in found.items():
        given = one.given
        cells = (f"{given.l0:.1f}", f"{given.mse:.4g}", f"{given.variance_explained:.3f}")
        word = "misread" if one.misread else "odd" if one.doubt else "nothing odd"
        table.add_row(escape(name), *cells, word)
    return table


def _sae_cells(cfg: SAEConfig) -> tuple[str, ...]:
    """What an autoencoder reads and writes, its widths, activation, treatment of the input, and origin."""
    hook, widths = cfg.hook_name, str(cfg.d_in)
    if cfg.transcodes:
        hook, widths = f"{hook}\n→ {cfg.hook_written}", f"{widths}\n→ {cfg.width_written}"
    activation = cfg.activation if cfg.k is None else f"{cfg.activation}, k {cfg.k}"
    treated = ([] if cfg.normalization == "none" else [cfg.normalization]) + ["- b_dec"] * cfg.subtract_b_dec
    return hook, widths, str(cfg.d_sae), activation + " + skip" * cfg.skip, ", ".join(treated), cfg.origin
