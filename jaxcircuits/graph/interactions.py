"""Conjunctions: pairs of a node's drivers that do together what neither does alone.

For a feature or logit t and two of its sources a, b, with f(S) the value of t when the sources in S are ablated and all
else that drives t is held:

    interaction(a, b) = f() - f(a) - f(b) + f(ab)

It is zero where the two add up. Above zero, each is worth more when the other is there: a conjunction. Below, either
would do: they stand in for each other. The values are of the model as it is, through softmax, norms and GELU.
"""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxcircuits.attribution.api import Prompt, tokenized
from jaxcircuits.attribution.engine import check_tokens
from jaxcircuits.attribution.problem import PRECISIONS
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.graph.build import Prepared, graph_of, resolved_position
from jaxcircuits.graph.direct import Factors, Leaves, Wiring, feature_value, logits_of
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.settings import GraphSettings
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights

KINDS = ("token", "feature")
"""Sources that are ablated: a token's embedding, a feature's activation."""


class Interaction(NamedTuple):
    """Two drivers of a target; values in its units.

    Attributes:
        first: Number of the node.
        second: Number of the other.
        alone: What the target loses without the first, and without the second.
        together: What it loses without both.
    """

    first: int
    second: int
    alone: tuple[float, float]
    together: float

    @property
    def value(self) -> float:
        """`f() - f(a) - f(b) + f(ab)`: what both lose alone, minus what they lose together."""
        return self.alone[0] + self.alone[1] - self.together


class Conjunctions(NamedTuple):
    """The drivers of one target, pair by pair, the largest interaction first."""

    graph: Graph
    target: int
    value: float
    pairs: list[Interaction]


def interactions(
    bundle: Bundle, prompt: Prompt, target: tuple[str, int, int] | None = None, *, drivers: int = 12, **settings: Any
) -> Conjunctions:
    """Ablates a target's strongest drivers one at a time and two at a time.

    Args:
        bundle: Model and SAEs.
        prompt: A text or token ids.
        target: SAE, position and feature; by default the graph's first logit.
        drivers: How many of its sources, the largest in absolute weight.
        **settings: Of the graph, as of `GraphSettings`.

    Raises:
        InputError: The target is no node, or has fewer than two drivers.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import interactions
    >>> found = interactions(load_bundle(), "The dog was", drivers=4, top_logits=2)
    >>> len(found.pairs), abs(found.pairs[0].value) >= abs(found.pairs[-1].value)
    (6, True)
    """
    asked = GraphSettings(**settings)
    tokens = tokenized(bundle, prompt)
    check_tokens(tokens, bundle, 0)
    with jax.default_matmul_precision(PRECISIONS[asked.precision]):
        made = Prepared(bundle, asked, tokens)
        graph = graph_of(bundle, made, tokens)
        node = _node(graph, made, target)
        found = _drivers(graph, node, drivers)
        subsets = [(), *((i,) for i in range(len(found))), *combinations(range(len(found)), 2)]
        dropped = np.zeros((len(subsets), len(found)), bool)
        for row, subset in zip(dropped, subsets, strict=True):
            row[list(subset)] = True
        values = _ablated(made, graph, node, found, dropped)
    lost = dict(zip(subsets, values[0] - values, strict=True))
    pairs = [
        Interaction(int(found[i]), int(found[j]), (float(lost[(i,)]), float(lost[(j,)])), float(lost[i, j]))
        for i, j in combinations(range(len(found)), 2)
    ]
    return Conjunctions(graph, node, float(values[0]), sorted(pairs, key=lambda pair: -abs(pair.value)))


def _node(graph: Graph, made: Prepared, target: tuple[str, int, int] | None) -> int:
    nodes = graph.nodes
    if target is None:
        return int(np.flatnonzero(nodes.are("logit"))[0])
    name, pos, feature = target
    if name not in graph.saes:
        raise InputError(f"the graph has no SAE {name!r}; it has {', '.join(graph.saes) or 'none'}.")
    at = resolved_position(pos, made.n)
    mine = nodes.are("feature") & (nodes.sae == graph.saes.index(name)) & (nodes.pos == at)
    found = np.flatnonzero(mine & (nodes.feature == feature))
    if not len(found):
        strong = nodes.feature[mine][np.argsort(-nodes.value[mine])][:5]
        raise InputError(
            f"feature {feature} of {name} is no node at position {at}; the strongest there are "
            f"{', '.join(map(str, strong.tolist())) or 'none'}."
        )
    return int(found[0])


def _drivers(graph: Graph, node: int, n: int) -> Int[np.ndarray, "_n"]:
    into = (graph.target == node) & graph.nodes.are(*KINDS)[graph.source]
    sources, size = graph.source[into], np.abs(graph.weight[into])
    if len(sources) < 2 or n < 2:
        raise InputError(f"an interaction needs two drivers, got {min(len(sources), n)} of {graph.label(node)}.")
    return np.sort(sources[np.argsort(-size, kind="stable")[:n]])


def _ablated(
    made: Prepared, graph: Graph, node: int, drivers: Int[np.ndarray, "_n"], dropped: np.ndarray
) -> Float[np.ndarray, "subset"]:
    """Values of the target with each subset of its drivers at zero."""
    nodes, factors = graph.nodes, made.factors
    token = np.ones((len(dropped), len(factors.token)))
    features = [np.ones((len(dropped), *f.shape)) for f in factors.features]
    for i, source in enumerate(drivers):
        sae, pos = nodes.sae[source], nodes.pos[source]
        if nodes.kind[source] == "token":
            token[dropped[:, i], pos] = 0
        else:
            slot = int(np.flatnonzero(made.slots[sae].feature[pos] == nodes.feature[source])[0])
            features[sae][dropped[:, i], pos, slot] = 0
    dtype = made.params.W_E.dtype
    moved = (jnp.asarray(token, dtype), tuple(jnp.asarray(f, dtype) for f in features))
    logit = nodes.kind[node] == "logit"
    number = None if logit else int(nodes.sae[node])
    direction = made.logit_targets.directions[int((nodes.are("logit")[:node]).sum())] if logit else np.zeros(1)
    found = _values(
        made.params,
        None if number is None else made.saes[number],
        made.tokens,
        made.leaves,
        factors,
        moved,
        jnp.int32(nodes.pos[node]),
        jnp.int32(nodes.feature[node]),
        jnp.asarray(direction, dtype),
        wiring=Wiring(made.wiring.cfg, made.wiring.reads, made.wiring.writes, None),
        number=number,
    )
    return np.asarray(found, np.float64)


@partial(jax.jit, static_argnames=("wiring", "number"))
def _values(
    params: ModelWeights,
    sae: SAE | None,
    tokens: Int[Array, "pos"],
    leaves: Leaves,
    factors: Factors,
    moved: tuple[Float[Array, "subset pos"], tuple[Float[Array, "subset pos _slot"], ...]],
    pos: Int[Array, ""],
    feature: Int[Array, ""],
    direction: Float[Array, "_n"],
    *,
    wiring: Wiring,
    number: int | None,
) -> Float[Array, "subset"]:
    def one(moved):
        token, features = moved
        own = factors._replace(token=token, features=features)
        if number is None:
            return logits_of(wiring, params, tokens, leaves, own, pos) @ direction
        assert sae is not None
        return feature_value(wiring, params, sae, tokens, leaves, own, number, pos, feature)

    return jax.lax.map(one, moved, batch_size=16)


def conjunction_rows(found: Conjunctions, n: int | None = None) -> Sequence[dict[str, Any]]:
    """The pairs as rows: both drivers in words, what each and both are worth, and their interaction."""
    return [
        {
            "first": found.graph.label(pair.first),
            "second": found.graph.label(pair.second),
            "first_alone": pair.alone[0],
            "second_alone": pair.alone[1],
            "together": pair.together,
            "interaction": pair.value,
        }
        for pair in found.pairs[:n]
    ]
