"""Weight processing as in TransformerLens: other weights, the same function.

Log-probabilities and every `mlp.hook_post` stay what they were; what reads or writes the residual stream
becomes free of the directions that a layer norm or a softmax ignores, so that products of weights mean something.

Source: TransformerLens 3.9, `ProcessWeights`; each step checked against it key by key.
"""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
from einops import einsum

from jaxcircuits.types import AttentionWeights, BlockWeights, MLPWeights, ModelWeights, NormWeights


def fold_layer_norm(params: ModelWeights) -> ModelWeights:
    """Moves every norm's scale and shift into the weights that read it, and centres those over `d_model`."""
    blocks = tuple(
        BlockWeights(None, _fold_into_attention(b.ln1, b.attn), None, _fold_into_mlp(b.ln2, b.mlp))
        for b in params.blocks
    )
    if params.ln_final is None:
        return params._replace(blocks=blocks)
    W_U = params.W_U * params.ln_final.w[:, None]
    return params._replace(
        blocks=blocks,
        ln_final=None,
        W_U=W_U - W_U.mean(0, keepdims=True),
        b_U=params.b_U + params.ln_final.b @ params.W_U,
    )


def _fold_into_attention(ln: NormWeights | None, attn: AttentionWeights) -> AttentionWeights:
    if ln is None:
        return attn

    def fold(W, b):
        shift = einsum(ln.b, W, "d_model, head d_model d_head -> head d_head")
        W = W * ln.w[:, None]
        return W - W.mean(1, keepdims=True), b + shift

    W_Q, b_Q = fold(attn.W_Q, attn.b_Q)
    W_K, b_K = fold(attn.W_K, attn.b_K)
    W_V, b_V = fold(attn.W_V, attn.b_V)
    return attn._replace(W_Q=W_Q, b_Q=b_Q, W_K=W_K, b_K=b_K, W_V=W_V, b_V=b_V)


def _fold_into_mlp(ln: NormWeights | None, mlp: MLPWeights) -> MLPWeights:
    if ln is None:
        return mlp
    W_in = mlp.W_in * ln.w[:, None]
    return mlp._replace(W_in=W_in - W_in.mean(0, keepdims=True), b_in=mlp.b_in + ln.b @ mlp.W_in)


def center_writing_weights(params: ModelWeights) -> ModelWeights:
    """Removes from whatever writes to the residual stream its mean over `d_model`, which norms subtract anyway."""

    def center(x):
        return x - x.mean(-1, keepdims=True)

    blocks = tuple(
        b._replace(
            attn=b.attn._replace(W_O=center(b.attn.W_O), b_O=center(b.attn.b_O)),
            mlp=b.mlp._replace(W_out=center(b.mlp.W_out), b_out=center(b.mlp.b_out)),
        )
        for b in params.blocks
    )
    W_pos = None if params.W_pos is None else center(params.W_pos)
    return params._replace(W_E=center(params.W_E), W_pos=W_pos, blocks=blocks)


def center_unembed(params: ModelWeights) -> ModelWeights:
    """Removes from the unembedding its mean over the vocabulary, which the softmax ignores."""
    return params._replace(W_U=params.W_U - params.W_U.mean(-1, keepdims=True), b_U=params.b_U - params.b_U.mean())


def fold_value_biases(params: ModelWeights) -> ModelWeights:
    """Moves `b_V` into `b_O`: a pattern's rows sum to one, so a value bias always arrives in full."""
    blocks = tuple(
        b._replace(
            attn=b.attn._replace(
                b_O=b.attn.b_O + einsum(b.attn.b_V, b.attn.W_O, "head d_head, head d_head d_model -> d_model"),
                b_V=jnp.zeros_like(b.attn.b_V),
            )
        )
        for b in params.blocks
    )
    return params._replace(blocks=blocks)


_STEPS: dict[str, Callable[[ModelWeights], ModelWeights]] = {
    step.__name__: step for step in (fold_layer_norm, center_writing_weights, center_unembed, fold_value_biases)
}


def process_weights(params: ModelWeights, steps: Iterable[str]) -> ModelWeights:
    """Applies processing steps by name, in the order given.

    >>> from jaxcircuits import load_bundle
    >>> load_bundle().params.ln_final is None  # the shipped bundle asks for all four steps
    True
    """
    steps = tuple(steps)
    with jax.default_matmul_precision("highest"):
        return _processed(params, steps) if steps else params


@partial(jax.jit, static_argnames="steps")
def _processed(params: ModelWeights, steps: tuple[str, ...]) -> ModelWeights:
    """One program in place of one an operation and shape, which a GPU takes long to compile."""
    for step in steps:
        params = _STEPS[step](params)
    return params
