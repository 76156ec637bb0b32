"""`jaxcircuits train lm` and `train sae`."""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from jaxcircuits.cli.common import Parser, add_command, common_options, named


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
jaxcircuits train sae --bundle runs/lm/bundle --corpus train.txt --hook blocks.0.mlp.hook_post --out runs/sae0""",
    )
    sae.add_argument("--bundle", required=True, metavar="DIR", help="the bundle whose model is read")
    sae.add_argument("--hook", nargs="+", metavar="NAME", help="hook points (default: every mlp.hook_post)")
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
    from jaxcircuits.training.runs import run_sae
    from jaxcircuits.training.settings import SAETraining

    settings = _settings(SAETraining, args)
    run_sae(args.bundle, args.hook, args.corpus, settings, args.out, overwrite=args.overwrite, quiet=args.quiet)
    if not args.quiet:
        print(f"written to {Path(args.out) / 'bundle'}")
