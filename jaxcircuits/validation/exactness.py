"""Edges against arithmetic, in float64: central differences for exact ones, whole ablations for frozen ones."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.attribution.problem import resolve
from jaxcircuits.bundle import Bundle
from jaxcircuits.model.freezing import FREEZABLE
from jaxcircuits.validation.activity import Activity
from jaxcircuits.validation.effects import measure
from jaxcircuits.validation.report import Check

FINITE_DIFFERENCE, FROZEN = 1e-6, 1e-10
STEP = 1e-4
"""By how much a source's activation moves: its square and the rounding over it are both far below the tolerance."""

TOKENS = 48
"""Tokens of a story that are looked at: float64 is slow."""


def exactness(
    bundle: Bundle,
    activity: Activity,
    settings: Settings,
    *,
    stories: int = 3,
    targets: int = 4,
    sources: int = 16,
    seed: int = 0,
) -> list[Check]:
    """Two checks: finite differences of pre-activations, and ablations while attention, norms and GELUs are frozen.

    Args:
        bundle: Model and autoencoders; computed with in float64.
        activity: What is active where.
        settings: Ends and positions.
        stories: How many of the first; of each, the first `TOKENS` tokens.
        targets: Active targets of a story, at random.
        sources: Of each: half the strongest, half at random.
        seed: Of what is random.
    """
    rng = np.random.default_rng(seed)
    worst = {"exact": 0.0, "frozen": 0.0}
    number = 0
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        wide = replace(
            bundle,
            params=jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), bundle.params),
            saes={name: sae.astype(jnp.float64) for name, sae in bundle.saes.items()},
        )
        settings = replace(settings, target_quantity="pre_activation", completeness=False, method="auto")
        engines = {name: Engine(wide, replace(settings, derivative=name)) for name in worst}
        pair = resolve(wide, settings)
        for story, ids in enumerate(ids[:TOKENS] for ids in activity.stories[:stories]):
            every = activity.active_targets(story)
            every = every[every[:, 0] < len(ids)]
            chosen = every[np.sort(rng.permutation(len(every))[:targets])]
            if not len(chosen):
                continue
            named = [(int(pos), int(feature)) for pos, feature in chosen]
            edges = {name: engine.run([(0, ids)], named)[0] for name, engine in engines.items()}
            picked = _picked(edges["exact"], sources, rng)
            places = np.stack([edges["exact"][name][picked] for name in ("source_pos", "source_feature")], axis=1)
            own = _own(chosen, edges["exact"], picked)
            at = np.arange(len(picked))

            up, down = (
                measure(wide, pair, ids, places[:, None], chosen, by, kind="steer").pre_act[at, own]
                for by in (STEP, -STEP)
            )
            gradient = edges["exact"]["gradient"][picked]
            worst["exact"] = max(worst["exact"], _off((up - down) / (2 * STEP), gradient, own))

            ablated = measure(wide, pair, ids, places[:, None], chosen, freeze=FREEZABLE).pre_act[at, own]
            worst["frozen"] = max(worst["frozen"], _off(-ablated, edges["frozen"]["attribution"][picked], own))
            number += len(picked)
    edges_checked = f"{number} edges, float64, the largest error over a target's largest"
    return [
        Check(
            "exact gradients against central differences",
            "equal",
            edges_checked,
            worst["exact"],
            FINITE_DIFFERENCE,
            bool(number) and worst["exact"] <= FINITE_DIFFERENCE,
            f"sources steered by ±{STEP:g}, target pre-activations",
        ),
        Check(
            "frozen edges against whole ablations",
            "equal",
            edges_checked,
            worst["frozen"],
            FROZEN,
            bool(number) and worst["frozen"] <= FROZEN,
            "attention patterns and norm scales held, GELUs replaced by their tangents",
        ),
    ]


def _picked(edges: Columns, sources: int, rng: np.random.Generator) -> Int[np.ndarray, "_n"]:
    """Edges of each target: half the strongest, half others at random."""
    picked = []
    ends = np.stack([edges["target_pos"], edges["target_feature"]])
    for own in np.split(np.arange(ends.shape[1]), np.flatnonzero((np.diff(ends, axis=1) != 0).any(0)) + 1):
        own = own[np.argsort(-np.abs(edges["attribution"][own]), kind="stable")]
        strongest, others = own[: sources // 2], own[sources // 2 :]
        picked += [*strongest, *rng.permutation(others)[: sources - sources // 2]]
    return np.array(picked, np.int64)


def _own(targets: Int[np.ndarray, "target 2"], edges: Columns, picked: Int[np.ndarray, "_n"]) -> Int[np.ndarray, "_n"]:
    """Which of the targets each picked edge leads to."""
    number = {tuple(target): i for i, target in enumerate(targets.tolist())}
    ends = zip(edges["target_pos"][picked].tolist(), edges["target_feature"][picked].tolist(), strict=True)
    return np.array([number[end] for end in ends], np.int64)


def _off(measured: np.ndarray, expected: np.ndarray, own: Int[np.ndarray, "_n"]) -> float:
    """The largest error over one target's edges, relative to the largest of them; the worst target's."""
    worst = 0.0
    for target in np.unique(own):
        here = own == target
        size = np.abs(expected[here]).max()
        worst = max(worst, float(np.abs(measured[here] - expected[here]).max() / size) if size > 0 else 0.0)
    return worst
