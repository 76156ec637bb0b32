"""Measured effects: features changed in one story, targets read before and after. Many interventions at once."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.problem import Pair
from jaxcircuits.bundle import Bundle
from jaxcircuits.interventions import Change, intervene
from jaxcircuits.model import side_by_side
from jaxcircuits.rows import FORWARD_TOKENS
from jaxcircuits.sae import encode, pre_activations

NOTHING = {"scale": 1.0, "steer": 0.0}
"""The value with which a change of some kind changes nothing."""


class Effects(NamedTuple):
    """What each intervention does to each target: after minus before. And what there was before."""

    pre_act: Float[np.ndarray, "n target"]
    act: Float[np.ndarray, "n target"]
    before: Float[np.ndarray, "target"]  # activations


def measure(
    bundle: Bundle,
    pair: Pair,
    tokens: Int[np.ndarray, "pos"],
    sources: Int[np.ndarray, "n change 2"],
    targets: Int[np.ndarray, "target 2"],
    values: Float[np.ndarray, "n"] | float = 0.0,
    *,
    kind: str = "scale",
    freeze: Sequence[str] = (),
    length: int | None = None,
) -> Effects:
    """Measures effects by `intervene`; the source autoencoder's error is kept.

    Args:
        bundle: Model and autoencoders; their dtype is that of the computation.
        pair: Which two autoencoders.
        tokens: Token ids of the story.
        sources: What each intervention changes together: positions and features. At least one intervention.
        targets: Positions and features that are read.
        values: By what each intervention scales or steers its features; 0 scales them away.
        kind: `"scale"` or `"steer"`.
        freeze: As of `intervene`; the scale of the target autoencoder's own input is then held too.
        length: What the story is padded to, so that stories share programs.

    >>> import numpy as np
    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.attribution.problem import Settings, resolve
    >>> from jaxcircuits.validation.effects import measure
    >>> bundle = load_bundle()
    >>> tokens, sources = bundle.tokenize("The dog ran."), np.array([[[1, 7]], [[3, 7]]])
    >>> targets = np.array([[1, 20], [2, 20]])
    >>> found = measure(bundle, resolve(bundle, Settings()), tokens, sources, targets, 1.0, kind="steer")
    >>> (found.pre_act != 0).tolist()  # the first source reaches both targets, the second comes later
    [[True, True], [False, False]]
    """
    padded = np.zeros(max(length or 0, len(tokens)), np.int32)
    padded[: len(tokens)] = tokens
    n = len(sources)
    most = max(1, FORWARD_TOKENS // len(padded))
    even = -(-n // -(-n // most))
    at_once = min(most, -(-even // 8) * 8)  # few sizes, each a compiled program, and little waste
    dtype = bundle.params.W_E.dtype
    every = np.broadcast_to(np.asarray(values, dtype), (n,))
    names = (pair.source_name, pair.target_name)
    run = partial(
        _effects,
        bundle.params,
        {name: bundle.saes[name] for name in names},
        jnp.asarray(padded),
        cfg=bundle.cfg,
        names=names,
        kind=kind,
        freeze=tuple(freeze),
    )
    parts = []
    before = np.zeros(len(targets), dtype)
    with jax.default_matmul_precision("highest"):
        for start in range(0, n, at_once):
            some = np.zeros((at_once, *sources.shape[1:]), np.int32)
            by = np.full(at_once, NOTHING[kind], dtype)
            here = len(sources[start : start + at_once])
            some[:here], by[:here] = sources[start : start + at_once], every[start : start + at_once]
            *effects, plain = run(jnp.asarray(some), jnp.asarray(by), jnp.asarray(targets, jnp.int32))
            parts.append([np.asarray(effect)[:here] for effect in effects])
            before = np.asarray(plain)
    pre_act, act = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Effects(pre_act, act, before)


@partial(jax.jit, static_argnames=("cfg", "names", "kind", "freeze"))
def _effects(
    params: Any,
    saes: Any,
    tokens: Int[Array, "pos"],
    sources: Int[Array, "n change 2"],
    values: Float[Array, "n"],
    targets: Int[Array, "target 2"],
    *,
    cfg: Any,
    names: tuple[str, str],
    kind: str,
    freeze: tuple[str, ...],
) -> tuple[Float[Array, "n target"], Float[Array, "n target"], Float[Array, "target"]]:
    source, target = names
    sae, hook = saes[target], saes[target].cfg.hook_name
    pos, feature = targets.T

    def arriving(changed: Int[Array, "change 2"], value: Float[Array, ""]) -> Float[Array, "target d_in"]:
        changes = [Change(source, kind, feature, value, pos[None]) for pos, feature in changed]
        run = intervene(params, cfg, saes, tokens, changes, freeze=freeze, taps=(hook,), logits_at=None)
        return side_by_side(hook, run.acts[hook])[pos]

    # The run without changes is one more of the same, so that nothing but the change makes a difference.
    sources = jnp.concatenate([sources[:1], sources])
    values = jnp.concatenate([jnp.full(1, NOTHING[kind], values.dtype), values])
    plain, *_ = x = jax.vmap(arriving)(sources, values)
    each = jnp.arange(len(pos))
    act = encode(sae, x)[:, each, feature]
    if freeze:
        read = partial(pre_activations, sae, hold_scale=True)
        pre = jax.vmap(lambda moved: jax.jvp(read, (plain,), (moved,))[1])(x - plain)[:, each, feature]
    else:
        pre = pre_activations(sae, x)[:, each, feature]
    return pre[1:] - pre[0], act[1:] - act[0], act[0]
