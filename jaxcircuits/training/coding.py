"""From pre-activations to feature activations while an autoencoder is trained: one entry an activation.

What is on is decided without a derivative; a feature that is on has the slope 1. Only a JumpReLU's threshold learns
from what is on and off, through a kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.training.settings import SAETraining
from jaxcircuits.types import SAEWeights

PreActs = Float[Array, "tokens d_sae"]


class Knobs(NamedTuple):
    """Numbers of a run that may differ between runs trained at once; see `SAETraining`."""

    lr: Float[Array, ""]
    l0: Float[Array, ""]
    k: Int[Array, ""]
    power: Float[Array, ""]
    bandwidth: Float[Array, ""]
    auxiliary: Float[Array, ""]
    read_weight: Float[Array, ""]
    spliced_lr: Float[Array, ""]
    kl_weight: Float[Array, ""]
    penalties: Float[Array, "n"]  # coefficient of each of `Form.penalties`


@dataclass(frozen=True)
class Form:
    """What is compiled for runs that are trained at once: all that is no number of `Knobs`.

    Attributes:
        settings: Of one of them; what `Knobs` has is not read from it.
        penalties: Every penalty that one of them has.
        room: The largest number of features that one of them keeps.
    """

    settings: SAETraining
    penalties: tuple[str, ...]
    room: int


class Code(NamedTuple):
    """What an encoder makes of values."""

    pre_acts: PreActs
    feature_acts: PreActs
    least: Float[Array, ""]  # from which value on a feature is on, where one number decides it for all


def step(pre_acts: PreActs, threshold: Float[Array, "d_sae"], bandwidth: Float[Array, ""]) -> PreActs:
    """1 above the threshold, else 0; its derivative by the threshold is a rectangle of width `bandwidth` around it.

    Source: S. Rajamanoharan and others (2024), arXiv:2407.14435, equations 11 and 12.
    """
    pre_acts = jax.lax.stop_gradient(pre_acts)
    held = jax.lax.stop_gradient(threshold)
    near = jnp.abs(pre_acts - held) < bandwidth / 2
    return (pre_acts > held) - near * ((threshold - held) / bandwidth)


def kth_largest(values: Float[Array, "..."], k: Int[Array, ""]) -> Float[Array, ""]:
    """The `k`-th largest of numbers that are not negative; 0 where there are fewer.

    Floats above zero are ordered as the integers of their bits, which are found from the highest on, each by a count:
    nothing is sorted, and where the values lie on several devices only counts travel.
    """
    integer = {4: jnp.int32, 8: jnp.int64}[values.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(values, integer)
    highest = 8 * values.dtype.itemsize - 2  # the one above is the sign's

    def with_bit(i: Int[Array, ""], found: Int[Array, ""]) -> Int[Array, ""]:
        higher = found | (integer(1) << (highest - i).astype(integer))
        return jnp.where((bits >= higher).sum() >= k, higher, found)

    found = jax.lax.fori_loop(0, highest + 1, with_bit, integer(0))
    return jax.lax.bitcast_convert_type(found, values.dtype)


def _nothing(like: PreActs) -> Float[Array, ""]:
    return jnp.zeros((), like.dtype)


def _relu(pre_acts: PreActs, params: SAEWeights, knobs: Knobs, tokens: Bool[Array, "tokens"], room: int) -> Code:
    return Code(pre_acts, jax.nn.relu(pre_acts), _nothing(pre_acts))


def _topk(pre_acts: PreActs, params: SAEWeights, knobs: Knobs, tokens: Bool[Array, "tokens"], room: int) -> Code:
    largest, _ = jax.lax.top_k(jax.lax.stop_gradient(pre_acts), room)
    on = pre_acts >= largest[:, knobs.k - 1, None]
    return Code(pre_acts, jnp.where(on, jax.nn.relu(pre_acts), 0), _nothing(pre_acts))


def _batchtopk(pre_acts: PreActs, params: SAEWeights, knobs: Knobs, tokens: Bool[Array, "tokens"], room: int) -> Code:
    counted = jnp.where(tokens[:, None], jax.nn.relu(jax.lax.stop_gradient(pre_acts)), 0)
    least = kth_largest(counted, knobs.k * tokens.sum())
    return Code(pre_acts, jnp.where(pre_acts >= least, jax.nn.relu(pre_acts), 0), least)


def _jumprelu(pre_acts: PreActs, params: SAEWeights, knobs: Knobs, tokens: Bool[Array, "tokens"], room: int) -> Code:
    assert params.threshold is not None
    held = jax.lax.stop_gradient(params.threshold)
    on = pre_acts > held
    # Above the threshold the value; by the threshold, minus the height of the jump times the step's derivative.
    jump = held * (step(pre_acts, params.threshold, knobs.bandwidth) - on)
    return Code(pre_acts, jnp.where(on, jax.nn.relu(pre_acts), 0) + jump, _nothing(pre_acts))


def _every(least: Float[Array, ""], weights: SAEWeights) -> SAEWeights:
    return weights._replace(threshold=jnp.full_like(weights.b_enc, least))


@dataclass(frozen=True)
class Coding:
    """How an activation is trained and stored.

    Attributes:
        encode: Feature activations of pre-activations.
        stored: Its name in `SAEConfig`.
        finished: What is done to the weights in the end, given the running mean of `Code.least`.
    """

    encode: Callable[[PreActs, SAEWeights, Knobs, Bool[Array, "tokens"], int], Code]
    stored: str
    finished: Callable[[Float[Array, ""], SAEWeights], SAEWeights] = lambda least, weights: weights


CODINGS = {
    "relu": Coding(_relu, "relu"),
    # L. Gao and others (2024), arXiv:2406.04093.
    "topk": Coding(_topk, "topk"),
    # B. Bussmann and others (2024), arXiv:2412.06410: the mean of the smallest activation kept is the threshold.
    "batchtopk": Coding(_batchtopk, "jumprelu", _every),
    "jumprelu": Coding(_jumprelu, "jumprelu"),
}
"""By the name in `SAETraining.activation`."""


def coded(
    params: SAEWeights, knobs: Knobs, x: Float[Array, "tokens d_in"], tokens: Bool[Array, "tokens"], form: Form
) -> Code:
    """What the encoder makes of centred and scaled values, at `tokens`."""
    # `(x - b_dec) W_enc` multiplied out: the gradient of b_dec then costs a vector instead of a matrix.
    pre_acts = x @ params.W_enc + (params.b_enc - params.b_dec @ params.W_enc)
    return CODINGS[form.settings.activation].encode(pre_acts, params, knobs, tokens, form.room)
