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
from jaxtyping import Array, Float

from jaxcircuits.types import AttentionWeights, MLPWeights, ModelWeights, NormWeights


def fold_layer_norm(params: ModelWeights) -> ModelWeights:
    """Moves the scale and shift of norms into the weights that read them, and those of layer norms are centred.

    A norm behind attention or MLP is read by the residual stream, and stays.
    """
    blocks = tuple(
        b._replace(ln1=None, attn=_fold_into_attention(b.ln1, b.attn), ln2=None, mlp=_fold_into_mlp(b.ln2, b.mlp))
        for b in params.blocks
    )
    if params.ln_final is None:
        return params._replace(blocks=blocks)
    shift = 0 if params.ln_final.b is None else params.ln_final.b @ params.W_U
    W_U = _folded(params.ln_final, params.W_U)
    return params._replace(blocks=blocks, ln_final=None, W_U=W_U, b_U=params.b_U + shift)


def _folded(ln: NormWeights, W: Float[Array, "... d_model width"]) -> Float[Array, "... d_model width"]:
    """A matrix that reads a norm, the norm's scale in it; what a layer norm takes off reaches it no more."""
    W = W * ln.w[:, None]
    return W if ln.b is None else W - W.mean(-2, keepdims=True)


def _fold_into_attention(ln: NormWeights | None, attn: AttentionWeights) -> AttentionWeights:
    if ln is None:
        return attn

    def fold(W, b):
        shift = 0 if ln.b is None else einsum(ln.b, W, "d_model, head d_model d_head -> head d_head")
        return _folded(ln, W), b + shift

    W_Q, b_Q = fold(attn.W_Q, attn.b_Q)
    W_K, b_K = fold(attn.W_K, attn.b_K)
    W_V, b_V = fold(attn.W_V, attn.b_V)
    return attn._replace(W_Q=W_Q, b_Q=b_Q, W_K=W_K, b_K=b_K, W_V=W_V, b_V=b_V)


def _fold_into_mlp(ln: NormWeights | None, mlp: MLPWeights) -> MLPWeights:
    if ln is None:
        return mlp
    W_gate = None if mlp.W_gate is None else _folded(ln, mlp.W_gate)
    shift = 0 if ln.b is None else ln.b @ mlp.W_in
    return mlp._replace(W_in=_folded(ln, mlp.W_in), b_in=mlp.b_in + shift, W_gate=W_gate)


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

    def folded(attn: AttentionWeights) -> AttentionWeights:
        b_V = jnp.repeat(attn.b_V, len(attn.W_O) // len(attn.b_V), axis=0)
        arriving = einsum(b_V, attn.W_O, "head d_head, head d_head d_model -> d_model")
        return attn._replace(b_O=attn.b_O + arriving, b_V=jnp.zeros_like(attn.b_V))

    return params._replace(blocks=tuple(b._replace(attn=folded(b.attn)) for b in params.blocks))


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
