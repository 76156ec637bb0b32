"""`jaxcircuits train lm` and `train sae`."""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from jaxcircuits.cli.common import Parser, add_command, common_options, count, named
from jaxcircuits.errors import InputError
from jaxcircuits.files import read_json


def add(commands: Any) -> None:
    """Adds the command."""
    from jaxcircuits.training.settings import LMTraining, SAETraining, meanings

    sub = commands.add_parser("train", help="Train a language model or its SAEs.", description="Train.")
    kinds = sub.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    lm = add_command(
        kinds,
        "lm",
        _run_train_lm,
        "Train a byte-level BPE and a small GPT-Neo on a text; goes on where a run at --out stopped.",
        """
jaxcircuits train lm --corpus train.txt --out runs/lm
jaxcircuits train lm --corpus hub:roneneldan/TinyStories --d-model 256 --n-heads 8 --out runs/lm""",
    )
    sae = add_command(
        kinds,
        "sae",
        _run_train_sae,
        "Train one SAE on each of some hook points of a bundle's model; goes on where a run at --out stopped.",
        """
jaxcircuits train sae --bundle runs/lm/bundle --corpus train.txt --out runs/sae
jaxcircuits train sae --bundle runs/lm/bundle --corpus train.txt --hook blocks.0.mlp.hook_post --out runs/sae0
jaxcircuits train sae --bundle runs/lm/bundle --corpus train.txt --activation batchtopk --k 32 --out runs/batchtopk
jaxcircuits train sae --bundle runs/lm/bundle --corpus train.txt --sweep l0=9,20 --sweep seed=0,1 --out runs/sweep""",
    )
    sae.add_argument("--bundle", required=True, metavar="DIR", help="the bundle whose model is read")
    sae.add_argument("--hook", nargs="+", metavar="NAME", help="hook points (default: every mlp.hook_post)")
    sae.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="SETTING=X,X",
        help="train with each of these values at once; repeated, with each combination",
    )
    sae.add_argument(
        "--valid", type=named, metavar="FILE", help="text a sweep is judged on (default: the corpus's head)"
    )
    sae.add_argument(
        "--checkpoint-every", type=_steps, default=200, metavar="N", help="steps between checkpoints (default 200)"
    )
    for one, settings in ((lm, LMTraining), (sae, SAETraining)):
        one.add_argument("--corpus", required=True, metavar="FILE", help="text file, or hub:owner/name")
        one.add_argument(
            "--out", required=True, type=named, metavar="DIR", help="run directory; the bundle goes to DIR/bundle"
        )
        common_options(one)
        meaning = meanings(settings)
        for field in fields(settings):
            assert field.default is not MISSING
            one.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                metavar="X",
                help=f"{meaning.get(field.name, '').replace('%', '%%')} (default {field.default})",
            )


def _settings(kind: Any, args: argparse.Namespace) -> Any:
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def _run_train_lm(args: argparse.Namespace) -> None:
    from jaxcircuits.training.runs import run_lm
    from jaxcircuits.training.settings import LMTraining

    run_lm(args.corpus, _settings(LMTraining, args), args.out, overwrite=args.overwrite, quiet=args.quiet)
    if not args.quiet:
        print(f"written to {Path(args.out) / 'bundle'}")


def _run_train_sae(args: argparse.Namespace) -> None:
    from jaxcircuits.report.tables import print_tables, sweep_table
    from jaxcircuits.training.runs import run_sae, run_sweep
    from jaxcircuits.training.settings import SAETraining
    from jaxcircuits.training.sweep import parse_sweep, sweep_runs

    settings = _settings(SAETraining, args)
    options = {"overwrite": args.overwrite, "quiet": args.quiet, "checkpoint_every": args.checkpoint_every}
    if args.sweep:
        runs = sweep_runs(settings, parse_sweep(args.sweep))
        run_sweep(args.bundle, args.hook, args.corpus, runs, args.out, valid=args.valid, **options)
    elif args.valid:
        raise InputError("--valid is what a sweep is judged on; give --sweep too, or leave it out.")
    else:
        run_sae(args.bundle, args.hook, args.corpus, settings, args.out, **options)
    if args.quiet:
        return
    if args.sweep:
        print_tables(sweep_table(read_json(Path(args.out) / "pareto.json", "sweep")["points"]))
    print(f"written to {Path(args.out) / 'bundle'}")


def _steps(text: str) -> int:
    steps = count(text)
    if not steps:
        raise argparse.ArgumentTypeError("expected a number of 1 or more, got 0")
    return steps
