"""Rotary positions: pairs of a query's or key's numbers are turned by an angle that grows with the position.

A product of a turned query and a turned key depends on how far apart they are. Number `i` of a head's first half of
turned numbers is paired with number `i` of the second, as GPT-NeoX and Llama have it.

Source: Su et al. 2021, eq. 34; Hugging Face transformers 5.24, `GPTNeoXRotaryEmbedding`.
"""

from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.config import ModelConfig


class Turns(NamedTuple):
    """Cosine and sine of the angle of each pair, at some positions."""

    cos: Float[Array, "*pos pair"]
    sin: Float[Array, "*pos pair"]

    @property
    def back(self) -> "Turns":
        """The same angles the other way round: what undoes a turn, and is its transpose."""
        return Turns(self.cos, -self.sin)


def turns(cfg: ModelConfig, pos: Int[Array, "*pos"], dtype) -> Turns | None:
    """The angles at some positions; `None` for a model whose positions are not rotary."""
    if cfg.rotary_dim is None:
        return None
    # From tables in double precision: a rounded angle of a few thousand radians would be off in the fourth digit.
    cos, sin = _tables(cfg.n_ctx, cfg.rotary_dim, cfg.rotary_base)
    return Turns(jnp.asarray(cos, dtype)[pos], jnp.asarray(sin, dtype)[pos])


@lru_cache(maxsize=8)
def _tables(n_ctx: int, rotary_dim: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    speeds = float(base) ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    angles = np.arange(n_ctx)[:, None] * speeds
    return np.cos(angles), np.sin(angles)


def turned(x: Float[Array, "... d_head"], by: Turns) -> Float[Array, "... d_head"]:
    """Turns the first numbers of each vector and leaves the others; `by` must broadcast against its leading axes."""
    n = by.cos.shape[-1]
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return jnp.concatenate([first * by.cos - second * by.sin, second * by.cos + first * by.sin, rest], -1)
