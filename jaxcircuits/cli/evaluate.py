"""`jaxcircuits evaluate`."""

import argparse
import json
from typing import Any

from jaxcircuits.cli.common import add_command, bos_option, common_options, named, text_options


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "evaluate",
        run,
        "Measure SAEs on text: sparsity, reconstruction, the loss when spliced in, geometry; or the loss by token.",
        """
jaxcircuits evaluate                      # the shipped weights on their own stories
jaxcircuits evaluate --corpus valid.jsonl --out runs/evaluation
jaxcircuits evaluate --bundle original --sae blocks.0.mlp.hook_post --corpus valid.jsonl --bos out --json
jaxcircuits evaluate --per-token --prompt "The dog was happy. He wagged his tail.\"""",
    )
    text_options(sub)
    sub.add_argument("--sae", nargs="+", metavar="NAME", help="which SAEs (default: all)")
    bos_option(sub)
    sub.add_argument("--per-token", action="store_true", help="instead: each token's loss in the first text given")
    sub.add_argument("--out", type=named, metavar="DIR", help="where JSON, Parquet and figures go (default: nowhere)")
    sub.add_argument("--json", action="store_true", help="print JSON in place of the table")
    common_options(sub)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.cli.common import read_bos, read_source
    from jaxcircuits.evaluation import evaluate, token_losses
    from jaxcircuits.files import EVALUATION, LOSSES, check_free
    from jaxcircuits.report.evaluation import evaluation_tables, token_table, write_evaluation, write_token_losses
    from jaxcircuits.report.tables import print_tables

    if args.out:
        check_free(args.out, args.overwrite, LOSSES if args.per_token else EVALUATION)
    bundle = load_bundle(args.bundle)
    texts, ids = read_source(bundle, args)
    if args.per_token:
        first = ids[0] if ids is not None else bundle.tokenize(next(iter(texts or ())))[: bundle.cfg.n_ctx]
        losses = token_losses(bundle, first, saes=args.sae, bos=read_bos(args.bos))
        if args.out:
            write_token_losses(losses, args.out, overwrite=args.overwrite)
        content, tables = losses.to_json(), [token_table(losses)]
    else:
        found = evaluate(bundle, texts, ids=ids, saes=args.sae, bos=read_bos(args.bos), quiet=args.quiet)
        if args.out:
            write_evaluation(found, args.out, overwrite=args.overwrite)
        content, tables = found.report, evaluation_tables(found.report)
    if args.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    elif not args.quiet:
        print_tables(*tables)
    if args.out and not (args.quiet or args.json):
        print(f"written to {args.out}")
