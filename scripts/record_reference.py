"""Records what PyTorch + TransformerLens compute on a bundle: the original notebook's numbers and all beneath them.

    python scripts/record_reference.py --overwrite        # weights/reference.npz and .json, for the shipped bundle
    python scripts/record_reference.py --bundle original --story-ids story.json --keep all --out recorded/original

`jaxcircuits validate recorded FILE --bundle DIR` compares the package with it, without torch. Of each large array about
`--keep` numbers are written, evenly spread, with the norm of the whole.
"""

import argparse
import shlex
import sys

import jax

from jaxcircuits.cli.common import read_one
from jaxcircuits.errors import InputError
from jaxcircuits.validation import shipped_reference, write_reference
from jaxcircuits.validation.live import record, study_inputs
from jaxcircuits.validation.recorded import stored_bundle


def main() -> int:
    line = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    line.add_argument("--bundle", metavar="DIR", help="a bundle (default: the weights that ship)")
    for what in ("prompt", "story"):
        given = line.add_mutually_exclusive_group()
        given.add_argument(f"--{what}", metavar="TEXT", help=f"the {what}'s text")
        given.add_argument(f"--{what}-ids", metavar="FILE", help="or its token ids, as a JSON list")
    line.add_argument("--feature", type=int, metavar="F", help="target (default: the strongest at the last position)")
    line.add_argument("--source-sae", metavar="NAME", help="source SAE (default: the earliest)")
    line.add_argument("--target-sae", metavar="NAME", help="target SAE (default: the latest)")
    line.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    line.add_argument("--device", default="cpu", help="PyTorch's word for where to run (default cpu)")
    line.add_argument("--keep", default="256", metavar="N", help="numbers of each large array, or 'all' (default 256)")
    line.add_argument("--out", metavar="NAME", help="NAME.npz and NAME.json (default: beside the shipped weights)")
    line.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = line.parse_args()
    try:
        keep = None if args.keep == "all" else int(args.keep)
        _record(args, keep)
    except (InputError, ValueError) as error:
        print(f"record_reference: error: {error}", file=sys.stderr)
        return 2
    return 0


def _record(args: argparse.Namespace, keep: int | None) -> None:
    with jax.enable_x64(args.dtype == "float64"):
        bundle = stored_bundle(args.bundle, args.dtype)
        given = {what: (getattr(args, what), getattr(args, f"{what}_ids")) for what in ("prompt", "story")}
        ids = {what: read_one(bundle, what, *both) for what, both in given.items() if any(x is not None for x in both)}
        texts = {f"{what}_text": text for what, (text, _) in given.items() if text is not None}
        reference = record(
            bundle,
            **study_inputs(bundle, ids, texts),
            feature=args.feature,
            source=args.source_sae,
            target=args.target_sae,
            dtype=args.dtype,
            device=args.device,
            keep=keep,
            command=shlex.join(["python", "scripts/record_reference.py", *sys.argv[1:]]),
        )
    out = args.out or shipped_reference()
    write_reference(reference, out, overwrite=args.overwrite)
    print(f"{len(reference.arrays)} quantities written to {out}")


if __name__ == "__main__":
    sys.exit(main())
