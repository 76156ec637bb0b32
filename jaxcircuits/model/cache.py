"""Keys and values kept from one pass to the next, so that a further token costs one position and not all of them.

Positions that nothing has been written to yet lie behind every query, where the causal mask hides them.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model.hooks import Edits, Hooks
from jaxcircuits.model.transformer import run_blocks
from jaxcircuits.types import ModelWeights


class Cache(NamedTuple):
    """Keys and values of every layer, heads first as products want them, and how many positions are filled."""

    k: tuple[Float[Array, "*batch kv_head k_pos d_head"], ...]
    v: tuple[Float[Array, "*batch kv_head k_pos d_head"], ...]
    length: Int[Array, ""]


def empty_cache(cfg: ModelConfig, batch: tuple[int, ...], n_pos: int, dtype=jnp.float32) -> Cache:
    """A cache with room for `n_pos` positions.

    Raises:
        InputError: More than the context holds.
    """
    if n_pos > cfg.n_ctx:
        raise InputError(f"the model's context holds {cfg.n_ctx} tokens, got {n_pos}; ask for fewer.")
    shape = (*batch, cfg.kv_heads, n_pos, cfg.d_head)
    zeros = tuple(jnp.zeros(shape, dtype) for _ in range(cfg.n_layers))
    return Cache(zeros, tuple(jnp.zeros(shape, dtype) for _ in range(cfg.n_layers)), jnp.int32(0))


def forward_cached(
    params: ModelWeights,
    cfg: ModelConfig,
    tokens: Int[Array, "*batch pos"],
    cache: Cache,
    *,
    taps: Iterable[str] = (),
    edits: Edits | None = None,
    logits_at: slice | Int[Array, "n"] | None = slice(None),
) -> tuple[Float[Array, "*batch n d_vocab"] | None, dict[str, Array], Cache]:
    """Runs the model on tokens that come after those in a cache; otherwise as `forward`.

    Edits and taps see the new positions only; scores and patterns have a key for each position of the cache.

    Args:
        params: The weights.
        cfg: The architecture.
        tokens: Token ids that follow.
        cache: What came before; it must have room for them, which is not checked.
        taps: Hook points whose values are returned.
        edits: New values by hook point.
        logits_at: Indices of the new tokens whose logits are computed.

    Returns:
        The logits, the tapped values, and the cache with the new positions.

    >>> import jax.numpy as jnp
    >>> from jaxcircuits import forward, load_bundle
    >>> from jaxcircuits.model import empty_cache, forward_cached
    >>> bundle = load_bundle()
    >>> tokens = jnp.asarray(bundle.tokenize("Once upon a time"))
    >>> cache = empty_cache(bundle.cfg, (), 8)
    >>> _, _, cache = forward_cached(bundle.params, bundle.cfg, tokens[:3], cache)
    >>> logits, _, _ = forward_cached(bundle.params, bundle.cfg, tokens[3:], cache)
    >>> bool(jnp.allclose(logits, forward(bundle.params, bundle.cfg, tokens)[0][3:], atol=1e-4))
    True
    """
    hook = _CachedHooks(cfg, taps, edits, cache)
    q_pos = cache.length + jnp.arange(tokens.shape[-1])
    k_pos = jnp.arange(cache.k[0].shape[-2])
    logits = run_blocks(params, cfg, tokens, hook, q_pos, k_pos, logits_at)
    return logits, hook.acts, Cache(tuple(hook.k), tuple(hook.v), cache.length + tokens.shape[-1])


class _CachedHooks(Hooks):
    """Hooks through which keys and values leave together with those of the cache."""

    def __init__(self, cfg: ModelConfig, taps: Iterable[str], edits: Edits | None, cache: Cache) -> None:
        super().__init__(cfg, taps, edits)
        self.k, self.v, self._start = list(cache.k), list(cache.v), cache.length
        # Keys are kept as scores read them, so that none is turned twice.
        self._kept = ((self.k, f".{cfg.scored[1]}"), (self.v, ".attn.hook_v"))

    @property
    def satisfied(self) -> bool:
        """Never: later layers have keys and values to keep."""
        return False

    def __call__(self, name: str, value: Array) -> Array:
        """Passes a value through its hook point; of keys and values, the new ones."""
        value = super().__call__(name, value)
        for kept, kind in self._kept:
            if name.endswith(kind):
                layer = int(name.split(".")[1])
                new = jnp.swapaxes(value, -2, -3)
                kept[layer] = jax.lax.dynamic_update_slice_in_dim(kept[layer], new, self._start, new.ndim - 2)
                return jnp.swapaxes(kept[layer], -2, -3)
        return value
