"""What the commands share: a parser whose errors are one sentence, and common options."""

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from jaxcircuits.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from jaxcircuits.bundle import Bundle
    from jaxcircuits.evaluation import BOS

Command = Callable[[argparse.Namespace], int | None]
"""What runs a command: its exit code, `None` for 0."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Says it and ends with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def add_command(commands: Any, name: str, run: Command, summary: str, examples: str) -> argparse.ArgumentParser:
    """Adds a command with its examples."""
    sub = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=run)
    return sub


def common_options(sub: argparse.ArgumentParser, *, out: bool = True, seed: bool = False) -> None:
    """Options of (almost) every command."""
    sub.add_argument("--quiet", action="store_true", help="no progress bar, no tables")
    if out:
        sub.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    if seed:
        sub.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")


def named(text: str) -> str:
    """An option that must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got an empty one")
    return text


def end_options(sub: argparse.ArgumentParser) -> None:
    """Bundle, source and target SAE."""
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")
    sub.add_argument("--source-sae", metavar="NAME", help="source SAE (default: the earliest)")
    sub.add_argument("--target-sae", metavar="NAME", help="target SAE (default: the latest)")


def text_options(sub: argparse.ArgumentParser, *, ids: bool = True) -> None:
    """Bundle, and the text that is read: some given, or a corpus; by default the shipped stories."""
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--corpus", metavar="FILE", help=".txt, .jsonl or .parquet (default: the shipped stories)")
    what.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="one or more texts; BOS is added")
    if ids:
        what.add_argument("--prompt-ids", metavar="FILE", help="JSON list of token ids, or list of lists, as they are")


def bos_option(sub: argparse.ArgumentParser) -> None:
    """Where BOS counts."""
    sub.add_argument(
        "--bos",
        choices=("in", "out"),
        help="count BOS everywhere or nowhere, splicing included (default: in losses and splicing, not in statistics)",
    )


def read_bos(word: str | None) -> "BOS":
    """What `bos_option` asks for."""
    from jaxcircuits.evaluation import BOS

    return BOS() if word is None else BOS(*([word == "in"] * 3))


def read_source(bundle: "Bundle", args: argparse.Namespace) -> "tuple[Iterable[str] | None, list | None]":
    """The texts or token ids that `text_options` name: one of them, the other is `None`.

    Raises:
        InputError: They cannot be read.
    """
    from jaxcircuits.bulk import read_prompts
    from jaxcircuits.bundle import shipped_bundle
    from jaxcircuits.evaluation import CorpusFile

    if getattr(args, "prompt_ids", None):
        return None, list(read_prompts(bundle, ids_file=args.prompt_ids).ids)
    if args.prompt:
        for text in args.prompt:
            bundle.tokenize(text)  # an empty one is refused
        return list(args.prompt), None
    return CorpusFile(args.corpus or shipped_bundle() / "stories.txt"), None


def read_one(
    bundle: "Bundle", what: str, text: str | None, ids_file: str | None, truncate: bool = False
) -> "np.ndarray":
    """Token ids of one text, or of a file that holds one list of them.

    Raises:
        InputError: They cannot be read, or are several; the sentence begins with `what`.
    """
    from jaxcircuits.bulk import read_prompts

    try:
        read = read_prompts(bundle, texts=() if text is None else [text], ids_file=ids_file, truncate=truncate).ids
    except InputError as error:
        raise InputError(f"the study's {what}: {error}") from None
    if len(read) > 1:
        raise InputError(f"{ids_file}: the study takes one {what}, got {len(read)} lists of token ids.")
    return read[0]


def count(text: str) -> int:
    """A number of 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return int(text)


def warn(sentence: str) -> None:
    """One sentence on the standard error."""
    print(f"jaxcircuits: warning: {sentence}", file=sys.stderr)
