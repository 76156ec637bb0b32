"""`jaxcircuits top`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcircuits.cli.answers import answer_options, show
from jaxcircuits.cli.common import add_command, count, named, warn
from jaxcircuits.errors import InputError


def add(commands: Any) -> None:
    """Adds the command."""
    from jaxcircuits.bulk.questions import BY, SIGNS

    sub = add_command(
        commands,
        "top",
        run,
        "Ask a run: what drives a feature, what it drives, where two features meet, what matters in a prompt.",
        """
jaxcircuits top runs/stories --drivers-of 880
jaxcircuits top runs/stories --driven-by 17 --by evidence --sign negative
jaxcircuits top runs/stories --pair 17 880 --limit 5 --figure pair.png
jaxcircuits top runs/stories --prompt-row 3 --csv > edges.csv""",
    )
    sub.add_argument("dir", type=named, metavar="DIR", help="a run of jaxcircuits attribute")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--drivers-of", type=count, metavar="F", help="source features that drive target feature F")
    what.add_argument("--driven-by", type=count, metavar="F", help="target features that source feature F drives")
    what.add_argument("--pair", type=count, nargs=2, metavar=("S", "T"), help="source S and target T: where they meet")
    what.add_argument("--prompt-row", type=count, metavar="N", help="the strongest edges of prompt N")
    sub.add_argument(
        "--by",
        choices=BY,
        default="effect",
        help="first the largest |shrunk mean|, |z| of the mean, or mean |attribution| (default effect)",
    )
    sub.add_argument("--sign", choices=SIGNS, default="both", help="negative: what suppresses (default both)")
    sub.add_argument(
        "--min-stories",
        type=count,
        metavar="N",
        help="leave out pairs of fewer prompts (default: as the run was judged)",
    )
    sub.add_argument("--offset", type=count, metavar="N", help="target position minus source position (default: any)")
    answer_options(sub)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bulk import load_run
    from jaxcircuits.bulk import questions as q
    from jaxcircuits.report import top
    from jaxcircuits.report.plots import check_figures

    check_figures([args.figure], overwrite=args.overwrite)
    run = load_run(args.dir)
    order = q.Order(args.by, args.sign, args.min_stories, args.offset, args.limit)
    quiet = args.quiet or args.json or args.csv
    if args.prompt_row is not None:
        edges, prompt = q.of_prompt(run, args.prompt_row, order)
        rows = top.example_rows(edges, prompt)
        _any(rows, f"prompt {args.prompt_row} has no such edge; try another --sign or --offset.")
        title = f"Strongest edges of prompt {args.prompt_row}, by |attribution|"
        show(args, {"edges": rows}, [top.example_table(rows, title, features=True)])
        if args.figure:
            top.draw_prompt(Path(args.figure), rows, args.prompt_row)
        return
    source, target = args.pair or (args.driven_by, args.drivers_of)
    found = q.statistics_for(run, target=target, source=source, quiet=quiet)
    for sentence in top.notes(found):
        warn(sentence)
    if args.pair:
        answer = q.pair(run, found, source, target, order, quiet=quiet)
        rows = top.example_rows(answer.examples, answer.prompts)
        show(
            args, {"statistics": answer.statistics.to_pylist(), "edges": rows}, top.pair_tables(answer, source, target)
        )
        if args.figure:
            _any(answer.examples.to_pylist(), "the run kept no edges, so there is no distribution to draw.")
            top.draw_pair(Path(args.figure), answer, source, target)
        return
    rows = q.ranked(found, order).to_pylist()
    end, feature = ("source", target) if source is None else ("target", source)
    least = found.min_stories if args.min_stories is None else args.min_stories
    _any(rows, _nothing(found.table.num_rows, end, feature, least))
    show(args, {"statistics": rows}, [top.feature_table(rows, end, feature, order)])
    if args.figure:
        top.draw_features(Path(args.figure), rows, end, feature)


def _nothing(pairs: int, end: str, feature: int, least: int) -> str:
    own = "target" if end == "source" else "source"
    if not pairs:
        return f"the run has no edge with {own} feature {feature}; name a feature that is active in its prompts."
    return (
        f"of {pairs:,} pairs of {own} feature {feature} none has edges in {least} prompts and what else was asked for; "
        "lower --min-stories, or see another --sign or --offset."
    )


def _any(rows: Sequence[Any], sentence: str) -> None:
    if not len(rows):
        raise InputError(sentence)
