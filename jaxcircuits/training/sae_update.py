"""One step of an autoencoder's training, in either of its phases."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.config import ModelConfig
from jaxcircuits.model import forward
from jaxcircuits.training.coding import Code, Form, coded
from jaxcircuits.training.loop import Metrics
from jaxcircuits.training.penalties import penalty
from jaxcircuits.training.revival import auxiliary_loss, resampled
from jaxcircuits.training.sae_state import INITIAL_L0, SAEState, unit_rows
from jaxcircuits.types import ModelWeights, SAEWeights

GAIN = 0.03
"""How fast the coefficient follows: its relative change in a step in which L0 is twice its target."""

MEMORY = 0.95
"""What the running mean of the smallest activation kept keeps of itself in a step."""


class _Losses(NamedTuple):
    unexplained: Float[Array, ""]
    read_unexplained: Float[Array, ""]
    kl: Float[Array, ""]
    auxiliary: Float[Array, ""]
    active: Bool[Array, "tokens d_sae"]
    least: Float[Array, ""]
    error: Float[Array, "tokens d_in"]


def reconstruction_update(
    state: SAEState, values: Float[Array, "tokens d_in"], number: Int[Array, ""], form: Form
) -> tuple[SAEState, Metrics]:
    """One step of the first phase, on values of the hook; at even distances silent features get new weights.

    Args:
        state: Where the run is.
        values: What is reconstructed.
        number: The step's number, the same for all runs of a sweep, so that what is rare is computed rarely.
        form: What is compiled.
    """
    x = (values - state.mean) / state.scale
    tokens = jnp.full(len(x), True)
    new, metrics, losses = _step(
        state, x, tokens, jnp.full(len(x), 1 / len(x)), lambda out: jnp.zeros((), out.dtype), form
    )
    settings = form.settings
    if settings.revival == "resample" and settings.resamplings:
        every = max(1, settings.reconstruction_steps // (settings.resamplings + 1))
        done = number + 1
        due = (done % every == 0) & (done <= every * settings.resamplings)
        dead = new.silent > settings.buffer_tokens // 2
        new = jax.lax.cond(due, lambda s: resampled(s, dead, x, losses.error), lambda s: s, new)
    return new, metrics


def spliced_update(
    state: SAEState,
    rows: Int[Array, "batch row"],
    model: ModelWeights,
    cfg: ModelConfig,
    hook_name: str,
    form: Form,
) -> tuple[SAEState, Metrics]:
    """One step of the second phase, on stories, with the model's predictions in the loss.

    Source: fine-tuning on KL divergence and reconstruction, Karvonen (2025), arXiv:2503.17272, after the end-to-end
    autoencoders of Braun and others (2024), arXiv:2405.12241.
    """
    inputs, counted = jnp.maximum(rows[:, :-1], 0), rows[:, 1:] >= 0
    logits, acts = forward(model, cfg, inputs, taps=(hook_name,))
    assert logits is not None
    log_p = jax.nn.log_softmax(logits)
    value = acts[hook_name]
    x = ((value - state.mean) / state.scale).reshape(-1, state.mean.size)
    tokens = counted.reshape(-1)
    weight = tokens / tokens.sum()

    def divergence(out: Float[Array, "tokens d_in"]) -> Float[Array, ""]:
        spliced = (out * state.scale + state.mean).reshape(value.shape)
        changed, _ = forward(model, cfg, inputs, edits={hook_name: spliced})
        assert changed is not None
        return (jnp.exp(log_p) * (log_p - jax.nn.log_softmax(changed))).sum(-1).reshape(-1) @ weight

    new, metrics, _ = _step(state, x, tokens, weight, divergence, form)
    return new, metrics


def _step(
    state: SAEState,
    x: Float[Array, "tokens d_in"],
    tokens: Bool[Array, "tokens"],
    weight: Float[Array, "tokens"],
    divergence: Callable[[Float[Array, "tokens d_in"]], Float[Array, ""]],
    form: Form,
) -> tuple[SAEState, Metrics, _Losses]:
    """One step on the unexplained shares of the variance, KL divergence, sparsity penalty and auxiliary loss.

    The penalty's coefficient is multiplied up or down each step by how far the batch's L0 is from its target, which
    falls from `INITIAL_L0` to `l0` in the first quarter.

    Source: unit decoder rows with the parallel part of their gradient removed, Bricken and others (2023), "Towards
    Monosemanticity".
    """
    settings, knobs = form.settings, state.knobs
    read = knobs.read_weight if state.readout.size else 0.0
    fallen = jnp.minimum(1.0, state.step / settings.steps / max(1 - settings.decay, 1e-9))
    helped = settings.revival == "auxiliary"
    dead = state.silent > settings.buffer_tokens // 2

    def mean_square(a: Array) -> Array:
        return (a**2).sum(1) @ weight

    def loss_of(params: SAEWeights) -> tuple[Float[Array, ""], _Losses]:
        code: Code = coded(params, knobs, x, tokens, form)
        out = code.feature_acts @ params.W_dec + params.b_dec
        error, kl = x - out, divergence(out)
        auxiliary = auxiliary_loss(params, code, dead, error, weight) if helped else jnp.zeros((), x.dtype)
        unexplained, read_unexplained = mean_square(error), mean_square(error @ state.readout)
        loss = (1 - read) * unexplained + read * read_unexplained + knobs.kl_weight * kl
        if form.penalties:
            loss += state.sparsity * (penalty(form.penalties, code, params, knobs, fallen) @ weight)
        if helped:
            loss += knobs.auxiliary * auxiliary
        active = code.feature_acts > 0
        return loss, _Losses(unexplained, read_unexplained, kl, auxiliary, active, code.least, error)

    (_, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    W_dec = state.params.W_dec
    grads = grads._replace(W_dec=grads.W_dec - (grads.W_dec * W_dec).sum(1, keepdims=True) * W_dec)
    directions, opt_state = state.tx.update(grads, state.opt_state)
    rate = _learning_rate(state, form)
    params: SAEWeights = jax.tree.map(lambda w, d: w - rate * d, state.params, directions)
    params = params._replace(W_dec=unit_rows(params.W_dec))
    if params.threshold is not None:
        params = params._replace(threshold=jnp.maximum(params.threshold, 0))

    active = losses.active & tokens[:, None]
    l0 = active.sum() / tokens.sum()
    # Where nothing is steered the target is 0, which must divide nothing.
    wanted = jnp.where(knobs.l0 > 0, knobs.l0, INITIAL_L0)
    target = wanted * (INITIAL_L0 / wanted) ** jnp.maximum(0.0, 1 - 4 * state.step / settings.steps)
    moved = jnp.exp(GAIN * jnp.clip(l0 / target - 1, -1.0, 1.0))
    new = state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        sparsity=state.sparsity * jnp.where(knobs.l0 > 0, moved, 1.0),
        least=jnp.where(state.step == 0, losses.least, MEMORY * state.least + (1 - MEMORY) * losses.least),
        silent=jnp.where(active.any(0), 0, state.silent + tokens.sum(dtype=jnp.int32)),
    )
    metrics = {
        "unexplained": losses.unexplained,
        "read_unexplained": losses.read_unexplained,
        "kl": losses.kl,
        "l0": l0,
        "silent": (new.silent > settings.buffer_tokens // 2).sum(),
    }
    if form.penalties:
        metrics["sparsity"] = state.sparsity
    if helped:
        metrics["auxiliary"] = losses.auxiliary
    return new, metrics, losses


def _learning_rate(state: SAEState, form: Form) -> Float[Array, ""]:
    settings, n_steps = form.settings, form.settings.steps
    warmup, decay = max(1, round(settings.warmup * n_steps)), max(1, round(settings.decay * n_steps))
    edges = jnp.minimum(1.0, jnp.minimum(state.step / warmup, (n_steps - state.step) / decay))
    # A batch of the second phase holds few stories, whose tokens are alike: its gradients are noisier.
    return state.knobs.lr * edges * jnp.where(state.step < settings.reconstruction_steps, 1.0, state.knobs.spliced_lr)
