"""The command line: reads options, calls the library, prints for people. One sentence and exit code 2 for bad input."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from jaxcircuits.errors import InputError

Command = Callable[[argparse.Namespace], None]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 2 bad input, 130 interrupted, 141 nobody reads on."""
    args = parser().parse_args(argv)
    _cache_compilations()
    try:
        args.run(args)
        sys.stdout.flush()  # here, where a full disk or a closed pipe still gets its answer
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.filename or 'the output'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _fail(sentence: str) -> int:
    print(f"jaxcircuits: error: {sentence}", file=sys.stderr)
    return 2


def _cache_compilations() -> None:
    """Keeps compiled programs on disk, so that the second start is quick. `JAX_COMPILATION_CACHE_DIR` moves it."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "jaxcircuits" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="jaxcircuits", description="Which SAE features drive which: exactly, for every active feature.")
    top.add_argument("--version", action="version", version=f"jaxcircuits {version('jaxcircuits')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (_attribute, _study, _convert, _train, _info):
        add(commands)
    return top


def _add(commands: Any, name: str, run: Command, summary: str, examples: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=run)
    return sub


def _common(sub: argparse.ArgumentParser, *, out: bool = True, seed: bool = False) -> None:
    sub.add_argument("--quiet", action="store_true", help="no progress bar, no tables")
    if out:
        sub.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    if seed:
        sub.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")


def _named(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a name, got an empty one")
    return text


def _ends(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--bundle", type=_named, metavar="DIR", help="a bundle (default: the weights that ship)")
    sub.add_argument("--source-sae", metavar="NAME", help="source SAE (default: the earliest)")
    sub.add_argument("--target-sae", metavar="NAME", help="target SAE (default: the latest)")


# --- attribute ------------------------------------------------------------------------------------


def _attribute(commands: Any) -> None:
    from jaxcircuits.attribution import problem as p

    sub = _add(
        commands,
        "attribute",
        _run_attribute,
        "Attribute every active target feature to every active source feature, and write a run directory.",
        """
jaxcircuits attribute --prompt "Once upon a time there was a little dog."
jaxcircuits attribute --prompt "The cat sat." --positions all --top-k 10 --out runs/cat
jaxcircuits attribute --prompt "The cat sat." --derivative frozen --parts kinds --stages
jaxcircuits attribute --corpus stories.txt --positions all --min-attribution 0.01 --memory 8GB
jaxcircuits attribute --prompt "The cat sat." --targets last:880
jaxcircuits attribute --corpus stories.txt --truncate --out runs/stories
jaxcircuits attribute                     # the shipped weights and their stories""",
    )
    _ends(sub)
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="one or more prompts; BOS is added")
    what.add_argument(
        "--prompt-ids", metavar="FILE", help="JSON list of token ids, or list of lists, taken as they are"
    )
    what.add_argument("--corpus", metavar="FILE", help=".txt, .jsonl or .parquet with one prompt a record")
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
    sub.add_argument("--memory", metavar="SIZE", help="to plan for, such as 8GB (default: what the device has)")
    sub.add_argument("--truncate", action="store_true", help="cut prompts that are longer than the context")
    sub.add_argument("--skip-bad", action="store_true", help="leave out prompts that cannot be used, and say which")
    sub.add_argument(
        "--out", type=_named, metavar="DIR", help="run directory (default: the next free runs/attribute-NNN)"
    )
    sub.add_argument("--show", type=_count, default=15, metavar="N", help="edges to print (default 15)")
    _common(sub)


def _target(text: str) -> tuple[int, int]:
    pos, _, feature = text.rpartition(":")
    pos = "-1" if pos == "last" else pos
    if not (pos.removeprefix("-") + feature).isdecimal() or not feature or pos in ("", "-"):
        raise argparse.ArgumentTypeError(f"expected POSITION:FEATURE such as 9:880 or last:880, got {text!r}")
    return int(pos), int(feature)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number of 0 or more, got {text!r}")
    return int(text)


def _threshold(text: str) -> float | str:
    if text == "all":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or 'all', got {text!r}") from None


def _run_attribute(args: argparse.Namespace) -> None:
    from jaxcircuits.attribution import Settings
    from jaxcircuits.attribution.plan import parse_memory
    from jaxcircuits.bulk.runner import attribute_to_run, next_free, read_prompts
    from jaxcircuits.bundle import load_bundle, shipped_bundle
    from jaxcircuits.files import check_free
    from jaxcircuits.report.tables import edge_table, print_tables

    out = Path(args.out) if args.out else next_free("runs", "attribute")
    check_free(out, args.overwrite)
    settings = Settings(
        source=args.source_sae,
        target=args.target_sae,
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
    bundle = load_bundle(args.bundle)
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
    run, strongest = attribute_to_run(
        bundle,
        settings,
        prompts,
        out,
        targets=args.targets,
        memory=None if args.memory is None else parse_memory(args.memory),
        overwrite=args.overwrite,
        quiet=args.quiet,
        keep=args.show,
    )
    edges = sum(part["edges"]["rows"] for part in run.record["parts"])
    targets = sum(part["targets"]["rows"] for part in run.record["parts"])
    for line in prompts.skipped:
        _warn(f"left out: {line}")
    if not edges:
        _warn("no pair of active features was found, so the run has no edges; lower the thresholds or use other text.")
    if not args.quiet:
        if edges:
            print_tables(edge_table(bundle, prompts.ids, strongest))
        used = run.record["settings"]
        print(
            f"{edges:,} edges into {targets:,} targets of {len(prompts.ids):,} prompts · "
            f"{used['source']} → {used['target']} · method {used['method']} · derivative {used['derivative']}"
        )
        print(f"written to {out}")


def _warn(sentence: str) -> None:
    print(f"jaxcircuits: warning: {sentence}", file=sys.stderr)


# --- study ----------------------------------------------------------------------------------------

PROMPT = "Once upon a time, there was a little girl named Lily. She was about"


def _study(commands: Any) -> None:
    sub = _add(
        commands,
        "study",
        _run_study,
        "The original notebook on any bundle: one feature's gradients against cosines, then a prompt's and a story's.",
        """
jaxcircuits study --out runs/study
jaxcircuits study --bundle original --prompt "He had to help Daisy. He was about" --feature 880 --out runs/daisy
jaxcircuits study --prompt-ids prompt.json --story-ids story.json --out runs/ids""",
    )
    _ends(sub)
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
        "--out", required=True, type=_named, metavar="DIR", help="where study.npz, study.json and the figures go"
    )
    _common(sub, seed=True)


def _run_study(args: argparse.Namespace) -> None:
    from jaxcircuits.bulk.runner import read_prompts
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
    tokens = []
    for what, text, ids in (("prompt", args.prompt, args.prompt_ids), ("story", story, args.story_ids)):
        try:
            read = read_prompts(
                bundle, texts=[PROMPT if text is None else text], ids_file=ids, truncate=args.truncate
            ).ids
        except InputError as error:
            raise InputError(f"the study's {what}: {error}") from None
        if len(read) > 1:
            raise InputError(f"{ids}: the study takes one {what}, got {len(read)} lists of token ids.")
        tokens.append(read[0])
    study = run_study(
        bundle, *tokens, feature=args.feature, source=args.source_sae, target=args.target_sae, seed=args.seed
    )
    write_study(study, args.out, mark=args.mark, overwrite=args.overwrite)
    for sentence in study.warnings:
        _warn(sentence)
    if not args.quiet:
        print_tables(*summary_tables(study))
        print(f"written to {args.out}")


# --- convert --------------------------------------------------------------------------------------


def _convert(commands: Any) -> None:
    sub = _add(
        commands,
        "convert",
        _run_convert,
        "Make a bundle from a Hugging Face GPT-Neo and SAEs in the original study's or the hub-mixin layout.",
        """
jaxcircuits convert --model ./TinyStories-2Layers-33M --sae 18_morning_sun.pt --sae 8_deep_brook.pt --out original
jaxcircuits convert --model roneneldan/TinyStories-2Layers-33M --sae 18_morning_sun.pt --out original
jaxcircuits convert --model ./gpt-neo --sae lovish/SAE-tiny-stories-2L-33M-L1-291 --dtype float16 --out bundle""",
    )
    sub.add_argument("--model", required=True, metavar="SRC", help="directory, or hub id as owner/name[@revision]")
    sub.add_argument(
        "--sae", action="append", default=[], metavar="SRC", help=".pt with its .json, directory, or hub id"
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
    sub.add_argument("--out", required=True, type=_named, metavar="DIR", help="the bundle to make")
    _common(sub)


def _run_convert(args: argparse.Namespace) -> None:
    from jaxcircuits.convert import convert

    convert(
        args.model,
        args.sae,
        args.out,
        revision=args.revision,
        ignore_config_fields=args.ignore_config_field,
        dtype=args.dtype,
        overwrite=args.overwrite,
    )
    if not args.quiet:
        _run_info(argparse.Namespace(bundle=args.out))


# --- info -----------------------------------------------------------------------------------------


def _info(commands: Any) -> None:
    sub = _add(
        commands,
        "info",
        _run_info,
        "Show what a bundle holds, where it came from, and what it will run on.",
        "jaxcircuits info\njaxcircuits info --bundle original",
    )
    sub.add_argument("--bundle", type=_named, metavar="DIR", help="a bundle (default: the weights that ship)")


def _run_info(args: argparse.Namespace) -> None:
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.report.tables import bundle_tables, print_tables

    print_tables(*bundle_tables(load_bundle(args.bundle, processed=False)))


# --- train ----------------------------------------------------------------------------------------


def _train(commands: Any) -> None:
    from jaxcircuits.training.settings import LMTraining, SAETraining, meanings

    sub = commands.add_parser("train", help="Train a language model or its SAEs.", description="Train.")
    kinds = sub.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=_Parser)
    lm = _add(
        kinds,
        "lm",
        _run_train_lm,
        "Train a byte-level BPE and a small GPT-Neo on a text; goes on where a run at --out stopped.",
        """
jaxcircuits train lm --corpus train.txt --out runs/lm
jaxcircuits train lm --corpus hub:roneneldan/TinyStories --d-model 256 --n-heads 8 --out runs/lm""",
    )
    sae = _add(
        kinds,
        "sae",
        _run_train_sae,
        "Train one SAE on each of some hook points of a bundle's model; goes on where a run at --out stopped.",
        """
jaxcircuits train sae --bundle runs/lm/bundle --corpus train.txt --out runs/sae
jaxcircuits train sae --bundle runs/lm/bundle --corpus train.txt --hook blocks.0.mlp.hook_post --out runs/sae0""",
    )
    sae.add_argument("--bundle", required=True, metavar="DIR", help="the bundle whose model is read")
    sae.add_argument("--hook", nargs="+", metavar="NAME", help="hook points (default: every mlp.hook_post)")
    for one, settings in ((lm, LMTraining), (sae, SAETraining)):
        one.add_argument("--corpus", required=True, metavar="FILE", help="text file, or hub:owner/name")
        one.add_argument(
            "--out", required=True, type=_named, metavar="DIR", help="run directory; the bundle goes to DIR/bundle"
        )
        _common(one)
        meaning = meanings(settings)
        for field in fields(settings):
            assert field.default is not MISSING
            one.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                metavar="X",
                help=f"{meaning.get(field.name, '').replace('%', '%%')} (default {field.default})",
            )


def _settings(kind: Any, args: argparse.Namespace) -> Any:
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def _run_train_lm(args: argparse.Namespace) -> None:
    from jaxcircuits.training.runs import run_lm
    from jaxcircuits.training.settings import LMTraining

    run_lm(args.corpus, _settings(LMTraining, args), args.out, overwrite=args.overwrite, quiet=args.quiet)
    if not args.quiet:
        print(f"written to {Path(args.out) / 'bundle'}")


def _run_train_sae(args: argparse.Namespace) -> None:
    from jaxcircuits.training.runs import run_sae
    from jaxcircuits.training.settings import SAETraining

    settings = _settings(SAETraining, args)
    run_sae(args.bundle, args.hook, args.corpus, settings, args.out, overwrite=args.overwrite, quiet=args.quiet)
    if not args.quiet:
        print(f"written to {Path(args.out) / 'bundle'}")
