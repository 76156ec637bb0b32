"""How time and memory grow, what compilation costs, and how many programs a corpus needs."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_cases import Case
from benchmark_clock import Row, interleaved
from benchmark_rows import reserved

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.problem import PRECISIONS
from jaxcircuits.attribution.program import attribute_chunk, forward_pass, same_position
from jaxcircuits.attribution.prompts import Prompts

GROWTH, COMPILING, PROGRAMS, STREAMED = "growth", "compilation", "programs", "corpus from the command line"
MB = 2**20


def growth_rows(case: Case, repeats: int, quick: bool, precision: str) -> list[Row]:
    """Time and memory of `Engine.run` with the length of a prompt, its targets, and the number of prompts."""
    middle = case.lengths[len(case.lengths) // 2]
    jobs: dict[str, tuple[Prompts, Any]] = {}
    for length in case.lengths:
        jobs[f"{length} tokens"] = [(0, case.prompt(length))], None
    probe = Engine(case.bundle, Settings(precision=precision))
    _, found = probe.run([(0, case.prompt(middle))])
    named = list(zip(found["target_pos"].tolist(), found["target_feature"].tolist(), strict=True))
    for n in sorted({max(1, len(named) // 4), max(1, len(named) // 2), len(named)}):
        spread = np.linspace(0, len(named) - 1, n).astype(int)
        jobs[f"{n} targets of {middle} tokens"] = [(0, case.prompt(middle))], [named[i] for i in spread]
    for n in case.numbers:
        jobs[f"{n} prompts of {middle} tokens"] = [(i, case.prompt(middle, i)) for i in range(n)], None
    rows = []
    for positions in ("same", "all"):
        if quick and positions == "all":
            jobs = dict(list(jobs.items())[:1])
        engines = {}
        for what, (prompts, targets) in jobs.items():
            engine = Engine(case.bundle, Settings(positions=positions, precision=precision))
            engine.make_plan(prompts, targets)
            engines[what] = engine
        contenders = {what: (lambda e=engines[what], job=job: e.run(*job)) for what, job in jobs.items()}
        for what, times in interleaved(contenders, repeats).items():
            prompts, targets = jobs[what]
            more = {"tokens": float(sum(len(ids) for _, ids in prompts))}
            memory = _program_bytes(engines[what], prompts, targets)
            if memory is not None:
                more["program MB"] = memory / MB
            rows.append(Row(GROWTH, f"{positions}: {what}", times, more=more))
    return rows


def _program_bytes(engine: Engine, prompts: Prompts, targets: Any) -> float | None:
    """What XLA reserves for a job's largest program besides the weights: its values on the way, and its results."""
    most = None
    params, pair, plan = engine.bundle.params, engine.pair, engine.plan
    assert plan is not None
    weights = params, pair.source, pair.target, engine.tables, None
    for batch, shape in engine._batches(prompts, plan):
        static: dict[str, Any] = {"task": engine.task, "shape": shape}
        given = engine._inputs(batch, shape, targets)
        with jax.default_matmul_precision(PRECISIONS[engine.settings.precision]):
            if engine.settings.positions == "same":
                lowered = same_position.lower(*weights, *given, **static)
            else:
                passed = jax.eval_shape(
                    lambda *args, static=static: forward_pass(*args, **static), *weights[:3], *given
                )
                first = jax.ShapeDtypeStruct((), jnp.int32)
                lowered = attribute_chunk.lower(*weights, passed, first, **static)
            size = reserved(lowered)
        if size is not None:
            most = max(most or 0, size)
    return most


def program_rows(case: Case, precision: str) -> list[Row]:
    """How many programs stories of natural lengths need."""
    if not case.natural:
        return []
    engine = Engine(case.bundle, Settings(precision=precision))
    prompts = list(enumerate(case.natural))
    before = _programs()
    engine.make_plan(prompts)
    engine.run(prompts)
    lengths = len({len(ids) for ids in case.natural})
    note = (
        f"{len(prompts)} stories of {lengths} lengths, {engine.report.regrown} of {engine.report.batches} batches "
        "run again with more room; those of the plan's look at the corpus are counted"
    )
    return [Row(PROGRAMS, "compilations", [float(_programs() - before)], unit="programs", note=note)]


def _programs() -> int:
    return sum(program._cache_size() for program in (same_position, forward_pass, attribute_chunk))


def compile_rows(case: Case, quick: bool, precision: str) -> list[Row]:
    """Seconds of the first same-position prompt in a fresh process: with an empty cache, and with a filled one."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["first", "--shape", case.name, "--cache", cache, "--precision", precision]
        for what in ("cold: nothing compiled", "cached on disk"):
            found = _process(arguments + ["--quick"] * quick)
            more = {"again s": found["again"], **_memory(found)}
            note = "plan, compilation and edges of the first prompt; weights already loaded"
            rows.append(Row(COMPILING, what, [found["seconds"]], note=note, more=more))
    return rows


def streamed_rows(case: Case, quick: bool, precision: str) -> list[Row]:
    """Time and peak memory of `jaxcircuits attribute` with the size of the corpus, on the shipped bundle."""
    if case.name != "shipped":
        return []
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for times in (1, 2) if quick else (1, 2, 4, 8):
            arguments = ["stream", "--times", str(times), "--out", f"{directory}/{times}", "--precision", precision]
            # Both runs of the first size: the first one fills the cache.
            for _ in range(2 if times == 1 else 1):
                found = _process([*arguments, "--cache", f"{directory}/cache"] + ["--quick"] * quick)
            more = {"stories/s": found["stories"] / found["seconds"], **_memory(found)}
            rows.append(Row(STREAMED, f"{found['stories']} stories", [found["seconds"]], more=more))
    return rows


def _memory(found: dict[str, Any]) -> dict[str, float]:
    """A process's peak, and its device's where that has memory of its own."""
    peak = {"peak MB": found["peak"] / MB}
    return peak | ({"device peak MB": found["device_peak"] / MB} if found["device_peak"] else {})


def _process(arguments: Sequence[str]) -> dict[str, Any]:
    """What `benchmark_process.py` says in a process of its own."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # An accelerator is shared with this process, which else has taken most of its memory.
    environment = os.environ | {"PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, str(here / "benchmark_process.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
