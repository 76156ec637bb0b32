"""`jaxcircuits view`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcircuits.cli.common import add_command, count, named
from jaxcircuits.errors import InputError

if TYPE_CHECKING:
    from jaxcircuits.evaluation import FeatureSummary
    from jaxcircuits.graph import Graph

PAGE = "circuit.html"


def add(commands: Any) -> None:
    """Adds the command."""
    from jaxcircuits.report.explorer.content import MOST, SHOWN

    sub = add_command(
        commands,
        "view",
        run,
        "Write a graph as one HTML page to look at and click through; it needs no network and no server.",
        """
jaxcircuits graph --prompt "The dog was happy." --out runs/dog && jaxcircuits view runs/dog
jaxcircuits view runs/dog --node-threshold 0.8 --out pruned.html
jaxcircuits view runs/dog --out dog.html --corpus stories.txt --cards 50
jaxcircuits view runs/dog --labels names.json --overwrite
jaxcircuits view runs/dog --no-cards --heat-map heat.svg --edge-values edges.svg --overwrite
jaxcircuits view runs/stories --prompt-row 3 --out third.html    # a run of jaxcircuits attribute""",
    )
    sub.add_argument("dir", type=named, metavar="DIR", help="what jaxcircuits graph or attribute wrote")
    sub.add_argument("--out", type=named, metavar="FILE", help=f"the page (default: {PAGE} in DIR)")
    sub.add_argument("--prompt-row", type=count, metavar="N", help="of a run of several prompts, which")
    sub.add_argument("--shown", type=count, default=SHOWN, metavar="N", help=f"edges drawn at first (default {SHOWN})")
    sub.add_argument("--edges", type=count, default=MOST, metavar="N", help=f"in the page, at most (default {MOST})")
    sub.add_argument("--labels", type=named, metavar="FILE", help='names of features: {"SAE": {"880": "colours"}}')
    part = sub.add_argument_group("only the part that carries most of the influence on the logits")
    part.add_argument("--node-threshold", type=float, metavar="P", help="share that the nodes carry (then 0.8)")
    part.add_argument("--edge-threshold", type=float, metavar="P", help="share that their edges carry (then 0.98)")
    part.add_argument("--top-k", type=count, metavar="N", help="of these, a node's N largest")
    cards = sub.add_argument_group("descriptions of features")
    cards.add_argument("--bundle", type=named, metavar="DIR", help="what DIR was made with (default: the shipped one)")
    cards.add_argument("--corpus", metavar="FILE", help="where examples come from (default: the shipped stories)")
    cards.add_argument("--cards", type=count, default=200, metavar="N", help="the N most important (default 200)")
    cards.add_argument("--examples", type=count, default=4, metavar="N", help="of each (default 4)")
    cards.add_argument("--no-cards", action="store_true", help="none: no model is run")
    figures = sub.add_argument_group("figures besides the page: .png, .svg or .pdf")
    figures.add_argument("--heat-map", type=named, metavar="FILE", help="what each token gives to logits and features")
    figures.add_argument("--edge-values", type=named, metavar="FILE", help="how large the edges are")
    sub.add_argument("--quiet", action="store_true", help="no progress bar, nothing printed")
    sub.add_argument("--overwrite", action="store_true", help="replace what is at --out and at figures' names")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.graph import read_labels
    from jaxcircuits.report.edge_figures import draw_edge_values, draw_heat_map
    from jaxcircuits.report.explorer import content, write_page
    from jaxcircuits.report.explorer.page import check_page
    from jaxcircuits.report.graph import CONJUNCTIONS, read_conjunctions
    from jaxcircuits.report.plots import check_figures

    out = Path(args.out or Path(args.dir) / PAGE)
    graph = _pruned(_graph(args), args)
    check_page(out, overwrite=args.overwrite)
    check_figures((args.heat_map, args.edge_values), overwrite=args.overwrite)
    labels = read_labels(args.labels, graph.saes) if args.labels else None
    cards = [] if args.no_cards or not args.cards else _cards(graph, args)
    corpus = "the shipped stories" if args.corpus is None else Path(args.corpus).name
    note = f"Only the {len(cards):,} most important features are described." if cards else ""
    file = Path(args.dir) / CONJUNCTIONS
    pairs = read_conjunctions(file) if file.is_file() else ()
    data = content(graph, cards, labels, pairs, shown=args.shown, most=args.edges, corpus=corpus, card_note=note)
    size = write_page(out, data, "".join(graph.token_strings), overwrite=args.overwrite)
    if args.heat_map:
        draw_heat_map(Path(args.heat_map), graph)
    if args.edge_values:
        draw_edge_values(Path(args.edge_values), graph)
    if not args.quiet:
        written = len(data["edges"]["weight"])
        which = f"{written:,} edges" if written == len(graph.weight) else f"the first {written:,} edges"
        print(
            f"{len(data['nodes']['kind']):,} of {len(graph.nodes):,} nodes, {which}, {len(cards):,} features described"
        )
        print(f"written to {out} ({size / 1e6:.1f} MB); open it in a browser")


def _graph(args: argparse.Namespace) -> "Graph":
    from jaxcircuits.bulk import load_run
    from jaxcircuits.files import GRAPH, RUN
    from jaxcircuits.graph import load_graph
    from jaxcircuits.report.explorer import run_to_graph

    if (Path(args.dir) / GRAPH).is_file():
        if args.prompt_row is not None:
            raise InputError("--prompt-row is for runs of jaxcircuits attribute, and this is a graph; leave it out.")
        return load_graph(args.dir)
    if (Path(args.dir) / RUN).is_file():
        return run_to_graph(load_run(args.dir), args.prompt_row)
    raise InputError(
        f"there is no graph in {args.dir}; expected a directory that jaxcircuits graph or attribute wrote."
    )


def _pruned(graph: "Graph", args: argparse.Namespace) -> "Graph":
    from jaxcircuits.graph import prune

    wanted = {name: getattr(args, name) for name in ("node_threshold", "edge_threshold", "top_k")}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if wanted and not graph.nodes.are("logit").any():
        raise InputError("only a graph that ends in logits can be pruned, and a run has features alone.")
    return prune(graph, **wanted) if wanted else graph


def _cards(graph: "Graph", args: argparse.Namespace) -> "list[FeatureSummary]":
    from jaxcircuits.bundle import load_bundle, shipped_bundle
    from jaxcircuits.evaluation import CorpusFile
    from jaxcircuits.report.explorer import describe_graph

    file = args.corpus or shipped_bundle() / "stories.txt"
    bundle = load_bundle(args.bundle)
    return describe_graph(
        graph, bundle, lambda: CorpusFile(file), most=args.cards, examples=args.examples, quiet=args.quiet
    )
