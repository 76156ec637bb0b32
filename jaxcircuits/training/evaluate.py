"""What a model and its autoencoders are worth on text: nats and bits, sparsity, reconstruction, loss recovered.

Every token is scored, the first and the end of text included, each text alone; a text longer than the context goes
on in further rows. Splicing and ablation replace the hook's value at every position, BOS included; statistics of
activations leave the BOS position out.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.sae import SAE, encode, reconstruct
from jaxcircuits.training.activations import bundle_rows, hook_values, padded_batches
from jaxcircuits.training.lm import nll
from jaxcircuits.types import ModelWeights

DENSE = 0.1
"""A feature active at more than this share of tokens is called dense."""

Batch = Int[np.ndarray, "_batch _row"]


def evaluate_lm(bundle: Bundle, texts: Sequence[str]) -> dict[str, float | int]:
    """How well the model predicts texts.

    Returns:
        `nats_per_token` (tokens and each text's end), `bits_per_character` (the same total in bits over the number
        of characters), and `tokens`, `characters`, `texts`.
    """
    rows = bundle_rows(bundle, texts)
    total = _total_nll(bundle, [batch for _, batch in padded_batches(rows, bundle.cfg.n_ctx)], {})
    tokens = sum(len(row) - 1 for row in rows)
    return rates(total, tokens, texts)


def rates(total_nats: float, tokens: int, texts: Sequence[str]) -> dict[str, float | int]:
    """A total of nats as nats a token and bits a character."""
    characters = sum(len(text) for text in texts)
    return {
        "nats_per_token": total_nats / tokens,
        "bits_per_character": total_nats / np.log(2) / characters,
        "tokens": tokens,
        "characters": characters,
        "texts": len(texts),
    }


def evaluate_saes(bundle: Bundle, texts: Sequence[str]) -> dict[str, Any]:
    """How well each autoencoder of a bundle describes its hook point, and what the model's loss makes of it.

    Returns:
        `ce_clean` and `ce_all_spliced` (nats a token), `delta_ce_all_spliced`, `tokens`, and `saes`: for each name

        - `l0`: features active a token; `dead`, `dense`: features never active, or active at over a tenth of the tokens
        - `mse` (a number of the hook's value), `variance_explained`: 1 - squared error / squared distance from the mean
        - `ce_spliced`, `ce_zero_ablated`, `ce_mean_ablated` in nats a token, `delta_ce` = spliced - clean
        - `recovery_zero`, `recovery_mean`: (ablated - spliced) / (ablated - clean)

    Raises:
        InputError: The bundle has no autoencoder or no tokenizer.
    """
    if not bundle.saes:
        raise InputError("this bundle has no SAE to evaluate; train or convert one first.")
    rows = bundle_rows(bundle, texts)
    batches = [batch for _, batch in padded_batches(rows, bundle.cfg.n_ctx)]
    tokens = sum(len(row) - 1 for row in rows)

    def ce(replacements: "Mapping[str, SAE | Array]") -> float:
        return _total_nll(bundle, batches, replacements) / tokens

    clean = ce({})
    all_spliced = ce({sae.cfg.hook_name: sae for sae in bundle.saes.values()})
    report: dict[str, Any] = {}
    for name, sae in bundle.saes.items():
        statistics, mean = _statistics(bundle, sae, batches)
        hook = sae.cfg.hook_name
        spliced, zero, ablated = ce({hook: sae}), ce({hook: jnp.zeros_like(mean)}), ce({hook: mean})
        report[name] = statistics | {
            "ce_spliced": spliced,
            "ce_zero_ablated": zero,
            "ce_mean_ablated": ablated,
            "delta_ce": spliced - clean,
            "recovery_zero": (zero - spliced) / (zero - clean),
            "recovery_mean": (ablated - spliced) / (ablated - clean),
        }
    return {
        "tokens": tokens,
        "ce_clean": clean,
        "ce_all_spliced": all_spliced,
        "delta_ce_all_spliced": all_spliced - clean,
        "saes": report,
    }


def _total_nll(bundle: Bundle, batches: Sequence[Batch], replacements: "Mapping[str, SAE | Array]") -> float:
    """Nats of all tokens, with hooks spliced (an SAE) or held at a vector (an array)."""
    return sum(float(_batch_nll(bundle.params, bundle.cfg, jnp.asarray(b), dict(replacements))) for b in batches)


@partial(jax.jit, static_argnames="cfg")
def _batch_nll(
    params: ModelWeights, cfg: ModelConfig, rows: Int[Array, "batch row"], replacements: "dict[str, Any]"
) -> Float[Array, ""]:
    def edit(new: SAE | Array) -> Callable[[Array], Array]:
        if isinstance(new, SAE):
            return lambda x: reconstruct(new, x)
        return lambda x: jnp.broadcast_to(new, x.shape)

    losses, _ = nll(params, cfg, rows, edits={hook: edit(new) for hook, new in replacements.items()})
    return losses.sum()


def _statistics(bundle: Bundle, sae: SAE, batches: Sequence[Batch]) -> tuple[dict[str, float], Float[Array, "d_in"]]:
    """L0, dead and dense features, error and variance outside BOS, and the mean over all positions."""
    d_in, d_sae = sae.cfg.d_in, sae.cfg.d_sae
    active, error = np.zeros(d_sae), 0.0
    total, every, squares = np.zeros(d_in), np.zeros(d_in), 0.0
    n = n_every = 0
    for batch in batches:
        counted = batch[:, 1:] >= 0
        sums = _batch_statistics(bundle.params, bundle.cfg, jnp.asarray(batch), sae)
        firing, squared_error, summed, summed_every, squared = (np.asarray(s, np.float64) for s in sums)
        active, error = active + firing, error + float(squared_error)
        total, every, squares = total + summed, every + summed_every, squares + float(squared)
        n, n_every = n + int(counted[:, 1:].sum()), n_every + int(counted.sum())
    share, mean = active / n, total / n
    variance = squares / n - float((mean**2).sum())
    statistics = {
        "l0": float(share.sum()),
        "features": d_sae,
        "dead": int((active == 0).sum()),
        "dense": int((share > DENSE).sum()),
        "mse": error / n / d_in,
        "variance_explained": 1 - error / n / variance,
    }
    return statistics, jnp.asarray(every / n_every, sae.weights.b_dec.dtype)


@partial(jax.jit, static_argnames="cfg")
def _batch_statistics(params: ModelWeights, cfg: ModelConfig, rows: Int[Array, "batch row"], sae: SAE):
    counted = (rows[:, 1:] >= 0)[..., None]
    x = hook_values(params, cfg, jnp.maximum(rows[:, :-1], 0), sae.cfg.hook_name)
    without_bos = counted.at[:, 0].set(False)
    active = ((encode(sae, x) > 0) & without_bos).sum((0, 1))
    error = jnp.where(without_bos, (x - reconstruct(sae, x)) ** 2, 0).sum()
    kept = jnp.where(without_bos, x, 0)
    return active, error, kept.sum((0, 1)), jnp.where(counted, x, 0).sum((0, 1)), (kept**2).sum()


def top_examples(
    bundle: Bundle, sae_name: str, texts: Sequence[str], features: Sequence[int], n: int = 8, context: int = 12
) -> dict[int, list[dict[str, Any]]]:
    """Where features are strongest: one example a text, strongest first, BOS left out.

    Args:
        bundle: Model, autoencoder and tokenizer.
        sae_name: The autoencoder's name in the bundle.
        texts: Where to look.
        features: Which features.
        n: Examples of each.
        context: Tokens shown on either side.

    Returns:
        By feature, examples with `activation`, `token` and `text`, the token marked «so».
    """
    if sae_name not in bundle.saes:
        raise InputError(f"the bundle has no SAE {sae_name!r}; it has {', '.join(bundle.saes) or 'none'}.")
    sae = bundle.saes[sae_name]
    rows = bundle_rows(bundle, texts)
    chosen = jnp.asarray(list(features), jnp.int32)
    best = np.zeros((len(rows), len(features)), np.float32)
    where = np.zeros((len(rows), len(features)), np.int64)
    for members, batch in padded_batches(rows, bundle.cfg.n_ctx):
        strongest, position = _strongest(bundle.params, bundle.cfg, jnp.asarray(batch), sae, chosen)
        best[members], where[members] = np.asarray(strongest)[: len(members)], np.asarray(position)[: len(members)]
    found: dict[int, list[dict[str, Any]]] = {}
    for column, feature in enumerate(features):
        order = [row for row in np.argsort(-best[:, column], kind="stable")[:n] if best[row, column] > 0]
        found[int(feature)] = [
            _example(bundle, rows[r], int(where[r, column]), float(best[r, column]), context) for r in order
        ]
    return found


@partial(jax.jit, static_argnames="cfg")
def _strongest(params: ModelWeights, cfg: ModelConfig, rows: Array, sae: SAE, features: Array) -> tuple[Array, Array]:
    x = hook_values(params, cfg, jnp.maximum(rows[:, :-1], 0), sae.cfg.hook_name)
    counted = (rows[:, 1:] >= 0).at[:, 0].set(False)
    feature_acts = jnp.where(counted[..., None], encode(sae, x)[..., features], 0)
    return feature_acts.max(1), feature_acts.argmax(1)


def _example(bundle: Bundle, row: Int[np.ndarray, "row"], pos: int, activation: float, context: int) -> dict[str, Any]:
    assert bundle.tokenizer is not None

    def decoded(ids: Int[np.ndarray, "n"]) -> str:
        return bundle.tokenizer.decode(ids.tolist())  # pyright: ignore[reportOptionalMemberAccess]

    token = decoded(row[pos : pos + 1])
    before, after = decoded(row[max(1, pos - context) : pos]), decoded(row[pos + 1 : pos + 1 + context])
    return {"activation": activation, "token": token, "text": f"{before}«{token}»{after}"}
