"""Plan, compute, store: prompts go through the engine a part at a time, each part to disk before the next."""

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.api import prompt_table, tokenized
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.attribution.engine import check_tokens
from jaxcircuits.bulk.store import Run, RunWriter, load_run
from jaxcircuits.bundle import Bundle
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.files import new_directory, read_json
from jaxcircuits.progress import progress


@dataclass(frozen=True)
class Prompts:
    """What is attributed: token ids, with the text where there was one, and what was left out and why."""

    ids: Sequence[np.ndarray]
    texts: Sequence[str | None]
    skipped: Sequence[str] = ()


def read_prompts(
    bundle: Bundle,
    *,
    texts: Sequence[str] = (),
    ids_file: str | os.PathLike | None = None,
    corpus: str | os.PathLike | None = None,
    truncate: bool = False,
    skip_bad: bool = False,
) -> Prompts:
    """Reads prompts from one of three places and checks each against the model.

    Args:
        bundle: The model and its tokenizer.
        texts: Prompts as text.
        ids_file: JSON: a list of token ids, or a list of such lists.
        corpus: A corpus file.
        truncate: Cut prompts that are longer than the context.
        skip_bad: Leave out prompts that cannot be used, and say which.

    Raises:
        InputError: A prompt cannot be used, or none is left.
    """
    if ids_file is not None:
        parsed = read_json(ids_file, "token ids")
        rows = [parsed] if isinstance(parsed, list) and parsed and not isinstance(parsed[0], list) else parsed
        good = isinstance(rows, list) and rows and all(isinstance(r, list) for r in rows)
        if not good or not all(type(i) is int for r in rows for i in r):
            raise InputError(f"{ids_file}: expected a JSON list of token ids, or a list of such lists.")
        huge = [i for r in rows for i in r if abs(i) >= 2**31]
        if huge:  # no integer type may hold it
            raise InputError(f"{ids_file}: token ids must lie in 0..{bundle.cfg.d_vocab - 1}, got {huge[0]:.2e}.")
        given: list[Any] = [np.array(r, np.int64) for r in rows]
    else:
        given = list(texts) if corpus is None else list(read_corpus(corpus))
    ids, kept, skipped = [], [], []
    for number, prompt in enumerate(given):
        try:
            tokens = tokenized(bundle, prompt) if isinstance(prompt, str) else prompt
            if truncate:
                tokens = tokens[: bundle.cfg.n_ctx]
            check_tokens(tokens, bundle, number)
        except InputError as error:
            if not skip_bad:
                raise
            skipped.append(f"prompt {number}: {error}")
            continue
        ids.append(tokens.astype(np.int32))
        kept.append(prompt if isinstance(prompt, str) else None)
    if not ids:
        raise InputError("there is no prompt to attribute; expected at least one.")
    return Prompts(ids, kept, skipped)


def attribute_to_run(
    bundle: Bundle,
    settings: Settings,
    prompts: Prompts,
    out: str | os.PathLike,
    *,
    targets: Sequence[tuple[int, int]] | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    keep: int = 20,
) -> tuple[Run, Columns]:
    """Attributes prompts and writes a run directory, whole or not at all.

    Args:
        bundle: Model and SAEs.
        settings: What to attribute to what.
        prompts: From `read_prompts`.
        out: The directory to make.
        targets: `(position, feature)` to attribute in each prompt; by default every active one.
        memory: Bytes to plan for; by default by what the device has.
        overwrite: Whether to replace what is there.
        quiet: No progress bar.
        keep: How many of the strongest edges to return.

    Returns:
        The run and its `keep` edges of largest absolute attribution, strongest first.

    Raises:
        InputError: Settings, prompts or the output directory cannot be used.
    """
    engine = Engine(bundle, settings, memory)
    numbered = list(enumerate(prompts.ids))
    strongest: Columns | None = None
    with new_directory(out, overwrite) as new, progress(quiet) as bar:
        writer = RunWriter(new, engine.edge_columns, engine.target_columns)
        task = bar.add_task("planning", total=len(numbered))
        plan = engine.make_plan(numbered, targets)
        engine.fit_baseline(numbered)
        bar.update(task, description="attributing")
        for first in range(0, len(numbered), plan.prompts_a_part):
            part = numbered[first : first + plan.prompts_a_part]
            edges, found = engine.run(part, targets)
            writer.write(edges, found, (first, first + len(part)))
            strongest = _strongest(strongest, edges, keep)
            bar.update(task, advance=len(part))
        table = prompt_table(bundle, range(len(prompts.ids)), prompts.texts, prompts.ids)
        writer.finish(table, _description(engine, bundle, prompts, targets))
    assert strongest is not None
    return load_run(out), strongest


def _strongest(so_far: Columns | None, edges: Columns, keep: int) -> Columns:
    both = edges if so_far is None else {k: np.concatenate([so_far[k], edges[k]]) for k in edges}
    order = np.argsort(-np.abs(both["attribution"]), kind="stable")[:keep]
    return {name: values[order] for name, values in both.items()}


def _description(
    engine: Engine, bundle: Bundle, prompts: Prompts, targets: Sequence[tuple[int, int]] | None
) -> dict[str, Any]:
    packages = ("jaxcircuits", "jax", "jaxlib", "numpy", "pyarrow")
    device = jax.devices()[0]
    digest = hashlib.sha256(json.dumps([ids.tolist() for ids in prompts.ids]).encode()).hexdigest()
    return {
        "settings": engine.description(),
        "targets": None if targets is None else [list(t) for t in targets],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "bundle": {"path": str(bundle.path), "sha256": dict(bundle.manifest.get("sha256", {}))},
        "inputs": {"tokens_sha256": digest, "skipped": list(prompts.skipped)},
        "plan": engine.plan.to_json() if engine.plan else None,
        "report": asdict(engine.report),
    }


def next_free(parent: str | os.PathLike, stem: str) -> Path:
    """The first of `stem-001`, `stem-002` ... in a directory that does not exist yet."""
    number = 1
    while (Path(parent) / f"{stem}-{number:03d}").exists():
        number += 1
    return Path(parent) / f"{stem}-{number:03d}"
