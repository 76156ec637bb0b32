"""`jaxcircuits convert`."""

import argparse
from typing import Any

from jaxcircuits.cli import info
from jaxcircuits.cli.common import add_command, common_options, named


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "convert",
        run,
        "Make a bundle from a Hugging Face GPT-Neo and SAEs in the original study's or the hub-mixin layout.",
        """
jaxcircuits convert --model ./TinyStories-2Layers-33M --sae 18_morning_sun.pt --sae 8_deep_brook.pt --out original
jaxcircuits convert --model roneneldan/TinyStories-2Layers-33M --sae 18_morning_sun.pt --out original
jaxcircuits convert --model ./gpt-neo --sae lovish/SAE-tiny-stories-2L-33M-L1-291 --dtype float16 --out bundle""",
    )
    sub.add_argument("--model", required=True, metavar="SRC", help="directory, or hub id as owner/name[@revision]")
    sub.add_argument(
        "--sae", action="append", default=[], metavar="SRC", help=".pt with its .json, directory, or hub id"
    )
    sub.add_argument("--revision", metavar="REV", help="of a hub model: branch, tag or commit")
    sub.add_argument(
        "--ignore-config-field",
        action="append",
        default=[],
        metavar="NAME",
        help="accept a field that is not understood",
    )
    sub.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="to store in (default: as it came)")
    sub.add_argument("--out", required=True, type=named, metavar="DIR", help="the bundle to make")
    common_options(sub)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.convert import convert

    convert(
        args.model,
        args.sae,
        args.out,
        revision=args.revision,
        ignore_config_fields=args.ignore_config_field,
        dtype=args.dtype,
        overwrite=args.overwrite,
    )
    if not args.quiet:
        info.run(argparse.Namespace(bundle=args.out))
