"""What a target is made of besides its listed edges, by kind: the completeness columns of the targets table.

A change where sources enter the residual stream, `x [pos, d_model]`, moves a target by `sum_pos (dtarget / dx) . x`.
The fields that matter are few (all features, the SAE's error, its bias ...), so they are pushed forward once a
sequence, and a target takes one dot product with each. The method `reference` takes the same sums of its own gradients.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import einsum
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.between import resid_mid
from jaxcircuits.attribution.frozen import Scales, ones
from jaxcircuits.attribution.problem import Problem
from jaxcircuits.attribution.reference import scale_gradients
from jaxcircuits.attribution.structured import Pulled, Segment
from jaxcircuits.sae import SAE
from jaxcircuits.sae.normalization import Norm
from jaxcircuits.types import BlockWeights


def source_fields(
    source: SAE,
    directions: Float[Array, "d_sae d_in"],
    norm: Norm | None,
    h: Float[Array, "pos d_in"],
    acts: Float[Array, "pos d_sae"],
    counted: Any,
    *,
    neurons: bool,
    integrated: bool,
) -> dict[str, Float[Array, "pos d_in"]]:
    """The source hook's value as a sum of kinds, `features + sae_error + b_dec`; and `bos`, a part of `features`.

    Where sources move on a line (`integrated`), `acts` is how far, and what does not move is no field. Where the SAE
    normalises its input, `norm` is how: what it undoes in its output is a factor of the features, and part of its bias.
    What a transcoder adds besides its features counts as error.
    """
    features = acts if neurons else acts @ directions if norm is None else (acts @ directions) * norm.out_scale
    fields = {"features": features, "bos": jnp.where(counted[:, None], 0, features)}
    if integrated:
        return fields
    b_dec = source.weights.b_dec if norm is None else source.weights.b_dec * norm.out_scale + norm.shift
    bias = jnp.zeros_like(h) if neurons else jnp.broadcast_to(b_dec, h.shape)
    return fields | {"sae_error": h - features - bias, "b_dec": bias}


def structured_remainder(
    problem: Problem,
    params: Any,
    block: BlockWeights,
    target: SAE,
    W_enc_rows: Float[Array, "d_sae_target d_mlp"],
    written_by: Float[Array, "d_in d_model"] | None,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    fields: dict[str, Float[Array, "pos d_in"]],
    segment: Segment,
    pulled: Pulled,
    target_pos: Int[Array, "target"],
    target_feature: Int[Array, "target"],
    own: Float[Array, "target d_model"],
) -> dict[str, Float[Array, "target"]]:
    """The kinds of targets that have been pulled back; those of `Scales` where derivatives are frozen.

    `own` is the targets pulled all the way at their own positions.
    """
    zero = jnp.zeros((len(tokens), problem.cfg.d_model), h.dtype)
    written = fields if written_by is None else {name: field @ written_by for name, field in fields.items()}

    def meet(pushed: Float[Array, "pos d_model"]) -> Float[Array, "target"]:
        return einsum(pulled.resid, pushed[target_pos], "target d_model, target d_model -> target")

    _, push = jax.linearize(partial(resid_mid, problem, params, h, tokens), zero)
    found = {name: meet(push(field)) for name, field in written.items()}
    found["own_position"] = (own * written["features"][target_pos]).sum(-1)
    if not problem.frozen:
        return found

    def at_scales(scales: Scales):
        return resid_mid(problem, params, h, tokens, zero, scales)

    _, push = jax.linearize(at_scales, ones(h.dtype))
    for i, name in enumerate(Scales._fields):
        found[name] = meet(push(Scales(*(jnp.asarray(i == j, h.dtype) for j in range(len(Scales._fields))))))
    if pulled.linear is not None:
        found["model_bias"] += pulled.linear @ block.mlp.b_in
    if pulled.normed is not None and block.ln2 is not None and block.ln2.b is not None:
        found["model_bias"] += pulled.normed @ block.ln2.b
    if pulled.written is not None:
        found["model_bias"] += pulled.written @ block.mlp.b_out
    if pulled.post is not None:
        assert segment.gelu_constant is not None
        constant = segment.gelu_constant[target_pos]
        found["gelu_constant"] += einsum(pulled.post, constant, "target d_mlp, target d_mlp -> target")
    b_dec = target.weights.b_dec if target.cfg.subtract_b_dec else jnp.zeros_like(target.weights.b_dec)
    bias = target.weights.b_enc[target_feature] - W_enc_rows[target_feature] @ b_dec
    found["target_bias"] = pulled.act_slope * bias
    return found


def reference_remainder(
    problem: Problem,
    params: Any,
    target: SAE,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    fields: dict[str, Float[Array, "pos d_in"]],
    gradients: Float[Array, "target pos d_in"],
    target_pos: Int[Array, "target"],
    target_feature: Int[Array, "target"],
) -> dict[str, Float[Array, "target"]]:
    """The same by autodiff alone."""
    found = {name: einsum(gradients, field, "target pos d_in, pos d_in -> target") for name, field in fields.items()}
    own = jnp.take_along_axis(gradients, target_pos[:, None, None], axis=1)[:, 0]
    found["own_position"] = (own * fields["features"][target_pos]).sum(-1)
    if problem.frozen:
        found |= scale_gradients(problem, params, target, tokens, h, target_pos, target_feature)._asdict()
    return found
