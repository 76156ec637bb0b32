"""Conjunctions: do two drivers of a feature need each other? Measured by ablating each alone, and both.

With f the target's activation, a and b two of its drivers, the interaction is

    I = f - f(without a) - f(without b) + f(without both)  =  effect of both - effect of a - effect of b

the mixed second difference: how much more `a` adds where `b` is there than where it is not. It is zero where the target
is the sum of what its drivers give. Source: the "interaction" of two factors in a 2 x 2 experiment.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.attribution.api import Prompt, tokenized
from jaxcircuits.attribution.prompts import check_tokens
from jaxcircuits.attribution.selection import bucket
from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.influence import influence, logit_weights
from jaxcircuits.interventions import Change, intervene
from jaxcircuits.model import side_by_side
from jaxcircuits.progress import progress
from jaxcircuits.sae import SAE, encode, pre_activations
from jaxcircuits.types import ModelWeights

AT_ONCE = 8
"""Interventions that are run together."""


class FeatureAt(NamedTuple):
    """A feature at a position of a prompt."""

    sae: str
    pos: int
    feature: int


class Interaction(NamedTuple):
    """Two drivers of a target. Effects are the target's activation after ablation minus before.

    `interaction` above zero: AND-like, each gives more where the other is there, at the extreme either alone gives
    nothing. Below zero: OR-like, one stands in for the other. `pre_activation` is the interaction before the target's
    own nonlinearity: where it is near zero, the target's threshold alone makes the conjunction.
    """

    target: FeatureAt
    a: FeatureAt
    b: FeatureAt
    activation: float
    effect_a: float
    effect_b: float
    effect_both: float
    interaction: float
    pre_activation: float

    @property
    def kind(self) -> str:
        """`"and"`, `"or"`, or `"none"`."""
        return "and" if self.interaction > 0 else "or" if self.interaction < 0 else "none"


def interactions(
    bundle: Bundle, prompt: Prompt, target: FeatureAt, drivers: Sequence[FeatureAt], *, freeze: Sequence[str] = ()
) -> list[Interaction]:
    """The interaction of every two drivers of a feature, the largest |interaction| first.

    Args:
        bundle: Model and SAEs.
        prompt: A text, which gets BOS, or token ids.
        target: The feature that is driven.
        drivers: Features that are ablated one by one and two by two, at least two; SAE errors are kept.
        freeze: What stays as it was, as of `intervene`.

    Raises:
        InputError: An end is not in the bundle or the prompt, there are fewer than two drivers, or one comes twice.

    >>> import numpy as np
    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import FeatureAt, build_graph, interactions
    >>> bundle, text = load_bundle(), "The dog was"
    >>> graph = build_graph(bundle, text, top_logits=1)
    >>> on = [FeatureAt(graph.saes[n.sae[0]], int(n.pos[0]), int(n.feature[0]))
    ...       for i in np.flatnonzero(graph.nodes.are("feature")) for n in [graph.nodes[[i]]]]
    >>> found = interactions(bundle, text, on[-1], on[:3])
    >>> len(found), found[0].target == on[-1]
    (3, True)
    """
    if len(drivers) < 2 or len(set(drivers)) < len(drivers):
        raise InputError(f"interactions are between different drivers, at least two, got {len(set(drivers))}.")
    pairs = list(combinations(range(len(drivers)), 2))
    kept = np.ones((1 + len(drivers) + len(pairs), len(drivers)), bool)
    for row, gone in enumerate([(), *((i,) for i in range(len(drivers))), *pairs]):
        kept[row, list(gone)] = False
    pre_act, act = ablated(bundle, prompt, target, drivers, kept, freeze=freeze)
    found = []
    for row, (i, j) in enumerate(pairs, 1 + len(drivers)):
        a, b, both = (float(act[r] - act[0]) for r in (1 + i, 1 + j, row))
        before = float(pre_act[row] - pre_act[1 + i] - pre_act[1 + j] + pre_act[0])
        found.append(
            Interaction(target, drivers[i], drivers[j], float(act[0]), a, b, both, both - a - b, before)
        )  # fmt: skip
    return sorted(found, key=lambda x: -abs(x.interaction))


def ablated(
    bundle: Bundle,
    prompt: Prompt,
    target: FeatureAt,
    drivers: Sequence[FeatureAt],
    kept: Bool[np.ndarray, "n change"],
    *,
    freeze: Sequence[str] = (),
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """A target's pre-activation and activation when some of its drivers are ablated, SAE errors kept.

    Args:
        bundle: Model and SAEs.
        prompt: A text, which gets BOS, or token ids.
        target: The feature that is read.
        drivers: Features that may be ablated.
        kept: Which drivers each run keeps.
        freeze: What stays as it was, as of `intervene`.

    Raises:
        InputError: An end is not in the bundle or the prompt.
    """
    tokens = tokenized(bundle, prompt)
    check_tokens(tokens, bundle, 0)
    for end in (target, *drivers):
        _check(bundle, end, len(tokens))
    order = sorted(range(len(drivers)), key=lambda i: list(bundle.saes).index(drivers[i].sae))
    runs = np.pad(kept[:, order], ((0, -len(kept) % AT_ONCE), (0, 0)), constant_values=True)  # few programs
    padded = np.pad(tokens, (0, min(bucket(len(tokens)), bundle.cfg.n_ctx) - len(tokens)))
    names = tuple(drivers[i].sae for i in order)
    with jax.default_matmul_precision("highest"):
        pre_act, act = _ablated(
            bundle.params,
            {name: bundle.saes[name] for name in {*names, target.sae}},
            jnp.asarray(padded, jnp.int32),
            jnp.asarray([[drivers[i].pos, drivers[i].feature] for i in order], jnp.int32).reshape(-1, 2),
            jnp.asarray(runs, bundle.params.W_E.dtype),
            jnp.asarray([target.pos, target.feature], jnp.int32),
            cfg=bundle.cfg,
            names=names,
            target=target.sae,
            freeze=tuple(freeze),
        )
    return np.asarray(pre_act)[: len(kept)], np.asarray(act)[: len(kept)]


@partial(jax.jit, static_argnames=("cfg", "names", "target", "freeze"))
def _ablated(
    params: ModelWeights,
    saes: dict[str, SAE],
    tokens: Int[Array, "pos"],
    drivers: Int[Array, "change 2"],
    kept: Float[Array, "n change"],
    at: Int[Array, "2"],
    *,
    cfg: ModelConfig,
    names: tuple[str, ...],
    target: str,
    freeze: tuple[str, ...],
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    sae, hook = saes[target], saes[target].cfg.hook_name

    def one(factors: Float[Array, "change"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        changes = [
            Change(name, "scale", drivers[i, 1], factors[i], drivers[i, 0][None]) for i, name in enumerate(names)
        ]
        run = intervene(params, cfg, saes, tokens, changes, freeze=freeze, taps=(hook,), logits_at=None)
        x = side_by_side(hook, run.acts[hook])[at[0]][None]
        return pre_activations(sae, x)[0, at[1]], encode(sae, x)[0, at[1]]

    return jax.lax.map(one, kept, batch_size=AT_ONCE)


def _check(bundle: Bundle, end: FeatureAt, n: int) -> None:
    if end.sae not in bundle.saes:
        raise InputError(f"the bundle has no SAE {end.sae!r}; it has {', '.join(bundle.saes) or 'none'}.")
    if not 0 <= end.pos < n:
        raise InputError(f"the prompt has positions 0..{n - 1}, got {end.pos}.")
    d_sae = bundle.saes[end.sae].cfg.d_sae
    if not 0 <= end.feature < d_sae:
        raise InputError(f"the SAE {end.sae} has features 0..{d_sae - 1}, got {end.feature}.")


def feature_at(graph: Graph, node: int) -> FeatureAt:
    """The feature that a node is."""
    nodes = graph.nodes
    return FeatureAt(graph.saes[nodes.sae[node]], int(nodes.pos[node]), int(nodes.feature[node]))


def drivers_of(graph: Graph, node: int, n: int) -> list[int]:
    """Nodes of the features with the largest absolute edges into a node."""
    own = np.flatnonzero((graph.target == node) & graph.nodes.are("feature")[graph.source])
    return graph.source[own[np.argsort(-np.abs(graph.weight[own]), kind="stable")[:n]]].tolist()


def conjunctions(
    bundle: Bundle, graph: Graph, *, targets: int = 4, drivers: int = 6, quiet: bool = True
) -> list[Interaction]:
    """Interactions of the strongest drivers of a graph's most influential driven features, the largest first.

    Args:
        bundle: What the graph was made of.
        graph: From `build_graph`, whole or pruned.
        targets: How many driven features are looked at, by influence.
        drivers: How many drivers of each, by |weight|.
        quiet: No progress bar.

    Raises:
        InputError: Fewer than one target or two drivers are asked for.
    """
    if targets < 1 or drivers < 2:
        raise InputError(f"conjunctions take at least 1 target and 2 drivers of it, got {targets} and {drivers}.")
    # What a part without logits ends in comes first.
    order = np.argsort(-(influence(graph) + logit_weights(graph)), kind="stable")
    found: list[Interaction] = []
    asked: list[tuple[int, list[int]]] = []
    for node in order[graph.nodes.are("feature")[order]].tolist():
        sources = drivers_of(graph, node, drivers)
        if len(sources) > 1 and len(asked) < targets:
            asked.append((node, sources))
    with progress(quiet) as bar:
        for node, sources in bar.track(asked, description="conjunctions"):
            ends = [feature_at(graph, i) for i in sources]
            found += interactions(bundle, graph.tokens, feature_at(graph, node), ends)
    return sorted(found, key=lambda x: -abs(x.interaction))
