"""What a port gets wrong: named changes of our own side, tried when numbers disagree.

A hypothesis under which they agree names the difference. It speaks of *theirs*: what the other implementation does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcircuits.config import ModelConfig
from jaxcircuits.model import Edits
from jaxcircuits.sae import SAE
from jaxcircuits.study import Way
from jaxcircuits.validation.quantities import Setup

EPSILONS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)


@dataclass(frozen=True)
class Hypothesis:
    """A change of our side.

    Attributes:
        name: What the other implementation then does, after "it agrees if theirs …".
        group: The first group of quantities that it moves.
        change: The setup that does likewise.
    """

    name: str
    group: str
    change: Callable[[Setup], Setup]


def hypotheses(setup: Setup) -> Iterator[Hypothesis]:
    """Those that say something else than the setup does, the likeliest first in each group."""
    cfg = setup.cfg

    def config(name: str, group: str = "model", **fields: Any) -> Hypothesis:
        return Hypothesis(name, group, lambda s: replace(s, cfg=replace(s.cfg, **fields)))

    done = cfg.processing
    for step, words in _LEFT_OUT.items():
        if step in done:
            yield config(words, "weights", processing=tuple(s for s in done if s != step))
    if len(done) > 1:
        yield config("does not process the weights at all", "weights", processing=())

    scaled = cfg.d_head**-0.5
    if cfg.attention_scale == 1.0:
        yield config("scales attention scores by 1/sqrt(d_head)", attention_scale=scaled)
    else:
        yield config("does not scale attention scores by 1/sqrt(d_head)", attention_scale=1.0)
    if "local" in cfg.attention:
        yield config("has a local window of one key more", window=cfg.window + 1)
        if cfg.window > 1:
            yield config("has a local window of one key fewer", window=cfg.window - 1)
        yield config("attends globally in every layer", attention=("global",) * cfg.n_layers)
        swapped = tuple({"global": "local", "local": "global"}[kind] for kind in cfg.attention)
        yield config("has global and local layers swapped", attention=swapped)
    if cfg.activation in _OTHER_GELU:
        other, words = _OTHER_GELU[cfg.activation]
        yield config(words, activation=other)
    yield Hypothesis("does not subtract the mean in its layer norms", "model", _with_edits(_uncentred_norms))
    for eps in EPSILONS:
        if eps != cfg.eps:
            yield config(f"has eps {eps:g} in its layer norms, not {cfg.eps:g}", eps=eps)
    if cfg.bos_token_id is not None and setup.prompt[0] == setup.story[0] == cfg.bos_token_id:
        yield Hypothesis("is run without BOS", "model", _without_bos)

    for which in ((0, 1), (0,), (1,)):
        ends = " and ".join(("source", "target")[i] for i in which)
        subtracts = [list(setup.saes.values())[i].cfg.subtract_b_dec for i in which]
        if all(subtracts):
            name = f"does not subtract b_dec before encoding ({ends} SAE)"
        elif not any(subtracts):
            name = f"subtracts b_dec before encoding ({ends} SAE)"
        else:
            continue
        yield Hypothesis(name, "saes", _flip_b_dec(which))

    yield Hypothesis("has the opposite sign: of the activation, not of minus the activation", "study", _other_sign)
    for name, way in (
        ("does not splice the source SAE in on the prompt (nothing, or the target's alone)", Way(splice="none")),
        ("takes gradients before the splice, through the source SAE's encoder", Way(before_splice=True)),
        ("splices the SAEs in on the story too", Way(story_splice="both")),
    ):
        yield Hypothesis(name, "study", _with_way(way))


_OTHER_GELU = {
    "gelu_new": ("gelu", "uses the exact GELU (erf), not its tanh form"),
    "gelu": ("gelu_new", "uses the tanh form of GELU, not the exact one (erf)"),
}
_LEFT_OUT = {
    "center_writing_weights": "does not centre the weights that write to the residual stream",
    "fold_layer_norm": "does not fold the layer norms into the weights that read them",
    "center_unembed": "does not centre the unembedding",
    "fold_value_biases": "does not fold the value biases",
}


def _with_edits(edits: Callable[[ModelConfig], Edits]) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, edits=edits)


def _with_way(way: Way) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, way=way)


def _other_sign(setup: Setup) -> Setup:
    return replace(setup, sign=-setup.sign)


def _without_bos(setup: Setup) -> Setup:
    return replace(setup, prompt=setup.prompt[1:], story=setup.story[1:])


def _flip_b_dec(which: tuple[int, ...]) -> Callable[[Setup], Setup]:
    def change(setup: Setup) -> Setup:
        def flipped(sae: SAE) -> SAE:
            return SAE(sae.weights, replace(sae.cfg, subtract_b_dec=not sae.cfg.subtract_b_dec))

        saes = {n: flipped(sae) if i in which else sae for i, (n, sae) in enumerate(setup.saes.items())}
        return replace(setup, saes=saes)

    return change


def _uncentred_norms(cfg: ModelConfig) -> Edits:
    """Each norm's scale and value from the residual stream before it, which passes by first."""
    edits: dict[str, Callable[[Array], Array]] = {}
    norms = [(f"blocks.{n}.hook_resid_pre", f"blocks.{n}.ln1") for n in range(cfg.n_layers)]
    norms += [(f"blocks.{n}.{cfg.mlp_stream}", f"blocks.{n}.ln2") for n in range(cfg.n_layers)]
    norms.append((f"blocks.{cfg.n_layers - 1}.hook_resid_post", "ln_final"))
    kept = {stream: _kept() for stream, _ in norms}  # one for both norms, where residuals are parallel
    for stream, norm in norms:
        edits[stream], passed = kept[stream]

        def scale(_: Array, x: list[Array] = passed) -> Float[Array, "..."]:
            return jnp.sqrt((x[-1] ** 2).mean(-1, keepdims=True) + cfg.eps)

        edits[f"{norm}.hook_scale"] = scale
        edits[f"{norm}.hook_normalized"] = lambda value, x=passed, scale=scale: x[-1] / scale(value)
    return edits


def _kept() -> tuple[Callable[[Array], Array], list[Array]]:
    """An edit that changes nothing, and where it leaves what it saw."""
    seen: list[Array] = []

    def keep(value: Array) -> Array:
        seen.append(value)
        return value

    return keep, seen
