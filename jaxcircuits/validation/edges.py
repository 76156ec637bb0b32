"""Do attributions predict interventions? Each edge's effect is predicted, then measured by ablating its source.

1. Find what is active in the stories (`activity`).
2. In each story draw targets, and for each some of its active sources (`sampling`).
3. Predict what ablating a source does to its target (`predictors`), then do it (`effects`).
4. Rank within each target, and say how sure that is (`agreement`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import jax
import numpy as np
from jaxtyping import Int

from jaxcircuits.attribution import Settings
from jaxcircuits.attribution.edges import Columns
from jaxcircuits.attribution.problem import Pair, resolve
from jaxcircuits.bundle import Bundle
from jaxcircuits.config import check_seed
from jaxcircuits.errors import InputError
from jaxcircuits.progress import progress
from jaxcircuits.statistics import Estimate
from jaxcircuits.validation.activity import Activity, find_activity
from jaxcircuits.validation.agreement import Score, Stories, calibration, score, within_targets
from jaxcircuits.validation.collapse import CHOICES, activation_left, drivers_of, edges_to
from jaxcircuits.validation.effects import measure
from jaxcircuits.validation.exactness import exactness
from jaxcircuits.validation.predictors import KEY, PREDICTORS, Predictors
from jaxcircuits.validation.report import Check, Report
from jaxcircuits.validation.sampling import OFFSETS, STRATA, choose_sources, offset_class

SOURCES = 32
"""Sources that are measured of a target."""

STEPS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""By which share a source's activation is lowered to see how far the gradient holds; 1 is its ablation."""

LINEAR = 0.1
"""Median relative error up to which a linear prediction is said to hold."""

COMPARED = ("all edges", "same position")
"""Where exact attributions must rank effects better than cosines: everywhere, and where a cosine is defined."""


@dataclass(frozen=True)
class EdgeValidation:
    """What `validate_edges` found.

    Attributes:
        report: Checks, and every number in `findings`.
        edges: Every measured edge: `KEY`, `story`, `target` (its number), `offset`, `stratum`, `source_act`,
            `target_act`, `effect`, `effect_pre_activation` and a column `predicted_*` for each of `PREDICTORS`.
        scores: By set of edges and predictor.
        linearity: By step: median and 90th percentile of the linear prediction's relative error.
        left: Share of the targets' activations that is left when three sources of each are ablated, by choice.
        activity: What is active in the stories.
        predictors: For more of the same stories.
        pair: The two SAEs.
    """

    report: Report
    edges: Columns
    scores: dict[str, dict[str, Score]]
    linearity: list[dict[str, float]]
    left: dict[str, Estimate]
    activity: Activity
    predictors: Predictors
    pair: Pair


def tokenized_stories(bundle: Bundle, texts: Iterable[str], most: int) -> list[Int[np.ndarray, "_pos"]]:
    """Token ids of the first stories, each cut to the model's context.

    Raises:
        InputError: There are fewer than two.
    """
    if most < 2:
        raise InputError(f"intervals are over stories, so at least 2 are needed, got {most}.")
    stories = []
    for text in texts:
        stories.append(bundle.tokenize(text)[: bundle.cfg.n_ctx])
        if len(stories) == most:
            break
    if len(stories) < 2:
        raise InputError(f"intervals are over stories, so at least 2 are needed, the corpus has {len(stories)}.")
    return stories


def validate_edges(
    bundle: Bundle,
    stories: Sequence[Int[np.ndarray, "_pos"]],
    *,
    source: str | None = None,
    target: str | None = None,
    positions: str = "all",
    edges: int = 10_000,
    seed: int = 0,
    quiet: bool = True,
) -> EdgeValidation:
    """Predicts the effect of ablating sources, measures it, and compares; checks edges in float64.

    Args:
        bundle: Model and SAEs, on `mlp.hook_post` of adjacent layers.
        stories: Token ids of each.
        source: Name of the source SAE.
        target: Name of the target SAE.
        positions: `"all"`: sources at every position up to the target's; `"same"`: at its own.
        edges: How many at least, if there are so many active ones.
        seed: Of targets, sources and bootstrap.
        quiet: No progress bar.

    Raises:
        InputError: The SAEs are elsewhere, nothing is active, or a number is out of range.
    """
    check_seed(seed)
    if edges < 1:
        raise InputError(f"the number of edges must be at least 1, got {edges}.")
    settings = Settings(source=source, target=target, positions=positions)
    pair = resolve(bundle, settings)
    activity = find_activity(bundle, pair, list(stories), quiet=quiet)
    targets = -(-edges // (len(stories) * SOURCES))
    predictors = Predictors(bundle, activity, settings, targets)
    parts: list[Columns] = []
    steps: list[Columns] = []
    collapses: list[Columns] = []
    with progress(quiet) as bar:
        task = bar.add_task("edges", total=len(stories))
        for story in range(len(stories)):
            rng = np.random.default_rng([seed, story])
            found = _story(bundle, pair, predictors, story, targets, rng)
            for kept, part in zip((parts, steps, collapses), found, strict=True):
                kept += [part] if part else []
            bar.update(task, advance=1)
        if not parts:
            raise InputError("no target with an active source was found in these stories; use other text.")
        bar.add_task("checks in float64", total=None)
        checks = exactness(bundle, activity, settings, seed=seed)
    measured = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    ends = np.stack([measured[name] for name in ("story", "target_pos", "target_feature")], axis=1)
    measured["target"] = np.unique(ends, axis=0, return_inverse=True)[1].reshape(-1)
    lowered = {name: np.concatenate([part[name] for part in steps]) for name in steps[0]}
    collapsed = {name: np.concatenate([part[name] for part in collapses]) for name in collapses[0]}
    return _concluded(bundle, pair, activity, predictors, measured, lowered, collapsed, checks, positions, seed)


def _story(
    bundle: Bundle, pair: Pair, predictors: Predictors, story: int, most: int, rng: np.random.Generator
) -> tuple[Columns, Columns, Columns]:
    """Measured edges of one story, effects of lowering the strongest by `STEPS`, and what is left of each target."""
    active = predictors.activity.active_targets(story)
    if not len(active):
        return {}, {}, {}
    targets = active[np.sort(rng.permutation(len(active))[:most])]
    every = predictors.attributions(story, targets)
    by_cosine = predictors.cosine(every["source_feature"], every["target_feature"]) * every["source_act"]
    offsets = every["target_pos"] - every["source_pos"]
    rows, strata, own, strongest = [], [], [], []
    for number, (pos, feature) in enumerate(targets):
        mine = np.flatnonzero((every["target_pos"] == pos) & (every["target_feature"] == feature))
        chosen, why = choose_sources(every["exact"][mine], by_cosine[mine], offsets[mine], SOURCES, rng)
        strongest += (np.arange(min(2, len(chosen))) + len(rows)).tolist()
        rows += mine[chosen].tolist()
        strata += why.tolist()
        own += [number] * len(chosen)
    if not rows:
        return {}, {}, {}
    edges = {name: values[rows] for name, values in every.items()}
    predicted = predictors.predictions(edges, rng)
    places = np.stack([edges["source_pos"], edges["source_feature"]], axis=1)
    # The strongest are lowered step by step too; a whole step is the ablation.
    lower = np.repeat(strongest, len(STEPS))
    kept = np.concatenate([np.zeros(len(rows)), 1 - np.tile(STEPS, len(strongest))])
    which = np.concatenate([np.arange(len(rows)), lower])
    room = np.concatenate([targets, np.repeat(targets[:1], most - len(targets), axis=0)])
    tokens, length = predictors.activity.stories[story], predictors.padded(story)
    effects = measure(bundle, pair, tokens, places[which][:, None], room, kept, length=length)
    at = np.arange(len(which)), np.array(own)[which]
    act, pre_act = effects.act[at], effects.pre_act[at]
    n = len(rows)
    measured: Columns = {
        "story": np.full(n, story),
        **{name: edges[name] for name in KEY},
        "offset": offsets[rows],
        "stratum": np.array(strata),
        "source_act": edges["source_act"],
        "target_act": edges["target_act"],
        "effect": act[:n].astype(np.float64),
        "effect_pre_activation": pre_act[:n].astype(np.float64),
        **{f"predicted_{name}": values for name, values in predicted.items()},
    }
    stepped: Columns = {
        "step": 1 - kept[n:],
        "predicted": (1 - kept[n:]) * predicted["exact"][lower],
        "effect": pre_act[n:].astype(np.float64),
    }
    there = [number for number in range(len(targets)) if number in own]
    drivers = [drivers_of(edges_to(every, targets[number]), predictors, rng) for number in there]
    # Always as many targets, so that stories share programs.
    filled = np.resize(there, most)
    before, after = activation_left(
        bundle, pair, predictors, story, targets[filled], [drivers[i % len(there)] for i in range(most)]
    )
    left: Columns = {"story": np.full(len(there), story), "before": before[: len(there)]}
    left |= {name: after[: len(there), i] for i, name in enumerate(CHOICES)}
    return measured, stepped, left


def _concluded(
    bundle: Bundle,
    pair: Pair,
    activity: Activity,
    predictors: Predictors,
    edges: Columns,
    lowered: Columns,
    collapsed: Columns,
    checks: list[Check],
    positions: str,
    seed: int,
) -> EdgeValidation:
    """Scores, the verdict and everything that the report says."""
    number = int(edges["target"].max()) + 1
    story_of = np.zeros(number, np.int64)
    story_of[edges["target"]] = edges["story"]
    of_edges, of_targets = Stories(edges["story"], seed), Stories(story_of, seed)
    offsets = offset_class(edges["offset"])
    subsets = {"all edges": np.ones(len(offsets), bool), "random edges": edges["stratum"] == 2}
    subsets |= {name: offsets == i for i, name in enumerate(OFFSETS) if 0 < (offsets == i).mean() < 1}
    scores: dict[str, dict[str, Score]] = {}
    better: dict[str, dict[str, Estimate]] = {}
    for subset, rows in subsets.items():
        within = Stories(edges["story"][rows], seed)
        predicted = {name: edges[f"predicted_{name}"] for name in PREDICTORS}
        ranks = {name: within_targets(p, edges["effect"], edges["target"], rows) for name, p in predicted.items()}
        scores[subset] = {
            name: score(p[rows], edges["effect"][rows], ranks[name], within, of_targets)
            for name, p in predicted.items()
        }
        better[subset] = {name: of_targets.mean(ranks["exact"] - ranks[name]) for name in PREDICTORS if name != "exact"}
    checks = [*checks, *(_won(subset, better[subset]["cosine"]) for subset in COMPARED if subset in better)]
    linearity = _linearity(lowered)
    stories = Stories(collapsed["story"], seed)
    left = {name: stories.ratio(collapsed[name], collapsed["before"]) for name in CHOICES}
    holds = [row["step"] for row in linearity if row["median"] <= LINEAR]
    findings = {
        "predictors": PREDICTORS,
        "edges": len(offsets),
        "targets": number,
        "strata": {name: int((edges["stratum"] == i).sum()) for i, name in enumerate(STRATA)},
        "offsets": {name: int((offsets == i).sum()) for i, name in enumerate(OFFSETS)},
        "scores": {subset: {name: asdict(s) for name, s in row.items()} for subset, row in scores.items()},
        "exact_minus": {s: {name: asdict(d) for name, d in row.items()} for s, row in better.items()},
        "calibration": {
            name: [
                {**row, "measured": asdict(row["measured"])}
                for row in calibration(edges[f"predicted_{name}"], edges["effect"], of_edges)
            ]
            for name in ("exact", "frozen", "integrated", "virtual_weight")
        },
        "left": {name: asdict(share) for name, share in left.items()},
        "linearity": linearity,
        "linear_up_to": max(holds, default=None),
    }
    conditions = {
        "bundle": str(bundle.path) if bundle.path else "in memory",
        "source": pair.source_name,
        "target": pair.target_name,
        "positions": positions,
        "stories": len(activity.stories),
        "tokens": len(activity.counted),
        "intervention": "the source's activation set to zero at its position, the SAE's error kept",
        "seed": seed,
        "dtype": str(bundle.params.W_E.dtype),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    report = Report("Do attributions predict interventions?", conditions, checks, findings)
    return EdgeValidation(report, edges, scores, linearity, left, activity, predictors, pair)


def _won(subset: str, better: Estimate) -> Check:
    """Whether exact attributions rank effects better than cosines do, beyond chance."""
    won = bool(better.low > 0)
    return Check(
        f"exact ranks measured effects better than cosine, {subset}",
        "difference of Spearman within targets above 0",
        f"{better:+.3f}",
        None,
        None,
        won,
        "" if won else "exact attributions do NOT predict these interventions better than cosines do",
    )


def _linearity(lowered: Columns) -> list[dict[str, float]]:
    """The relative error of the linear prediction of the target's pre-activation, by step."""
    error = np.abs(lowered["effect"] - lowered["predicted"]) / np.maximum(np.abs(lowered["predicted"]), 1e-12)
    found = []
    for step in STEPS:
        rows = np.isclose(lowered["step"], step)
        median, high = np.quantile(error[rows], [0.5, 0.9])
        found.append({"step": step, "edges": int(rows.sum()), "median": float(median), "ninetieth": float(high)})
    return found
