"""The definition: what an attribution is the derivative of, and with respect to what.

A source feature adds its decoder row to the source hook's value; a target is one feature of the target SAE at one
position. The gradient of an edge is the derivative of the target's activation along the source's decoder row, at the
source hook's value: its reconstruction where the source SAE is spliced in, the model's own value elsewhere.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.ends import ATTENTION_ENDS, Entry, entry_of, split, target_end
from jaxcircuits.attribution.frozen import Scales, path_edits, scaled_biases
from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names, precedes
from jaxcircuits.sae import SAE, encode, pre_activations, reconstruct

METHODS = ("auto", "reference", "structured")
DERIVATIVES = ("exact", "frozen", "integrated")
GELUS = ("tangent", "secant")
THROUGH = ("total", "direct")
SPLICES = ("none", "source", "target", "both")
POSITIONS = ("same", "all")
QUANTITIES = ("activation", "pre_activation")
BASES = ("features", "neurons")
PARTS = ("none", "kinds", "heads")
BASELINES = ("zero", "mean")
PRECISIONS = {"highest": "highest", "tf32": "tensorfloat32", "bf16": "bfloat16"}
"""Our word for the precision of matrix products, and JAX's."""


@dataclass(frozen=True)
class Settings:
    """What to attribute to what; every field is recorded with the result.

    Attributes:
        source: Name of the source SAE; by default the one on the earliest hook point.
        target: Name of the target SAE; by default the one on the latest.
        positions: `"same"`: sources at the target's position; `"all"`: also at every earlier one.
        method: `"reference"` (`vmap(grad)`), `"structured"` (hooks of `attribution.ends`), or `"auto"`: structured
            where it can.
        derivative: `"exact"`: through softmax, norms and GELU. `"frozen"`: attention patterns and the norms' scales
            held, GELUs linear. `"integrated"`: the mean of the exact one on the line from a baseline to the sources'
            activations, the SAE's error held.
        gelu: What stands for a GELU where the derivative is frozen: its `"tangent"` at the point, or the `"secant"`
            `gelu(u) / u`.
        through: `"total"`: along every path. `"direct"`: what lies at another SAE's hook in between is held.
        splice: Which SAE's reconstruction takes its hook's place. The target's changes no edge.
        target_quantity: Differentiate the target's `"activation"` or its `"pre_activation"`, which admits targets
            that are off.
        source_basis: Sources are SAE `"features"` or the hook's own `"neurons"`.
        source_threshold: A source counts where its activation is strictly greater; `"all"` takes every one.
        target_threshold: A target counts where its quantity is strictly greater.
        include_bos: Whether position 0 counts as source and target where it holds BOS.
        splice_bos: Whether splicing covers position 0 where it holds BOS.
        top_k: Keep that many edges of largest absolute attribution per target; the rest is counted, not kept.
        min_attribution: Keep edges whose absolute attribution is strictly greater; the rest is counted, not kept.
        parts: What an edge is made of, as columns that add up to its gradient: `"kinds"` (the residual stream, and
            attention through value, query and key), or those of each head (`"heads"`).
        stages: For same-position edges, columns on the way from cosine to gradient.
        completeness: Whether the targets table says what the listed edges leave out, by kind; by default where that
            adds up to the target (frozen and integrated).
        points: Gauss-Legendre points of the integrated derivative.
        baseline: Where its line begins: all sources `"zero"`, or at their `"mean"` over the prompts.
        precision: Of matrix products: `"highest"` is float32 everywhere, `"tf32"` and `"bf16"` are for accelerators.
    """

    source: str | None = None
    target: str | None = None
    positions: str = "same"
    method: str = "auto"
    derivative: str = "exact"
    gelu: str = "tangent"
    through: str = "total"
    splice: str = "none"
    target_quantity: str = "activation"
    source_basis: str = "features"
    source_threshold: float | str = 0.0
    target_threshold: float = 0.0
    include_bos: bool = False
    splice_bos: bool = True
    top_k: int | None = None
    min_attribution: float | None = None
    parts: str = "none"
    stages: bool = False
    completeness: bool | None = None
    points: int = 32
    baseline: str = "zero"
    precision: str = "highest"

    def __post_init__(self) -> None:
        words = {
            "positions": POSITIONS,
            "method": METHODS,
            "derivative": DERIVATIVES,
            "gelu": GELUS,
            "through": THROUGH,
            "splice": SPLICES,
            "target_quantity": QUANTITIES,
            "source_basis": BASES,
            "parts": PARTS,
            "baseline": BASELINES,
            "precision": tuple(PRECISIONS),
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
        for name in ("top_k", "points"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise InputError(f"{name} must be a whole number, at least 1, got {value!r}.")
        if self.min_attribution is not None and not self.min_attribution >= 0:
            raise InputError(f"min_attribution must not be negative, got {self.min_attribution}.")

    @property
    def complete(self) -> bool:
        """Whether the remainder by kind is computed."""
        return self.derivative != "exact" if self.completeness is None else self.completeness


@dataclass(frozen=True)
class Problem:
    """One attribution, resolved against a bundle: static, so it is part of a compiled program's key.

    Attributes:
        cfg: The model.
        source_hook: Where sources write.
        source_read: Where their SAE reads; another hook for a transcoder.
        target_hook: Where targets read.
        splice_source: Whether the source SAE's reconstruction takes its hook's place.
        splice_bos: Whether also at position 0 where it holds BOS.
        target_quantity: `"activation"` or `"pre_activation"`.
        gelu: `None` where derivatives are exact; what stands for a GELU where they are frozen.
        held: Hooks in between whose value is held.
    """

    cfg: ModelConfig
    source_hook: str
    source_read: str
    target_hook: str
    splice_source: bool
    splice_bos: bool
    target_quantity: str
    gelu: str | None = None
    held: tuple[str, ...] = ()

    @property
    def frozen(self) -> bool:
        """Whether patterns and scales are held and GELUs linear."""
        return self.gelu is not None

    @property
    def entry(self) -> Entry | None:
        """Where sources enter the residual stream."""
        cfg = self.cfg
        return entry_of(self.source_hook, parallel=cfg.parallel_residual, norms_behind=cfg.norms_behind)

    @property
    def target_block(self) -> int:
        """The block whose attention targets read."""
        end = target_end(self.target_hook)
        assert end is not None
        return end[0]

    @property
    def target_place(self) -> str:
        """Where in that block they sit."""
        end = target_end(self.target_hook)
        assert end is not None
        return end[1]

    @property
    def closed_form(self) -> str | None:
        """Whether the structured method covers it: `"adjacent"`, `"between"` with blocks between, or `None`."""
        entry, end = self.entry, target_end(self.target_hook)
        if entry is None or end is None or end[0] < entry.block:
            return None
        # What is held must lie where blocks between are run, which is from the entry up to the target's attention.
        names = hook_names(self.cfg)
        last = names.index(f"blocks.{end[0]}.{self.cfg.mlp_stream}")
        first = names.index(entry.hook) + entry.after_edits
        if not all(first <= names.index(hook) <= last for hook in self.held):
            return None
        if entry.middle and end[0] == entry.block and end[1] in ATTENTION_ENDS:
            return None  # from the heads to what they write: not through the stream
        if end[0] == entry.block and not entry.middle and not self.held:
            return "adjacent"
        return "between"

    @property
    def sees_attention(self) -> bool:
        """Whether targets see what their block's attention writes; a parallel MLP does not."""
        return not self.cfg.parallel_residual or self.sees_attention_apart

    @property
    def sees_attention_apart(self) -> bool:
        """Whether targets see what attention writes, but not through the stream that the block's MLP reads."""
        if self.target_place in ATTENTION_ENDS:
            return True
        return self.cfg.parallel_residual and self.target_place == "hook_resid_post"

    @property
    def adjacent_mlps(self) -> bool:
        """Whether both hooks are `mlp.hook_post`, the target's of the next layer: where weights alone say something.

        A norm between the MLP and the stream, or a gate, is not the weights' to say.
        """
        first, second = split(self.source_hook), split(self.target_hook)
        if first[0] is None or second[0] is None or self.cfg.norms_behind or self.cfg.gated:
            return False
        return first[1] == second[1] == "mlp.hook_post" and second[0] == first[0] + 1


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
    first, second = bundle.saes[source].cfg.hook_written, bundle.saes[target].cfg.hook_name
    if not precedes(bundle.cfg, first, second):
        raise InputError(
            f"the source SAE must sit before the target SAE, got {source} ({first}) and {target} ({second}); "
            "swap or name two others."
        )
    problem = Problem(
        cfg=bundle.cfg,
        source_hook=first,
        source_read=bundle.saes[source].cfg.hook_name,
        target_hook=second,
        splice_source=settings.splice in ("source", "both"),
        splice_bos=settings.splice_bos,
        target_quantity=settings.target_quantity,
        gelu=settings.gelu if settings.derivative == "frozen" else None,
        held=hooks_between(bundle, first, second) if settings.through == "direct" else (),
    )
    return Pair(source, target, bundle.saes[source], bundle.saes[target], problem)


def hooks_between(bundle: Bundle, first: str, second: str) -> tuple[str, ...]:
    """Hooks of other SAEs that lie between two hooks."""
    hooks = {sae.cfg.hook_written for sae in bundle.saes.values()}
    inside = [h for h in hooks if precedes(bundle.cfg, first, h) and precedes(bundle.cfg, h, second)]
    return tuple(sorted(inside, key=hook_names(bundle.cfg).index))


def _depth(bundle: Bundle, name: str) -> int:
    return hook_names(bundle.cfg).index(bundle.saes[name].cfg.hook_name)


def flat(value: Float[Array, "pos *width"]) -> Float[Array, "pos d_in"]:
    """A hook's value as one vector a position: heads side by side."""
    return value.reshape(value.shape[0], -1)


def spliced(
    problem: Problem, sae: SAE, x: Float[Array, "pos d_in"], value: Float[Array, "pos d_out"], tokens: Int[Array, "pos"]
) -> Float[Array, "pos d_out"]:
    """The source hook's value that the rest of the model sees: the model's own, or what the SAE makes of `x`."""
    if not problem.splice_source:
        return value
    out = reconstruct(sae, x)
    if problem.splice_bos or problem.cfg.bos_token_id is None:
        return out
    is_bos = (jnp.arange(len(tokens)) == 0) & (tokens == problem.cfg.bos_token_id)
    return jnp.where(is_bos[:, None], value, out)


def source_side(problem: Problem, params: Any, source: SAE, tokens: Int[Array, "pos"]) -> tuple[Array, Array]:
    """What the source SAE reads, and the value that leaves the source hook. `[pos, d_in]`, `[pos, d_out]`."""
    _, acts = forward(params, problem.cfg, tokens, taps=(problem.source_read, problem.source_hook), logits_at=None)
    arriving = flat(acts[problem.source_read])
    return arriving, spliced(problem, source, arriving, flat(acts[problem.source_hook]), tokens)


def target_side(
    problem: Problem,
    params: Any,
    h: Float[Array, "pos d_in"],
    tokens: Int[Array, "pos"],
    taps: tuple[str, ...] = (),
    scales: Scales | None = None,
    extra: Float[Array, "pos d_model"] | None = None,
) -> tuple[Float[Array, "pos d_in_target"], dict[str, Array]]:
    """The value that arrives at the target hook when `h` leaves the source hook, and other values on request.

    Derivatives of it are those that the problem asks for: frozen, or with hooks in between held.

    Args:
        problem: What is asked.
        params: The model's weights.
        h: The source hook's value.
        tokens: Token ids.
        taps: Other hooks to return.
        scales: Factors of what enters between the hooks besides `h`, all one; for derivatives with respect to them.
        extra: Added to the residual stream where sources enter it, all zero; for derivatives likewise.
    """
    edits = path_edits(problem.cfg, problem.source_hook, problem.target_hook, problem.gelu, problem.held, scales)
    arrive = edits.get(problem.source_hook, lambda value: value)
    edits[problem.source_hook] = lambda value: arrive(h.reshape(value.shape))
    if extra is not None:
        entry = problem.entry
        assert entry is not None
        edits[entry.hook] = _added(edits.get(entry.hook), extra, entry.after_edits)
    if scales is not None:
        params = scaled_biases(params, scales.model_bias)
    taps = (problem.target_hook, *taps)
    _, acts = forward(params, problem.cfg, tokens, taps=taps, edits=edits, logits_at=None)
    return flat(acts[problem.target_hook]), acts


def _added(edit: Any, extra: Array, after: bool) -> Any:
    """An edit that adds something, after or before what another one does."""
    if edit is None:
        return lambda value: value + extra
    return (lambda value: edit(value) + extra) if after else (lambda value: edit(value + extra))


def target_value(
    problem: Problem,
    params: Any,
    target: SAE,
    tokens: Int[Array, "pos"],
    h: Float[Array, "pos d_in"],
    scales: Scales | None,
    target_pos: Int[Array, ""],
    target_feature: Int[Array, ""],
) -> Float[Array, ""]:
    """**The definition.** One target as a function of the source hook's value; its gradient is the attribution."""
    arriving, _ = target_side(problem, params, h, tokens, scales=scales)
    if scales is not None:
        weights = target.weights
        b_enc, b_dec = (scales.target_bias * b for b in (weights.b_enc, weights.b_dec))
        target = SAE(weights._replace(b_enc=b_enc, b_dec=b_dec), target.cfg)
    read = encode if problem.target_quantity == "activation" else pre_activations
    return read(target, arriving[target_pos], hold_scale=problem.frozen)[target_feature]
