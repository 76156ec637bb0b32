"""What is left of targets when the three sources that a score names are ablated together."""

import numpy as np
from jaxtyping import Float, Int

from jaxcircuits.attribution.edges import Columns
from jaxcircuits.attribution.problem import Pair
from jaxcircuits.bundle import Bundle
from jaxcircuits.validation.effects import measure
from jaxcircuits.validation.predictors import Predictors

ABLATED = 3
"""Sources that are ablated together."""

CHOICES = {
    "exact": "by exact attribution",
    "cosine_here": "by cosine × activation, same position",
    "cosine": "by cosine × activation, any position",
    "random": "at random, of those active",
}
"""How three sources are chosen."""


def edges_to(edges: Columns, target: Int[np.ndarray, "2"]) -> Columns:
    """The edges to one target."""
    own = (edges["target_pos"] == target[0]) & (edges["target_feature"] == target[1])
    return {name: values[own] for name, values in edges.items()}


def drivers_of(edges: Columns, predictors: Predictors, rng: np.random.Generator) -> dict[str, Int[np.ndarray, "_n 2"]]:
    """Positions and features of one target's sources of largest score, `ABLATED` at most, by `CHOICES`.

    Args:
        edges: To that target, from `Predictors.attributions`.
        predictors: For cosines.
        rng: For those at random.
    """
    by_cosine = predictors.cosine(edges["source_feature"], edges["target_feature"]) * edges["source_act"]
    scores = {
        "exact": edges["exact"],
        "cosine_here": np.where(edges["source_pos"] == edges["target_pos"], by_cosine, -np.inf),
        "cosine": by_cosine,
        "random": rng.permutation(len(by_cosine)).astype(np.float64),
    }
    return {name: _top(edges, scores[name]) for name in CHOICES}


def activation_left(
    bundle: Bundle,
    pair: Pair,
    predictors: Predictors,
    story: int,
    targets: Int[np.ndarray, "target 2"],
    drivers: list[dict[str, Int[np.ndarray, "_n 2"]]],
) -> tuple[Float[np.ndarray, "target"], Float[np.ndarray, "target choice"]]:
    """Activations of some targets of a story, and what is left of each when its own drivers are ablated.

    Args:
        bundle: Model and autoencoders.
        pair: Which two.
        predictors: Of the stories.
        story: Which.
        targets: Positions and features.
        drivers: From `drivers_of`, for each; a choice of no source leaves what there is.
    """
    nobody = np.zeros((1, 2), np.int64)
    # Whoever is ablated twice is ablated, so few drivers fill the room of three.
    chosen = [np.resize(d[name] if len(d[name]) else nobody, (ABLATED, 2)) for d in drivers for name in CHOICES]
    values = np.array([0.0 if len(d[name]) else 1.0 for d in drivers for name in CHOICES])
    tokens, length = predictors.activity.stories[story], predictors.padded(story)
    effects = measure(bundle, pair, tokens, np.stack(chosen), targets, values, length=length)
    own = np.repeat(np.arange(len(targets)), len(CHOICES))
    effect = effects.act[np.arange(len(own)), own].reshape(len(targets), len(CHOICES)).astype(np.float64)
    before = effects.before.astype(np.float64)
    return before, before[:, None] + effect


def _top(edges: Columns, scores: Float[np.ndarray, "edge"]) -> Int[np.ndarray, "_n 2"]:
    order = np.argsort(-scores, kind="stable")[:ABLATED]
    order = order[np.isfinite(scores[order])]
    return np.stack([edges["source_pos"][order], edges["source_feature"][order]], axis=1).astype(np.int64)
