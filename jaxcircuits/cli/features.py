"""`jaxcircuits features`."""

import argparse
import json
from typing import Any

from jaxcircuits.cli.common import add_command, bos_option, common_options, count, named, text_options


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "features",
        run,
        "Show single features: strongest examples, activations, tokens promoted and suppressed, nearest neighbours.",
        """
jaxcircuits features 60 1411
jaxcircuits features 1492 --sae blocks.1.mlp.hook_post --corpus stories.txt --top 20
jaxcircuits features 60 --out runs/feature --json""",
    )
    sub.add_argument("features", nargs="+", type=count, metavar="FEATURE", help="their numbers")
    sub.add_argument("--sae", metavar="NAME", help="which SAE (default: the bundle's first)")
    text_options(sub, ids=False)
    sub.add_argument("--top", type=count, default=8, metavar="N", help="examples of each (default 8)")
    sub.add_argument("--context", type=count, default=12, metavar="N", help="tokens on either side (default 12)")
    bos_option(sub)
    sub.add_argument("--out", type=named, metavar="DIR", help="where JSON and figures go (default: nowhere)")
    sub.add_argument("--json", action="store_true", help="print JSON in place of text")
    common_options(sub)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.cli.common import read_bos, read_source
    from jaxcircuits.evaluation import describe_features
    from jaxcircuits.evaluation.batches import chosen
    from jaxcircuits.files import FEATURES, check_free
    from jaxcircuits.report.features import feature_text, write_features
    from jaxcircuits.report.tables import console

    if args.out:
        check_free(args.out, args.overwrite, FEATURES)
    bundle = load_bundle(args.bundle)
    name = next(iter(chosen(bundle, None if args.sae is None else [args.sae])))
    texts, _ = read_source(bundle, args)
    summaries = describe_features(
        bundle,
        name,
        args.features,
        texts or (),
        n=args.top,
        context=args.context,
        bos=read_bos(args.bos),
        quiet=args.quiet,
    )
    if args.out:
        write_features(summaries, args.out, overwrite=args.overwrite)
    if args.json:
        print(json.dumps([summary.to_json() for summary in summaries], indent=2, ensure_ascii=False))
    elif not args.quiet:
        here = console()
        for summary in summaries:
            here.print(feature_text(summary, colours=here.is_terminal), soft_wrap=not here.is_terminal)
    if args.out and not (args.quiet or args.json):
        print(f"written to {args.out}")
