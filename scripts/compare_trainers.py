"""This package's SAE trainer beside SAELens' and dictionary_learning's: same activations, same steps, same evaluation.

    python scripts/compare_trainers.py --corpus train.txt --valid valid.jsonl --json trainers.json

Needs sae-lens and dictionary-learning. Every trainer takes the same batches of one hook's values in the same order,
with one learning rate, warm-up and decay; the steps of all are interleaved, so that what else the machine does slows
each alike. Nothing but the values is used: no splicing, and no reconstruction error measured after `W_out` unless the
row says so. What comes out is spliced into the model and scored on held-out text by one and the same code.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads must not spin while JAX computes

import jax
import jax.numpy as jnp
import numpy as np
from torch_trainers import DictionaryLearning, SAELens

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.evaluation import evaluate
from jaxcircuits.files import write_json
from jaxcircuits.model import hook_width
from jaxcircuits.progress import progress
from jaxcircuits.rows import bundle_rows
from jaxcircuits.sae import SAE
from jaxcircuits.training.activations import ActivationBuffer
from jaxcircuits.training.sae import reconstruction_step
from jaxcircuits.training.sae_state import form_of, initial_state, trained
from jaxcircuits.training.settings import SAETraining

TURN = 5
"""Steps a trainer takes before the next has its turn."""


class Ours:
    """One run of this package."""

    def __init__(self, bundle: Any, hook: str, buffer: ActivationBuffer, settings: SAETraining):
        self.hook, self.settings, self.form = hook, settings, form_of([settings])
        self.state = initial_state(bundle, hook, buffer, settings, self.form)
        self.done = 0

    def step(self, values: np.ndarray) -> None:
        """Takes a step."""
        self.state, metrics = reconstruction_step(self.state, values, jnp.int32(self.done), self.form, False)
        jax.block_until_ready((self.state, metrics))
        self.done += 1

    def sae_of(self) -> SAE:
        """What has been trained."""
        return trained(self.state, self.hook, self.settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="training text")
    parser.add_argument("--valid", required=True, help="text for evaluation")
    parser.add_argument("--texts", type=int, default=220, help="texts of it that are used (default 220)")
    parser.add_argument("--bundle", help="whose model is read (default: the one that ships)")
    parser.add_argument("--hook", default="blocks.1.mlp.hook_post")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--l0", type=float, default=27.0, help="features a token, of every trainer but standard")
    parser.add_argument("--l1", type=float, default=5.0, help="SAELens' l1_coefficient of standard (default 5)")
    parser.add_argument("--l0-of-standard", type=float, help="what it comes to, for this package's l1 and power")
    parser.add_argument("--lr", type=float, default=SAETraining.lr, help="of every trainer")
    parser.add_argument("--only", nargs="+", help="rows whose name contains one of these")
    parser.add_argument("--json", type=Path, help="where the table is also written")
    args = parser.parse_args()

    bundle, texts = load_bundle(args.bundle, processed=False), list(read_corpus(args.valid))[: args.texts]
    base = SAETraining(
        tokens=args.steps * args.batch_tokens,
        batch_tokens=args.batch_tokens,
        l0=args.l0,
        spliced=0.0,
        read_weight=0.0,
        lr=args.lr,
    )
    buffer = ActivationBuffer(bundle, args.hook, bundle_rows(bundle, list(read_corpus(args.corpus))), base)
    first = np.concatenate([buffer(step) for step in range(16_384 // args.batch_tokens)])
    d_in = hook_width(bundle.cfg, args.hook)
    steered = replace(base, l0=args.l0_of_standard or args.l0)

    def ours(**fields: Any):
        return lambda: Ours(bundle, args.hook, buffer, replace(steered if "penalty" in fields else base, **fields))

    makers = {
        "jaxcircuits relu, power": ours(penalty="power"),
        "jaxcircuits relu, power, half after W_out": ours(penalty="power", read_weight=0.5),
        "jaxcircuits relu, l1": ours(penalty="l1"),
        "jaxcircuits topk": ours(activation="topk"),
        "jaxcircuits batchtopk": ours(activation="batchtopk"),
        "jaxcircuits jumprelu": ours(activation="jumprelu"),
        "SAELens standard": lambda: SAELens("standard", args.hook, d_in, base, first, l1_coefficient=args.l1),
        "SAELens topk": lambda: SAELens("topk", args.hook, d_in, base, first),
        "SAELens batchtopk": lambda: SAELens("batchtopk", args.hook, d_in, base, first),
        "dictionary_learning batchtopk": lambda: DictionaryLearning(args.hook, d_in, base, first),
    }
    chosen = {n: make() for n, make in makers.items() if not args.only or any(word in n for word in args.only)}
    seconds = interleaved(chosen, buffer, args.steps)
    rows = []
    for name, trainer in chosen.items():
        report = evaluate(replace(bundle, saes={name: trainer.sae_of()}), texts).report["saes"][name]
        rows.append({"trainer": name, "seconds_per_step": float(np.median(seconds[name])), **report})
    show(rows)
    if args.json:
        settings = {n: getattr(args, n) for n in ("hook", "steps", "batch_tokens", "lr", "l1", "texts")}
        write_json(args.json, settings | {"rows": rows})


def interleaved(trainers: dict[str, Any], buffer: ActivationBuffer, steps: int) -> dict[str, list[float]]:
    """Takes all steps of all trainers in turns; seconds of each step, without the first turn, which compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    with progress() as bar:
        task = bar.add_task("training", total=steps)
        for turn in range(0, steps, TURN):
            for name, trainer in trainers.items():
                for number in range(turn, min(turn + TURN, steps)):
                    values = buffer(number)
                    begun = time.perf_counter()
                    trainer.step(values)
                    if turn:
                        seconds[name].append(time.perf_counter() - begun)
            bar.update(task, completed=min(turn + TURN, steps))
    return seconds


def show(rows: list[dict[str, Any]]) -> None:
    columns = ("seconds_per_step", "l0", "recovery_zero", "delta_ce", "variance_explained", "dead")
    print(f"{'':44s}" + "".join(f"{c:>20s}" for c in columns))
    for row in rows:
        print(f"{row['trainer']:44s}" + "".join(f"{row[c]:20.4f}" for c in columns))


if __name__ == "__main__":
    main()
