"""Attention patterns and norm scales held and GELUs replaced by lines: edits of the hook points where these pass.

Without values to hold, what passes is held for derivatives alone and no value changes: the frozen derivative. With the
values of another run, they take the place of the run's own: an intervention under frozen attention and norms. Both are
made here, so that what one predicts and what the other measures mean the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.model.activations import ACTIVATIONS

Edit = Callable[[Array], Array]

FREEZABLE = ("attention", "norms", "gelu")
"""What can be frozen: attention patterns and norm scales are held, a GELU is replaced by its line."""

_HELD = {"attention": ".attn.hook_pattern", "norms": ".hook_scale"}


def gelu_line(
    u: Float[Array, "..."], kind: str | None, activation: str
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Slope and constant of the line that stands for a GELU at `u`: their sum `slope * u + constant` is its value.

    Args:
        u: Where.
        kind: `"secant"`: the ratio `gelu(u) / u`, no constant. Else the tangent.
        activation: Which one of `config.ACTIVATIONS` is meant by a GELU: the model's.
    """
    if kind == "secant":
        return ACTIVATIONS[activation].ratio(u), jnp.zeros_like(u)
    value, slope = jax.jvp(ACTIVATIONS[activation].value, (u,), (jnp.ones_like(u),))
    return slope, value - slope * u


def frozen_hooks(names: Sequence[str], freeze: Iterable[str]) -> tuple[str, ...]:
    """Hook points whose values `freeze_edits` holds, or needs for its lines.

    >>> from jaxcircuits.model.freezing import frozen_hooks
    >>> frozen_hooks(["blocks.1.ln1.hook_scale", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"], ["norms"])
    ('blocks.1.ln1.hook_scale',)
    """
    freeze = set(freeze)
    held = tuple(ending for what, ending in _HELD.items() if what in freeze)
    lines = _gelus(names) if "gelu" in freeze else {}
    return tuple(name for name in names if (held and name.endswith(held)) or name in lines)


def freeze_edits(
    names: Sequence[str],
    freeze: Iterable[str] = FREEZABLE,
    *,
    activation: str,
    gelu: str | None = "tangent",
    at: Mapping[str, Array] | None = None,
    constant_scale: Float[Array, ""] | float = 1.0,
) -> dict[str, Edit]:
    """Edits that freeze what lies among some hook points.

    Args:
        names: Consecutive hook points. A GELU counts where `mlp.hook_pre` and `mlp.hook_post` are both among them.
        freeze: Some of `FREEZABLE`.
        activation: The model's, which its GELUs are.
        gelu: The line in a GELU's place: its `"tangent"`, or the `"secant"`.
        at: Values of `frozen_hooks` of the run that is held; by default each run holds its own, for derivatives.
        constant_scale: Factor of the lines' constants; for derivatives with respect to it.
    """

    def held(name: str) -> Edit:
        return lambda value: jax.lax.stop_gradient(value if at is None else at[name])

    edits = {name: held(name) for name in frozen_hooks(names, set(freeze) - {"gelu"})}
    for pre, post in _gelus(names).items() if "gelu" in freeze else ():
        edits[pre], edits[post] = linear_gelu(gelu, activation, constant_scale, None if at is None else at[pre])
    return edits


def _gelus(names: Sequence[str]) -> dict[str, str]:
    """The GELUs among some hook points: the hook before each, and the one behind it."""
    behind = {name: name.removesuffix("hook_pre") + "hook_post" for name in names if name.endswith(".mlp.hook_pre")}
    return {pre: post for pre, post in behind.items() if post in names}


def linear_gelu(
    kind: str | None, activation: str, constant_scale: Array | float = 1.0, at: Array | None = None
) -> tuple[Edit, Edit]:
    """Edits of an MLP's `hook_pre` and `hook_post`: the first remembers, within one trace, what the second needs."""
    seen: list[Array] = []

    def before(u: Array) -> Array:
        seen.append(u)
        return u

    def after(value: Array) -> Array:
        u = seen.pop()
        slope, constant = jax.lax.stop_gradient(gelu_line(u if at is None else at, kind, activation))
        return slope * u + constant_scale * constant

    return before, after
