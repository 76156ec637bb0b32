"""Hook points: the named values of a forward pass, TransformerLens' names, in the order they are computed.

Caching, splicing, intervening and differentiating are one mechanism: every named value passes through
`Hooks`, which replaces it if an edit asks for that and keeps it if a tap does.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError

Edits = Mapping[str, Array | Callable[[Array], Array]]
"""Hook name to its new value, or to a function from the value that arrives to the new one."""

_ROTARY = ("attn.hook_rot_q", "attn.hook_rot_k")
_BLOCK_HOOKS = (
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    *_ROTARY,
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "ln1_post.hook_scale",
    "ln1_post.hook_normalized",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "ln2_post.hook_scale",
    "ln2_post.hook_normalized",
    "hook_mlp_out",
    "hook_resid_post",
)


def hook_names(cfg: ModelConfig) -> tuple[str, ...]:
    """Every hook point of a model, in the order the forward pass computes them.

    Where residuals are parallel, the MLP's come after the attention's though they do not depend on them.
    """
    embeds = ("hook_embed",) if cfg.rotary else ("hook_embed", "hook_pos_embed")
    absent = () if cfg.rotary else _ROTARY
    absent += ("hook_resid_mid",) if cfg.parallel_residual else ()
    absent += () if cfg.gated else ("mlp.hook_pre_linear",)
    absent += () if cfg.norms_behind else ("ln1_post.", "ln2_post.")
    names = [name for name in _BLOCK_HOOKS if not name.startswith(absent)]
    blocks = (f"blocks.{layer}.{name}" for layer in range(cfg.n_layers) for name in names)
    return (*embeds, *blocks, "ln_final.hook_scale", "ln_final.hook_normalized")


def check_hook(cfg: ModelConfig, name: str) -> str:
    """Returns `name` if the model has that hook point.

    Raises:
        InputError: It has none; the message names the closest ones.
    """
    names = hook_names(cfg)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f" did you mean {' or '.join(close)}?" if close else f" hook points look like {names[-4]}."
        raise InputError(f"the model ({cfg.n_layers} layers) has no hook point {name!r};{hint}")
    return name


def precedes(cfg: ModelConfig, first: str, second: str) -> bool:
    """Whether the forward pass computes `first` before `second`."""
    names = hook_names(cfg)
    return names.index(check_hook(cfg, first)) < names.index(check_hook(cfg, second))


_WIDTHS: dict[str, Callable[[ModelConfig], int]] = {
    "hook_embed": lambda cfg: cfg.d_model,
    "hook_pos_embed": lambda cfg: cfg.d_model,
    "hook_resid_pre": lambda cfg: cfg.d_model,
    "hook_resid_mid": lambda cfg: cfg.d_model,
    "hook_resid_post": lambda cfg: cfg.d_model,
    "hook_attn_out": lambda cfg: cfg.d_model,
    "hook_mlp_out": lambda cfg: cfg.d_model,
    "hook_normalized": lambda cfg: cfg.d_model,
    "hook_pre": lambda cfg: cfg.d_mlp,
    "hook_pre_linear": lambda cfg: cfg.d_mlp,
    "hook_post": lambda cfg: cfg.d_mlp,
    "hook_q": lambda cfg: cfg.n_heads * cfg.d_head,
    "hook_k": lambda cfg: cfg.kv_heads * cfg.d_head,
    "hook_v": lambda cfg: cfg.kv_heads * cfg.d_head,
    "hook_rot_q": lambda cfg: cfg.n_heads * cfg.d_head,
    "hook_rot_k": lambda cfg: cfg.kv_heads * cfg.d_head,
    "hook_z": lambda cfg: cfg.n_heads * cfg.d_head,
}


def hook_width(cfg: ModelConfig, name: str) -> int:
    """Numbers a hook point has at one position, heads laid side by side.

    Raises:
        InputError: No such hook point, or one without a vector a position (scores, patterns, scales).
    """
    kind = check_hook(cfg, name).rsplit(".", 1)[-1]
    if kind not in _WIDTHS:
        raise InputError(
            f"hook point {name!r} has no single vector a position, so no autoencoder can sit on it; "
            "use one such as blocks.0.mlp.hook_post."
        )
    return _WIDTHS[kind](cfg)


_PER_HEAD = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_rot_k")


def side_by_side(name: str, value: Float[Array, "..."]) -> Float[Array, "... width"]:
    """A hook's value as one vector a position: heads side by side."""
    return value.reshape(*value.shape[:-2], -1) if name.endswith(_PER_HEAD) else value


class Hooks:
    """The taps and edits of one forward pass. Lives during tracing only; the pass stays a pure function."""

    def __init__(self, cfg: ModelConfig, taps: Iterable[str], edits: Edits | None) -> None:
        self.acts: dict[str, Float[Array, ...]] = {}
        self._taps = {check_hook(cfg, name) for name in taps}
        self._edits = {check_hook(cfg, name): edit for name, edit in (edits or {}).items()}

    def wants(self, name: str) -> bool:
        """Whether a value that costs extra memory is needed at all."""
        return name in self._taps or name in self._edits

    @property
    def satisfied(self) -> bool:
        """Whether every tap has its value."""
        return len(self.acts) == len(self._taps)

    def __call__(self, name: str, value: Array) -> Array:
        """Passes a value through its hook point: the edit first, then the tap, as TransformerLens caches."""
        if name in self._edits:
            edit = self._edits[name]
            new = edit(value) if callable(edit) else edit
            if jnp.shape(new) != value.shape:
                raise InputError(f"the edit at {name!r} must keep the shape {value.shape}, got {jnp.shape(new)}.")
            value = new
        if name in self._taps:
            self.acts[name] = value
        return value
