"""`jaxcircuits graph`."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from jaxcircuits.cli.common import add_command, common_options, count, named
from jaxcircuits.errors import InputError

if TYPE_CHECKING:
    from jaxcircuits.bundle import Bundle


def add(commands: Any) -> None:
    """Adds the command."""
    from jaxcircuits.attribution import problem as p

    sub = add_command(
        commands,
        "graph",
        run,
        "The graph of a prompt, from tokens through features to logits: built, pruned, drawn, exported; or measured.",
        """
jaxcircuits graph --prompt "One day, a girl named Lily found a red" --out runs/lily
jaxcircuits graph --prompt "One day, a girl named Lily found a red" --difference " ball" " box" --out runs/ball
jaxcircuits graph --prompt "The dog was very" --derivative exact --parts --top-k 20 --out runs/dog
jaxcircuits graph --prompt "The dog was very" --node-threshold 0.9 --json --out runs/dog
jaxcircuits graph --prompt "The dog was very" --conjunctions --out runs/dog     # drivers that need each other
jaxcircuits graph --prompt "The dog was very" --leading-to 880 --out runs/dog   # draw what leads to a feature
jaxcircuits graph --faithfulness --prompt "The dog was very" --out runs/ablated  # how much of it a circuit holds
jaxcircuits graph --faithfulness --out runs/faithfulness       # the openings of the shipped stories
jaxcircuits graph --faithfulness --corpus stories.txt --prompts 16 --fill mean --metric probability --out runs/mean""",
    )
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="a text, BOS is added; or several")
    what.add_argument("--prompt-ids", metavar="FILE", help="JSON list of token ids, or list of lists, as they are")
    what.add_argument("--corpus", metavar="FILE", help="with --faithfulness: .txt, .jsonl or .parquet")
    sub.add_argument("--saes", nargs="+", metavar="NAME", help="whose features are nodes (default: all)")
    sub.add_argument("--derivative", choices=p.DERIVATIVES, default="frozen", help="what is differentiated")
    sub.add_argument("--gelu", choices=p.GELUS, default="tangent", help="what stands for a GELU where frozen")
    sub.add_argument("--points", type=count, default=32, metavar="N", help="of the integrated derivative (default 32)")
    sub.add_argument("--logits", nargs="+", metavar="TOKEN", help="end in these tokens' logits (default: likeliest)")
    sub.add_argument("--difference", nargs=2, metavar="TOKEN", help="end in the difference of two logits")
    sub.add_argument("--top-logits", type=count, default=10, metavar="N", help="likeliest tokens, at most (default 10)")
    sub.add_argument("--logit-mass", type=float, default=0.95, metavar="P", help="until they reach P (default 0.95)")
    sub.add_argument("--position", type=int, default=-1, metavar="POS", help="of the logits (default: the last)")
    sub.add_argument("--threshold", type=float, default=0.0, metavar="X", help="features strictly above (default 0)")
    sub.add_argument("--max-features", type=count, metavar="N", help="of longest decoder vector times activation")
    sub.add_argument("--include-bos", action="store_true", help="let features at BOS be nodes")
    sub.add_argument("--top-k", type=count, metavar="N", help="keep a node's N largest edges; the rest is summed")
    sub.add_argument("--min-weight", type=float, default=0.0, metavar="X", help="keep edges strictly above (default 0)")
    sub.add_argument("--parts", action="store_true", help="split edges into residual stream, value, query, key")
    sub.add_argument("--node-threshold", type=float, default=0.8, metavar="P", help="influence to show (default 0.8)")
    sub.add_argument("--edge-threshold", type=float, default=0.98, metavar="P", help="of its edges (default 0.98)")
    sub.add_argument(
        "--leading-to", type=count, metavar="F", help="draw what leads to feature F of the last SAE at --position"
    )
    sub.add_argument(
        "--conjunctions",
        type=count,
        nargs="?",
        const=6,
        metavar="N",
        help="ablate the N strongest drivers of what is drawn by twos: which need each other (default 6)",
    )
    sub.add_argument("--labels", type=named, metavar="FILE", help='names of features: {"SAE": {"880": "colours"}}')
    sub.add_argument("--strict-ids", action="store_true", help="circuit-tracer's own ids, where they are unique")
    sub.add_argument("--show", type=count, default=12, metavar="N", help="nodes and edges to print (default 12)")
    sub.add_argument("--json", action="store_true", help="print JSON in place of tables")
    sub.add_argument("--out", required=True, type=named, metavar="DIR", help="where everything goes")
    _measure_options(sub)
    common_options(sub, seed=True)


def _measure_options(sub: argparse.ArgumentParser) -> None:
    from jaxcircuits.graph.faithfulness import FILLS, METRICS, UNITS
    from jaxcircuits.graph.rankings import METHODS

    measure = sub.add_argument_group("how faithful circuits are, over several prompts")
    measure.add_argument("--faithfulness", action="store_true", help="ablate what is outside circuits of many sizes")
    measure.add_argument("--prompts", type=count, default=8, metavar="N", help="of a corpus (default 8)")
    measure.add_argument("--length", type=count, default=16, metavar="N", help="cut them to N tokens (default 16)")
    measure.add_argument("--metric", choices=METRICS, default="logit", help="what is measured (default logit)")
    measure.add_argument("--fill", choices=FILLS, default="zero", help="what ablated features take (default zero)")
    measure.add_argument("--units", nargs="+", choices=UNITS, default=list(UNITS), help="circuits of nodes, of edges")
    measure.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="how they are chosen")


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.files import FAITHFULNESS, GRAPH, check_free

    check_free(args.out, args.overwrite, FAITHFULNESS if args.faithfulness else GRAPH)
    bundle = load_bundle(args.bundle)
    settings = {
        "saes": None if args.saes is None else tuple(args.saes),
        **{name: getattr(args, name) for name in ("derivative", "gelu", "points", "position", "threshold")},
        **{name: getattr(args, name) for name in ("max_features", "include_bos")},
    }
    if args.faithfulness:
        _measure(args, bundle, settings)
    else:
        _draw(args, bundle, settings)


def _draw(args: argparse.Namespace, bundle: "Bundle", settings: dict[str, Any]) -> None:
    from jaxcircuits.bulk import read_prompts
    from jaxcircuits.graph import build_graph, conjunctions, feature_node, leading_to, prune, read_labels, scores
    from jaxcircuits.graph.build import chosen_saes
    from jaxcircuits.report.graph import conjunction_table, graph_json, graph_tables, promoted_tokens, write_graph_files
    from jaxcircuits.report.tables import print_tables

    if args.corpus or not (args.prompt or args.prompt_ids):
        raise InputError("a graph is of one prompt; give --prompt TEXT or --prompt-ids FILE.")
    ids = read_prompts(bundle, texts=args.prompt or (), ids_file=args.prompt_ids).ids
    if len(ids) > 1:
        raise InputError(f"a graph is of one prompt, got {len(ids)}; run the command for each.")
    labels = read_labels(args.labels, chosen_saes(bundle, settings["saes"])) if args.labels else {}
    graph = build_graph(
        bundle,
        ids[0],
        quiet=args.quiet,
        logits=args.logits,
        difference=None if args.difference is None else tuple(args.difference),
        top_logits=args.top_logits,
        logit_mass=args.logit_mass,
        top_k=args.top_k,
        min_weight=args.min_weight,
        parts=args.parts,
        **settings,
    ).labelled(labels)
    thresholds = {"node_threshold": args.node_threshold, "edge_threshold": args.edge_threshold}
    pruned = shown = prune(graph, **thresholds)
    whole = graph
    if args.leading_to is not None:
        whole = leading_to(graph, feature_node(graph, args.leading_to))
        shown = prune(whole, **thresholds)
    pairs = None
    if args.conjunctions is not None:
        targets = 4 if args.leading_to is None else 1
        pairs = conjunctions(bundle, whole, targets=targets, drivers=args.conjunctions, quiet=args.quiet)
    write_graph_files(
        graph,
        pruned,
        args.out,
        drawn_part=shown,
        pairs=pairs,
        slug="".join(graph.token_strings[1:8]),
        strict=args.strict_ids,
        hints=promoted_tokens(bundle, pruned),
        overwrite=args.overwrite,
    )
    if args.json:
        print(json.dumps(graph_json(graph, pruned, args.show, pairs), indent=2, ensure_ascii=False))
    elif not args.quiet:
        print_tables(*graph_tables(whole, args.show))
        if pairs is not None:
            print_tables(conjunction_table(graph, pairs, args.show))
        found = scores(graph)
        print(
            f"{len(graph.nodes):,} nodes, {len(graph.weight):,} edges; pruned to {len(pruned.nodes):,} and "
            f"{len(pruned.weight):,} · replacement {found.replacement:.3f}, completeness {found.completeness:.3f} · "
            f"derivative {args.derivative}"
        )
        print(f"written to {args.out}; see circuit.png there, or jaxcircuits view {args.out} for a page to explore")


def _measure(args: argparse.Namespace, bundle: "Bundle", settings: dict[str, Any]) -> None:
    from itertools import islice

    from jaxcircuits.bulk import read_prompts
    from jaxcircuits.bundle import shipped_bundle
    from jaxcircuits.graph import Question, faithfulness
    from jaxcircuits.report.graph_faithfulness import faithfulness_tables, write_faithfulness
    from jaxcircuits.report.tables import print_tables

    corpus = args.corpus or (None if args.prompt or args.prompt_ids else shipped_bundle() / "stories.txt")
    texts = args.prompt or ()
    prompts = read_prompts(bundle, texts=texts, ids_file=args.prompt_ids, corpus=corpus, truncate=True)
    read = prompts.each(lambda _: None)
    ids = [p.tokens for p in read] if corpus is None else [p.tokens[: args.length] for p in islice(read, args.prompts)]
    asked: list[dict[str, Any]] = [{"prompt": i} for i in ids]
    if args.difference is not None:
        asked = [{**a, "answer": args.difference[0], "foil": args.difference[1]} for a in asked]
    elif args.logits is not None:
        asked = [{**a, "answer": args.logits[0]} for a in asked]
    found = faithfulness(
        bundle,
        [Question(**a) for a in asked],
        metric="difference" if args.difference is not None else args.metric,
        fill=args.fill,
        units=args.units,
        methods=args.methods,
        seed=args.seed,
        quiet=args.quiet,
        **settings,
    )
    write_faithfulness(found, args.out, overwrite=args.overwrite)
    if args.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    elif not args.quiet:
        print_tables(*faithfulness_tables(found))
        print(f"written to {args.out}")
