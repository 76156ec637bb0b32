"""A whole command beside its engine: how much of the engine's throughput is left once everything is on disk.

    python scripts/corpus_throughput.py --corpus stories.jsonl --prompts 200
    python scripts/corpus_throughput.py --original --prompts 32       # random weights of the original's size

Three things take turns in one process, on the same parts of the same plan: the compiled programs alone; the engine,
which also lists edges on the host; and the whole command, which reads, plans, computes, writes and closes the run. The
whole command is timed with everything compiled, its compilation apart. Every other turn goes backwards, and what is
compared was measured in the same turn, so that a machine whose speed drifts is as fair to one as to the other.
"""

import argparse
import json
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from original_shape import original_shape_bundle, random_prompt

from jaxcircuits import Settings, load_bundle, read_corpus
from jaxcircuits.attribution import Engine
from jaxcircuits.attribution.plan import device_memory, parse_memory
from jaxcircuits.bulk import Prompts, attribute_to_run
from jaxcircuits.bulk.prompts import PromptRows
from jaxcircuits.bulk.record import parts_of, plan_of
from jaxcircuits.bundle import Bundle
from jaxcircuits.places import Place

STORIES = 21_990
"""Of TinyStories' validation split: what is projected to."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="with the shipped weights; for its lengths with --original")
    parser.add_argument("--original", action="store_true", help="random weights of the original's size")
    parser.add_argument("--prompts", type=int, default=100, help="of the corpus, its first ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--positions", default="same", choices=("same", "all"))
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--memory", type=parse_memory)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="these of the things that are timed")
    parser.add_argument("--json", help="where to write the numbers")
    args = parser.parse_args()
    bundle = original_shape_bundle().bundle if args.original else load_bundle()
    settings = Settings(positions=args.positions, top_k=args.top_k)
    only = [CONTENDERS[name] for name in args.only or CONTENDERS]
    found = measure(bundle, settings, prompts_of(args, bundle), args.memory or device_memory(), args.repeats, only)
    print_report(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")


def prompts_of(args: argparse.Namespace, bundle: Bundle) -> Prompts:
    """The first prompts of the corpus; random tokens in prompts of their lengths for a model of random weights."""
    texts = list(islice(read_corpus(args.corpus), args.prompts)) if args.corpus else []
    if not args.original:
        return Prompts(bundle, texts=texts, truncate=True)
    tokenized = [len(load_bundle().tokenize(text)) for text in texts]
    lengths = tokenized or np.random.default_rng(0).normal(200, 50, args.prompts).astype(int).tolist()
    cut = [min(max(n, 2), bundle.cfg.n_ctx) for n in lengths]
    return Prompts(bundle, rows=[random_prompt(bundle.cfg, n, i).tolist() for i, n in enumerate(cut)])


def measure(
    bundle: Bundle, settings: Settings, prompts: Prompts, memory: int, repeats: int, only: Sequence[str]
) -> dict[str, Any]:
    """Seconds of each, by turns."""
    directory = Path(tempfile.mkdtemp(prefix="corpus-throughput-"))
    try:
        return _measure(bundle, settings, prompts, memory, repeats, only, directory)
    finally:
        shutil.rmtree(directory)


def _measure(
    bundle: Bundle,
    settings: Settings,
    prompts: Prompts,
    memory: int,
    repeats: int,
    only: Sequence[str],
    directory: Path,
) -> dict[str, Any]:
    def whole(name: str, **kept: Any) -> Callable[[], Any]:
        def run() -> Any:
            options = {"memory": memory, "quiet": True, "keep": 15, "overwrite": True, **kept}
            return attribute_to_run(bundle, settings, prompts, directory / name, **options)[0]

        return run

    start = time.perf_counter()  # all is compiled by this, for whatever is measured
    run = whole("first", statistics=CONTENDERS["statistics"] in only)()
    first = time.perf_counter() - start
    engine = Engine(bundle, settings, memory)
    engine.plan = plan_of(run.record)
    rows = PromptRows(Place(directory / "first"))
    parts = [[(row, rows[row]) for row in range(*bounds)] for bounds in parts_of(run.record)]

    def programs() -> None:
        assert engine.plan is not None
        for part in parts:
            for batch, shape in engine._batches(part, engine.plan):
                for found in engine._found(batch, shape, None):
                    jax.block_until_ready(found)

    def listed() -> None:
        for part in parts:
            engine.listed(part)

    calls = (
        programs,
        listed,
        whole("edges"),
        whole("statistics", statistics=True),
        whole("activations", activations=True),
    )
    contenders = dict(zip(CONTENDERS.values(), calls, strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in only}
    for turn in range(repeats):
        for name in only if turn % 2 == 0 else reversed(only):
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)
    sizes = {}
    for name in ("edges", "activations", "statistics"):
        sizes |= Place(directory / name).sizes() if (directory / name).exists() else {}
    device = jax.devices()[0]
    return {
        "machine": f"{platform.machine()}, {device.device_kind} x {jax.device_count()}",
        "settings": run.record["settings"],
        "plan": str(engine.plan),
        "parts": len(parts),
        "prompts": run.record["prompts"],
        "tokens": run.record["tokens"],
        "edges": run.rows("edges"),
        "first whole command": first,
        "seconds": seconds,
        "bytes": {kind: sum(n for name, n in sizes.items() if name.startswith(kind)) for kind in KINDS},
        "peak memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


CONTENDERS = {
    "programs": "compiled programs",
    "engine": "engine",
    "whole": "whole command",
    "statistics": "whole command, statistics too",
    "activations": "whole command, activations too",
}
"""What is timed, by its name on the command line."""

KINDS = ("edges", "targets", "activations", "prompts", "statistics")


def print_report(found: dict[str, Any]) -> None:
    tokens, prompts = found["tokens"], found["prompts"]
    print(f"{found['machine']}: {prompts:,} prompts, {tokens:,} tokens")
    print(f"{found['edges']:,} edges in {found['parts']} parts")
    print(f"plan for {found['plan']}\n")
    print(f"{'':32}{'seconds':>10}{'min-max':>16}{'tokens/s':>12}{'of programs':>13}{'of engine':>11}{'min-max':>14}")
    seconds = found["seconds"]
    for name, values in seconds.items():
        of_programs, of_engine = (
            [one / other for one, other in zip(seconds.get(base, []), values, strict=False)] or [float("nan")]
            for base in ("compiled programs", "engine")
        )
        print(
            f"{name:32}{median(values):10.2f}{f'{min(values):.1f}-{max(values):.1f}':>16}"
            f"{tokens / median(values):12,.0f}{median(of_programs):13.2f}{median(of_engine):11.2f}"
            f"{f'{min(of_engine):.2f}-{max(of_engine):.2f}':>14}"
        )
    print(f"\nthe first whole command, compiling and planning: {found['first whole command']:.1f} s")
    print(", ".join(f"{kind} {n / 2**20:,.1f} MB" for kind, n in found["bytes"].items()))
    print(f"peak memory of this process {found['peak memory'] / 2**30:.2f} GB")
    share = STORIES / prompts
    edges, size = found["edges"] * share, found["bytes"]["edges"] * share / 2**30
    print(f"\nprojected to {STORIES:,} stories: {edges:,.0f} edges, {size:,.1f} GB")
    for name, values in seconds.items():
        print(f"{name:32}{median(values) * share / 3600:10.2f} hours")


if __name__ == "__main__":
    main()
