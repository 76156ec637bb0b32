"""Figures of a model and its autoencoders on text, in two passes over it: activations, then losses.

Which figure is which of SAELens 6.54 (`sae_lens.evals.run_evals`):

| here | there |
|---|---|
| `ce_clean`, `ce_spliced`, `ce_zero_ablated` | `ce_loss_without_sae`, `ce_loss_with_sae`, `ce_loss_with_ablation` |
| `recovery_zero` | `ce_loss_score` |
| `kl_spliced`, `kl_zero_ablated`, `kl_recovery_zero` | `kl_div_with_sae`, `kl_div_with_ablation`, `kl_div_score` |
| `l0`, `l1` | `l0`, `l1` |
| `mse`, `variance_explained`, `cosine` | `mse`, `explained_variance`, `cossim` |
| `norm_in`, `norm_out`, `norm_ratio` | `l2_norm_in`, `l2_norm_out`, `l2_ratio` |
| `reconstruction_bias` | `relative_reconstruction_bias`, there the mean over batches of each batch's |
| a feature's `density` | `feature_density` |
| `encoder_norm`, `encoder_bias`, `encoder_decoder_cosine` | the same |

There, `exclude_special_tokens` leaves special tokens, wherever they stand, out of every figure and of splicing, not of
ablation: `BOS(False, False, False)` does so with BOS. `evaluate(..., ids=rows)` takes token ids as they are, as there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation.activity import add_batch
from jaxcircuits.evaluation.batches import BOS, Batches, TextBatches, TokenBatches, chosen
from jaxcircuits.evaluation.geometry import geometry
from jaxcircuits.evaluation.loss import Means, Variant, batch_losses
from jaxcircuits.progress import progress
from jaxcircuits.sae.activity import Activity

DENSITY_EDGES = tuple(-7 + 0.25 * i for i in range(29))
"""Of the histogram of log10 densities."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        report: The figures, ready for JSON.
        features: By autoencoder, columns of one number a feature: densities, activations, geometry.
    """

    report: dict[str, Any]
    features: dict[str, dict[str, np.ndarray]]


def evaluate(
    bundle: Bundle,
    texts: Iterable[str] | None = None,
    *,
    ids: Sequence[Int[np.ndarray, "_row"]] | None = None,
    saes: Iterable[str] | None = None,
    bos: BOS = BOS(),  # noqa: B008  (frozen)
    quiet: bool = True,
) -> Evaluation:
    """How well each autoencoder describes its hook, and what the model's loss makes of it.

    Memory does not grow with the text.

    Args:
        bundle: Model, autoencoders and tokenizer.
        texts: Texts, each scored on every token and its end; a longer one than the context goes on in further rows.
            They are read twice: a list, or a `CorpusFile`.
        ids: Token ids in their place, taken as they are: each is seen, each but the first is predicted.
        saes: Names of autoencoders; all by default.
        bos: Where BOS counts.
        quiet: No progress bar.

    Returns:
        The report: `ce_clean`, `ce_all_spliced` (nats a token) with `delta_ce_all_spliced` and `kl_all_spliced`, null
        where two autoencoders write one hook; `tokens`, `texts`, `bos`, and `saes`, for each name

        - `l0`, `l1`: features active a token, and their sum; `dead`, `dense`: features never active on this text, or
          active at over a tenth of its tokens; `log10_density`: a histogram of densities, without the dead
        - `mse`: squared error a token, summed over the value's numbers; `variance_explained`: 1 - squared error /
          squared distance from the mean; `cosine`; `norm_in`, `norm_out`, `norm_ratio`; `reconstruction_bias`:
          E|out|² / E(x · out)
        - `ce_spliced`, `ce_zero_ablated`, `ce_mean_ablated`: nats a token with the hook it writes replaced; `delta_ce`:
          spliced - clean; `recovery_zero`, `recovery_mean`: (ablated - spliced) / (ablated - clean)
        - `kl_…`: KL(clean ‖ replaced) a position; `kl_recovery_zero`: 1 - spliced / zero-ablated
        - `geometry`: means over features of norms and cosines, and the share whose nearest decoder row is above 0.9

        For a transcoder, all of it is about the value that it writes, but norms and cosines of its encoder.

    Raises:
        InputError: The bundle has no such autoencoder or no tokenizer, or there is no text.

    >>> from jaxcircuits import evaluate, load_bundle
    >>> report = evaluate(load_bundle(), ["Once upon a time, there was a little dog named Max."]).report
    >>> sorted(report["saes"]), report["bos"]["statistics"]
    (['blocks.0.mlp.hook_post', 'blocks.1.mlp.hook_post'], 'out')
    """
    if (texts is None) == (ids is None):
        raise InputError("expected texts or token ids, one of them.")
    some = chosen(bundle, saes)
    batches: Batches = TokenBatches(bundle, ids, some) if ids is not None else TextBatches(bundle, texts or [], some)
    activity = {name: Activity() for name in some}
    with progress(quiet) as bar, jax.default_matmul_precision("highest"):
        task, n_batches = bar.add_task("activations, batches", total=None), 0
        for batch in batches:
            add_batch(bundle, some, batch, bos, activity)
            n_batches += 1
            bar.update(task, advance=1)
        bar.update(task, total=n_batches)
        if not n_batches or any(a.n == 0 for a in activity.values()):
            raise InputError("there is no token to evaluate on; expected at least one word.")
        variants = _variants(bundle, some, activity)
        means = {name: Means(bos) for name in ("clean", *variants)}
        task = bar.add_task("losses, batches", total=n_batches)
        for batch in batches:
            original, found = batch_losses(bundle, batch, list(variants.values()), bos)
            for name, losses in zip(means, (original, *found), strict=True):
                means[name].add(batch, losses)
            bar.update(task, advance=1)
        shapes = {name: geometry(sae) for name, sae in some.items()}
    clean, all_spliced = means["clean"], means.get("all")
    report: dict[str, Any] = {
        "texts": batches.texts,
        "tokens": clean.scored,
        "bos": bos.to_json(),
        "ce_clean": clean.ce,
        "ce_all_spliced": all_spliced and all_spliced.ce,
        "delta_ce_all_spliced": all_spliced and all_spliced.ce - clean.ce,
        "kl_all_spliced": all_spliced and all_spliced.kl,
        "saes": {},
    }
    features = {}
    for name, sae in some.items():
        features[name] = activity[name].columns() | shapes[name]
        spliced, zero, mean = (means[f"{kind} {name}"] for kind in ("spliced", "zero", "mean"))
        report["saes"][name] = {
            "hook": sae.cfg.hook_name,
            "hook_written": sae.cfg.hook_written,
            "activation": sae.cfg.activation,
            "features": sae.cfg.d_sae,
            **activity[name].figures(sae),
            "log10_density": _density_histogram(features[name]["density"]),
            "ce_spliced": spliced.ce,
            "ce_zero_ablated": zero.ce,
            "ce_mean_ablated": mean.ce,
            "delta_ce": spliced.ce - clean.ce,
            "recovery_zero": _share(zero.ce - spliced.ce, zero.ce - clean.ce),
            "recovery_mean": _share(mean.ce - spliced.ce, mean.ce - clean.ce),
            "kl_spliced": spliced.kl,
            "kl_zero_ablated": zero.kl,
            "kl_mean_ablated": mean.kl,
            "kl_recovery_zero": _share(zero.kl - spliced.kl, zero.kl),
            "geometry": _summary(shapes[name]),
        }
    return Evaluation(_without_nan(report), features)


def _variants(bundle: Bundle, saes: Any, activity: dict[str, Activity]) -> dict[str, Variant]:
    """Each autoencoder spliced, its hook at zero and at its mean; and all spliced, where no two write one hook."""
    variants = {}
    for name, sae in saes.items():
        mean = jnp.asarray(activity[name].mean_of_every, bundle.params.W_E.dtype)
        variants[f"spliced {name}"] = Variant({name: sae}, {})
        variants[f"zero {name}"] = Variant({}, {sae.cfg.hook_written: jnp.zeros_like(mean)})
        variants[f"mean {name}"] = Variant({}, {sae.cfg.hook_written: mean})
    if len({sae.cfg.hook_written for sae in saes.values()}) == len(saes):
        variants["all"] = Variant(saes, {})
    return variants


def _density_histogram(density: np.ndarray) -> dict[str, list]:
    logs = np.clip(np.log10(density[density > 0]), DENSITY_EDGES[0], 0)
    return {"edges": list(DENSITY_EDGES), "counts": np.histogram(logs, DENSITY_EDGES)[0].tolist()}


def _summary(shape: dict[str, np.ndarray]) -> dict[str, float]:
    names = ("encoder_norm", "decoder_norm", "encoder_bias", "encoder_decoder_cosine", "nearest_cosine")
    means = {f"{name}_mean": float(shape[name].mean(dtype=np.float64)) for name in names}
    return means | {"nearest_above_0.9": float((shape["nearest_cosine"] > 0.9).mean())}


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
