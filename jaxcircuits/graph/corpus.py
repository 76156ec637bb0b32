"""Circuits of a corpus: which features drive which again and again, and on which tokens it begins.

From the statistics of runs (`statistics.parquet`), one step a run; runs whose SAEs meet make longer paths. From their
activations, where they were kept, the tokens that source features are active on.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxcircuits.bulk.reading import read_part, read_prompts_of
from jaxcircuits.bulk.run import Run
from jaxcircuits.bulk.tables import SOURCE
from jaxcircuits.errors import InputError

if TYPE_CHECKING:
    import networkx

TOKEN = "token"
"""What stands for an SAE's name in the node of a token."""


class Unit(NamedTuple):
    """A node: a feature of an SAE, or a token (`sae` is `TOKEN`, `number` its id)."""

    sae: str
    number: int


class Edge(NamedTuple):
    """What recurs over a corpus.

    `weight` is the shrunk mean of attribution in units of the target's activation; of a token's edge, the lift: how
    many times as often as anywhere the feature is active on this token. `strength`, from 0 to 1, is the share of the
    kept |weight| into the target; of a token's edge, the share of the feature's activations that are on it. `offset` is
    how many tokens earlier the source is; `times`, in how many stories, or how often on the token; `q`,
    false-discovery rate of the mean, NaN for tokens.
    """

    source: Unit
    target: Unit
    offset: int
    weight: float
    strength: float
    times: int
    q: float


class Path(NamedTuple):
    """Edges one behind the other; its score is the product of their strengths."""

    score: float
    edges: tuple[Edge, ...]


class Kept(NamedTuple):
    """Which edges recur."""

    min_stories: int = 5
    max_q: float = 0.05
    min_effect: float = 0.0
    min_lift: float = 2.0
    tokens_of_a_feature: int = 10


@dataclass(frozen=True)
class CorpusGraph:
    """Features and tokens of a corpus, and the edges that recur. From `corpus_graph`.

    Attributes:
        saes: Names, sources first.
        edges: All edges.
        tokens: Text of each token that is a node, by id.
    """

    saes: tuple[str, ...]
    edges: tuple[Edge, ...]
    tokens: Mapping[int, str]

    def label(self, unit: Unit) -> str:
        """A node in words."""
        return repr(self.tokens[unit.number]) if unit.sae == TOKEN else f"{unit.sae}#{unit.number}"

    def of(self, unit: Unit) -> list[Edge]:
        """Edges into and out of a node, the largest |weight| first, those of tokens last."""
        own = [e for e in self.edges if unit in (e.source, e.target)]
        return sorted(own, key=lambda e: (e.source.sae == TOKEN, -abs(e.weight)))

    def within(self, start: Unit, steps: int) -> list[Edge]:
        """Edges on a way of at most so many steps from a node, nearest first.

        Raises:
            InputError: Nothing leads on from the node.
        """
        out: dict[Unit, list[Edge]] = {}
        for e in self.edges:
            out.setdefault(e.source, []).append(e)
        if start not in out:
            raise InputError(f"nothing leads on from {self.label(start)}; name another.")
        found, far, waiting = [], {start: 0}, deque([start])
        while waiting:
            unit = waiting.popleft()
            if far[unit] == steps:
                continue
            for e in sorted(out.get(unit, ()), key=lambda e: -e.strength):
                found.append(e)
                if e.target not in far:
                    far[e.target] = far[unit] + 1
                    waiting.append(e.target)
        return found

    def paths(self, source: Unit, target: Unit, k: int = 5) -> list[Path]:
        """The `k` paths of largest score from one node to another; offsets make paths of their own."""
        into: dict[Unit, list[Edge]] = {}
        for e in self.edges:
            into.setdefault(e.target, []).append(e)
        best: dict[Unit, list[Path]] = {source: [Path(1.0, ())]}
        for unit in TopologicalSorter({t: {e.source for e in edges} for t, edges in into.items()}).static_order():
            if unit != source:
                longer = [
                    Path(p.score * e.strength, (*p.edges, e))
                    for e in into.get(unit, ())
                    for p in best.get(e.source, ())
                ]
                best[unit] = sorted(longer, key=lambda p: -p.score)[:k]
        return best.get(target, []) if target != source else []

    @property
    def units(self) -> set[Unit]:
        """Every node."""
        return {unit for e in self.edges for unit in (e.source, e.target)}

    def to_networkx(self) -> "networkx.MultiDiGraph":
        """The graph for networkx: nodes by `label`, an edge an offset.

        Raises:
            InputError: networkx is not installed.
        """
        try:
            import networkx
        except ImportError:
            raise InputError("networkx is not installed; pip install 'jaxcircuits[graph]'.") from None
        found = networkx.MultiDiGraph()
        for unit in sorted(self.units):
            found.add_node(self.label(unit), sae=unit.sae, number=unit.number)
        for e in self.edges:
            found.add_edge(self.label(e.source), self.label(e.target), key=e.offset, **edge_json(self, e, ends=False))
        return found


def edge_json(graph: CorpusGraph, edge: Edge, *, ends: bool = True) -> dict[str, Any]:
    """An edge as JSON has it."""
    values = {name: getattr(edge, name) for name in ("offset", "weight", "strength", "times")}
    values["q"] = None if edge.q != edge.q else edge.q
    return {**({n: graph.label(getattr(edge, n)) for n in ("source", "target")} if ends else {}), **values}


def corpus_graph(runs: Sequence[Run], kept: Kept | None = None) -> CorpusGraph:
    """The edges that recur in runs, from one SAE to the next, and the tokens that they begin on.

    Args:
        runs: Finished runs with statistics; a target SAE of one may be the source SAE of another.
        kept: Which edges are kept.

    Raises:
        InputError: A run has no statistics, two are between the same SAEs, or they go round in a circle.
    """
    kept = kept or Kept()
    follows: dict[str, set[str]] = {}
    edges: list[Edge] = []
    tokens: dict[int, str] = {}
    for run in runs:
        source, target = (str(run.record["settings"][end]) for end in ("source", "target"))
        if source in follows.setdefault(target, set()):
            raise InputError(f"two runs lead from {source} to {target}; give one of them.")
        follows[target].add(source)
        edges += _recurring(run, source, target, kept)
        if "activations" in run.record["kept"]:
            edges += _begins(run, source, kept, tokens)
    try:
        order = tuple(TopologicalSorter(follows).static_order())
    except CycleError:
        raise InputError("the runs' SAEs follow each other in a circle; leave one run out.") from None
    return CorpusGraph(order, tuple(edges), tokens)


def _recurring(run: Run, source: str, target: str, kept: Kept) -> list[Edge]:
    """Pairs of features that are judged, and pass."""
    import pyarrow.compute as pc

    judged = (pc.field("stories") >= kept.min_stories) & (pc.field("q_mean") <= kept.max_q)
    names = ["source_feature", "target_feature", "offset", "mean_shrunk", "stories", "q_mean"]
    table = run.statistics.to_table(columns=names, filter=judged)
    sources, targets, offsets, means, stories, q = (table[name].to_numpy() for name in names)
    passes = np.abs(means) > kept.min_effect
    total = np.bincount(targets[passes], np.abs(means[passes])) if passes.any() else np.zeros(0)
    return [
        Edge(
            Unit(source, int(sources[i])), Unit(target, int(targets[i])), int(offsets[i]), float(means[i]),
            float(abs(means[i]) / total[targets[i]]), int(stories[i]), float(q[i]),
        )
        for i in np.flatnonzero(passes)
    ]  # fmt: skip


def _begins(run: Run, sae: str, kept: Kept, texts: dict[int, str]) -> list[Edge]:
    """Tokens that source features are active on more often than elsewhere; `texts` gets their text."""
    import pyarrow.compute as pc

    prompts = read_prompts_of(run)
    rows = [np.array(ids, np.int64) for ids in prompts["tokens"].to_pylist()]
    flat, starts = np.concatenate(rows), np.cumsum([0, *map(len, rows)])[:-1]
    pairs: list[Int[np.ndarray, "n 2"]] = []
    first = 1  # where BOS counts, something is active there
    for part in run.record["parts"]:
        table = read_part(run, part, "activations", pc.field("side") == SOURCE)
        prompt, pos, feature = (table[name].to_numpy() for name in ("prompt", "pos", "feature"))
        first = 0 if (pos == 0).any() else first
        pairs.append(np.stack([feature, flat[starts[prompt] + pos]], axis=1))
    counted = np.bincount(np.concatenate([ids[first:] for ids in rows]))
    (keys, often), n = np.unique(np.concatenate(pairs), axis=0, return_counts=True), counted.sum()
    total = np.bincount(keys[:, 0], often)
    lift = (often / counted[keys[:, 1]]) / (total[keys[:, 0]] / n)
    strings = {
        i: s for ids, words in zip(rows, prompts["token_strings"].to_pylist(), strict=True)
        for i, s in zip(ids.tolist(), words, strict=True)
    }  # fmt: skip
    found, listed = [], np.zeros(len(total), int)
    for i in np.lexsort((-often, keys[:, 0])):
        feature, token = keys[i].tolist()
        if often[i] >= kept.min_stories and lift[i] >= kept.min_lift and listed[feature] < kept.tokens_of_a_feature:
            listed[feature] += 1
            texts[token] = strings[token]
            share = float(often[i] / total[feature])
            found.append(Edge(Unit(TOKEN, token), Unit(sae, feature), 0, float(lift[i]), share, int(often[i]), np.nan))
    return found


def token_of(graph: CorpusGraph, text: str) -> Unit:
    """The node of a token, by its text, with or without the space before it.

    Raises:
        InputError: There is none.
    """
    found = [i for i, s in graph.tokens.items() if s == text] or [
        i for i, s in graph.tokens.items() if s.strip() == text
    ]
    if not found:
        raise InputError(f"no token {text!r} has a feature that is active on it again and again; name another.")
    return Unit(TOKEN, found[0])


def unit_of(graph: CorpusGraph, text: str, *, last: bool) -> Unit:
    """The node that `SAE#NUMBER`, a number (of the last SAE, or the first), or a token's text names.

    Raises:
        InputError: It names none.
    """
    name, _, number = text.rpartition("#")
    if text.isdecimal() and graph.saes:
        unit = Unit(graph.saes[-1 if last else 0], int(text))
    elif number.isdecimal() and name in graph.saes:
        unit = Unit(name, int(number))
    else:
        return token_of(graph, text)
    if unit not in graph.units:
        raise InputError(f"no edge of {graph.label(unit)} recurs; name another feature, or ask for less (--max-q).")
    return unit
