"""What `benchmark.py` measures in a process of its own: a first prompt, or a corpus. Prints JSON."""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import jax
from benchmark_cases import CASES

from jaxcircuits import cli
from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.bundle import shipped_bundle


def first(args: argparse.Namespace) -> dict[str, float]:
    """Seconds from given weights to the first prompt's edges, and of the same once more."""
    jax.config.update("jax_compilation_cache_dir", args.cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    case = CASES[args.shape](args.quick)
    jax.block_until_ready(case.bundle.params)
    start = time.perf_counter()
    engine = Engine(case.bundle, Settings(precision=args.precision))
    engine.run([(0, case.story)])
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    engine.run([(0, case.story)])
    return {"seconds": seconds, "again": time.perf_counter() - start}


def stream(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the command line on the shipped stories, several times over."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = args.cache  # so that the command line leaves it
    jax.config.update("jax_compilation_cache_dir", args.cache)
    stories = (shipped_bundle() / "stories.txt").read_text().split("<|endoftext|>")
    stories = [story for story in stories if story.strip()][: 20 if args.quick else None] * args.times
    corpus = Path(f"{args.out}.txt")
    corpus.write_text("<|endoftext|>".join(stories))
    out = f"{args.out}.run"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    command = ["attribute", "--corpus", str(corpus), "--out", out, "--precision", args.precision]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(command)
    if code:
        sys.exit(code)
    return {"seconds": time.perf_counter() - start, "stories": len(stories)}


def peak_memory() -> int:
    """Bytes of main memory that this process had at most."""
    try:
        # On Linux `ru_maxrss` counts the process that started this one, too.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("first", "stream"))
    parser.add_argument("--shape", choices=tuple(CASES), default="shipped")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--precision", default="highest")
    parser.add_argument("--out")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    found = {"first": first, "stream": stream}[args.what](args)
    of_device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    print(json.dumps({**found, "peak": peak_memory(), "device_peak": of_device}))


if __name__ == "__main__":
    main()
