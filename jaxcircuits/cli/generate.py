"""`jaxcircuits generate`."""

import argparse
import json
import re
from typing import Any

from jaxcircuits.cli.common import add_command, common_options, count, named
from jaxcircuits.errors import InputError

PROMPT = "Once upon a time"


def add(commands: Any) -> None:
    """Adds the command."""
    sub = add_command(
        commands,
        "generate",
        run,
        "Continue a prompt, with SAEs spliced in, or features set, ablated, scaled or steered.",
        """
jaxcircuits generate --prompt "Once upon a time, there was a little"
jaxcircuits generate --prompt "Tom had" --splice all --temperature 0.8 --seed 1 --n 3
jaxcircuits generate --prompt "She found" --steer blocks.0.mlp.hook_post:60=5
jaxcircuits generate --prompt "She found" --ablate blocks.0.mlp.hook_post:60@1,2,6-""",
    )
    sub.add_argument("--bundle", type=named, metavar="DIR", help="a bundle (default: the weights that ship)")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--prompt", metavar="TEXT", help=f"what to continue; BOS is added (default: {PROMPT!r})")
    what.add_argument("--prompt-ids", metavar="FILE", help="JSON list of token ids, taken as they are")
    sub.add_argument(
        "--splice", nargs="+", default=["none"], metavar="none|all|NAME", help="SAEs put in place of their hook"
    )
    sub.add_argument("--no-splice-bos", action="store_true", help="leave BOS as it is where an SAE is spliced in")
    for kind, meaning in (
        ("set", "a feature's activation becomes VALUE"),
        ("scale", "it is multiplied by VALUE"),
        ("steer", "VALUE is added to it"),
        ("ablate", "it becomes zero"),
    ):
        value = "" if kind == "ablate" else "=VALUE"
        sub.add_argument(
            f"--{kind}",
            action="append",
            default=[],
            metavar=f"SAE:FEATURE{value}[@POSITIONS]",
            help=f"{meaning}, everywhere or at positions such as 3,5 or 4-8 or 6- (BOS is 0)",
        )
    sub.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest (default)")
    sub.add_argument("--max-tokens", type=count, metavar="N", help="most tokens to add (default 60, if they fit)")
    sub.add_argument("--n", type=count, default=1, metavar="N", help="texts (default 1)")
    sub.add_argument("--json", action="store_true", help="print JSON in place of text")
    common_options(sub, out=False, seed=True)


_CHANGE = re.compile(r"(?P<sae>.+):(?P<feature>\d+)(=(?P<value>[^@]+))?(@(?P<positions>[\d,\-]+))?")


def _changes(args: argparse.Namespace, n_ctx: int) -> list[Any]:
    """The changes that options ask for.

    Raises:
        InputError: One of them cannot be read.
    """
    from jaxcircuits.interventions import ablate, scale, set_feature, steer

    makers = {"set": set_feature, "scale": scale, "steer": steer}
    changes = []
    for kind in ("set", "scale", "steer", "ablate"):
        for text in getattr(args, kind):
            found = _CHANGE.fullmatch(text)
            if found is None or (found["value"] is None) != (kind == "ablate"):
                value = "" if kind == "ablate" else "=VALUE"
                raise InputError(f"--{kind}: expected SAE:FEATURE{value}, with @POSITIONS or without, got {text!r}.")
            positions = _positions(found["positions"], n_ctx, kind)
            number = int(found["feature"][:9])
            if kind == "ablate":
                changes.append(ablate(found["sae"], number, positions))
                continue
            try:
                value = float(found["value"])
            except ValueError:
                raise InputError(f"--{kind}: expected a number behind =, got {found['value']!r}.") from None
            changes.append(makers[kind](found["sae"], number, value, positions))
    return changes


def _positions(text: str | None, n_ctx: int, kind: str) -> list[int] | None:
    if text is None:
        return None
    positions: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first or "-" in last:
            raise InputError(f"--{kind}: expected positions such as 3,5 or 4-8 or 6-, got {text!r}.")
        end = int(last) if last else n_ctx - 1 if dash else int(first)
        positions += range(int(first), min(end, n_ctx - 1) + 1)
    if not positions:
        raise InputError(f"--{kind}: the positions {text!r} hold none of 0..{n_ctx - 1}.")
    return positions


def _spliced(names: list[str], saes: Any) -> list[str]:
    if names == ["none"]:
        return []
    return list(saes) if names == ["all"] else names


def run(args: argparse.Namespace) -> None:
    """Runs the command."""
    from jaxcircuits.bulk import read_prompts
    from jaxcircuits.bundle import load_bundle
    from jaxcircuits.generation import generate
    from jaxcircuits.report.tables import console

    bundle = load_bundle(args.bundle)
    text = PROMPT if args.prompt is None else args.prompt
    prompts = read_prompts(bundle, texts=[text], ids_file=args.prompt_ids).ids
    if len(prompts) > 1:
        raise InputError(f"{args.prompt_ids}: one prompt is continued, got {len(prompts)} lists of token ids.")
    (prompt,) = prompts
    rows = generate(
        bundle,
        prompt,
        n=args.n,
        max_tokens=min(60, bundle.cfg.n_ctx + 1 - len(prompt)) if args.max_tokens is None else args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        splice=_spliced(args.splice, bundle.saes),
        changes=_changes(args, bundle.cfg.n_ctx),
        splice_bos=not args.no_splice_bos,
        quiet=args.quiet,
    )
    texts = ["".join(bundle.token_strings(_inner(row, bundle.cfg.bos_token_id))) for row in rows]
    if args.json:
        found = [{"tokens": row.tolist(), "text": t} for row, t in zip(rows, texts, strict=True)]
        print(json.dumps({"prompt_tokens": len(prompt), "rows": found}, indent=2, ensure_ascii=False))
        return
    here = console()
    for number, generated in enumerate(texts):
        if number:
            here.rule()
        here.print(generated, markup=False, highlight=False, soft_wrap=True)


def _inner(row: Any, bos: int | None) -> Any:
    """A row without BOS before it and the end of text behind it."""
    start = int(bos is not None and row[0] == bos)
    return row[start : len(row) - int(bos is not None and len(row) > 1 and row[-1] == bos)]
