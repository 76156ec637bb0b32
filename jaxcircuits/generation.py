"""Text from a model, with autoencoders spliced in and features changed if asked: greedy or sampled, a token a pass.

Keys and values of earlier tokens are kept (`model/cache.py`), so a step costs one position. What is generated does
not depend on that: tests compare every token with whole passes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig, check_seed
from jaxcircuits.errors import InputError
from jaxcircuits.interventions import Change, bos_mask, feature_edits
from jaxcircuits.model import Cache, empty_cache, forward_cached
from jaxcircuits.progress import progress
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights

CACHE_BYTES = 2**28
"""Room for keys and values: as many rows as fit are generated at once."""


def generate(
    bundle: Bundle,
    prompt: str | Int[np.ndarray, "pos"],
    *,
    n: int = 1,
    max_tokens: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
    splice: Iterable[str] = (),
    changes: Sequence[Change] = (),
    splice_bos: bool = True,
    quiet: bool = True,
) -> list[Int[np.ndarray, "_row"]]:
    """Continues a prompt.

    Each row has a random stream of its own, which depends on `seed` and the row's number only.

    Args:
        bundle: Model, autoencoders and tokenizer.
        prompt: Text, or token ids as they are.
        n: Rows; without a temperature they are all the same.
        max_tokens: Most tokens to add. The last one may lie just outside the context.
        temperature: Logits are divided by it before a token is drawn; 0 takes the likeliest.
        seed: Of the random streams.
        splice: Names of autoencoders whose reconstruction takes their hook's place.
        changes: Features set, ablated, scaled or steered, at positions of the prompt or behind it; see
            `jaxcircuits.interventions`.
        splice_bos: Whether splicing covers position 0 where it holds BOS.
        quiet: No progress bar.

    Returns:
        Rows of token ids, prompt included, up to the end of text (the BOS token) if that came.

    Raises:
        InputError: The prompt cannot be used, or an argument is out of range.

    >>> from jaxcircuits import generate, load_bundle
    >>> bundle = load_bundle()
    >>> (row,) = generate(bundle, "Once upon a", max_tokens=3)
    >>> bundle.tokenizer.decode(row)
    'Once upon a time, there'
    """
    cfg = bundle.cfg
    ids = bundle.tokenize(prompt) if isinstance(prompt, str) else np.asarray(prompt, np.int32)
    check_seed(seed)
    if not len(ids) or (ids < 0).any() or (ids >= cfg.d_vocab).any():
        raise InputError(f"expected a prompt of token ids in 0..{cfg.d_vocab - 1}, at least one.")
    room = cfg.n_ctx + 1 - len(ids)
    if n < 1 or not 0 <= temperature < float("inf") or not 1 <= max_tokens <= room:
        raise InputError(
            f"expected n above 0, temperature 0 or above and max_tokens in 1..{room} behind a prompt of {len(ids)} "
            f"tokens, got {n}, {temperature}, {max_tokens}."
        )
    for change in changes:
        positions = np.asarray(() if change.positions is None else change.positions)
        if np.ndim(change.value) or (positions < 0).any() or (positions >= cfg.n_ctx).any():
            raise InputError(f"a change of generated text needs one value, and positions in 0..{cfg.n_ctx - 1}.")
    splice = frozenset(splice)
    chosen = {name: s for name, s in bundle.saes.items() if name in splice or any(c.sae == name for c in changes)}
    feature_edits(bundle.saes, splice=splice, changes=changes)  # what cannot be done is refused before anything runs
    what = (bundle.params, cfg, chosen, tuple(changes))
    how: dict[str, Any] = {"temperature": jnp.float32(temperature or 1.0), "greedy": temperature == 0}
    how |= {"splice": splice, "splice_bos": splice_bos}
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(n))
    n_pos = min(cfg.n_ctx, -(-(len(ids) + max_tokens) // 64) * 64)
    a_row = 2 * cfg.n_layers * n_pos * cfg.kv_heads * cfg.d_head * bundle.params.W_E.dtype.itemsize
    size = min(n, max(1, CACHE_BYTES // a_row))
    # The prompt's pass is padded to few lengths: what lies behind its end is written over before any query sees it.
    padded = np.full((1, min(n_pos, -(-len(ids) // 16) * 16)), ids[-1], np.int32)
    padded[0, : len(ids)] = ids
    rows: list[np.ndarray] = []
    with progress(quiet) as bar, jax.default_matmul_precision("highest"):
        for first in range(0, n, size):
            label = f"rows {first + 1} to {min(first + size, n)}" if n > size else "generating"
            task = bar.add_task(label, total=max_tokens)
            some = np.resize(
                np.arange(first, min(first + size, n)), size
            )  # one size, so that nothing is compiled twice
            found = np.zeros((size, len(ids) + max_tokens), np.int32)
            found[:, : len(ids)] = ids
            lengths = np.full(size, found.shape[1])
            cache = empty_cache(cfg, (1,), n_pos, bundle.params.W_E.dtype)
            drawn, cache = _first_tokens(*what, padded, cache, keys[some], jnp.int32(len(ids) - 1), **how)
            for length in range(len(ids), found.shape[1]):
                if length > len(ids):
                    drawn, cache = _next_tokens(*what, drawn[:, None], cache, keys[some], jnp.int32(0), **how)
                found[:, length] = np.asarray(drawn)
                ended = (found[:, length] == cfg.bos_token_id) & (lengths == found.shape[1])
                lengths[ended] = length + 1
                bar.update(task, advance=1)
                if (lengths <= length + 1).all():
                    break
            bar.update(task, completed=max_tokens)
            rows += [row[:end] for row, end in zip(found, lengths, strict=True)][: min(size, n - first)]
    return rows


def _draw(
    params: ModelWeights,
    cfg: ModelConfig,
    saes: Mapping[str, SAE],
    changes: tuple[Change, ...],
    tokens: Int[Array, "_rows pos"],
    cache: Cache,
    keys: Array,
    last: Int[Array, ""],
    *,
    temperature: Float[Array, ""],
    greedy: bool,
    splice: frozenset[str],
    splice_bos: bool,
) -> tuple[Int[Array, "n"], Cache]:
    """Draws the token behind index `last` of `tokens`, where padding may begin. One prompt serves all keys."""
    start = cache.length
    keep = None if splice_bos else bos_mask(cfg, tokens) & (start == 0)
    edits, _ = feature_edits(saes, splice=splice, changes=changes, keep=keep, start=start)
    logits, _, cache = forward_cached(params, cfg, tokens, cache, edits=edits, logits_at=last[None])
    assert logits is not None
    length = start + last + 1
    if len(tokens) < len(keys):
        k, v = jax.tree.map(lambda kept: jnp.repeat(kept, len(keys), 0), (cache.k, cache.v))
        logits, cache = jnp.repeat(logits, len(keys), 0), Cache(k, v, length)
    cache = cache._replace(length=length)
    if greedy:
        return logits[:, 0].argmax(-1).astype(jnp.int32), cache
    return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, length), row / temperature))(
        keys, logits[:, 0]
    ).astype(jnp.int32), cache


_STATIC = ("cfg", "greedy", "splice", "splice_bos")
_first_tokens = jax.jit(_draw, static_argnames=_STATIC)
_next_tokens = jax.jit(_draw, static_argnames=_STATIC, donate_argnames="cache")


def sample_tokens(
    bundle: Bundle, n: int, *, seed: int = 0, temperature: float = 1.0, max_tokens: int = 400, quiet: bool = True
) -> list[Int[np.ndarray, "_row"]]:
    """Samples rows of tokens: BOS, a text, and the end of text unless `max_tokens` came first.

    Args:
        bundle: Model whose end of text is its BOS token, as GPT-2's and GPT-Neo's.
        n: Rows.
        seed: Of the random streams.
        temperature: Logits are divided by it.
        max_tokens: Most tokens after BOS; the context at most.
        quiet: No progress bar.

    Raises:
        InputError: The model has no BOS token, or an argument is out of range.
    """
    if bundle.cfg.bos_token_id is None:
        raise InputError("the model has no BOS token to begin a text with, so none can be sampled.")
    if not temperature > 0:
        raise InputError(f"expected a temperature above 0 to sample at, got {temperature}.")
    bos = np.array([bundle.cfg.bos_token_id], np.int32)
    return generate(bundle, bos, n=n, max_tokens=max_tokens, temperature=temperature, seed=seed, quiet=quiet)


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
