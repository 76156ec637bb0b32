"""Training of a ReLU autoencoder on one hook point, its sparsity steered to a wanted L0.

Two phases. First the values themselves are reconstructed, at shuffled tokens of many stories. Then the autoencoder is
spliced into the model, which it shall change as little as possible.

Inside, values are centred and scaled so that their mean squared norm is 1; `raw_weights` folds that back, so the
autoencoder that is stored takes the hook's value as it is.
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.model import forward, hook_width
from jaxcircuits.rows import bundle_rows
from jaxcircuits.sae import SAE
from jaxcircuits.training.activations import ActivationBuffer, StoryBatches
from jaxcircuits.training.loop import Metrics, train
from jaxcircuits.training.settings import SAETraining
from jaxcircuits.types import ModelWeights, SAEWeights

INITIAL_L0 = 100
"""Features active a token before the first step, each of them equally often: none begins dead."""

OFFSET = 0.01
"""Added to activations (mean squared norm 1) under the power, which would be infinitely steep at 0."""

GAIN = 0.03
"""How fast the coefficient follows: its relative change in a step in which L0 is twice its target."""


@no_type_check  # JAX puts other objects than arrays into a pytree's fields at times
class SAEState(TrainState):
    """What a run goes on from: weights and Adam's moments, and what steers sparsity and finds silent features."""

    params: SAEWeights  # pyright: ignore[reportIncompatibleVariableOverride]
    mean: Float[Array, "d_in"]
    scale: Float[Array, ""]
    readout: Float[Array, "d_in n"]  # what the model reads the value through, scaled; n is 0 where nothing is known
    sparsity: Float[Array, ""]
    silent: Int[Array, "d_sae"]  # tokens since each feature was last active


class _Losses(NamedTuple):
    unexplained: Float[Array, ""]
    read_unexplained: Float[Array, ""]
    kl: Float[Array, ""]
    active: Bool[Array, "tokens d_sae"]
    error: Float[Array, "tokens d_in"]


def initial_state(bundle: Bundle, hook_name: str, buffer: ActivationBuffer, settings: SAETraining) -> SAEState:
    """The state before the first step, fitted to the values of the first batches.

    Decoder rows are directions of random values, the encoder their transpose, and biases such that each feature is
    on at the same share of tokens.
    """
    first = np.concatenate([buffer(step) for step in range(max(1, min(16_384 // settings.batch_tokens, len(buffer))))])
    mean = first.mean(0)
    scale = np.sqrt(((first - mean) ** 2).sum(1).mean())
    x = (first - mean) / scale
    d_in, d_sae = x.shape[1], settings.expansion * x.shape[1]
    rng = np.random.default_rng([settings.seed, d_sae])
    directions = x[rng.choice(len(x), d_sae, replace=len(x) < d_sae)] + 1e-3 * rng.standard_normal((d_sae, d_in))
    W_dec = _unit_rows(jnp.asarray(directions, jnp.float32))
    some = x[:4096]
    pre_acts = some @ W_dec.T
    b_enc = -jnp.quantile(pre_acts, 1 - min(0.5, INITIAL_L0 / d_sae), axis=0)
    out = jax.nn.relu(pre_acts + b_enc) @ W_dec
    # One factor for all features, so that the first reconstruction is the best of its kind.
    factor = (out * some).sum() / (out**2).sum()
    params = SAEWeights(factor * W_dec.T, factor * b_enc, W_dec, jnp.zeros(d_in))
    readout = np.asarray(_readout(bundle, hook_name, d_in))
    if readout.size:
        readout = readout / np.sqrt(((x @ readout) ** 2).sum(1).mean())
    return SAEState.create(
        apply_fn=_reconstruct,
        params=jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params),
        tx=_optimiser(settings, settings.steps),
        mean=jnp.asarray(mean, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
        readout=jnp.asarray(readout, jnp.float32),
        sparsity=jnp.asarray(settings.sparsity, jnp.float32),
        silent=jnp.zeros(d_sae, jnp.int32),
    )


def _readout(bundle: Bundle, hook_name: str, d_in: int) -> Float[Array, "d_in n"]:
    """The one matrix through which the model reads the value: an MLP's `W_out`; empty at other hook points."""
    match = re.fullmatch(r"blocks\.(\d+)\.mlp\.hook_post", hook_name)
    return jnp.zeros((d_in, 0)) if match is None else bundle.params.blocks[int(match[1])].mlp.W_out


@cache  # a static part of the state: another object would be compiled again
def _optimiser(settings: SAETraining, n_steps: int) -> optax.GradientTransformation:
    warmup, decay = max(1, round(settings.warmup * n_steps)), max(1, round(settings.decay * n_steps))

    def schedule(step: Any) -> Any:
        edges = jnp.minimum(1.0, jnp.minimum(step / warmup, (n_steps - step) / decay))
        # A batch of the second phase holds few stories, whose tokens are alike: its gradients are noisier.
        return settings.lr * edges * jnp.where(step < settings.reconstruction_steps, 1.0, settings.spliced_lr)

    return optax.adam(schedule, b1=0.9, b2=0.99)


def _unit_rows(W_dec: Float[Array, "d_sae d_in"]) -> Float[Array, "d_sae d_in"]:
    return W_dec / jnp.linalg.norm(W_dec, axis=1, keepdims=True)


def _reconstruct(
    params: SAEWeights, x: Float[Array, "... d_in"]
) -> tuple[Float[Array, "... d_in"], Float[Array, "... d_sae"]]:
    # `(x - b_dec) W_enc` multiplied out: the gradient of b_dec then costs a vector instead of a matrix.
    feature_acts = jax.nn.relu(x @ params.W_enc + (params.b_enc - params.b_dec @ params.W_enc))
    return feature_acts @ params.W_dec + params.b_dec, feature_acts


@partial(jax.jit, static_argnames="settings", donate_argnums=0)
def reconstruction_update(
    state: SAEState, values: Float[Array, "tokens d_in"], settings: SAETraining
) -> tuple[SAEState, Metrics]:
    """One step of the first phase, on values of the hook; at even distances silent features get new weights."""
    x = (values - state.mean) / state.scale

    def losses_of(params: SAEWeights) -> tuple[_Losses, Float[Array, ""]]:
        out, feature_acts = _reconstruct(params, x)
        error = x - out
        weight = jnp.full(len(x), 1 / len(x))
        return _losses(state, error, feature_acts, weight, jnp.zeros(())), _penalty(
            state, feature_acts, weight, settings
        )

    new, metrics, losses = _step(state, losses_of, jnp.full(len(x), True), settings)
    if settings.resamplings:
        phase = settings.reconstruction_steps
        every = max(1, phase // (settings.resamplings + 1))
        due = (new.step % every == 0) & (new.step <= every * settings.resamplings)
        dead = new.silent > settings.buffer_tokens // 2
        new = jax.lax.cond(due, lambda s: _resampled(s, dead, x, losses.error), lambda s: s, new)
    return new, metrics


@partial(jax.jit, static_argnames=("cfg", "hook_name", "settings"), donate_argnums=0)
def spliced_update(
    state: SAEState,
    rows: Int[Array, "batch row"],
    model: ModelWeights,
    cfg: ModelConfig,
    hook_name: str,
    settings: SAETraining,
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

    def losses_of(params: SAEWeights) -> tuple[_Losses, Float[Array, ""]]:
        out, feature_acts = _reconstruct(params, x)
        spliced = (out * state.scale + state.mean).reshape(value.shape)
        changed, _ = forward(model, cfg, inputs, edits={hook_name: spliced})
        assert changed is not None
        kl = (jnp.exp(log_p) * (log_p - jax.nn.log_softmax(changed))).sum(-1).reshape(-1) @ weight
        return _losses(state, x - out, feature_acts, weight, kl), _penalty(state, feature_acts, weight, settings)

    new, metrics, _ = _step(state, losses_of, tokens, settings)
    return new, metrics


def _losses(state: SAEState, error: Array, feature_acts: Array, weight: Array, kl: Array) -> _Losses:
    def mean_square(a: Array) -> Array:
        return (a**2).sum(1) @ weight

    return _Losses(mean_square(error), mean_square(error @ state.readout), kl, feature_acts > 0, error)


def _penalty(state: SAEState, feature_acts: Array, weight: Array, settings: SAETraining) -> Array:
    fallen = jnp.minimum(1.0, state.step / settings.steps / (1 - settings.decay))
    power = 1 - (1 - settings.power) * fallen
    return ((feature_acts + OFFSET) ** power - OFFSET**power).sum(1) @ weight


def _step(state: SAEState, losses_of, tokens: Bool[Array, "tokens"], settings: SAETraining):
    """One step on the unexplained shares of the variance, KL divergence and sparsity penalty.

    The penalty is the sum of `feature_acts ** p`, p falling from 1: late in the run it pushes hardest on features that
    are barely on, and shrinks strong ones little. Its coefficient is multiplied up or down each step by how far the
    batch's L0 is from its target, which falls from `INITIAL_L0` to `settings.l0` in the first quarter.

    Source: p-annealing, Karvonen and others (2024), arXiv:2408.00113; unit decoder rows with the parallel part of
    their gradient removed, and resampling, Bricken and others (2023), "Towards Monosemanticity".
    """
    read = settings.read_weight if state.readout.size else 0.0

    def loss_of(params: SAEWeights):
        losses, penalty = losses_of(params)
        error = (1 - read) * losses.unexplained + read * losses.read_unexplained
        return error + settings.kl_weight * losses.kl + state.sparsity * penalty, losses

    (_, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    W_dec = state.params.W_dec
    grads = grads._replace(W_dec=grads.W_dec - (grads.W_dec * W_dec).sum(1, keepdims=True) * W_dec)
    active = losses.active & tokens[:, None]
    l0 = active.sum() / tokens.sum()
    target = settings.l0 * (INITIAL_L0 / settings.l0) ** jnp.maximum(0.0, 1 - 4 * state.step / settings.steps)
    new = state.apply_gradients(
        grads=grads,
        sparsity=state.sparsity * jnp.exp(GAIN * jnp.clip(l0 / target - 1, -1.0, 1.0)),
        silent=jnp.where(active.any(0), 0, state.silent + tokens.sum()),
    )
    new = new.replace(params=new.params._replace(W_dec=_unit_rows(new.params.W_dec)))
    metrics = {
        "unexplained": losses.unexplained,
        "read_unexplained": losses.read_unexplained,
        "kl": losses.kl,
        "l0": l0,
        "sparsity": state.sparsity,
        "silent": (new.silent > settings.buffer_tokens // 2).sum(),
    }
    return new, metrics, losses


def _resampled(
    state: SAEState, dead: Bool[Array, "d_sae"], x: Float[Array, "tokens d_in"], error: Float[Array, "tokens d_in"]
) -> SAEState:
    """Gives dead features directions that the others miss, on at the one token in a hundred that is nearest to them."""
    size = (error**2).sum(1)
    picked = jax.random.categorical(jax.random.key(state.step), 2 * jnp.log(size + 1e-12), shape=dead.shape)
    directions = _unit_rows(error[picked] + 1e-6)
    params = state.params
    norms = jnp.linalg.norm(params.W_enc, axis=0)
    W_enc = jnp.where(dead, 0, norms).sum() / jnp.maximum(1, (~dead).sum()) * directions.T
    # All tokens' pre-activations would cost a step; 256 place the bias well enough.
    b_enc = -jnp.quantile((x[:256] - params.b_dec) @ W_enc, 0.99, axis=0)

    def replaced(old: SAEWeights, W_enc: Array | int, b_enc: Array | int, W_dec: Array | int) -> SAEWeights:
        return SAEWeights(
            jnp.where(dead, W_enc, old.W_enc),
            jnp.where(dead, b_enc, old.b_enc),
            jnp.where(dead[:, None], W_dec, old.W_dec),
            old.b_dec,
        )

    adam, *rest = cast(Any, state.opt_state)
    adam = adam._replace(mu=replaced(adam.mu, 0, 0, 0), nu=replaced(adam.nu, 0, 0, 0))
    return state.replace(
        params=replaced(params, W_enc, b_enc, directions),
        opt_state=(adam, *rest),
        silent=jnp.where(dead, 0, state.silent),
    )


def raw_weights(state: SAEState) -> SAEWeights:
    """The weights for values as they are: centring and scale folded into the biases; decoder rows keep norm 1."""
    params: SAEWeights = state.params
    return params._replace(b_enc=state.scale * params.b_enc, b_dec=state.mean + state.scale * params.b_dec)


def train_sae(
    bundle: Bundle, hook_name: str, texts: Sequence[str], settings: SAETraining, out: Path, *, quiet: bool = False
) -> SAE:
    """Trains an autoencoder, or goes on where a run in `out` stopped.

    Args:
        bundle: The model that is read; its own autoencoders play no part.
        hook_name: The hook point; one with a vector a position, not one a head.
        texts: One story each.
        settings: The run's settings.
        out: Its directory, made by `run_directory`.
        quiet: No progress bar.

    Raises:
        InputError: The model has no such hook point, or training diverged.
    """
    d_in = hook_width(bundle.cfg, hook_name)
    rows = bundle_rows(bundle, texts)
    buffer = ActivationBuffer(bundle, hook_name, rows, settings)
    stories = StoryBatches(rows, bundle.cfg.n_ctx, settings)
    first = settings.reconstruction_steps

    def batch_at(step: int) -> np.ndarray:
        return buffer(step) if step < first else stories(step - first)

    def step(state: SAEState, batch: np.ndarray) -> tuple[SAEState, Metrics]:
        if batch.dtype == np.float32:
            return reconstruction_update(state, batch, settings)
        return spliced_update(state, batch, bundle.params, bundle.cfg, hook_name, settings)

    start = initial_state(bundle, hook_name, buffer, settings)
    state = train(start, step, batch_at, settings.steps, out, label=hook_name, quiet=quiet)  # pyright: ignore
    assert isinstance(state, SAEState)
    return SAE(raw_weights(state), SAEConfig(d_in, settings.expansion * d_in, hook_name))
