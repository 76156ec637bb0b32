"""Stories sampled from a model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward
from jaxcircuits.types import ModelWeights


def sample_tokens(
    bundle: Bundle, n: int, *, seed: int = 0, temperature: float = 1.0, max_tokens: int = 400
) -> list[Int[np.ndarray, "_row"]]:
    """Samples rows of tokens: BOS, a text, and the end of text unless `max_tokens` came first.

    Each row has a random stream of its own, which depends on `seed` and the row's number only. Rows that have ended
    are computed no further; lengths and row counts are padded, so few shapes are compiled.

    Args:
        bundle: Model whose end of text is its BOS token, as GPT-2's and GPT-Neo's.
        n: Rows.
        seed: Of the random streams.
        temperature: Logits are divided by it.
        max_tokens: Most tokens after BOS; one fewer than the context at most.

    Raises:
        InputError: The model has no BOS token, or an argument is out of range.
    """
    cfg = bundle.cfg
    if cfg.bos_token_id is None:
        raise InputError("the model has no BOS token to begin a text with, so none can be sampled.")
    if n < 1 or not temperature > 0 or not 1 <= max_tokens <= cfg.n_ctx:
        raise InputError(
            f"expected n and temperature above 0 and max_tokens in 1..{cfg.n_ctx}, "
            f"got {n}, {temperature}, {max_tokens}."
        )
    tokens = np.full((n, max_tokens + 1), cfg.bos_token_id, np.int32)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(n))
    lengths = np.full(n, max_tokens + 1)
    running = np.arange(n)
    step = max(8, cfg.n_ctx // 16)
    for length in range(1, max_tokens + 1):
        padded = min(-(-length // step) * step, cfg.n_ctx)
        # A power of two of rows: the count falls one by one, and each new one would be compiled again.
        rows = np.resize(running, 1 << (len(running) - 1).bit_length())
        inputs = np.full((len(rows), padded), cfg.bos_token_id, np.int32)
        inputs[:, :length] = tokens[rows, :length]
        drawn = _next_tokens(bundle.params, cfg, inputs, jnp.int32(length), keys[rows], temperature)
        tokens[running, length] = np.asarray(drawn)[: len(running)]
        ended = tokens[running, length] == cfg.bos_token_id
        lengths[running[ended]] = length + 1
        running = running[~ended]
        if not len(running):
            break
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


@partial(jax.jit, static_argnames="cfg")
def _next_tokens(
    params: ModelWeights,
    cfg: ModelConfig,
    tokens: Int[Array, "batch pos"],
    length: Int[Array, ""],
    keys: Array,
    temperature: Float[Array, ""] | float,
) -> Int[Array, "batch"]:
    logits, _ = forward(params, cfg, tokens, logits_at=(length - 1)[None])
    assert logits is not None
    return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, length), row / temperature))(
        keys, logits[:, 0]
    )


def sample_stories(
    bundle: Bundle, n: int, *, seed: int = 0, temperature: float = 1.0, max_tokens: int = 400, complete: bool = True
) -> list[str]:
    """Samples texts; see `sample_tokens`.

    Args:
        bundle: Model and tokenizer.
        n: Texts to sample.
        seed: Of the random streams.
        temperature: Logits are divided by it.
        max_tokens: Most tokens of a text.
        complete: Leave out those that had not ended by then, so that fewer than `n` may come.

    Raises:
        InputError: The bundle has no tokenizer, or as `sample_tokens`.
    """
    if bundle.tokenizer is None:
        raise InputError("this bundle has no tokenizer, so it samples no text; convert it with its tokenizer.")
    texts = []
    for row in sample_tokens(bundle, n, seed=seed, temperature=temperature, max_tokens=max_tokens):
        ended = len(row) > 1 and row[-1] == bundle.cfg.bos_token_id
        text = bundle.tokenizer.decode(row[1 : -1 if ended else None].tolist()).strip()
        if text and (ended or not complete):
            texts.append(text)
    return texts
