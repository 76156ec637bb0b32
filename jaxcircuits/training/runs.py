"""Training runs as directories: settings, checkpoints, metrics, a figure, and the bundle that comes out."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcircuits.bundle import Bundle, load_bundle, save_bundle
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_safetensors, write_json
from jaxcircuits.model import hook_width
from jaxcircuits.sae import SAE
from jaxcircuits.training.curves import plot_metrics
from jaxcircuits.training.hub_corpus import read_training_texts
from jaxcircuits.training.lm import train_lm
from jaxcircuits.training.loop import CHECKPOINT_EVERY, run_directory
from jaxcircuits.training.pareto import pareto_points, plot_pareto, sae_name
from jaxcircuits.training.sae import train_sae, train_saes
from jaxcircuits.training.settings import LMTraining, SAETraining
from jaxcircuits.training.sweep import described_runs

STORED = jnp.float16
JUDGED_ON = 200
"""Texts at the head of the training text that a sweep is judged on where no other text is given."""


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
    checkpoint_every: int = CHECKPOINT_EVERY,
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
        checkpoint_every: Steps between checkpoints.

    Returns:
        The bundle, `out/bundle`: the model as it was stored, and the autoencoders in half precision.

    Raises:
        InputError: Bundle or corpus cannot be read, `out` holds another run, or training diverged.
    """
    out = Path(out)
    read = _read(bundle, hook_names, corpus)
    saes = {}
    with run_directory(out, {"kind": "sae", **read.described, **asdict(settings)}, overwrite):
        for hook in read.hooks:
            directory = out / hook
            directory.mkdir(exist_ok=True)
            options = {"quiet": quiet, "checkpoint_every": checkpoint_every}
            saes[hook] = train_sae(read.bundle, hook, read.texts, settings, directory, **options)
    plot_metrics({hook: out / hook / "metrics.jsonl" for hook in read.hooks}, out / "metrics.png")
    return _save(read, saes, {**read.data, **asdict(settings)}, out, source)


def run_sweep(
    bundle: str | Path,
    hook_names: Sequence[str] | None,
    corpus: str,
    runs: Mapping[str, SAETraining],
    out: str | Path,
    *,
    valid: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    source: Mapping[str, Any] | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> Path:
    """Trains several autoencoders at once at each hook point; goes on where a sweep in `out` stopped.

    Arguments, errors and what comes back are those of `run_sae`, and besides:

    Args:
        bundle: The bundle whose model is read.
        hook_names: The hook points.
        corpus: As for `run_lm`.
        runs: Settings by name, as `sweep_runs` gives them; a name is a directory's.
        out: The directory. In it are `sweep/RUN/HOOK/metrics.jsonl`, `pareto.json`, `pareto.png`, and in the bundle an
            autoencoder a hook point and run.
        valid: A text that the runs are judged on; by default the first 200 of the training text.
        overwrite: Begin anew where it holds another sweep.
        quiet: No progress bar.
        source: What else the bundle's manifest shall say.
        checkpoint_every: Steps between checkpoints.
    """
    out = Path(out)
    judged_on = None if valid is None else list(read_corpus(valid))
    read = _read(bundle, hook_names, corpus)
    described = {**read.data, **described_runs(runs)}
    saes = {}
    with run_directory(out, {"kind": "sweep", **read.described, **described}, overwrite):
        for hook in read.hooks:
            (out / hook).mkdir(exist_ok=True)
            logs = {name: out / "sweep" / name / hook / "metrics.jsonl" for name in runs}
            for log in logs.values():
                log.parent.mkdir(parents=True, exist_ok=True)
            options = {"quiet": quiet, "checkpoint_every": checkpoint_every}
            trained = train_saes(read.bundle, hook, read.texts, runs, out / hook, logs, **options)
            saes |= {sae_name(hook, name): sae for name, sae in trained.items()}
    for name in runs:
        of_run = {hook: out / "sweep" / name / hook / "metrics.jsonl" for hook in read.hooks}
        plot_metrics(of_run, out / "sweep" / name / "metrics.png")
    path = _save(read, saes, described, out, source)
    texts = read.texts[:JUDGED_ON] if judged_on is None else judged_on
    points = pareto_points(replace(read.bundle, saes=load_bundle(path).saes), read.hooks, runs, texts)
    text = f"the first {len(texts)} texts of {read.data['corpus']}" if valid is None else Path(valid).name
    write_json(out / "pareto.json", {"text": text, "points": points})
    plot_pareto(points, out / "pareto.png")
    return path


@dataclass(frozen=True)
class _Read:
    """What training of autoencoders reads, checked before anything is written."""

    bundle: Bundle
    hooks: tuple[str, ...]
    texts: list[str]
    data: dict[str, Any]
    stored: Any  # the dtype of the model's file, read early: `out` may replace the bundle

    @property
    def described(self) -> dict[str, Any]:
        model = self.bundle.manifest["sha256"]["model.safetensors"]
        return {"model": model, "hook_names": self.hooks, **self.data}


def _read(path: str | Path, hook_names: Sequence[str] | None, corpus: str) -> _Read:
    bundle = load_bundle(path, processed=False)
    hooks = tuple(hook_names or mlp_hooks(bundle.cfg.n_layers))
    for hook in hooks:
        hook_width(bundle.cfg, hook)
    if len(set(hooks)) < len(hooks):
        raise InputError(f"expected different hook points, got {', '.join(hooks)}; name each once.")
    texts = read_training_texts(corpus)
    stored = read_safetensors(Path(path) / "model.safetensors")["W_E"].dtype
    return _Read(bundle, hooks, texts, _described(corpus, texts), stored)


def _save(
    read: _Read, saes: Mapping[str, SAE], settings: dict[str, Any], out: Path, source: Mapping[str, Any] | None
) -> Path:
    manifest, cfg = read.bundle.manifest, read.bundle.cfg
    origin = {k: v for k, v in manifest.items() if k not in ("schema", "command", "jaxcircuits", "sha256")}
    before = origin.get("training", {})  # of a model that had autoencoders before, its own command is in there
    command = before.get("model_command", manifest.get("command"))
    training = {**before, "model_command": command, "sae": settings}
    params = jax.tree.map(lambda w: w.astype(read.stored), read.bundle.params)
    halves = {name: jax.tree.map(_half, sae) for name, sae in saes.items()}
    described = {**origin, "training": training, **(source or {})}
    save_bundle(out / "bundle", cfg, params, halves, read.bundle.tokenizer, source=described, overwrite=True)
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
