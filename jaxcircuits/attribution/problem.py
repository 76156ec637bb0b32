"""The definition: what an attribution is the derivative of, and with respect to what.

A source feature adds its decoder row to the source hook's value; a target is one feature of the target SAE at one
position. The gradient of an edge is the derivative of the target's activation along the source's decoder row, at the
source hook's value: its reconstruction where the source SAE is spliced in, the model's own value elsewhere.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, precedes
from jaxcircuits.sae import SAE, encode, pre_activations, reconstruct

METHODS = ("auto", "reference", "structured")
DERIVATIVES = ("exact",)
SPLICES = ("none", "source", "target", "both")
POSITIONS = ("same", "all")
QUANTITIES = ("activation", "pre_activation")
BASES = ("features", "neurons")


@dataclass(frozen=True)
class Settings:
    """What to attribute to what; every field is recorded with the result.

    Attributes:
        source: Name of the source SAE; by default the one on the earliest hook point.
        target: Name of the target SAE; by default the one on the latest.
        positions: `"same"`: sources at the target's position; `"all"`: also at every earlier one.
        method: `"reference"` (`vmap(grad)`), `"structured"` (adjacent MLPs), or `"auto"`: structured where it can.
        derivative: `"exact"`: through softmax, norms and GELU.
        splice: Which SAE's reconstruction takes its hook's place. The target's changes no edge.
        target_quantity: Differentiate the target's `"activation"` or its `"pre_activation"`, which admits targets
            that are off.
        source_basis: Sources are SAE `"features"` or the hook's own `"neurons"`.
        source_threshold: A source counts where its activation is strictly greater; `"all"` takes every one.
        target_threshold: A target counts where its quantity is strictly greater.
        include_bos: Whether position 0 counts as source and target where it holds BOS.
        splice_bos: Whether splicing covers position 0 where it holds BOS.
        top_n: Keep that many edges of largest absolute attribution per target; the rest is counted, not kept.
        precision: Of matrix products, in JAX's words: `"highest"` is float32 everywhere.
    """

    source: str | None = None
    target: str | None = None
    positions: str = "same"
    method: str = "auto"
    derivative: str = "exact"
    splice: str = "none"
    target_quantity: str = "activation"
    source_basis: str = "features"
    source_threshold: float | str = 0.0
    target_threshold: float = 0.0
    include_bos: bool = False
    splice_bos: bool = True
    top_n: int | None = None
    precision: str = "highest"

    def __post_init__(self) -> None:
        words = {
            "positions": POSITIONS,
            "method": METHODS,
            "derivative": DERIVATIVES,
            "splice": SPLICES,
            "target_quantity": QUANTITIES,
            "source_basis": BASES,
            "precision": ("highest", "high", "default"),
        }
        for name, allowed in words.items():
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")
        if isinstance(self.source_threshold, str) and self.source_threshold != "all":
            raise InputError(f"source_threshold must be a number or 'all', got {self.source_threshold!r}.")
        for name in ("source_threshold", "target_threshold"):
            value = getattr(self, name)
            if value != "all" and value != value:
                raise InputError(f"{name} must be a number, got NaN.")
        if self.top_n is not None and self.top_n < 1:
            raise InputError(f"top_n must be at least 1, got {self.top_n}.")


@dataclass(frozen=True)
class Problem:
    """One attribution, resolved against a bundle: static, so it is part of a compiled program's key."""

    cfg: ModelConfig
    source_hook: str
    target_hook: str
    splice_source: bool
    splice_bos: bool
    target_quantity: str

    @property
    def adjacent_mlps(self) -> bool:
        """Whether both hooks are `mlp.hook_post` and the target's layer is the next one."""
        source, target = self.source_hook.split("."), self.target_hook.split(".")
        both = source[2:] == target[2:] == ["mlp", "hook_post"]
        return both and int(target[1]) == int(source[1]) + 1


@dataclass(frozen=True)
class Pair:
    """The two ends of an attribution: the SAEs, their names, and the static problem."""

    source_name: str
    target_name: str
    source: SAE
    target: SAE
    problem: Problem


def resolve(bundle: Bundle, settings: Settings) -> Pair:
    """Finds the two SAEs and checks that one can drive the other.

    Raises:
        InputError: A name is unknown, the bundle has fewer than two SAEs, or the source does not come first.
    """
    names = list(bundle.saes)
    if not names:
        raise InputError("the bundle has no SAE; convert one with --sae or train one.")
    order = sorted(names, key=lambda n: _depth(bundle, n))
    source, target = settings.source or order[0], settings.target or order[-1]
    for name in (source, target):
        if name not in bundle.saes:
            raise InputError(f"the bundle has no SAE {name!r}; it has {', '.join(order)}.")
    first, second = bundle.saes[source].cfg.hook_name, bundle.saes[target].cfg.hook_name
    if not precedes(bundle.cfg, first, second):
        raise InputError(
            f"the source SAE must sit before the target SAE, got {source} ({first}) and {target} ({second}); "
            "swap or name two others."
        )
    problem = Problem(
        cfg=bundle.cfg,
        source_hook=first,
        target_hook=second,
        splice_source=settings.splice in ("source", "both"),
        splice_bos=settings.splice_bos,
        target_quantity=settings.target_quantity,
    )
    return Pair(source, target, bundle.saes[source], bundle.saes[target], problem)


def _depth(bundle: Bundle, name: str) -> int:
    from jaxcircuits.model import hook_names

    return hook_names(bundle.cfg).index(bundle.saes[name].cfg.hook_name)


def flat(value: Float[Array, "pos *width"]) -> Float[Array, "pos d_in"]:
    """A hook's value as one vector a position: heads side by side."""
    return value.reshape(value.shape[0], -1)


def spliced(problem: Problem, sae: SAE, x: Float[Array, "pos d_in"], tokens: Int[Array, "pos"]) -> Array:
    """The source hook's value that the rest of the model sees."""
    if not problem.splice_source:
        return x
    out = reconstruct(sae, x)
    if problem.splice_bos or problem.cfg.bos_token_id is None:
        return out
    is_bos = (jnp.arange(len(tokens)) == 0) & (tokens == problem.cfg.bos_token_id)
    return jnp.where(is_bos[:, None], x, out)


def source_side(problem: Problem, params: Any, source: SAE, tokens: Int[Array, "pos"]) -> tuple[Array, Array]:
    """The value that arrives at the source hook, and the one that leaves it. Both `[pos, d_in]`."""
    _, acts = forward(params, problem.cfg, tokens, taps=(problem.source_hook,), logits_at=None)
    arriving = flat(acts[problem.source_hook])
    return arriving, spliced(problem, source, arriving, tokens)


def target_side(
    problem: Problem, params: Any, h: Float[Array, "pos d_in"], tokens: Int[Array, "pos"], taps: tuple[str, ...] = ()
) -> tuple[Float[Array, "pos d_in_target"], dict[str, Array]]:
    """The value that arrives at the target hook when `h` leaves the source hook, and other values on request."""
    edit = {problem.source_hook: lambda value: h.reshape(value.shape)}
    _, acts = forward(params, problem.cfg, tokens, taps=(problem.target_hook, *taps), edits=edit, logits_at=None)
    return flat(acts[problem.target_hook]), acts


def target_value(
    problem: Problem,
    params: Any,
    target: SAE,
    tokens: Int[Array, "pos"],
    h: Float[Array, "pos d_in"],
    target_pos: Int[Array, ""],
    target_feature: Int[Array, ""],
) -> Float[Array, ""]:
    """**The definition.** One target as a function of the source hook's value; its gradient is the attribution."""
    arriving, _ = target_side(problem, params, h, tokens)
    read = encode if problem.target_quantity == "activation" else pre_activations
    return read(target, arriving[target_pos])[target_feature]
