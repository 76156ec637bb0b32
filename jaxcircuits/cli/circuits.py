"""`jaxcircuits circuits`."""

import argparse
from pathlib import Path
from typing import Any

from jaxcircuits.cli.answers import answer_options, show
from jaxcircuits.cli.common import add_command, count, named
from jaxcircuits.errors import InputError


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "circuits",
        run,
        "Circuits of a corpus: edges that recur over a run's stories, paths, what lies some steps from a token.",
        """
jaxcircuits circuits runs/stories                            # the strongest edges that recur
jaxcircuits circuits runs/stories --edges-of 880 --figure 880.png
jaxcircuits circuits runs/stories --from-token " dog" --steps 2    # needs a run with --activations
jaxcircuits circuits runs/0to1 runs/1to2 --paths 17 880 --json     # runs whose SAEs meet; SAE#F names any feature""",
    )
    sub.add_argument(
        "dirs", nargs="+", type=named, metavar="DIR", help="runs of jaxcircuits attribute, statistics kept"
    )
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--paths", nargs=2, metavar=("S", "T"), help="strongest paths from S to T: F, SAE#F or a token")
    what.add_argument("--from-token", metavar="TEXT", help="everything that a token leads to")
    what.add_argument("--edges-of", metavar="F", help="edges into and out of a feature: F of the last SAE, or SAE#F")
    sub.add_argument("--steps", type=count, default=2, metavar="N", help="from the token (default 2)")
    sub.add_argument("--min-stories", type=count, default=5, metavar="N", help="with the edge (default 5)")
    sub.add_argument("--max-q", type=float, default=0.05, metavar="Q", help="false-discovery rate (default 0.05)")
    sub.add_argument(
        "--min-effect", type=float, default=0.0, metavar="X", help="|shrunk mean| strictly above (default 0)"
    )
    sub.add_argument("--min-lift", type=float, default=2.0, metavar="X", help="of a token and a feature (default 2)")
    answer_options(sub)


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bulk import load_run
    from jaxcircuits.graph.corpus import TOKEN, Kept, corpus_graph, edge_json, token_of, unit_of
    from jaxcircuits.report.corpus_graph import draw_edges, edges_table, paths_table
    from jaxcircuits.report.plots import check_figures

    check_figures([args.figure], overwrite=args.overwrite)
    kept = Kept(args.min_stories, args.max_q, args.min_effect, args.min_lift)
    graph = corpus_graph([load_run(path) for path in args.dirs], kept)
    paths = None
    if args.paths:
        ends = [unit_of(graph, text, last=last) for text, last in zip(args.paths, (False, True), strict=True)]
        title = " → ".join(graph.label(unit) for unit in ends)
        paths = graph.paths(ends[0], ends[1], args.limit)
        edges = [e for path in paths for e in path.edges]
    elif args.from_token is not None:
        if not graph.tokens:
            raise InputError("the runs kept no activations, so tokens are unknown; make them with --activations.")
        unit = token_of(graph, args.from_token)
        title = f"{args.steps} steps from {graph.label(unit)}"
        edges = graph.within(unit, args.steps)
    elif args.edges_of is not None:
        unit = unit_of(graph, args.edges_of, last=True)
        title, edges = f"Edges of {graph.label(unit)}", graph.of(unit)
    else:
        title = f"{len(graph.edges):,} edges recur"
        edges = sorted((e for e in graph.edges if e.source.sae != TOKEN), key=lambda e: -abs(e.weight))
    if not edges:
        raise InputError(f"{title}: nothing recurs; ask for less (--min-stories, --max-q, --min-effect).")
    if args.figure:
        draw_edges(Path(args.figure), graph, edges, title)
    answer: dict[str, Any] = {"saes": graph.saes, "edges": [edge_json(graph, e) for e in edges[: args.limit]]}
    if paths is not None:
        answer["paths"] = [{"score": p.score, "edges": [edge_json(graph, e) for e in p.edges]} for p in paths]
    table = edges_table(graph, edges[: args.limit], title) if paths is None else paths_table(graph, paths, title)
    show(args, answer, [table])
