"""`jaxcircuits attribute`."""

import argparse
from typing import TYPE_CHECKING, Any

from jaxcircuits.cli.common import add_command, common_options, count, end_options, named, warn
from jaxcircuits.errors import InputError

if TYPE_CHECKING:
    from jaxcircuits.attribution.edges import Columns
    from jaxcircuits.bulk import Run
    from jaxcircuits.bundle import Bundle

SHOWN = 10
"""Prompts left out that are said one by one."""


def add(commands: Any) -> None:
    """Adds the command."""
    from jaxcircuits.attribution import problem as p

    sub = add_command(
        commands,
        "attribute",
        run,
        "Attribute every active target feature to every active source feature, and write a run directory.",
        """
jaxcircuits attribute --prompt "Once upon a time there was a little dog."
jaxcircuits attribute --prompt "The cat sat." --positions all --top-k 10 --out runs/cat
jaxcircuits attribute --prompt "The cat sat." --derivative frozen --parts kinds --stages
jaxcircuits attribute --corpus stories.txt --positions all --min-attribution 0.01 --memory 8GB
jaxcircuits attribute --prompt "The cat sat." --targets last:880
jaxcircuits attribute --corpus stories.txt --truncate --out runs/stories    # once more to go on where it ended
jaxcircuits attribute --corpus stories.txt --edges none --activations
jaxcircuits attribute --bundle gpt2 --prompt "The cat sat." --pairs all --through direct    # of SAEs, each a run
jaxcircuits attribute --repeat runs/stories/run.json    # once more, and are the bytes the same?
jaxcircuits attribute                     # the shipped weights and their stories""",
    )
    end_options(sub)
    sub.add_argument(
        "--pairs",
        nargs="+",
        metavar="adjacent|all|SOURCE,TARGET",
        help="many pairs of SAEs, each into a run directory of its own in --out",
    )
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="one or more prompts; BOS is added")
    what.add_argument(
        "--prompt-ids", metavar="FILE", help="JSON list of token ids, or list of lists, taken as they are"
    )
    what.add_argument(
        "--corpus", metavar="FILE", help=".txt, .jsonl or .parquet with one prompt a record; of any size, or a URL"
    )
    what.add_argument(
        "--repeat",
        metavar="FILE",
        help="the run of this run.json once more, all as it was; exit code 1 if bytes differ",
    )
    sub.add_argument(
        "--targets", nargs="+", action="extend", type=_target, metavar="POS:FEATURE", help="only these; POS may be last"
    )
    sub.add_argument("--positions", choices=p.POSITIONS, default="same", help="where sources may be (default same)")
    sub.add_argument("--method", choices=p.METHODS, default="auto", help="how to compute (default auto)")
    sub.add_argument("--derivative", choices=p.DERIVATIVES, default="exact", help="what is differentiated")
    sub.add_argument("--gelu", choices=p.GELUS, default="tangent", help="what stands for a GELU where frozen")
    sub.add_argument("--through", choices=p.THROUGH, default="total", help="direct: not through other SAEs' hooks")
    sub.add_argument("--points", type=int, default=32, metavar="N", help="of the integrated derivative (default 32)")
    sub.add_argument("--baseline", choices=p.BASELINES, default="zero", help="where its path begins (default zero)")
    sub.add_argument(
        "--splice", choices=p.SPLICES, default="none", help="SAEs put in place of their hook (default none)"
    )
    sub.add_argument("--target-quantity", choices=p.QUANTITIES, default="activation", help="of the target feature")
    sub.add_argument("--source-basis", choices=p.BASES, default="features", help="SAE features, or the hook's neurons")
    sub.add_argument(
        "--source-threshold", type=_threshold, default=0.0, metavar="X|all", help="strictly above (default 0)"
    )
    sub.add_argument("--target-threshold", type=float, default=0.0, metavar="X", help="strictly above (default 0)")
    sub.add_argument("--top-k", type=int, metavar="N", help="keep a target's N largest |attribution| (default: all)")
    sub.add_argument("--min-attribution", type=float, metavar="X", help="keep |attribution| strictly above")
    sub.add_argument(
        "--parts", choices=p.PARTS, default="none", help="columns for residual stream, value, query, key; or by head"
    )
    sub.add_argument("--stages", action="store_true", help="columns on the way from cosine to gradient")
    sub.add_argument(
        "--completeness",
        action=argparse.BooleanOptionalAction,
        help="what the edges leave out, by kind (default: where it adds up to the target)",
    )
    sub.add_argument("--include-bos", action="store_true", help="let BOS be source and target")
    sub.add_argument("--no-splice-bos", action="store_true", help="leave BOS as it is where an SAE is spliced in")
    sub.add_argument(
        "--precision", choices=tuple(p.PRECISIONS), default="highest", help="of matrix products (a CPU has one)"
    )
    sub.add_argument("--memory", metavar="SIZE", help="to plan for, such as 8GB (default: what a device has)")
    sub.add_argument("--edges", choices=("all", "none"), default="all", help="none: keep statistics and targets only")
    sub.add_argument("--activations", action="store_true", help="keep the active features of both SAEs")
    sub.add_argument(
        "--statistics",
        action=argparse.BooleanOptionalAction,
        help="of the edges of each pair of features (default: of a corpus)",
    )
    sub.add_argument("--truncate", action="store_true", help="cut prompts that are longer than the context")
    sub.add_argument("--skip-bad", action="store_true", help="leave out prompts that cannot be used, and say which")
    sub.add_argument(
        "--out", type=named, metavar="DIR", help="run directory or its URL (default: the next free runs/attribute-NNN)"
    )
    _machine_options(sub)
    sub.add_argument("--show", type=count, default=15, metavar="N", help="edges to print (default 15)")
    common_options(sub)
    sub.set_defaults(defaults=vars(sub.parse_args([])))


def _machine_options(sub: argparse.ArgumentParser) -> None:
    machines = sub.add_argument_group("several devices, several machines")
    machines.add_argument(
        "--mesh", type=_mesh, metavar="DATAxMODEL", help="of this process's devices (default: all along the prompts)"
    )
    machines.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, the same in every process")
    machines.add_argument("--num-processes", type=count, metavar="N", help="how many processes there are")
    machines.add_argument("--process-id", type=count, metavar="I", help="which one this is, from 0")
    machines.add_argument(
        "--distributed", action="store_true", help="JAX finds the other processes by itself: TPU pods, Slurm"
    )


def _mesh(text: str) -> tuple[int, int]:
    data, _, model = text.partition("x")
    if not (data.isdecimal() and model.isdecimal()) or 0 in (int(data), int(model)):
        raise argparse.ArgumentTypeError(f"expected two numbers of devices such as 4x2, got {text!r}")
    return int(data), int(model)


def _target(text: str) -> tuple[int, int]:
    pos, _, feature = text.rpartition(":")
    pos = "-1" if pos == "last" else pos
    if not (pos.removeprefix("-") + feature).isdecimal() or not feature or pos in ("", "-"):
        raise argparse.ArgumentTypeError(f"expected POSITION:FEATURE such as 9:880 or last:880, got {text!r}")
    return int(pos), int(feature)


def _threshold(text: str) -> float | str:
    if text == "all":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or 'all', got {text!r}") from None


WITH_REPEAT = ("repeat", "bundle", "out", "overwrite", "quiet", "show", "mesh", "coordinator", "num_processes")
WITH_REPEAT += ("process_id", "distributed")
"""Options that a repeated run takes; all others are those of the run."""


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from jaxcircuits.bulk import processes
    from jaxcircuits.bulk.runner import next_free
    from jaxcircuits.bundle import load_bundle

    processes.join(args.coordinator, args.num_processes, args.process_id, found=args.distributed)
    out = args.out or str(next_free("runs", "attribute"))
    first = processes.is_first()
    options = {"overwrite": args.overwrite, "quiet": args.quiet, "keep": args.show if first and not args.quiet else 0}
    options["say"] = _silent if args.quiet or not first else print
    if args.repeat is not None:
        return _repeat(args, out, options)
    bundle = load_bundle(args.bundle)
    for source, target, where in _pairs(args, bundle, out):
        done, strongest = _attribute(args, bundle, source, target, where, options)
        if first:
            _report(bundle, done, strongest, where, quiet=args.quiet)
    return 0


def _pairs(args: argparse.Namespace, bundle: "Bundle", out: str) -> list[tuple[str | None, str | None, str]]:
    """Names of source and target SAE, and where their run goes."""
    from jaxcircuits.attribution.pairs import PAIRS, pairs_of

    if args.pairs is None:
        return [(args.source_sae, args.target_sae, out)]
    for name in ("source_sae", "target_sae", "targets"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is of one pair of SAEs; leave it or --pairs out.")
    pairs = args.pairs[0] if len(args.pairs) == 1 and args.pairs[0] in PAIRS else [_pair(text) for text in args.pairs]
    return [(source, target, f"{out}/{source}--{target}") for source, target in pairs_of(bundle, pairs)]


def _pair(text: str) -> tuple[str, str]:
    source, _, target = text.partition(",")
    if not source or not target or "," in target:
        raise InputError(f"--pairs must be adjacent, all, or pairs of names such as SOURCE,TARGET, got {text!r}.")
    return source, target


def _attribute(
    args: argparse.Namespace,
    bundle: "Bundle",
    source: str | None,
    target: str | None,
    out: str,
    options: dict[str, Any],
) -> "tuple[Run, Columns]":
    from jaxcircuits.attribution import Settings
    from jaxcircuits.attribution.plan import parse_memory
    from jaxcircuits.bulk import attribute_to_run, read_prompts
    from jaxcircuits.bundle import shipped_bundle
    from jaxcircuits.mesh import make_mesh

    settings = Settings(
        source=source,
        target=target,
        positions=args.positions,
        method=args.method,
        derivative=args.derivative,
        gelu=args.gelu,
        through=args.through,
        points=args.points,
        baseline=args.baseline,
        splice=args.splice,
        target_quantity=args.target_quantity,
        source_basis=args.source_basis,
        source_threshold=args.source_threshold,
        target_threshold=args.target_threshold,
        include_bos=args.include_bos,
        splice_bos=not args.no_splice_bos,
        top_k=args.top_k,
        min_attribution=args.min_attribution,
        parts=args.parts,
        stages=args.stages,
        completeness=args.completeness,
        precision=args.precision,
    )
    corpus = args.corpus
    if not (args.prompt or args.prompt_ids or corpus):
        corpus = shipped_bundle() / "stories.txt"
    prompts = read_prompts(
        bundle,
        texts=args.prompt or (),
        ids_file=args.prompt_ids,
        corpus=corpus,
        truncate=args.truncate,
        skip_bad=args.skip_bad,
    )
    return attribute_to_run(
        bundle,
        settings,
        prompts,
        out,
        targets=args.targets,
        memory=None if args.memory is None else parse_memory(args.memory),
        edges=args.edges == "all",
        activations=args.activations,
        statistics=_statistics(args, of_corpus=corpus is not None),
        mesh=make_mesh(*(args.mesh or ())),
        **options,
    )


def _repeat(args: argparse.Namespace, out: str, options: dict[str, Any]) -> int:
    """Repeats a run and says whether its bytes came out again: 0 if so, else 1."""
    from jaxcircuits.bulk import processes, repeat_run

    for name, default in args.defaults.items():
        if name not in WITH_REPEAT and getattr(args, name) != default:
            raise InputError(f"--repeat takes everything from the run; leave --{name.replace('_', '-')} out.")
    tell = warn if processes.is_first() else _silent
    repeated = repeat_run(args.repeat, out, bundle=args.bundle, mesh=args.mesh, warn=tell, **options)
    if processes.is_first():
        _report(repeated.bundle, repeated.run, repeated.strongest, out, quiet=args.quiet)
        n, different = repeated.files, repeated.different
        if different:
            some = ", ".join(different[:3]) + ", …" * (len(different) > 3)
            print(f"different: {len(different)} of {n} files are not those of {args.repeat}: {some}")
        else:
            print(f"equal: all {n} files have the bytes that {args.repeat} records")
    return int(bool(repeated.different))


def _report(bundle: "Bundle", run: "Run", strongest: "Columns", out: str, *, quiet: bool) -> None:
    """What a run left out, its strongest edges, and where it is."""
    from jaxcircuits.report.tables import edge_table, print_tables

    skipped, more = run.record["inputs"]["skipped"], run.record["inputs"]["n_skipped"] - SHOWN
    for line in skipped[:SHOWN]:
        warn(f"left out: {line}")
    if more > 0:
        warn(f"left out: {more:,} more; see inputs in {out}/run.json.")
    edges, kept = run.rows("edges"), "edges" in run.record["kept"]
    if kept and not edges:
        warn("no pair of active features was found, so the run has no edges; lower the thresholds or use other text.")
    if quiet:
        return
    if edges:
        print_tables(edge_table(bundle, run.tokens, strongest))
    used = run.record["settings"]
    counted = f"{edges:,} edges into {run.rows('targets'):,} targets of " if kept else ""
    print(
        f"{counted}{run.record['prompts']:,} prompts · "
        f"{used['source']} → {used['target']} · method {used['method']} · derivative {used['derivative']}"
    )
    print(f"written to {out}")


def _silent(_: str) -> None:
    pass


def _statistics(args: argparse.Namespace, *, of_corpus: bool) -> bool:
    """Whether to sum up edges; by default for a corpus of which every active feature counts."""
    if args.statistics is not None:
        return args.statistics
    return of_corpus and args.targets is None and args.source_threshold != "all"
