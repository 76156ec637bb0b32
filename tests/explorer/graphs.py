"""Graphs of random edges for the page: nothing is computed with a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxcircuits.graph import Graph, Nodes

HOOKS = ("blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post")
HOSTILE = (
    "<|endoftext|>",
    "<script>",
    "window.hacked=1",
    "</script>",
    ' "a\'b"',
    " &lt;b&gt;",
    "<img src=x onerror=hacked=2>",
    "\n",
)
"""Tokens that would do something if they were not text."""


def random_graph(
    tokens: Sequence[str] = HOSTILE,
    saes: Sequence[str] = HOOKS,
    *,
    features: int = 40,
    d_sae: int = 24,
    edges: int = 300,
    logits: int = 3,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> Graph:
    """Tokens, biases, errors, features of an SAE a layer, logits at the end; edges lead upwards and to the right."""
    rng = np.random.default_rng(seed)
    last, layers = len(tokens) - 1, len(saes)
    rows = [("token", -1, -1, pos, pos) for pos in range(len(tokens))]
    rows += [("bias", -1, layer, -1, layer) for layer in range(layers)]
    rows += [("error", layer, layer, pos, -1) for layer in range(layers) for pos in range(1, len(tokens), 3)]
    pairs = rng.choice((len(tokens) - 1) * d_sae, features // layers, replace=False)
    for layer in range(layers):
        rows += sorted(("feature", layer, layer, 1 + int(pair) // d_sae, int(pair) % d_sae) for pair in pairs)
    rows += [("logit", -1, layers, last, token) for token in range(logits)]
    kind, *numbers = (np.array(column) for column in zip(*rows, strict=True))
    sae, layer, pos, feature = (column.astype(np.int32) for column in numbers)
    source, target = np.meshgrid(np.arange(len(rows)), np.arange(len(rows)))
    leads = (layer[source] < layer[target]) & (pos[source] <= pos[target]) & np.isin(kind, ("feature", "logit"))[target]
    leads |= (kind[source] == "bias") & (kind[target] == "feature") & (layer[source] == layer[target])
    possible = np.flatnonzero(leads)
    chosen = np.sort(rng.choice(possible, min(edges, len(possible)), replace=False))  # by target, then source
    of_source, of_target = (numbers.ravel()[chosen].astype(np.int32) for numbers in (source, target))
    n, ends = len(rows), np.isin(kind, ("feature", "logit"))
    zero = np.zeros(n)
    nodes = Nodes(
        kind=kind,
        sae=sae,
        layer=layer,
        pos=pos,
        feature=feature,
        minus=np.full(n, -1, np.int32),
        value=np.where(ends, rng.uniform(0.1, 2, n), np.nan),
        probability=np.where(kind == "logit", 0.9 / max(logits, 1), np.nan),
        cut=zero,
        baseline=zero,
        unexplained=zero,
    )
    words = {"derivative": "frozen", "logit_tokens": list(range(logits))}
    words |= {"logit_strings": [f" <b>{token}</b>" for token in range(logits)], "versions": {"jaxcircuits": "0"}}
    return Graph(
        tokens=np.arange(len(tokens), dtype=np.int32),
        token_strings=tuple(tokens),
        saes=tuple(saes),
        biases=tuple(f"blocks.{layer}.mlp.b_in" for layer in range(layers)),
        nodes=nodes,
        source=of_source,
        target=of_target,
        weight=rng.permutation(np.linspace(-1, 3, len(chosen))).astype(np.float32),
        settings=words | dict(settings or {}),
    )


def large_graph(edges: int) -> Graph:
    """Twelve layers over a hundred tokens."""
    rng = np.random.default_rng(0)
    tokens = ["<|endoftext|>", *(" " + word for word in rng.choice(["the", "dog", "said", "Lily", "and", "found"], 99))]
    saes = [f"blocks.{layer}.mlp.hook_post" for layer in range(12)]
    return random_graph(tokens, saes, features=1500, d_sae=16_384, edges=edges, logits=10)
