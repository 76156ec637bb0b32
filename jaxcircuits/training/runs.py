"""Training runs as directories: settings, checkpoints, metrics, a figure, and the bundle that comes out."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcircuits.bundle import load_bundle, read_safetensors, save_bundle
from jaxcircuits.errors import InputError
from jaxcircuits.model import hook_width
from jaxcircuits.training.curves import plot_metrics
from jaxcircuits.training.hub_corpus import read_training_texts
from jaxcircuits.training.lm import train_lm
from jaxcircuits.training.loop import run_directory
from jaxcircuits.training.sae import train_sae
from jaxcircuits.training.settings import LMTraining, SAETraining

STORED = jnp.float16


def run_lm(
    corpus: str,
    settings: LMTraining,
    out: str | Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Trains tokenizer and language model; goes on where a run in `out` stopped.

    Args:
        corpus: A `.txt`, `.jsonl` or `.parquet` file, or `hub:owner/name[@revision]`.
        settings: The run's settings.
        out: Its directory.
        overwrite: Begin anew where it holds another run.
        quiet: No progress bar.
        source: What else the bundle's manifest shall say, such as the text's licence.

    Returns:
        The bundle, `out/bundle`, stored in half precision.

    Raises:
        InputError: The corpus cannot be read, `out` holds another run, or training diverged.
    """
    out = Path(out)
    texts = read_training_texts(corpus)
    data = _described(corpus, texts)
    with run_directory(out, {"kind": "lm", **data, **asdict(settings)}, overwrite):
        cfg, params, tokenizer = train_lm(texts, settings, out, quiet=quiet)
    plot_metrics({"language model": out / "metrics.jsonl"}, out / "metrics.png")
    origin = {"source": "trained from random weights", "training": {"lm": {**data, **asdict(settings)}}}
    params = jax.tree.map(_half, params)
    save_bundle(out / "bundle", cfg, params, {}, tokenizer, source={**origin, **(source or {})}, overwrite=True)
    return out / "bundle"


def run_sae(
    bundle: str | Path,
    hook_names: Sequence[str] | None,
    corpus: str,
    settings: SAETraining,
    out: str | Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Trains one autoencoder a hook point; goes on where a run in `out` stopped.

    Args:
        bundle: The bundle whose model is read; autoencoders it has are left out of the new one.
        hook_names: The hook points; every `mlp.hook_post` for `None`.
        corpus: As for `run_lm`.
        settings: The runs' settings, the same for each hook point.
        out: The directory; each hook point has one of its own in it.
        overwrite: Begin anew where it holds another run.
        quiet: No progress bar.
        source: What else the bundle's manifest shall say.

    Returns:
        The bundle, `out/bundle`: the model as it was stored, and the autoencoders in half precision.

    Raises:
        InputError: Bundle or corpus cannot be read, `out` holds another run, or training diverged.
    """
    out = Path(out)
    read = load_bundle(bundle, processed=False)
    hooks = tuple(hook_names or mlp_hooks(read.cfg.n_layers))
    for hook in hooks:
        hook_width(read.cfg, hook)
    if len(set(hooks)) < len(hooks):
        raise InputError(f"expected different hook points, got {', '.join(hooks)}; name each once.")
    texts = read_training_texts(corpus)
    data = _described(corpus, texts)
    model = read.manifest["sha256"]["model.safetensors"]
    stored = read_safetensors(Path(bundle) / "model.safetensors")["W_E"].dtype  # now: `out` may replace the bundle
    saes = {}
    with run_directory(
        out, {"kind": "sae", "model": model, "hook_names": hooks, **data, **asdict(settings)}, overwrite
    ):
        for hook in hooks:
            directory = out / hook
            directory.mkdir(exist_ok=True)
            sae = train_sae(read, hook, texts, settings, directory, quiet=quiet)
            saes[hook] = jax.tree.map(_half, sae)
    plot_metrics({hook: out / hook / "metrics.jsonl" for hook in hooks}, out / "metrics.png")
    origin = {k: v for k, v in read.manifest.items() if k not in ("schema", "command", "jaxcircuits", "sha256")}
    training = dict(origin.get("training", {}))
    training |= {"model_command": read.manifest.get("command"), "sae": {**data, **asdict(settings)}}
    params = jax.tree.map(lambda w: w.astype(stored), read.params)
    described = {**origin, "training": training, **(source or {})}
    save_bundle(out / "bundle", read.cfg, params, saes, read.tokenizer, source=described, overwrite=True)
    return out / "bundle"


def mlp_hooks(n_layers: int) -> tuple[str, ...]:
    """The hook points that get an autoencoder unless others are named."""
    return tuple(f"blocks.{layer}.mlp.hook_post" for layer in range(n_layers))


def _described(corpus: str, texts: Sequence[str]) -> dict[str, Any]:
    """Corpus by name and content: the same file may lie elsewhere when a run goes on."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    name = corpus if corpus.startswith("hub:") else Path(corpus).name
    return {"corpus": name, "corpus_sha256": digest.hexdigest()}


def _half(weight: jax.Array) -> jax.Array:
    """Half precision, refused where it would not hold the value."""
    half = weight.astype(STORED)
    if not bool(jnp.isfinite(half).all()):
        raise InputError(f"a weight of size {float(jnp.abs(weight).max()):.3g} does not fit half precision.")
    return half
