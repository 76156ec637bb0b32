"""How wrong edges and activations become with the precision of matrix products, against float64.

    python scripts/precision.py [--bundle DIR] [--prompts 8] [--json FILE] [--markdown FILE]

CPUs compute every product in float32 whatever they are asked for. There each product's operands are rounded to the
mantissa of TF32 (10 bits) or bf16 (7 bits) and multiplied and added up in float32: rows that are labelled emulated. An
accelerator has rows that are measured, too.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rounding import rounded

from jaxcircuits import load_bundle, read_corpus
from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.problem import PRECISIONS, Problem, source_side, target_side
from jaxcircuits.attribution.selection import Sources
from jaxcircuits.attribution.structured import meet, pull, segment_of
from jaxcircuits.bundle import Bundle, shipped_bundle
from jaxcircuits.sae import SAE, encode

MANTISSA = {"tf32": 10, "bf16": 7}
"""Bits of an operand's mantissa that a product sees."""


class Listed(NamedTuple):
    """The pairs that are compared: the same ones in every precision."""

    target_pos: np.ndarray
    target_feature: np.ndarray
    sources: Sources


class Computed(NamedTuple):
    """What is compared."""

    source_acts: jax.Array
    target_acts: jax.Array
    gradients: jax.Array  # [target, source], of every position up to the target's


def computation(problem: Problem, listed: Listed) -> Callable[..., Computed]:
    """`compute`, but for what is given to it as arrays."""
    return partial(compute, problem, int(np.diff(listed.sources.starts).max()))


def compute(
    problem: Problem,
    per_position: int,
    params: Any,
    source: SAE,
    target: SAE,
    tokens: jax.Array,
    listed: Listed,
) -> Computed:
    """One sequence from token ids to edges, as the structured method computes them, tables included; pure."""
    arriving, h = source_side(problem, params, source, tokens)
    target_acts = encode(target, target_side(problem, params, h, tokens)[0])
    block = params.blocks[problem.target_block]
    E = source.weights.W_dec @ params.blocks[problem.target_block - 1].mlp.W_out
    W_heads = jnp.stack([W.swapaxes(1, 2) for W in (block.attn.W_V, block.attn.W_Q, block.attn.W_K)])
    segment = segment_of(problem, params, h, tokens)
    pos, feature, sources = listed
    # The slope of an activation at the point is the same in every precision: these targets are on.
    ones = jnp.ones(len(pos), h.dtype)
    pulled = pull(problem, block, target, target.weights.W_enc.T, segment, pos, feature, ones)
    parts, *_ = meet(
        problem,
        block,
        W_heads,
        E,
        segment,
        pulled,
        pos,
        sources,
        jnp.zeros((len(pos), 0, E.shape[1]), E.dtype),
        parts="none",
        all_positions=True,
        per_position=per_position,
        targets_at_once=1,
        sources_at_once=4096,
    )
    return Computed(encode(source, arriving), target_acts, parts[0])


def errors(bundle: Bundle, prompts: Sequence[np.ndarray], doubled: Bundle, device: str) -> list[dict[str, Any]]:
    """A row a precision: the largest relative error of edges, by target, and of activations, by array.

    Args:
        bundle: In float32.
        prompts: Token ids.
        doubled: The same weights in float64.
        device: The platform that computes.
    """
    pair = Engine(bundle, Settings(positions="all")).pair
    double = doubled.saes[pair.source_name], doubled.saes[pair.target_name]
    single = pair.source, pair.target
    # The precision that is asked of the device, and the mantissa that operands are rounded to.
    ways: dict[str, tuple[str, int | None]] = {"float32 (highest)": ("highest", None)}
    if device != "cpu":
        ways |= {f"{name}, measured": (name, None) for name in MANTISSA}
    ways |= {f"{name}, emulated": ("highest", bits) for name, bits in MANTISSA.items()}
    found: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in ways}
    edges = 0
    for tokens in prompts:
        listed = _listed(pair.problem, doubled, double, tokens)
        if not len(listed.target_pos) or not len(listed.sources.flat):
            continue
        run = computation(pair.problem, listed)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            of_double = listed._replace(sources=listed.sources._replace(act=listed.sources.act.astype(np.float64)))
            exact = jax.jit(run)(doubled.params, *double, tokens, of_double)
            exact = jax.tree.map(np.asarray, exact)
        edges += int((exact.gradients != 0).sum())
        for name, (precision, bits) in ways.items():
            with jax.default_matmul_precision(PRECISIONS[precision]):
                got = jax.jit(run if bits is None else rounded(run, bits))(bundle.params, *single, tokens, listed)
            found[name].append(_errors(jax.tree.map(lambda x: np.asarray(x, np.float64), got), exact))
    rows = []
    for name, of_prompts in found.items():
        by_target = np.concatenate([of_targets for of_targets, _ in of_prompts])
        acts = max(of_acts for _, of_acts in of_prompts)
        numbers = {"edges, largest": float(by_target.max()), "edges, median target": float(np.median(by_target))}
        counts = {"targets": len(by_target), "edges": edges}
        rows.append({"precision": name, **numbers, "activations, largest": acts, **counts})
    return rows


def _listed(problem: Problem, doubled: Bundle, saes: tuple[SAE, SAE], tokens: np.ndarray) -> Listed:
    """Active sources and targets in float64, BOS left out."""
    source, target = saes
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        ids = jnp.asarray(tokens)
        arriving, h = source_side(problem, doubled.params, source, ids)
        acts = np.array(encode(source, arriving))
        target_acts = np.array(encode(target, target_side(problem, doubled.params, h, ids)[0]))
    if tokens[0] == doubled.cfg.bos_token_id:
        acts[0] = target_acts[0] = 0
    target_pos, target_feature = (x.astype(np.int32) for x in np.nonzero(target_acts > 0))
    flat = np.flatnonzero(acts > 0).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum((acts > 0).sum(1))]).astype(np.int32)
    sources = Sources(flat, acts.reshape(-1)[flat].astype(np.float32), starts, np.asarray(len(flat), np.int32))  # pyright: ignore
    return Listed(target_pos, target_feature, sources)


def _errors(got: Computed, exact: Computed) -> tuple[np.ndarray, float]:
    """Of each target's edges, relative to the largest of them, and of activations, relative to their largest."""
    scale = np.abs(exact.gradients).max(1)
    by_target = np.abs(got.gradients - exact.gradients).max(1)[scale > 0] / scale[scale > 0]
    acts = (np.abs(g - e).max() / np.abs(e).max() for g, e in zip(got[:2], exact[:2], strict=True))
    return by_target, float(max(acts))


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    header = list(rows[0])
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in rows:
        lines.append(f"| {' | '.join(f'{v:.1e}' if isinstance(v, float) else str(v) for v in row.values())} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="default: the shipped one")
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="default: the shipped stories")
    parser.add_argument("--prompts", type=int, default=8, metavar="N")
    parser.add_argument("--tokens", type=int, default=96, metavar="N", help="of a prompt, at most")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    bundle = load_bundle(args.bundle)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        # The processed weights of float32, so that processing is not what differs.
        params, saes = jax.tree.map(lambda w: jnp.asarray(np.asarray(w), jnp.float64), (bundle.params, bundle.saes))
        doubled = Bundle(bundle.cfg, params, saes)
    texts = list(read_corpus(args.corpus or shipped_bundle() / "stories.txt"))[: args.prompts]
    prompts = [bundle.tokenize(text)[: args.tokens] for text in texts]
    device = jax.devices()[0]
    rows = errors(bundle, prompts, doubled, device.platform)
    table = to_markdown(rows)
    print(f"{device.device_kind}, {len(prompts)} prompts, edges of all positions\n\n{table}")
    if args.markdown:
        args.markdown.write_text(table)
    if args.json:
        args.json.write_text(json.dumps({"device": device.device_kind, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
