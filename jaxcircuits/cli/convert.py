"""`jaxcircuits convert`."""

import argparse
from collections.abc import Sequence
from typing import Any

from jaxcircuits.cli import info
from jaxcircuits.cli.common import add_command, common_options, named

FORMATS = "sae_lens, sparsify, dictionary_learning, gemma_scope, circuit_tracer, original, hub_mixin"


class _OfTheLastSAE(argparse.Action):
    """An option that says more of the SAE that stands before it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Adds it to the last `--sae`."""
        if not namespace.sae:
            parser.error(f"{option_string} belongs to the --sae before it, and there is none")
        namespace.sae[-1][self.dest] = values


class _AnSAE(argparse.Action):
    """A source, of which the options behind it may say more."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Adds a source."""
        namespace.sae = [*namespace.sae, {"path": values}]


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "convert",
        run,
        "Make a bundle from a Hugging Face model (GPT-Neo, GPT-2, GPT-NeoX, Gemma 2) or another bundle, and SAEs.",
        """
jaxcircuits convert --model ./TinyStories-2Layers-33M --sae 18_morning_sun.pt --sae 8_deep_brook.pt --out original
jaxcircuits convert --model roneneldan/TinyStories-2Layers-33M --sae 18_morning_sun.pt --out original
jaxcircuits convert --model ./gpt-neo --sae lovish/SAE-tiny-stories-2L-33M-L1-291 --dtype float16 --out bundle
jaxcircuits convert --model ./gpt-neo --sae ./trainer_0 --hook blocks.0.hook_resid_post --sae ./h.1.mlp --out bundle
jaxcircuits convert --model original --sae ./sae_lens_sae --out larger""",
    )
    sub.add_argument(
        "--model", required=True, metavar="SRC", help="directory, or hub id as owner/name[@revision]; or a bundle"
    )
    sub.add_argument(
        "--sae",
        action=_AnSAE,
        default=[],
        metavar="SRC",
        help="file or directory, or hub id as owner/name[/folder][@revision]; may be repeated",
    )
    sub.add_argument(
        "--format",
        action=_OfTheLastSAE,
        default=argparse.SUPPRESS,
        metavar="NAME",
        help=f"of the --sae before it, where its files do not tell: {FORMATS}",
    )
    sub.add_argument(
        "--hook",
        action=_OfTheLastSAE,
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="hook point that the --sae before it reads, where its format does not say",
    )
    sub.add_argument(
        "--hook-out",
        action=_OfTheLastSAE,
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="hook point that it writes, where it is a transcoder",
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
    info.check_options(sub)
    sub.add_argument("--out", required=True, type=named, metavar="DIR", help="the bundle to make")
    common_options(sub)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.convert import SAESource, convert

    found = convert(
        args.model,
        [SAESource(**sae) for sae in args.sae],
        args.out,
        revision=args.revision,
        ignore_config_fields=args.ignore_config_field,
        dtype=args.dtype,
        overwrite=args.overwrite,
        check=args.check,
        check_text=args.check_text,
    )
    if args.quiet:
        info.warn_of(found)
    else:
        info.show(load_bundle(args.out, processed=False), found if args.check else None)
