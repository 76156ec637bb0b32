"""Side by side, in one run: PyTorch's ways to the original's derivatives, `vmap(grad)`, and the structured method.

    python scripts/benchmark.py                          the original's shape and the shipped bundle
    python scripts/benchmark.py --shape original --brief   the main tables alone
    python scripts/benchmark.py --shape gpt2 --repeats 1   two SAEs on GPT-2 small's residual stream, five layers apart
    python scripts/benchmark.py --shape tiny --quick     a smoke test
    python scripts/benchmark.py --json FILE --markdown FILE

Two clocks: attribution alone, from given activations, and end to end, from token ids. Contenders take turns, every one
is compiled before, and a number is a median. Ratios are to the careful PyTorch loop (end to end: to PyTorch with care),
without PyTorch to the definition, over the corpus to forward pass and encoders.

Before anything is timed all contenders' edges are compared; the run fails where they differ by more than 2e-5 of a
target's largest. PyTorch runs on CPUs only. On an accelerator every table is repeated in TF32 and bf16, without the
definition, with the error beside it.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from benchmark_cases import CASES, Case
from benchmark_corpus import CEILING, corpus_rows
from benchmark_depth import depth_rows
from benchmark_growth import compile_rows, growth_rows, program_rows, streamed_rows
from benchmark_report import Section, describe, show, to_markdown
from benchmark_rows import alone_rows, whole_rows

TOLERANCE = 2e-5


def measure(case: Case, precision: str, repeats: int, quick: bool, torch_too: bool, brief: bool) -> Section:
    """All rows of a shape, or (`brief`) those of attribution alone, end to end and over a corpus.

    Raises:
        SystemExit: A contender does not compute the definition.
    """
    if case.deep:
        alone, agreement = depth_rows(case, repeats, torch_too, precision)
    else:
        alone, agreement = alone_rows(case, repeats, quick, torch_too, precision)
    if precision == "highest" and max(agreement.values()) > TOLERANCE:
        for name, value in agreement.items():
            print(f"{name}: {value:.2g}", file=sys.stderr)
        raise SystemExit("these edges are not the definition's in float64")
    if case.deep:
        return Section(case.name, precision, alone, agreement)
    rows = [*alone, *whole_rows(case, repeats, torch_too, precision, alone)]
    rows += corpus_rows(case, repeats, quick, precision)
    ceiling = max(row.more["GFLOP/s"] for row in rows if row.group == CEILING)
    for row in alone:
        if "GFLOP/s" in row.more:
            row.more["of ceiling"] = row.more["GFLOP/s"] / ceiling
    if not brief:
        rows += growth_rows(case, repeats, quick, precision)
    if precision == "highest" and not brief:
        rows += compile_rows(case, quick, precision) + program_rows(case, precision)
        rows += streamed_rows(case, quick, precision)
    return Section(case.name, precision, rows, agreement)


def description(repeats: int, torch_too: bool) -> dict[str, Any]:
    """The machine and what runs on it."""
    device = jax.devices()[0]
    packages = ["jax", "jaxlib", "numpy", *(["torch", "transformer-lens"] if torch_too else [])]
    threads = 0
    if torch_too:
        from torch_baselines import set_threads

        threads = set_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "cores": cores,
        "torch_threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "repeats": repeats,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=tuple(CASES), default=["original", "shipped"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke test: one repeat, few sizes")
    parser.add_argument("--brief", action="store_true", help="no growth, compilation and streaming")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    on_cpu = jax.default_backend() == "cpu"
    torch_too = on_cpu and all(find_spec(name) for name in ("torch", "transformer_lens"))
    repeats = 1 if args.quick else args.repeats
    run = description(repeats, torch_too)
    print(describe(run))
    sections: list[Section] = []
    for name in args.shape:
        case = CASES[name](args.quick)
        for precision in ("highest",) if on_cpu else ("highest", "tf32", "bf16"):
            sections.append(measure(case, precision, repeats, args.quick, torch_too, args.brief))
            show(sections[-1])
            # After each, so that a run that is cut short leaves what it has.
            if args.json:
                found = {"run": run, "sections": [section.to_json() for section in sections]}
                args.json.write_text(json.dumps(found, indent=1) + "\n")
            if args.markdown:
                args.markdown.write_text(to_markdown(run, sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
