"""`jaxcircuits info`."""

import argparse
from typing import Any

from jaxcircuits.cli.common import add_command, named


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "info",
        run,
        "Show what a bundle holds, where it came from, and what it will run on.",
        "jaxcircuits info\njaxcircuits info --bundle original",
    )
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.report.tables import bundle_tables, print_tables

    print_tables(*bundle_tables(load_bundle(args.bundle, processed=False)))
