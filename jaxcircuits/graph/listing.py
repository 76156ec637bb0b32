"""Derivatives become edges: which column of factors is which node, and what is cut is summed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.graph.direct import Factors, Wiring
from jaxcircuits.graph.graph import Graph, Nodes
from jaxcircuits.graph.prompt import Slots
from jaxcircuits.graph.settings import GraphSettings
from jaxcircuits.graph.targets import LogitTargets


@dataclass(frozen=True)
class Layout:
    """The nodes, and where their factors and targets are.

    Attributes:
        table: Integer columns of `Nodes` and the kind, a row a node.
        of_column: The node of each column of factors, in the order in which JAX flattens them; -1 where there is none.
        targets: Numbers of the nodes that edges lead into, in the order in which they are differentiated.
        probability: Of the nodes.
    """

    table: Mapping[str, np.ndarray]
    of_column: Int[np.ndarray, "column"]
    targets: Int[np.ndarray, "target"]
    probability: Float[np.ndarray, "node"]


def layout_of(
    wiring: Wiring,
    factors: Factors,
    n: int,
    at: int,
    slots: tuple[Slots, ...],
    logits: LogitTargets,
    tokens: Int[np.ndarray, "pos"],
    names: tuple[str, ...],
) -> Layout:
    """Numbers the nodes.

    Args:
        wiring: Of the graph.
        factors: One a node, padding included.
        n: Tokens of the prompt.
        at: Position of the logits.
        slots: Features that are nodes.
        logits: Logits that are.
        tokens: The prompt.
        names: Of the SAEs.
    """
    rows: list[tuple[str, int, int, int, int, int]] = []  # kind, sae, layer, pos, feature, minus
    n_layers, blocks = wiring.cfg.n_layers, [_block(hook, wiring.cfg.n_layers) for hook in wiring.writes]
    padded = len(factors.token)

    def add(kind: str, sae: int = -1, layer: int = -1, pos: int = -1, feature: int = -1, minus: int = -1) -> int:
        rows.append((kind, sae, layer, pos, feature, minus))
        return len(rows) - 1

    def each(kind: str, sae: int = -1, layer: int = -1, features: Any = None) -> Int[np.ndarray, "pos"]:
        found = [add(kind, sae, layer, pos, -1 if features is None else int(features[pos])) for pos in range(n)]
        return np.array(found + [-1] * (padded - n))

    saes = range(len(names))
    token, position = each("token", features=tokens), each("position")
    biases = list(factors.bias)
    bias = {name: np.array(add("bias", -1, _block(name, n_layers), -1, i)) for i, name in enumerate(biases)}
    b_dec = [np.array(add("bias", s, blocks[s], -1, len(biases) + 2 * s)) for s in saes]
    b_enc = [np.array(add("bias", s, blocks[s], -1, len(biases) + 2 * s + 1)) for s in saes]
    gelu = tuple(each("gelu", layer=layer) for layer in range(n_layers))
    error = tuple(each("error", s, blocks[s]) for s in saes)
    rest = tuple(each("rest", s, blocks[s]) for s in saes)
    features, targets = [], []
    for s in saes:
        nodes = np.full(slots[s].feature.shape, -1)
        where = slots[s].feature >= 0
        pairs = zip(slots[s].pos, slots[s].number, strict=True)
        found = [add("feature", s, blocks[s], int(pos), int(number)) for pos, number in pairs]
        nodes[where] = found
        features.append(nodes)
        targets += found
    for vocab, minus in zip(logits.token.tolist(), logits.minus.tolist(), strict=True):
        targets.append(add("logit", -1, n_layers, at, vocab, minus))
    of = Factors(token, position, tuple(features), rest, error, tuple(b_dec), tuple(b_enc), gelu, bias)  # pyright: ignore
    of_column = np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(of)])
    probability = np.full(len(rows), np.nan)
    probability[len(rows) - len(logits.token) :] = logits.probability
    kinds, *numbers = zip(*rows, strict=True)
    columns = ("sae", "layer", "pos", "feature", "minus")
    table = {name: np.array(column, np.int32) for name, column in zip(columns, numbers, strict=True)}
    return Layout({"kind": np.array(kinds), **table}, of_column, np.array(targets, np.int32), probability)


def all_biases(biases: tuple[str, ...], saes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the nodes that are biases: the model's, then `b_dec` and `b_enc` of each SAE."""
    return (*sorted(biases), *(f"{sae} {name}" for sae in saes for name in ("b_dec", "b_enc")))


def _block(name: str, n_layers: int) -> int:
    """The block that a hook or a tensor belongs to; behind the last for the final norm and unembedding."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0])
    return -1 if first.endswith("embed") else n_layers


class Listing:
    """Edges as they come, a chunk of targets at a time."""

    def __init__(self, layout: Layout, settings: GraphSettings) -> None:
        self.layout, self.settings = layout, settings
        self.is_node = layout.of_column >= 0
        order = layout.of_column[self.is_node]
        self.by_node = np.argsort(order, kind="stable")
        self.nodes = order[self.by_node]
        self.edges: list[tuple[np.ndarray, ...]] = []
        self.parts: list[dict[str, np.ndarray]] = []
        number, dtype = len(layout.table["kind"]), float
        self.value = np.full(number, np.nan, dtype)
        self.cut, self.baseline, self.unexplained = (np.zeros(number, dtype) for _ in range(3))

    def add(
        self,
        first: int,
        values: Float[np.ndarray, "target"],
        baselines: Float[np.ndarray, "target"],
        rows: Float[np.ndarray, "target column"],
        parts: Mapping[str, Float[np.ndarray, "target column"]],
    ) -> None:
        """Adds the edges into some targets: their values, baselines, weights by column of factors, and parts."""
        targets = self.layout.targets[first : first + len(values)]
        rows = rows[:, self.is_node][:, self.by_node]
        listed = np.abs(rows) > self.settings.min_weight
        k = self.settings.top_k
        if k is not None and k < rows.shape[1]:
            size = np.where(listed, np.abs(rows), -1)
            largest = np.argpartition(-size, k - 1, axis=1)[:, :k]
            among = np.zeros_like(listed)
            np.put_along_axis(among, largest, True, axis=1)
            listed &= among
        at, column = np.nonzero(listed)
        self.edges.append((self.nodes[column].astype(np.int32), targets[at], rows[at, column]))
        self.parts.append({name: part[:, self.is_node][:, self.by_node][at, column] for name, part in parts.items()})
        exact = rows.astype(np.float64)
        total = exact.sum(1)
        self.value[targets], self.baseline[targets] = values, baselines
        self.cut[targets] = np.where(listed, 0, exact).sum(1)
        self.unexplained[targets] = values - baselines - total

    def graph(
        self,
        tokens: Int[np.ndarray, "pos"],
        token_strings: tuple[str, ...],
        saes: tuple[str, ...],
        biases: tuple[str, ...],
        description: Mapping[str, Any],
    ) -> Graph:
        """The graph; leaves without edges, but for embeddings, are dropped."""
        source, target, weight = (np.concatenate(column) for column in zip(*self.edges, strict=True))
        parts = {name: np.concatenate([p[name] for p in self.parts]) for name in self.parts[0]}
        nodes = Nodes(
            **self.layout.table,  # pyright: ignore[reportArgumentType]
            value=self.value,
            probability=self.layout.probability,
            cut=self.cut,
            baseline=self.baseline,
            unexplained=self.unexplained,
        )
        whole = Graph(
            np.asarray(tokens, np.int32),
            token_strings,
            saes,
            all_biases(biases, saes),
            nodes,
            source,
            target,
            weight,
            parts,
            description,
        )
        used = np.zeros(len(nodes), bool)
        used[source] = True
        return whole.keep(used | nodes.are("token", "position", "feature", "logit"))
