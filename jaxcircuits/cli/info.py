"""`jaxcircuits info`."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxcircuits.cli.common import add_command, named, warn

if TYPE_CHECKING:
    from jaxcircuits.bundle import Bundle
    from jaxcircuits.readings import Checked


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "info",
        run,
        "Show what a bundle holds, where it came from, what it will run on, and whether its SAEs are read aright.",
        """
jaxcircuits info
jaxcircuits info --bundle original
jaxcircuits info --bundle original --check-text valid.jsonl
jaxcircuits info --bundle original --no-check""",
    )
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")
    check_options(sub)


def check_options(sub: argparse.ArgumentParser) -> None:
    """Whether SAEs are checked, and on which text."""
    sub.add_argument("--no-check", dest="check", action="store_false", help="do not look whether SAEs are misread")
    sub.add_argument(
        "--check-text", type=named, metavar="FILE", help="corpus to look on (default: some of the shipped stories)"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import check_bundle, load_bundle
    from jaxcircuits.progress import progress

    bundle = load_bundle(args.bundle, processed=False)
    with progress(not args.check) as bar:
        bar.add_task("checking SAEs", total=None)
        found = check_bundle(bundle, args.check_text) if args.check else None
    show(bundle, found)


def show(bundle: "Bundle", found: "Mapping[str, Checked] | None") -> None:
    """Prints what a bundle with its weights as they were stored holds, and what the check of its SAEs found.

    Args:
        bundle: The bundle.
        found: From `check_bundle`; `None` where nobody looked.

    Raises:
        InputError: An SAE is plainly misread.
    """
    from jaxcircuits.report.tables import bundle_tables, checked_table, print_tables

    print_tables(*bundle_tables(bundle), *([checked_table(found)] if found else []))
    if found is not None and not found and bundle.saes:
        print("SAEs not checked: the shipped stories are no text for this bundle's tokenizer; give --check-text FILE.")
    warn_of(found or {})


def warn_of(found: "Mapping[str, Checked]") -> None:
    """Warns of SAEs that are odd.

    Raises:
        InputError: One is plainly misread.
    """
    from jaxcircuits.readings import doubts

    for sentence in doubts(found):
        warn(sentence)
