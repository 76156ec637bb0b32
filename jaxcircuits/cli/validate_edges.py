"""`jaxcircuits validate edges`."""

import argparse
import json
from time import perf_counter
from typing import Any

from jaxcircuits.cli.common import add_command, common_options, count, end_options, named


def add(kinds: Any) -> None:
    """Adds the kind to `jaxcircuits validate`."""
    sub = add_command(
        kinds,
        "edges",
        run,
        "Predict what ablating sources does to targets, do it, and compare; exit 0 only if every check held.",
        """
jaxcircuits validate edges --out runs/edges              # the shipped weights on their own stories: some minutes
jaxcircuits validate edges --corpus valid.jsonl --stories 500 --edges 50000 --out runs/more
jaxcircuits validate edges --stories 40 --edges 2000 --feature 2593 --out runs/best
jaxcircuits validate edges --pairs 50 --positions same --out runs/pairs""",
    )
    end_options(sub)
    sub.add_argument("--corpus", metavar="FILE", help=".txt, .jsonl or .parquet (default: the shipped stories)")
    sub.add_argument("--stories", type=count, default=200, metavar="N", help="of its first stories (default 200)")
    sub.add_argument("--edges", type=count, default=10_000, metavar="N", help="edges, at least (default 10,000)")
    sub.add_argument(
        "--positions", choices=("same", "all"), default="all", help="sources at the target's or at all (default all)"
    )
    sub.add_argument(
        "--feature", type=count, metavar="F", help="target whose drivers are ablated (default: by a rule, see report)"
    )
    sub.add_argument(
        "--examples", type=count, default=100, metavar="N", help="its examples, and those of each pair (default 100)"
    )
    sub.add_argument(
        "--pairs", type=count, default=0, metavar="N", help="also ablate the N pairs of largest cosine (default 0)"
    )
    sub.add_argument("--out", required=True, type=named, metavar="DIR", help="where JSON, Parquet and figures go")
    sub.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    common_options(sub, seed=True)


def run(args: argparse.Namespace) -> int:
    """Runs the kind; returns 0 if every check held, else 1."""
    from jaxcircuits.attribution import Settings
    from jaxcircuits.attribution.problem import resolve
    from jaxcircuits.bundle import load_bundle, shipped_bundle
    from jaxcircuits.corpus import read_corpus
    from jaxcircuits.files import VALIDATION, check_free
    from jaxcircuits.report.effects import effect_tables, report_json, write_effects
    from jaxcircuits.report.tables import print_tables
    from jaxcircuits.validation.drivers import ablate_drivers, check_drivers
    from jaxcircuits.validation.edges import tokenized_stories, validate_edges
    from jaxcircuits.validation.pairs import ablate_pairs

    began = perf_counter()
    check_free(args.out, args.overwrite, VALIDATION)
    bundle = load_bundle(args.bundle)
    check_drivers(resolve(bundle, Settings(args.source_sae, args.target_sae)), args.feature, args.examples)
    texts = read_corpus(args.corpus or shipped_bundle() / "stories.txt")
    found = validate_edges(
        bundle,
        tokenized_stories(bundle, texts, args.stories),
        source=args.source_sae,
        target=args.target_sae,
        positions=args.positions,
        edges=args.edges,
        seed=args.seed,
        quiet=args.quiet,
    )
    where = (bundle, found.pair, found.activity, found.predictors)
    drivers = ablate_drivers(*where, feature=args.feature, examples=args.examples, seed=args.seed, quiet=args.quiet)
    pairs = ablate_pairs(*where, args.pairs, examples=args.examples, quiet=args.quiet) if args.pairs else None
    write_effects(bundle, found, drivers, pairs, args.out, overwrite=args.overwrite)
    if args.json:
        print(json.dumps(report_json(bundle, found, drivers, pairs), indent=2, ensure_ascii=False))
    elif not args.quiet:
        print_tables(*effect_tables(bundle, found, drivers, pairs))
        verdict = "every check held" if found.report.ok else "NOT every check held"
        print(f"{verdict}; {perf_counter() - began:.0f} seconds; written to {args.out}")
    return 0 if found.report.ok else 1
