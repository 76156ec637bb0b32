"""Attention patterns and norm scales held and GELUs replaced by lines: edits of the hook points where these pass.

Without values to hold, what passes is held for derivatives alone and no value changes: the frozen derivative. With the
values of another run, they take the place of the run's own: an intervention under frozen attention and norms. Both are
made here, so that what one predicts and what the other measures mean the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.model.activations import ACTIVATIONS

Edit = Callable[[Array], Array]

FREEZABLE = ("attention", "norms", "gelu")
"""What can be frozen: attention patterns and norm scales are held, a GELU is replaced by its line."""

BEFORE_GELU = (".mlp.hook_pre", ".mlp.hook_pre_linear")
"""Endings of the hook points whose values a GELU's line needs."""

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
    read = [hook for mlp in (_mlps(names) if "gelu" in freeze else ()) for hook in mlp.read]
    return (*(name for name in names if held and name.endswith(held)), *read)


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
        names: Consecutive hook points. A GELU counts where the last one before it and the one behind it are both among
            them.
        freeze: Some of `FREEZABLE`.
        activation: The model's, which its GELUs are.
        gelu: The line in a GELU's place: its `"tangent"`, or the `"secant"`.
        at: Values of `frozen_hooks` of the run that is held; by default each run holds its own, for derivatives.
        constant_scale: Factor of the lines' constants; for derivatives with respect to it.
    """

    def held(name: str) -> Edit:
        return lambda value: jax.lax.stop_gradient(value if at is None else at[name])

    edits = {name: held(name) for name in frozen_hooks(names, set(freeze) - {"gelu"})}
    for mlp in _mlps(names) if "gelu" in freeze else ():
        edits |= linear_mlp(mlp, gelu, activation, constant_scale, at)
    return edits


class Gelu(NamedTuple):
    """The hook points around an MLP's activation: what it is a function of, and what it gives."""

    read: tuple[str, ...]  # of a gated one two: what is activated, and what that multiplies
    written: str


def gelu_of(layer: int, *, gated: bool) -> Gelu:
    """The hook points around a block's activation."""
    name = f"blocks.{layer}.mlp"
    return Gelu((f"{name}.hook_pre", *((f"{name}.hook_pre_linear",) if gated else ())), f"{name}.hook_post")


def _mlps(names: Sequence[str]) -> list[Gelu]:
    """The activations whose last hook before them and whose hook behind them are both among some hook points."""
    found, known = [], set(names)
    for written in (name for name in names if name.endswith(".mlp.hook_post")):
        layer = int(written.split(".")[1])
        gated = gelu_of(layer, gated=True)
        mlp = gated if gated.read[-1] in known else gelu_of(layer, gated=False)
        found += [mlp] if mlp.read[-1] in known else []
    return found


def linear_mlp(
    mlp: Gelu,
    kind: str | None,
    activation: str,
    constant_scale: Array | float = 1.0,
    at: Mapping[str, Array] | None = None,
) -> dict[str, Edit]:
    """Edits that put a line in an activation's place: those before it remember, within one trace, what it needs.

    Where it is gated, a product `act(u) v` stands for the GELU, and a plane in the line's place: its tangent plane, or
    for the `"secant"` the one in which the gate `act(u)` is held, which has no constant either.

    Args:
        mlp: The hook points.
        kind: As in `gelu_line`.
        activation: The model's.
        constant_scale: Factor of the constant.
        at: The values that are read in the run that is held; by default each run's own.
    """
    seen: dict[str, list[Array]] = {name: [] for name in mlp.read}

    def remember(name: str) -> Edit:
        def before(value: Array) -> Array:
            seen[name].append(value)
            return value

        return before

    def after(value: Array) -> Array:
        read = tuple(seen[name].pop() for name in mlp.read)
        held = read if at is None else tuple(at[name] for name in mlp.read)
        slopes, constant = jax.lax.stop_gradient(gelu_plane(held, kind, activation))
        return sum(slope * x for slope, x in zip(slopes, read, strict=True)) + constant_scale * constant

    return {**{name: remember(name) for name in mlp.read}, mlp.written: after}


def gelu_plane(at: tuple[Array, ...], kind: str | None, activation: str) -> tuple[tuple[Array, ...], Array]:
    """A slope for each value that an activation reads, and a constant; for one value, `gelu_line`."""
    slope, constant = gelu_line(at[0], kind, activation)
    if len(at) == 1:
        return (slope,), constant
    u, v = at
    gate = ACTIVATIONS[activation].value(u)
    if kind == "secant":
        return (jnp.zeros_like(u), gate), jnp.zeros_like(u)
    return (slope * v, gate), -slope * u * v
