"""`jaxcircuits validate`: is it right? Each kind prints a report and exits 0 only if everything in it held."""

from typing import Any

from jaxcircuits.cli import validate_edges
from jaxcircuits.cli.common import Parser


def add(commands: Any) -> None:
    """Adds the command and its kinds."""
    summary = "Check numbers against another implementation, edges against interventions; exit 0 only if all held."
    sub = commands.add_parser("validate", help=summary, description=summary)
    kinds = sub.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    validate_edges.add(kinds)
