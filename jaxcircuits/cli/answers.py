"""What commands that answer a question share: a table, JSON or CSV on the screen, and a figure besides."""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcircuits.cli.common import common_options, count, named


def answer_options(sub: argparse.ArgumentParser) -> None:
    """How many rows, in which form, and whether they are drawn."""
    sub.add_argument("--limit", type=count, default=20, metavar="N", help="rows (default 20)")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON in place of tables")
    form.add_argument("--csv", action="store_true", help="print the rows as CSV in place of tables")
    sub.add_argument("--figure", type=named, metavar="FILE", help="draw it: .png, .svg or .pdf")
    sub.add_argument("--overwrite", action="store_true", help="replace what is at --figure")
    common_options(sub, out=False)


def show(args: argparse.Namespace, answer: Mapping[str, Any], tables: Sequence[Any]) -> None:
    """Prints tables, or JSON, or the answer's last list of rows as CSV."""
    from jaxcircuits.report.tables import print_tables

    if args.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    elif args.csv:
        rows = [
            {k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in row.items()}
            for row in list(answer.values())[-1]
        ]
        writer = csv.DictWriter(sys.stdout, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif not args.quiet:
        print_tables(*tables)
