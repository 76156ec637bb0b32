"""Where an autoencoder's training begins, what it goes on from, and the autoencoder that comes out.

Inside, values are centred and scaled so that their mean squared norm is 1; `raw_weights` folds that back, so the
autoencoder that is stored takes the hook's value as it is.
"""

import re
from collections.abc import Sequence
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jaxtyping import Array, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import SAEConfig
from jaxcircuits.sae import SAE
from jaxcircuits.training.activations import ActivationBuffer
from jaxcircuits.training.coding import CODINGS, Form, Knobs, coded
from jaxcircuits.training.settings import SAETraining
from jaxcircuits.types import SAEWeights

INITIAL_L0 = 100
"""Features active a token before the first step, each of them equally often: none begins dead."""

INITIAL_THRESHOLD = 0.03
"""Of a JumpReLU, in units of the value's norm."""

ADAM = optax.scale_by_adam(b1=0.9, b2=0.99)
"""One object for all runs: it is a static part of the state, so another would be compiled again."""


@no_type_check  # JAX puts other objects than arrays into a pytree's fields at times
class SAEState(TrainState):
    """What a run goes on from: weights and Adam's moments, and what steers sparsity and finds silent features."""

    params: SAEWeights  # pyright: ignore[reportIncompatibleVariableOverride]
    knobs: Knobs
    mean: Float[Array, "d_in"]
    scale: Float[Array, ""]
    readout: Float[Array, "d_in n"]  # what the model reads the value through, scaled; n is 0 where nothing is known
    sparsity: Float[Array, ""]
    least: Float[Array, ""]  # running mean of `Code.least`
    silent: Int[Array, "d_sae"]  # tokens since each feature was last active


def form_of(runs: Sequence[SAETraining]) -> Form:
    """What is compiled for runs that differ in numbers of `Knobs`, seed and penalty only."""
    names = tuple(dict.fromkeys(name for run in runs for name in run.penalties))
    return Form(runs[0], names, max(run.kept for run in runs))


def initial_state(bundle: Bundle, hook_name: str, buffer: ActivationBuffer, run: SAETraining, form: Form) -> SAEState:
    """The state before the first step, fitted to the values of the first batches.

    Decoder rows are directions of random values, the encoder their transpose, and biases such that each feature is
    on at the same share of tokens.
    """
    first = np.concatenate([buffer(step) for step in range(max(1, min(16_384 // run.batch_tokens, len(buffer))))])
    mean = first.mean(0)
    scale = np.sqrt(((first - mean) ** 2).sum(1).mean())
    x = (first - mean) / scale
    d_in, d_sae = x.shape[1], run.expansion * x.shape[1]
    rng = np.random.default_rng([run.seed, d_sae])
    directions = x[rng.choice(len(x), d_sae, replace=len(x) < d_sae)] + 1e-3 * rng.standard_normal((d_sae, d_in))
    W_dec = unit_rows(jnp.asarray(directions, first.dtype))
    some = x[:4096]
    pre_acts = some @ W_dec.T
    b_enc = -jnp.quantile(pre_acts, 1 - min(0.5, INITIAL_L0 / d_sae), axis=0)
    out = jax.nn.relu(pre_acts + b_enc) @ W_dec
    # One factor for all features, so that the first reconstruction is the best of its kind.
    factor = (out * some).sum() / (out**2).sum()
    params = SAEWeights(factor * W_dec.T, factor * b_enc, W_dec, jnp.zeros(d_in))
    if run.activation == "jumprelu":
        threshold = jnp.full(d_sae, INITIAL_THRESHOLD)
        params = params._replace(b_enc=params.b_enc + threshold, threshold=threshold)
    readout = np.asarray(_readout(bundle, hook_name, d_in))
    if readout.size:
        readout = readout / np.sqrt(((x @ readout) ** 2).sum(1).mean())
    state = SAEState.create(
        apply_fn=coded,
        params=jax.tree.map(lambda w: jnp.asarray(w, first.dtype), params),
        tx=ADAM,
        knobs=None,
        mean=jnp.asarray(mean, first.dtype),
        scale=jnp.asarray(scale, first.dtype),
        readout=jnp.asarray(readout, first.dtype),
        sparsity=None,
        least=jnp.zeros((), first.dtype),
        silent=jnp.zeros(d_sae, jnp.int32),
    )
    return with_numbers(state.replace(step=jnp.int32(0)), run, form)


def with_numbers(state: SAEState, run: SAETraining, form: Form) -> SAEState:
    """The first state of a run that begins with the same weights and differs in numbers of `Knobs`."""
    number = state.scale.dtype.type
    numbers = {name: number(getattr(run, name)) for name in Knobs._fields if name not in ("l0", "k", "penalties")}
    coefficients = [run.penalties.get(name, 0.0) for name in form.penalties]
    knobs = Knobs(
        **numbers,
        l0=number(0.0 if run.keeps_k else run.l0),
        k=jnp.int32(run.kept),
        penalties=jnp.asarray(coefficients, number),
    )
    return state.replace(knobs=jax.tree.map(jnp.asarray, knobs), sparsity=jnp.asarray(number(run.sparsity)))


def _readout(bundle: Bundle, hook_name: str, d_in: int) -> Float[Array, "d_in n"]:
    """The one matrix through which the model reads the value: an MLP's `W_out`; empty at other hook points."""
    match = re.fullmatch(r"blocks\.(\d+)\.mlp\.hook_post", hook_name)
    return jnp.zeros((d_in, 0)) if match is None else bundle.params.blocks[int(match[1])].mlp.W_out


def unit_rows(W_dec: Float[Array, "d_sae d_in"]) -> Float[Array, "d_sae d_in"]:
    """Rows divided by their norm."""
    return W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True)


def raw_weights(state: SAEState) -> SAEWeights:
    """The weights for values as they are: centring and scale folded into the biases; decoder rows keep norm 1."""
    params: SAEWeights = state.params
    threshold = None if params.threshold is None else state.scale * params.threshold
    return params._replace(
        b_enc=state.scale * params.b_enc, b_dec=state.mean + state.scale * params.b_dec, threshold=threshold
    )


def trained(state: SAEState, hook_name: str, run: SAETraining) -> SAE:
    """The autoencoder of a finished run."""
    coding = CODINGS[run.activation]
    weights = coding.finished(state.scale * state.least, raw_weights(state))
    d_in, d_sae = weights.W_enc.shape
    k = run.kept if coding.stored == "topk" else None
    return SAE(weights, SAEConfig(d_in, d_sae, hook_name, coding.stored, k=k))
