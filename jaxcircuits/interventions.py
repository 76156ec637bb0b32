"""A model run with autoencoders spliced in, or with some of their features set, ablated, scaled or steered.

Both are edits at the hook points that autoencoders write, made in one place (`feature_edits`):

- A spliced autoencoder puts its reconstruction in the place of the hook's value.
- A changed feature of one that is not spliced adds `(new - old) W_dec` to it, so what the autoencoder leaves out, its
  error, is kept.

Attention patterns, norm scales and GELUs behind a change are free, or held as in the unchanged run (`model.freezing`).

A transcoder reads one hook and writes another; its edits remember, within one trace, what the first held.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names, side_by_side
from jaxcircuits.model.freezing import BEFORE_GELU, FREEZABLE, Edit, freeze_edits, frozen_hooks
from jaxcircuits.sae import SAE, decode, encode
from jaxcircuits.sae.normalization import norm_of
from jaxcircuits.types import ModelWeights

KINDS: Mapping[str, Callable[[Array, Array], Array]] = {
    "set": lambda old, value: jnp.broadcast_to(value, old.shape),
    "scale": lambda old, value: value * old,
    "steer": lambda old, value: old + value,
}
"""What a change makes of an activation, by its name."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Change:
    """One feature's activation changed; made by `set_feature`, `ablate`, `scale` and `steer`.

    Attributes:
        sae: Name of the autoencoder.
        kind: One of `KINDS`.
        feature: Which feature.
        value: What it is set to, scaled by or raised by: one number, or one a position (and a row of a batch).
        positions: Where; `None` is everywhere, negative ones count from the end.
    """

    sae: str = field(metadata={"static": True})
    kind: str = field(metadata={"static": True})
    feature: Any  # an integer, or an array of none, so that a compiled program serves every feature
    value: Any
    positions: Any = None


def set_feature(sae: str, feature: int, value: Any, positions: int | Iterable[int] | None = None) -> Change:
    """A feature's activation becomes `value`, whether it was on or off.

    >>> from jaxcircuits import set_feature
    >>> set_feature("blocks.0.mlp.hook_post", 880, 3.0, positions=[4, -1]).kind
    'set'
    """
    return Change(sae, "set", jnp.int32(feature), jnp.asarray(value), _positions(positions))


def ablate(sae: str, feature: int, positions: int | Iterable[int] | None = None) -> Change:
    """A feature's activation becomes zero."""
    return set_feature(sae, feature, 0.0, positions)


def scale(sae: str, feature: int, factor: Any, positions: int | Iterable[int] | None = None) -> Change:
    """A feature's activation is multiplied by a factor; one that is off stays off."""
    return Change(sae, "scale", jnp.int32(feature), jnp.asarray(factor), _positions(positions))


def steer(sae: str, feature: int, by: Any, positions: int | Iterable[int] | None = None) -> Change:
    """`by` is added to a feature's activation: `by` times its decoder direction to the hook's value."""
    return Change(sae, "steer", jnp.int32(feature), jnp.asarray(by), _positions(positions))


def _positions(positions: int | Iterable[int] | None) -> Int[Array, "n"] | None:
    if positions is None:
        return None
    return jnp.asarray([positions] if isinstance(positions, int) else list(positions), jnp.int32).reshape(-1)


class Intervened(NamedTuple):
    """What `intervene` returns.

    Attributes:
        logits: The logits, or `None` where none were asked for.
        acts: Values of the tapped hook points, after every edit.
        feature_acts: Activations of the autoencoders that were asked for, of what arrives at their hook: upstream
            changes are in them, their own are not.
    """

    logits: Float[Array, "*batch n d_vocab"] | None
    acts: dict[str, Array]
    feature_acts: dict[str, Float[Array, "*batch pos _d_sae"]]


def intervene(
    params: ModelWeights,
    cfg: ModelConfig,
    saes: Mapping[str, SAE],
    tokens: Int[Array, "*batch pos"],
    changes: Sequence[Change] = (),
    *,
    splice: Iterable[str] = (),
    keep_error: bool = True,
    splice_bos: bool = True,
    freeze: Iterable[str] = (),
    read: Iterable[str] = (),
    taps: Iterable[str] = (),
    logits_at: slice | Int[Array, "n"] | None = slice(None),
) -> Intervened:
    """Runs the model with features changed at chosen positions and autoencoders spliced in.

    Pure: the caller jits and vmaps it, also over a change's feature, value and positions.

    Args:
        params: The model's weights.
        cfg: The model.
        saes: Autoencoders by name, such as `bundle.saes`.
        tokens: Token ids.
        changes: What happens to features, in this order. A top-k autoencoder's other features stay what they were.
        splice: Names of autoencoders whose reconstruction takes their hook's place.
        keep_error: Whether a changed autoencoder that is not in `splice` keeps its error; without it, it is spliced.
        splice_bos: Whether splicing covers position 0 where it holds BOS.
        freeze: What stays as in the run without changes, behind the first of them: `"attention"` patterns, scales of
            the model's `"norms"`, the tangent that then stands for each `"gelu"`. With all three, whatever follows a
            change is linear in it, up to the next spliced autoencoder.
        read: Names of autoencoders whose feature activations are returned.
        taps: Hook points whose values are returned.
        logits_at: Positions whose logits are computed: all by default, none for `None`.

    Raises:
        InputError: An unknown autoencoder, hook, kind of change or thing to freeze, a feature or position that does
            not exist, or two spliced autoencoders that write one hook.

    >>> import jax.numpy as jnp
    >>> from jaxcircuits import ablate, intervene, load_bundle
    >>> bundle = load_bundle()
    >>> tokens = jnp.asarray(bundle.tokenize("One day, a girl named Lily found two"))
    >>> first, second = bundle.saes
    >>> before = intervene(bundle.params, bundle.cfg, bundle.saes, tokens, read=[first, second])
    >>> two = int(before.feature_acts[first][-1].argmax())
    >>> change = ablate(first, two, positions=-1)
    >>> after = intervene(bundle.params, bundle.cfg, bundle.saes, tokens, [change], read=[second])
    >>> effect = after.feature_acts[second] - before.feature_acts[second]
    >>> effect.shape == (len(tokens), 3072), bool(abs(effect[-1]).max() > 0.1), float(abs(effect[:-1]).max())
    (True, True, 0.0)
    """
    splice = set(splice) if keep_error else {*splice, *(change.sae for change in changes)}
    for change in changes:
        _check_positions(change, tokens.shape[-1])
    edits, feature_acts = feature_edits(
        saes,
        splice=splice,
        changes=changes,
        read=read,
        keep=None if splice_bos else bos_mask(cfg, tokens),
        length=tokens.shape[-1],
    )
    edits = _frozen(params, cfg, saes, tokens, changes, edits, frozenset(freeze), splice, splice_bos)
    # A transcoder's edits need its first hook to be computed, which any hook behind it implies: read ones may be last.
    taps = tuple(taps)
    needed = () if logits_at is not None else tuple(saes[name].cfg.hook_name for name in read)
    logits, acts = forward(params, cfg, tokens, taps={*taps, *needed}, edits=edits, logits_at=logits_at)
    return Intervened(logits, {name: acts[name] for name in taps}, feature_acts)


def _frozen(
    params: ModelWeights,
    cfg: ModelConfig,
    saes: Mapping[str, SAE],
    tokens: Int[Array, "*batch pos"],
    changes: Sequence[Change],
    edits: Mapping[str, Edit],
    freeze: frozenset[str],
    splice: Iterable[str],
    splice_bos: bool,
) -> dict[str, Edit]:
    """The edits, and those that hold what lies behind the first change as it is in the run without changes."""
    for what in sorted(freeze):
        if what not in FREEZABLE:
            raise InputError(f"freeze takes {', '.join(FREEZABLE)}, got {what!r}.")
    if not freeze or not changes:
        return dict(edits)
    names = hook_names(cfg)
    behind = names[min(names.index(saes[change.sae].cfg.hook_written) for change in changes) :]
    hooks = frozen_hooks(behind, freeze)
    plain = intervene(params, cfg, saes, tokens, splice=splice, splice_bos=splice_bos, taps=hooks, logits_at=None)
    frozen = freeze_edits(behind, freeze, activation=cfg.activation, at=plain.acts)
    # Before a GELU its line must see what features make of the value; behind it, features what the line gives.
    pairs = {name: (edits.get(name), edit) for name, edit in frozen.items()}
    chained = {name: _chained(*(pair if name.endswith(BEFORE_GELU) else pair[::-1])) for name, pair in pairs.items()}
    return {**edits, **chained}


def _chained(*steps: Edit | None) -> Edit:
    """One edit behind the other."""

    def edit(value: Array) -> Array:
        for step in steps:
            value = value if step is None else step(value)
        return value

    return edit


def bos_mask(cfg: ModelConfig, tokens: Int[Array, "*batch pos"]) -> Bool[Array, "*batch pos"]:
    """Position 0 where it holds BOS."""
    if cfg.bos_token_id is None:
        return jnp.zeros(tokens.shape, bool)
    return (tokens == cfg.bos_token_id) & (jnp.arange(tokens.shape[-1]) == 0)


def splice_edits(saes: Iterable[SAE], keep: Bool[Array, "*batch pos"] | None = None) -> dict[str, Edit]:
    """Edits that put autoencoders' reconstructions in the place of the hooks they write, transcoders included.

    Args:
        saes: The autoencoders.
        keep: Positions that stay what they are.

    Raises:
        InputError: Two of them write one hook.
    """
    named = {f"SAE {number}": sae for number, sae in enumerate(saes)}
    return feature_edits(named, splice=named, keep=keep)[0]


def feature_edits(
    saes: Mapping[str, SAE],
    *,
    splice: Iterable[str] = (),
    changes: Sequence[Change] = (),
    read: Iterable[str] = (),
    keep: Bool[Array, "*batch pos"] | None = None,
    start: Int[Array, ""] | int = 0,
    length: int | None = None,
) -> tuple[dict[str, Edit], dict[str, Array]]:
    """Edits of one forward pass for splicing and changing features.

    Args:
        saes: Autoencoders by name.
        splice: Names of those that are spliced in.
        changes: What happens to features.
        read: Names of those whose activations are wanted.
        keep: Positions at which nothing is spliced; changes reach them, their error kept.
        start: Position of the pass's first token, behind a cache.
        length: Tokens in all, for positions counted from the end.

    Returns:
        The edits by hook point, and a dictionary that the pass fills with the activations of `read`.

    Raises:
        InputError: As of `intervene`.
    """
    splice, read = set(splice), set(read)
    changed: dict[str, list[Change]] = {}
    for change in changes:
        changed.setdefault(change.sae, []).append(change)
    for name in (*splice, *read, *changed):
        if name not in saes:
            raise InputError(f"there is no SAE {name!r}; there are {', '.join(saes) or 'none'}.")
    for change in changes:
        _check_change(change, saes[change.sae])
    used = {name: sae for name, sae in saes.items() if name in splice or name in read or name in changed}
    writers: dict[str, list[str]] = {}
    for name, sae in used.items():
        if name in splice or name in changed:
            writers.setdefault(sae.cfg.hook_written, []).append(name)
    for hook, names in writers.items():
        both = [name for name in names if name in splice]
        if len(both) > 1:
            raise InputError(f"the SAEs {both[0]} and {both[1]} both write {hook}, so only one can be spliced in.")

    feature_acts: dict[str, Array] = {}
    arrived: dict[str, tuple[Array, Array]] = {}  # within one trace: the value read and its features

    def arrive(name: str, value: Array) -> None:
        arrived[name] = (value, encode(saes[name], value))
        if name in read:
            feature_acts[name] = arrived[name][1]

    def write(name: str, out: Array) -> Array:
        sae, (value, new) = saes[name], arrived[name]
        moved = out
        for change in changed.get(name, ()):
            old = new[..., change.feature]
            changed_to = _changed(change, old, start, length)
            moved = moved + _written(sae, change.feature, changed_to - old, value)
            new = new.at[..., change.feature].set(changed_to)
        if name not in splice:
            return moved
        reconstruction = decode(sae, new, value)
        return reconstruction if keep is None else jnp.where(keep[..., None], moved, reconstruction)

    def edit_of(hook: str) -> Edit:
        own = [n for n, sae in used.items() if sae.cfg.hook_name == hook and not sae.cfg.transcodes]
        others = [n for n, sae in used.items() if sae.cfg.hook_name == hook and sae.cfg.transcodes]
        # Spliced first: the others' changes are added to the reconstruction.
        order = sorted(writers.get(hook, ()), key=lambda n: n not in splice)

        def edit(value: Array) -> Array:
            out = side_by_side(hook, value)
            for name in own:
                arrive(name, out)
            for name in order:
                out = write(name, out)
            for name in others:
                arrive(name, out)
            return out.reshape(value.shape)

        return edit

    hooks = dict.fromkeys(hook for sae in used.values() for hook in (sae.cfg.hook_name, *_written_by(sae, writers)))
    return {hook: edit_of(hook) for hook in hooks}, feature_acts


def _written_by(sae: SAE, writers: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return (sae.cfg.hook_written,) if sae.cfg.hook_written in writers else ()


def _changed(
    change: Change, old: Float[Array, "... pos"], start: Int[Array, ""] | int, length: int | None
) -> Float[Array, "... pos"]:
    """What a change makes of its feature's activations."""
    new = KINDS[change.kind](old, jnp.asarray(change.value, old.dtype))
    if change.positions is None:
        return new
    positions = change.positions
    if length is not None:
        positions = jnp.where(positions < 0, positions + length, positions)
    at = start + jnp.arange(old.shape[-1])
    return jnp.where((at[:, None] == positions).any(1), new, old)


def _written(
    sae: SAE, feature: Any, by: Float[Array, "..."], x: Float[Array, "... pos d_in"]
) -> Float[Array, "... pos d_out"]:
    """What a feature's rise adds to the value that the autoencoder writes: a normalised one's in its input's scale.

    Of several features, an axis behind the position, their sum.
    """
    out = jnp.tensordot(by, sae.weights.W_dec[feature], axes=jnp.ndim(feature))
    norm = norm_of(sae.cfg, x)
    return out if norm is None else out * norm.out_scale


def _concrete(array: Any) -> np.ndarray | None:
    """An array's numbers, or `None` while a program is traced, which has none yet."""
    return None if isinstance(array, Tracer) else np.asarray(array)


def _check_change(change: Change, sae: SAE) -> None:
    if change.kind not in KINDS:
        raise InputError(f"a change must be one of {', '.join(KINDS)}, got {change.kind!r}.")
    feature = _concrete(change.feature)
    if feature is not None and not 0 <= feature < sae.cfg.d_sae:
        raise InputError(f"the SAE {change.sae} has features 0..{sae.cfg.d_sae - 1}, got {feature}.")


def _check_positions(change: Change, length: int) -> None:
    positions = None if change.positions is None else _concrete(change.positions)
    for position in () if positions is None else positions:
        if not -length <= position < length:
            raise InputError(
                f"the change of feature {_concrete(change.feature)} is at position {position}, but the prompt has "
                f"{length} tokens, numbered 0..{length - 1}."
            )
