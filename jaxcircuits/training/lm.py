"""Training of a small GPT-Neo: its own byte-level BPE, one story a row, rows of like length together."""

from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxcircuits.bundle import read_tokenizer
from jaxcircuits.config import ModelConfig
from jaxcircuits.corpus import END_OF_TEXT
from jaxcircuits.errors import InputError
from jaxcircuits.model import Edits, forward
from jaxcircuits.rows import padded_lengths, rows_of
from jaxcircuits.training.loop import Metrics, train
from jaxcircuits.training.settings import LMTraining
from jaxcircuits.types import AttentionWeights, BlockWeights, MLPWeights, ModelWeights, NormWeights


def train_tokenizer(texts: Iterable[str], d_vocab: int) -> Tokenizer:
    """A byte-level BPE as GPT-2's, with `<|endoftext|>` (id 0) as its only special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=d_vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != d_vocab:
        raise InputError(
            f"the text is too small for a vocabulary of {d_vocab}: only {tokenizer.get_vocab_size()} tokens "
            "could be made; lower --d-vocab."
        )
    return tokenizer


_Plan = list[tuple[int, Int[np.ndarray, "_n"]]]
"""Padded length and rows of each batch."""


class Batches:
    """Batches of rows of like length (`padded_lengths`), in an order that depends on seed and epoch alone."""

    def __init__(self, rows: Sequence[Int[np.ndarray, "_row"]], settings: LMTraining) -> None:
        self._rows = rows
        self._padded = padded_lengths(rows, settings.n_ctx)
        self._plan: _Plan = []
        epoch = 0
        while epoch < settings.epochs:
            plan = self._epoch(np.random.default_rng([settings.seed, epoch]), settings.batch_tokens)
            self._plan += plan[: round(len(plan) * min(1.0, settings.epochs - epoch))]
            epoch += 1
        if not self._plan:
            raise InputError("the text is too short for one batch; give more text or lower --batch-tokens.")

    def _epoch(self, rng: np.random.Generator, batch_tokens: int) -> _Plan:
        plan = []
        for length in np.unique(self._padded):
            members = rng.permutation(np.flatnonzero(self._padded == length))
            size = batch_tokens // int(length)
            plan += [(int(length), members[i : i + size]) for i in range(0, len(members) - size + 1, size)]
        return [plan[i] for i in rng.permutation(len(plan))]

    def __len__(self) -> int:
        return len(self._plan)

    def __call__(self, step: int) -> Int[np.ndarray, "batch row"]:
        """The rows of a step; -1 where a row has ended."""
        length, members = self._plan[step]
        batch = np.full((len(members), length + 1), -1, np.int32)
        for i, member in enumerate(members):
            batch[i, : len(self._rows[member])] = self._rows[member]
        return batch


def init_params(settings: LMTraining) -> ModelWeights:
    """Random weights: normal, 0.02, smaller where a block writes to the residual stream.

    What GPT-Neo does not have (biases of query, key, value and unembedding; a `W_U` of its own) is `None`,
    so that no optimiser sees it; `completed` fills it in.
    """
    cfg = settings.model()
    keys = iter(jax.random.split(jax.random.key(settings.seed), 2 + 6 * cfg.n_layers))
    writing = 0.02 / np.sqrt(2 * cfg.n_layers)

    def normal(*shape: int, std: float = 0.02) -> Array:
        return std * jax.random.normal(next(keys), shape)

    def norm() -> NormWeights:
        return NormWeights(jnp.ones(cfg.d_model), jnp.zeros(cfg.d_model))

    def block() -> BlockWeights:
        per_head = (cfg.n_heads, cfg.d_model, cfg.d_head)
        return BlockWeights(
            ln1=norm(),
            attn=AttentionWeights(
                W_Q=normal(*per_head),
                W_K=normal(*per_head),
                W_V=normal(*per_head),
                W_O=normal(cfg.n_heads, cfg.d_head, cfg.d_model, std=writing),
                b_Q=None,  # pyright: ignore[reportArgumentType]
                b_K=None,  # pyright: ignore[reportArgumentType]
                b_V=None,  # pyright: ignore[reportArgumentType]
                b_O=jnp.zeros(cfg.d_model),
            ),
            ln2=norm(),
            mlp=MLPWeights(
                normal(cfg.d_model, cfg.d_mlp),
                jnp.zeros(cfg.d_mlp),
                normal(cfg.d_mlp, cfg.d_model, std=writing),
                jnp.zeros(cfg.d_model),
            ),
        )

    W_E, W_pos = normal(cfg.d_vocab, cfg.d_model), normal(cfg.n_ctx, cfg.d_model)
    return ModelWeights(W_E, W_pos, tuple(block() for _ in range(cfg.n_layers)), norm(), None, None)  # pyright: ignore


def completed(params: ModelWeights, cfg: ModelConfig) -> ModelWeights:
    """The trained tree with what GPT-Neo fixes: zero biases, an unembedding tied to the embedding."""
    zero = jnp.zeros((cfg.n_heads, cfg.d_head), params.W_E.dtype)
    blocks = tuple(b._replace(attn=b.attn._replace(b_Q=zero, b_K=zero, b_V=zero)) for b in params.blocks)
    return params._replace(blocks=blocks, W_U=params.W_E.T, b_U=jnp.zeros(cfg.d_vocab, params.W_E.dtype))


def nll(
    params: ModelWeights, cfg: ModelConfig, rows: Int[Array, "batch row"], edits: Edits | None = None
) -> tuple[Float[Array, "batch pos"], Float[Array, "batch pos"]]:
    """Negative log-likelihood of each next token in nats, and 1 where there is one (0 in the padding)."""
    inputs, targets = jnp.maximum(rows[:, :-1], 0), rows[:, 1:]
    logits, _ = forward(params, cfg, inputs, edits=edits)
    assert logits is not None
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    mask = (targets >= 0).astype(losses.dtype)
    return losses * mask, mask


@cache
def optimiser(settings: LMTraining, n_steps: int) -> optax.GradientTransformation:
    """Muon on the matrices of the blocks, AdamW on embeddings, norms and biases; warm-up, then linear to zero.

    One object for equal arguments: it is a static part of the state, so another would be compiled again.

    Source: K. Jordan and others, Muon (2024), as in `optax.contrib.muon`.
    """
    warmup = max(1, round(settings.warmup * n_steps))

    def schedule(peak: float) -> optax.Schedule:
        up = optax.linear_schedule(0.0, peak, warmup)
        return optax.join_schedules([up, optax.linear_schedule(peak, 0.0, n_steps - warmup)], [warmup])

    def matrices(params: ModelWeights) -> Any:
        into = optax.contrib.MuonDimensionNumbers
        # Heads are separate maps: of [head, d_model, d_head] the head axis is a batch of matrices.
        dims = {"W_Q": into(1, 2), "W_K": into(1, 2), "W_V": into(1, 2), "W_O": into(1, 2)}
        dims |= {"W_in": into(0, 1), "W_out": into(0, 1)}
        return jax.tree_util.tree_map_with_path(lambda path, _: dims.get(getattr(path[-1], "name", "")), params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule(settings.muon_lr),
            adam_learning_rate=schedule(settings.adam_lr),
            weight_decay=settings.weight_decay,
            adam_weight_decay=settings.weight_decay,
            adam_b2=0.98,
            muon_weight_dimension_numbers=matrices,  # pyright: ignore[reportArgumentType]
        ),
    )


@partial(jax.jit, static_argnames="cfg", donate_argnums=0)
def update(state: TrainState, rows: Int[Array, "batch row"], cfg: ModelConfig) -> tuple[TrainState, Metrics]:
    """One step on the mean loss of a batch's tokens."""

    def loss_of(params: ModelWeights) -> Float[Array, ""]:
        losses, mask = nll(completed(params, cfg), cfg, rows)
        return losses.sum() / mask.sum()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss}


def train_lm(
    texts: Sequence[str], settings: LMTraining, out: Path, *, quiet: bool = False
) -> tuple[ModelConfig, ModelWeights, Tokenizer]:
    """Trains tokenizer and model, or goes on where a run in `out` stopped.

    Args:
        texts: One story each.
        settings: The run's settings.
        out: Its directory, made by `run_directory`.
        quiet: No progress bar.

    Returns:
        Description, unprocessed weights and tokenizer.
    """
    cfg = settings.model()
    file = out / "tokenizer.json"
    if not file.is_file():
        train_tokenizer(texts, settings.d_vocab).save(str(file))
    tokenizer = read_tokenizer(file)
    batches = Batches(rows_of(texts, tokenizer, settings.n_ctx), settings)
    state = TrainState.create(apply_fn=forward, params=init_params(settings), tx=optimiser(settings, len(batches)))
    state = train(state, partial(update, cfg=cfg), batches, len(batches), out, label="language model", quiet=quiet)
    return cfg, completed(cast(ModelWeights, state.params), cfg), tokenizer
