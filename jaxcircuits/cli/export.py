"""`jaxcircuits export`."""

import argparse
from typing import Any

from jaxcircuits.cli.common import add_command, common_options, named


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "export",
        run,
        "Write one SAE of a bundle as SAELens 6 reads it.",
        """
jaxcircuits export --sae blocks.0.mlp.hook_post --out exported
jaxcircuits export --bundle original --sae 18_morning_sun --out exported/18_morning_sun""",
    )
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")
    sub.add_argument("--sae", required=True, metavar="NAME", help="the SAE's name in the bundle")
    sub.add_argument("--out", required=True, type=named, metavar="DIR", help="the directory to make")
    common_options(sub)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.convert.export import export_from_bundle
    from jaxcircuits.files import EXPORT, check_free

    check_free(args.out, args.overwrite, EXPORT)
    bundle = load_bundle(args.bundle, processed=False)
    export_from_bundle(bundle, args.sae, args.out, overwrite=args.overwrite)
    if not args.quiet:
        print(f"written to {args.out}; read it with sae_lens.SAE.load_from_disk({args.out!r})")
