"""The definition of an edge: the derivative of its target with respect to a factor on its source.

A prompt's forward pass is written as a function of one factor a node, all of them one: a factor on the token's
embedding, on a feature's activation, on an SAE's error, on a bias, on the constant of a GELU's line. At each SAE's hook
the value is put together anew from the factors of that SAE, so a later node depends on an earlier one through
everything between except other features: the edge is direct. With patterns, scales and GELU slopes held, the function
is linear in its factors, so the edges into a node add up to its value.

Source: "Circuit Tracing: Revealing Computational Graphs in Language Models" (Ameisen et al. 2025) has such edges for
transcoders; here SAEs sit on any hook, and biases and GELU constants are nodes, so that sums are complete.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.config import ModelConfig
from jaxcircuits.model import forward, hook_names, precedes, side_by_side
from jaxcircuits.model.freezing import gelu_of, linear_mlp
from jaxcircuits.sae import SAE, pre_activations
from jaxcircuits.types import ModelWeights

Edit = Callable[[Array], Array]


class Written(NamedTuple):
    """What makes up the value at the hook that one SAE writes; the parts add up to it."""

    features: Float[Array, "pos slot d_out"]  # activation × decoder row, of the features that are nodes; else zero
    rest: Float[Array, "pos d_out"]  # of the other features
    error: Float[Array, "pos d_out"]
    bias: Float[Array, "pos d_out"]


class Leaves(NamedTuple):
    """What a prompt is made of, each in its own units."""

    token: Float[Array, "pos d_model"]
    token_start: Float[Array, "pos d_model"]  # the embedding at factor 0
    position: Float[Array, "pos d_model"]
    written: tuple[Written, ...]  # one an SAE


class Factors(NamedTuple):
    """A factor on each node, all one; derivatives with respect to them are edges."""

    token: Float[Array, "pos"]
    position: Float[Array, "pos"]
    features: tuple[Float[Array, "pos slot"], ...]  # one an SAE, as the three below
    rest: tuple[Float[Array, "pos"], ...]
    error: tuple[Float[Array, "pos"], ...]
    b_dec: tuple[Float[Array, ""], ...]
    b_enc: tuple[Float[Array, ""], ...]
    gelu: tuple[Float[Array, "pos"], ...]  # one a block
    bias: dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class Wiring:
    """What is static about a graph: part of a compiled program's key.

    Attributes:
        cfg: The model.
        reads: The hook each SAE reads, in order.
        writes: The hook each one writes.
        gelu: What stands for a GELU where derivatives are frozen; `None` where they are not.
        held: Hooks of every block whose value is held besides, such as `"attn.hook_q"`: for the parts of edges.
    """

    cfg: ModelConfig
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    gelu: str | None
    held: tuple[str, ...] = ()

    def cuts(self, number: int | None) -> list[int]:
        """The SAEs whose features the SAE of this number sees as sources; of `None`, those that logits see.

        A transcoder reads what an SAE on the same hook leaves there.
        """
        if number is None:
            return list(range(len(self.writes)))
        read, transcodes = self.reads[number], self.writes[number] != self.reads[number]
        return [i for i, w in enumerate(self.writes) if precedes(self.cfg, w, read) or (transcodes and w == read)]


def ones(wiring: Wiring, leaves: Leaves, biases: tuple[str, ...]) -> Factors:
    """Every factor one."""
    dtype, pos = leaves.token.dtype, len(leaves.token)
    one, each = jnp.ones((), dtype), jnp.ones(pos, dtype)
    n = len(leaves.written)
    return Factors(
        token=each,
        position=each,
        features=tuple(jnp.ones(w.features.shape[:2], dtype) for w in leaves.written),
        rest=(each,) * n,
        error=(each,) * n,
        b_dec=(one,) * n,
        b_enc=(one,) * n,
        gelu=(each,) * wiring.cfg.n_layers,
        bias=dict.fromkeys(biases, one),
    )


def bias_names(params: ModelWeights) -> tuple[str, ...]:
    """The model's biases that are not zero, by the names of a bundle's tensors; norms' shifts are biases too."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if _is_bias(name) and jnp.any(leaf != 0):
            found.append(name)
    return tuple(found)


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "b" or last.startswith("b_")


def _scaled(params: ModelWeights, factors: Mapping[str, Array]) -> ModelWeights:
    """The weights with each named bias times its factor."""

    def one(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return factors[name] * leaf if name in factors else leaf

    return jax.tree_util.tree_map_with_path(one, params)


def written_value(written: Written, factors: Factors, sae: int) -> Float[Array, "pos d_out"]:
    """The value at the hook that an SAE writes, of its parts and their factors."""
    value = einsum(factors.features[sae], written.features, "pos slot, pos slot d_out -> pos d_out")
    value = value + factors.rest[sae][:, None] * written.rest + factors.error[sae][:, None] * written.error
    return value + factors.b_dec[sae] * written.bias


def _edits(wiring: Wiring, leaves: Leaves, factors: Factors, number: int | None) -> dict[str, Edit]:
    """Edits that make the forward pass, up to where an SAE reads or to the logits, a function of the factors."""
    names = hook_names(wiring.cfg)
    inside = names if number is None else names[: names.index(wiring.reads[number]) + 1]
    token = leaves.token_start + factors.token[:, None] * (leaves.token - leaves.token_start)
    edits: dict[str, Edit] = {
        "hook_embed": lambda value: token,
    }
    if not wiring.cfg.rotary:
        edits["hook_pos_embed"] = lambda value: factors.position[:, None] * leaves.position
    for sae in wiring.cuts(number):
        edits[wiring.writes[sae]] = partial(_put, written_value(leaves.written[sae], factors, sae))
    for layer in range(wiring.cfg.n_layers):
        mlp = gelu_of(layer, gated=wiring.cfg.gated)
        if wiring.gelu is not None and mlp.written in inside and mlp.written not in edits:
            line = linear_mlp(mlp, wiring.gelu, wiring.cfg.activation, factors.gelu[layer][:, None])
            edits |= {name: _then(edits.get(name), edit) for name, edit in line.items()}
    for name in inside:
        frozen = wiring.gelu is not None and name.endswith((".hook_pattern", ".hook_scale"))
        if frozen or name.split(".", 2)[-1] in wiring.held:
            edits[name] = _then(edits.get(name), jax.lax.stop_gradient)
    return edits


def _put(value: Array, arriving: Array) -> Array:
    return value.reshape(arriving.shape)


def _then(first: Edit | None, second: Edit) -> Edit:
    return second if first is None else lambda value: second(first(value))


def arriving(
    wiring: Wiring, params: ModelWeights, tokens: Int[Array, "pos"], leaves: Leaves, factors: Factors, sae: int
) -> Float[Array, "pos d_in"]:
    """The value that arrives where an SAE reads, as a function of the factors."""
    read = wiring.reads[sae]
    edits = _edits(wiring, leaves, factors, sae)
    _, acts = forward(_scaled(params, factors.bias), wiring.cfg, tokens, taps=(read,), edits=edits, logits_at=None)
    return side_by_side(read, acts[read])


def feature_value(
    wiring: Wiring,
    params: ModelWeights,
    sae: SAE,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    factors: Factors,
    number: int,
    pos: Int[Array, ""],
    feature: Int[Array, ""],
) -> Float[Array, ""]:
    """**The definition.** The pre-activation of one feature of the SAE of this number, as a function of the factors."""
    x = arriving(wiring, params, tokens, leaves, factors, number)[pos]
    weights, factor = sae.weights, factors.b_enc[number]
    one = weights._replace(
        W_enc=weights.W_enc[:, feature][:, None],
        b_enc=factor * weights.b_enc[feature][None],
        b_dec=factor * weights.b_dec,
    )
    return pre_activations(SAE(one, sae.cfg), x, hold_scale=wiring.gelu is not None)[0]


def logits_of(
    wiring: Wiring,
    params: ModelWeights,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    factors: Factors,
    pos: Int[Array, ""],
) -> Float[Array, "d_vocab"]:
    """**The definition.** The logits at a position, as a function of the factors; nodes are weighted sums of them."""
    edits = _edits(wiring, leaves, factors, None)
    logits, _ = forward(_scaled(params, factors.bias), wiring.cfg, tokens, edits=edits, logits_at=pos[None])
    assert logits is not None
    return logits[0]


Derivative = tuple[Float[Array, "target"], Factors]


@partial(jax.jit, static_argnames=("wiring", "number"))
def feature_edges(
    params: ModelWeights,
    sae: SAE,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    factors: Factors,
    pos: Int[Array, "target"],
    feature: Int[Array, "target"],
    *,
    wiring: Wiring,
    number: int,
) -> Derivative:
    """Pre-activations of features, and their derivatives with respect to every factor (fields `[target, ...]`)."""

    def value(factors, pos, feature):
        return feature_value(wiring, params, sae, tokens, leaves, factors, number, pos, feature)

    return jax.vmap(jax.value_and_grad(value), in_axes=(None, 0, 0))(factors, pos, feature)


@partial(jax.jit, static_argnames="wiring")
def logit_edges(
    params: ModelWeights,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    factors: Factors,
    pos: Int[Array, ""],
    directions: Float[Array, "target d_vocab"],
    *,
    wiring: Wiring,
) -> Derivative:
    """Weighted sums of logits, and their derivatives with respect to every factor (fields `[target, ...]`)."""

    def value(factors, direction):
        return logits_of(wiring, params, tokens, leaves, factors, pos) @ direction

    return jax.vmap(jax.value_and_grad(value), in_axes=(None, 0))(factors, directions)
