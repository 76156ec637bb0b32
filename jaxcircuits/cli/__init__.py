"""The command line: reads options, calls the library, prints for people. One sentence and exit code 2 for bad input."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from jaxcircuits.cli import (
    attribute,
    circuits,
    convert,
    evaluate,
    export,
    features,
    generate,
    graph,
    info,
    study,
    top,
    train,
    validate,
    view,
)
from jaxcircuits.cli.common import Parser
from jaxcircuits.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code: 0 done, 1 a check did not hold, 2 bad input, 130 interrupted, 141 nobody reads."""
    args = parser().parse_args(argv)
    _cache_compilations()
    if getattr(args, "quiet", False):  # before the hub's client reads it
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        code = args.run(args)
        sys.stdout.flush()  # here, where a full disk or a closed pipe still gets its answer
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.filename or 'the output'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code or 0


def _fail(sentence: str) -> int:
    print(f"jaxcircuits: error: {sentence}", file=sys.stderr)
    return 2


def _cache_compilations() -> None:
    """Keeps compiled programs on disk, so that the second start is quick. `JAX_COMPILATION_CACHE_DIR` moves it."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "jaxcircuits" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    line = Parser(prog="jaxcircuits", description="Which SAE features drive which: exactly, for every active feature.")
    line.add_argument("--version", action="version", version=f"jaxcircuits {version('jaxcircuits')}")
    commands = line.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for command in (
        attribute,
        graph,
        view,
        top,
        circuits,
        study,
        validate,
        evaluate,
        features,
        generate,
        convert,
        export,
        train,
        info,
    ):
        command.add(commands)
    return line
