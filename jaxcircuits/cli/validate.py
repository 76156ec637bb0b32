"""`jaxcircuits validate`: is it right? Each kind prints a report and exits 0 only if everything in it held."""

import argparse
from typing import TYPE_CHECKING, Any

from jaxcircuits.cli import validate_edges
from jaxcircuits.cli.common import Parser, add_command, common_options, named, read_one
from jaxcircuits.errors import InputError

if TYPE_CHECKING:
    from jaxcircuits.validation import Reference, Report

DTYPES = ("float32", "float64")


def add(commands: Any) -> None:
    """Adds the command and its kinds."""
    summary = "Check numbers against another implementation, edges against interventions; exit 0 only if all held."
    sub = commands.add_parser("validate", help=summary, description=summary)
    kinds = sub.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    for kind in (_add_recorded, _add_study, _add_bisect, validate_edges.add):
        kind(kinds)


def _add_recorded(kinds: Any) -> None:
    sub = add_command(
        kinds,
        "recorded",
        _run_recorded,
        "Compare every quantity of the study, weights, hooks, logits and SAEs with another implementation's.",
        """
jaxcircuits validate recorded                     # the shipped weights against the recording that ships
jaxcircuits validate recorded mine.npz --bundle original --json
jaxcircuits validate recorded --against torch --dtype float64""",
    )
    _against_options(sub)
    sub.add_argument("--dtype", choices=DTYPES, help="what to compute in (default: the recording's; live float32)")
    _report_options(sub)


def _add_study(kinds: Any) -> None:
    sub = add_command(
        kinds,
        "study",
        _run_study,
        "Compare the original weights' numbers with those that the original notebook printed.",
        """
jaxcircuits validate study --bundle original --story "$(cat story.txt)"
jaxcircuits validate study --bundle original --story-ids story.json --reference trigram_notebook.npz""",
    )
    sub.add_argument("--bundle", required=True, type=named, metavar="DIR", help="the original weights, converted")
    story = sub.add_mutually_exclusive_group()
    story.add_argument("--story", metavar="TEXT", help="the first story of the TinyStories validation split")
    story.add_argument("--story-ids", metavar="FILE", help="its token ids, BOS first, as a JSON list")
    sub.add_argument("--reference", type=named, metavar="FILE", help=".npz with the arrays that the notebook plotted")
    _report_options(sub)


def _add_bisect(kinds: Any) -> None:
    sub = add_command(
        kinds,
        "bisect",
        _run_bisect,
        "Walk the hook points in order and report the first where two implementations part: noise, or a bug?",
        """
jaxcircuits validate bisect                       # against the recording that ships
jaxcircuits validate bisect mine.npz --bundle original
jaxcircuits validate bisect --against torch --json""",
    )
    _against_options(sub)
    _report_options(sub)


def _against_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", nargs="?", type=named, metavar="FILE", help="a recording (default: the one that ships)")
    sub.add_argument("--against", choices=("torch",), help="instead: PyTorch and TransformerLens, run now")
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")
    prompt, story = sub.add_mutually_exclusive_group(), sub.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="with --against: the short prompt (default: a sentence)")
    prompt.add_argument("--prompt-ids", metavar="FILE", help="with --against: JSON list of token ids, as they are")
    story.add_argument("--story", metavar="TEXT", help="with --against: the longer text (default: a story)")
    story.add_argument("--story-ids", metavar="FILE", help="with --against: JSON list of token ids, as they are")


def _report_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    common_options(sub, out=False)


def _run_recorded(args: argparse.Namespace) -> int:
    from jaxcircuits.validation import validate_recorded

    reference = _live(args, args.dtype or "float32") if _is_live(args) else args.file
    return finish(validate_recorded(args.bundle, reference, dtype=args.dtype, quiet=args.quiet), args)


def _run_bisect(args: argparse.Namespace) -> int:
    from jaxcircuits.validation import bisect, read_reference, shipped_reference

    if _is_live(args):
        references = {dtype: _live(args, dtype) for dtype in DTYPES}
    else:
        recorded = read_reference(args.file or shipped_reference())
        references = {recorded.dtype: recorded}
    return finish(bisect(args.bundle, references, quiet=args.quiet), args)


def _run_study(args: argparse.Namespace) -> int:
    from jaxcircuits.validation import validate_study

    report = validate_study(
        args.bundle, story=args.story, story_ids=args.story_ids, arrays=args.reference, quiet=args.quiet
    )
    return finish(report, args)


def finish(report: "Report", args: argparse.Namespace) -> int:
    """Prints a report as the options say and returns the exit code: 0 if everything held, else 1."""
    from jaxcircuits.report.validation import print_report

    print_report(report, as_json=args.json, quiet=args.quiet)
    return 0 if report.ok else 1


def _is_live(args: argparse.Namespace) -> bool:
    texts = [args.prompt, args.prompt_ids, args.story, args.story_ids]
    if args.against and args.file:
        raise InputError(f"a recording {args.file} or --against {args.against}: give one of the two.")
    if not args.against and any(given is not None for given in texts):
        raise InputError("a recording has its own prompt and story; give yours with --against torch.")
    return bool(args.against)


def _live(args: argparse.Namespace, dtype: str) -> "Reference":
    """PyTorch and TransformerLens, run now."""
    import jax

    from jaxcircuits.validation.live import record, study_inputs
    from jaxcircuits.validation.recorded import stored_bundle

    with jax.enable_x64(dtype == "float64"):
        bundle = stored_bundle(args.bundle, dtype)
        ids = {
            what: read_one(bundle, what, getattr(args, what), getattr(args, f"{what}_ids"))
            for what in ("prompt", "story")
            if getattr(args, what) is not None or getattr(args, f"{what}_ids") is not None
        }
        texts = {f"{what}_text": getattr(args, what) for what in ids if getattr(args, what) is not None}
        return record(bundle, **study_inputs(bundle, ids, texts), dtype=dtype)
