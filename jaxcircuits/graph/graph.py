"""The graph of a prompt: nodes, edges, and what edges leave out. Arrays; nothing here computes with a model.

Nodes come in an order in which every edge leads from a lower number to a higher one: first what has no edges into it
(embeddings, biases, GELU constants, SAE errors, features that are no nodes of their own), then features SAE by SAE,
then logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import sparse

KINDS = ("token", "position", "bias", "gelu", "error", "rest", "feature", "logit")
"""What a node can be.

- `token`, `position`: the embedding of a token, and of its position.
- `bias`: one of the model's biases, all positions together; an SAE's `b_dec`, or its `b_enc` with `- b_dec W_enc`.
- `gelu`: the constant of the line that stands for a layer's GELUs at a position (frozen derivatives only).
- `error`: what an SAE's reconstruction leaves out at a position; of a transcoder, what it adds besides features too.
- `rest`: the features of an SAE at a position that are no nodes of their own.
- `feature`: a feature at a position.
- `logit`: a logit with the mean over the vocabulary taken off, or a difference of two.
"""

LEAVES = KINDS[:6]
"""Kinds without edges into them."""

PARTS = ("residual", "value", "query", "key")
"""What an edge's weight is made of: the residual stream, and attention's values, queries and keys."""


@dataclass(frozen=True)
class Nodes:
    """The nodes of a graph, a row each.

    Attributes:
        kind: One of `KINDS`.
        sae: Index into `Graph.saes`; -1 where the node belongs to none.
        layer: Block it stands in; -1 for embeddings, the number of blocks for the final norm and logits.
        pos: Position; -1 for a bias, which acts at all of them.
        feature: Number of the feature; token id of a token or logit; of a bias, index into `Graph.biases`; else -1.
        minus: Token id that is subtracted in a difference of logits; else -1.
        value: Activation of a feature, pre-activation that edges add up to; the logit; NaN for leaves.
        probability: Of a logit's token; NaN for other nodes, and for a difference.
        cut: Sum of edges into the node that are not listed: beyond `top_k`, below `min_weight`, or pruned.
        baseline: Value at the start of the path (integrated derivatives); else 0.
        unexplained: `value - baseline - listed edges - cut`. Frozen: rounding. Exact: what a linear account leaves.
    """

    kind: Shaped[np.ndarray, "node"]
    sae: Int[np.ndarray, "node"]
    layer: Int[np.ndarray, "node"]
    pos: Int[np.ndarray, "node"]
    feature: Int[np.ndarray, "node"]
    minus: Int[np.ndarray, "node"]
    value: Float[np.ndarray, "node"]
    probability: Float[np.ndarray, "node"]
    cut: Float[np.ndarray, "node"]
    baseline: Float[np.ndarray, "node"]
    unexplained: Float[np.ndarray, "node"]

    def __len__(self) -> int:
        return len(self.kind)

    def are(self, *kinds: str) -> Bool[np.ndarray, "node"]:
        """Which nodes are of one of these kinds."""
        return np.isin(self.kind, kinds)

    def __getitem__(self, index: Any) -> "Nodes":
        """Some of the nodes."""
        return Nodes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Graph:
    """What drives what in one prompt. From `build_graph`.

    Attributes:
        tokens: Token ids of the prompt.
        token_strings: Each as text.
        saes: Names of the SAEs whose features are nodes, in the order of their hook points.
        biases: Names of the biases that are nodes.
        nodes: The nodes.
        source: Where an edge begins: a number of a node.
        target: Where it ends. Edges are sorted by target, then source; `source < target`.
        weight: What the edge carries: derivative of the target's pre-activation or logit with respect to a factor on
            the source, that is gradient × activation. In units of the target's value.
        parts: Where asked for, `PARTS` of each weight; they add up to it.
        settings: How it was computed, JSON-able: derivative, thresholds, logits asked for, hashes, versions; and names
            of features (`labelled`).
    """

    tokens: Int[np.ndarray, "pos"]
    token_strings: tuple[str, ...]
    saes: tuple[str, ...]
    biases: tuple[str, ...]
    nodes: Nodes
    source: Int[np.ndarray, "edge"]
    target: Int[np.ndarray, "edge"]
    weight: Float[np.ndarray, "edge"]
    parts: Mapping[str, Float[np.ndarray, "edge"]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def adjacency(self) -> sparse.csr_array:
        """Weights as a sparse matrix `[target, source]`."""
        n = len(self.nodes)
        return sparse.csr_array((self.weight, (self.target, self.source)), shape=(n, n))

    def label(self, node: int | np.integer) -> str:
        """A node in words, such as `blocks.0.mlp.hook_post #880 @ 4 " red"`; behind the number a feature's name."""
        nodes = self.nodes
        kind, pos, feature = str(nodes.kind[node]), int(nodes.pos[node]), int(nodes.feature[node])
        at = "" if pos < 0 else f" @ {pos} {self.token_strings[pos]!r}"
        sae = self.saes[nodes.sae[node]] if nodes.sae[node] >= 0 else ""
        if kind == "feature":
            name = self.feature_name(node)
            return f"{sae} #{feature}{'' if name is None else f' ({name})'}{at}"
        if kind == "logit":
            names = dict(
                zip(self.settings.get("logit_tokens", ()), self.settings.get("logit_strings", ()), strict=True)
            )
            wanted, other = (repr(names.get(t, f"#{t}")) for t in (feature, int(nodes.minus[node])))
            return f"logit {wanted}" if nodes.minus[node] < 0 else f"logit {wanted} - {other}"
        if kind == "bias":
            return self.biases[feature]
        if kind == "gelu":
            return f"GELU constant of layer {nodes.layer[node]}{at}"
        return {
            "token": f"token{at}",
            "position": f"position{at}",
            "error": f"{sae} error{at}",
            "rest": f"{sae} other features{at}",
        }[kind]

    def labelled(self, labels: Mapping[tuple[str, int], str]) -> "Graph":
        """The graph with names of features, by SAE and number, besides those that it has; they are saved with it."""
        found = {sae: dict(names) for sae, names in self.settings.get("labels", {}).items()}
        for (sae, feature), text in labels.items():
            found.setdefault(sae, {})[str(feature)] = text
        return replace(self, settings={**self.settings, "labels": found})

    def feature_name(self, node: int | np.integer) -> str | None:
        """The name that somebody gave to a node's feature."""
        names = self.settings.get("labels", {}).get(self.saes[self.nodes.sae[node]], {})
        return names.get(str(self.nodes.feature[node]))

    def keep(self, nodes: Bool[np.ndarray, "node"], edges: Bool[np.ndarray, "edge"] | None = None) -> "Graph":
        """A part of the graph; what edges it leaves out is added to `cut` of their targets.

        Args:
            nodes: Which nodes stay.
            edges: Which edges stay, if both their ends do; by default all.
        """
        stay = nodes[self.source] & nodes[self.target]
        if edges is not None:
            stay &= edges
        lost = np.bincount(self.target[~stay], self.weight[~stay], len(self.nodes))
        kept = self.nodes[nodes]
        number = np.cumsum(nodes) - 1
        return replace(
            self,
            nodes=replace(kept, cut=kept.cut + lost[nodes].astype(kept.cut.dtype)),
            source=number[self.source[stay]].astype(self.source.dtype),
            target=number[self.target[stay]].astype(self.target.dtype),
            weight=self.weight[stay],
            parts={name: part[stay] for name, part in self.parts.items()},
        )
