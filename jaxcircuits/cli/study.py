"""`jaxcircuits study`."""

import argparse
from typing import Any

from jaxcircuits.cli.common import add_command, common_options, end_options, named, read_one, warn

PROMPT = "Once upon a time, there was a little girl named Lily. She was about"


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "study",
        run,
        "The original notebook on any bundle: one feature's gradients against cosines, then a prompt's and a story's.",
        """
jaxcircuits study --out runs/study
jaxcircuits study --bundle original --prompt "He had to help Daisy. He was about" --feature 880 --out runs/daisy
jaxcircuits study --prompt-ids prompt.json --story-ids story.json --out runs/ids""",
    )
    end_options(sub)
    prompt, story = sub.add_mutually_exclusive_group(), sub.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the short prompt")
    prompt.add_argument("--prompt-ids", metavar="FILE", help="JSON list of token ids, taken as they are")
    story.add_argument(
        "--story", metavar="TEXT", help="the longer text of the pairs (default: the first shipped story)"
    )
    story.add_argument("--story-ids", metavar="FILE", help="JSON list of token ids, taken as they are")
    sub.add_argument("--feature", type=int, metavar="F", help="target (default: the strongest at the last position)")
    sub.add_argument("--mark", type=int, metavar="S", help="source feature to mark (default: of largest derivative)")
    sub.add_argument("--truncate", action="store_true", help="cut prompt and story to the model's context")
    sub.add_argument(
        "--out", required=True, type=named, metavar="DIR", help="where study.npz, study.json and the figures go"
    )
    common_options(sub, seed=True)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import load_bundle, shipped_bundle
    from jaxcircuits.corpus import read_corpus
    from jaxcircuits.files import STUDY, check_free
    from jaxcircuits.report.study import summary_tables, write_study
    from jaxcircuits.report.tables import print_tables
    from jaxcircuits.study import run_study

    check_free(args.out, args.overwrite, STUDY)
    bundle = load_bundle(args.bundle)
    story = args.story
    if story is None and args.story_ids is None:
        story = next(read_corpus(shipped_bundle() / "stories.txt"))
    prompt = PROMPT if args.prompt is None and args.prompt_ids is None else args.prompt
    tokens = [
        read_one(bundle, "prompt", prompt, args.prompt_ids, args.truncate),
        read_one(bundle, "story", story, args.story_ids, args.truncate),
    ]
    study = run_study(
        bundle, *tokens, feature=args.feature, source=args.source_sae, target=args.target_sae, seed=args.seed
    )
    write_study(study, args.out, mark=args.mark, overwrite=args.overwrite)
    for sentence in study.warnings:
        warn(sentence)
    if not args.quiet:
        print_tables(*summary_tables(study))
        print(f"written to {args.out}")
