"""One feature's drivers: does it collapse when the three that a score names are ablated?"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from rich.progress import Progress

from jaxcircuits.attribution.problem import Pair
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.progress import progress
from jaxcircuits.statistics import Estimate
from jaxcircuits.validation.activity import Activity
from jaxcircuits.validation.agreement import Stories
from jaxcircuits.validation.collapse import CHOICES, activation_left, drivers_of, edges_to
from jaxcircuits.validation.predictors import Predictors

CANDIDATES, TRIED = 512, 6
"""Features that are considered at most, the most active ones, and examples of each, spread over the strong ones."""

FINALISTS, JUDGED = 32, 24
"""The best of them are judged on other examples, and on more: the best on a few are partly the luckiest."""

COLLAPSED = 1 / 3
"""A feature of which no more is left has collapsed."""

Places = dict[int, tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]]
"""Stories and positions of some examples of each feature."""

GROUP = 4
"""Targets of a story that are measured together: always as many, so that programs are shared."""

RULE = (
    "of the features that sit on one and the same word in at least half of their strongest examples, one a story, "
    "and of which ablating the sources of largest exact attribution leaves at most a third (of all, if there is none), "
    f"the one where least is left compared with the best other choice: the {FINALISTS} best on {TRIED} of these "
    f"examples, and of them the best on {JUDGED} others; none of these {TRIED + JUDGED} is among the examples"
)
"""It picks what shows the difference, so its examples are others than those it was picked on."""


@dataclass(frozen=True)
class Example:
    """A place where the feature is strong, and what drives it there.

    Attributes:
        story: Which story.
        pos: Position of the target.
        activation: Of the target.
        drivers: Position and feature of the sources, by choice: `[3, 2]` each.
        left: Activation left after their ablation, as a share, by choice.
    """

    story: int
    pos: int
    activation: float
    drivers: dict[str, Int[np.ndarray, "change 2"]]
    left: dict[str, float]


@dataclass(frozen=True)
class Drivers:
    """A feature with its drivers ablated.

    Attributes:
        feature: The target feature.
        rule: How it was chosen.
        word: The token its examples most often sit on.
        on_word: Share of the examples that do.
        earlier: Share of the exact drivers that sit at earlier tokens.
        examples: The strongest first.
        left: Mean share of the activation that is left, by choice.
        candidates: The same for every feature that was considered, on the examples it was judged on last.
    """

    feature: int
    rule: str
    word: str
    on_word: float
    earlier: float
    examples: list[Example]
    left: dict[str, Estimate]
    candidates: dict[int, dict[str, float]]


def check_drivers(pair: Pair, feature: int | None, examples: int) -> None:
    """Refuses what `ablate_drivers` would, before anything is computed.

    Raises:
        InputError: There is no such feature, or too few examples are asked for.
    """
    if examples < 2:
        raise InputError(f"intervals are over examples, so at least 2 are needed, got {examples}.")
    d_sae = pair.target.cfg.d_sae
    if feature is not None and not 0 <= feature < d_sae:
        raise InputError(f"the target SAE has features 0..{d_sae - 1}, got {feature}.")


def ablate_drivers(
    bundle: Bundle,
    pair: Pair,
    activity: Activity,
    predictors: Predictors,
    *,
    feature: int | None = None,
    examples: int = 100,
    seed: int = 0,
    quiet: bool = True,
) -> Drivers:
    """Ablates three sources of a feature at a time, chosen in several ways, at its strongest examples, one a story.

    Args:
        bundle: Model and autoencoders.
        pair: Which two.
        activity: Of the stories.
        predictors: Of the same stories.
        feature: The target; by default chosen by `RULE`.
        examples: How many; fewer where it is active in fewer stories.
        seed: Of the sources chosen at random, and of the intervals.
        quiet: No progress bar.

    Raises:
        InputError: There is no such feature, or it is active in fewer than two stories.
    """
    check_drivers(pair, feature, examples)
    rule = "given" if feature is not None else RULE
    with progress(quiet) as bar:
        candidates: dict[int, dict[str, float]] = {}
        tried: list[int] = []
        if feature is None:
            feature, tried, candidates = _choose(bundle, pair, activity, predictors, examples, seed, bar)
        places = activity.strongest(feature)
        others = ~np.isin(places[0], tried)
        stories, positions, acts = (values[others][:examples] for values in places)
        if len(stories) < 2:
            raise InputError(f"target feature {feature} is active in {len(stories)} of the stories; name another.")
        task = bar.add_task("drivers", total=len(stories))
        found = []
        for story, pos, act in zip(stories.tolist(), positions.tolist(), acts.tolist(), strict=True):
            rng = np.random.default_rng([seed, story])
            example = _example(bundle, pair, predictors, feature, story, pos, act, rng)
            found += [] if example is None else [example]
            bar.update(task, advance=1)
    if len(found) < 2:
        raise InputError(f"target feature {feature} has active sources in {len(found)} of the stories; name another.")
    word, times = Counter(int(activity.stories[e.story][e.pos]) for e in found).most_common(1)[0]
    over = Stories(np.array([e.story for e in found]), seed)
    return Drivers(
        feature=feature,
        rule=rule,
        word=bundle.token_strings(np.array([word]))[0],
        on_word=times / len(found),
        earlier=float(np.mean([e.drivers["exact"][:, 0] < e.pos for e in found])),
        examples=found,
        left={name: over.mean(np.array([e.left[name] for e in found])) for name in CHOICES},
        candidates=candidates,
    )


def _choose(
    bundle: Bundle, pair: Pair, activity: Activity, predictors: Predictors, examples: int, seed: int, bar: Progress
) -> tuple[int, list[int], dict[int, dict[str, float]]]:
    """The feature that `RULE` names, the stories it was judged on, and what was left of each of those considered."""
    places = _on_one_word(bundle, activity, examples + TRIED + JUDGED)
    tried = {feature: _spread(np.arange(len(some)), TRIED) for feature, (some, _) in places.items()}
    first = {feature: (stories[tried[feature]], at[tried[feature]]) for feature, (stories, at) in places.items()}
    left = _mean_left(bundle, pair, predictors, first, seed, bar)
    finalists = _ranked(left)[:FINALISTS]
    others = {f: (np.delete(places[f][0], tried[f]), np.delete(places[f][1], tried[f])) for f in finalists}
    if all(len(stories) for stories, _ in others.values()):
        judged = _mean_left(bundle, pair, predictors, others, seed, bar)
        left |= judged
        finalists = _ranked(judged)
    return finalists[0], places[finalists[0]][0].tolist(), left


def _ranked(left: dict[int, dict[str, float]]) -> list[int]:
    """Those that collapse before all others, each by what is left compared with the best other choice."""

    def rank(feature: int) -> tuple[bool, float]:
        exact, *others = (left[feature][name] for name in CHOICES)
        return exact > COLLAPSED, exact - min(others)

    return sorted(left, key=rank)


def _mean_left(
    bundle: Bundle, pair: Pair, predictors: Predictors, places: Places, seed: int, bar: Progress
) -> dict[int, dict[str, float]]:
    """Mean share of each feature's activation that is left over its places, by choice."""
    by_story: dict[int, list[tuple[int, int]]] = {}
    for feature, (stories, positions) in places.items():
        for story, pos in zip(stories.tolist(), positions.tolist(), strict=True):
            by_story.setdefault(story, []).append((pos, feature))
    shares: dict[int, list[np.ndarray]] = {feature: [] for feature in places}
    task = bar.add_task("a feature", total=len(by_story))
    for story, ends in by_story.items():
        rng = np.random.default_rng([seed, story])
        for start in range(0, len(ends), GROUP):
            targets = np.array(ends[start : start + GROUP])
            edges = predictors.attributions(story, targets, ("exact",))
            drivers = [drivers_of(edges_to(edges, target), predictors, rng) for target in targets]
            room = np.resize(np.arange(len(targets)), GROUP)
            before, after = activation_left(bundle, pair, predictors, story, targets[room], [drivers[i] for i in room])
            for (_, feature), share in zip(targets.tolist(), after / before[:, None], strict=False):
                shares[feature].append(share)
        bar.update(task, advance=1)
    return {f: dict(zip(CHOICES, np.mean(found, axis=0).tolist(), strict=True)) for f, found in shares.items()}


def _spread(values: Int[np.ndarray, "n"], most: int) -> Int[np.ndarray, "_n"]:
    """Some of them, spread over all: of few, half."""
    n = max(1, min(most, len(values) // 2))
    return values[np.unique(np.linspace(0, len(values) - 1, n).round().astype(int))]


def _on_one_word(bundle: Bundle, activity: Activity, most: int) -> Places:
    """The most active features that sit on one word in half of their strongest stories; stories and positions of some.

    Those that are active in `most` stories, or in as many as any is.
    """
    found: dict[int, tuple[int, float, np.ndarray, np.ndarray]] = {}
    for feature in np.flatnonzero(np.diff(activity.target.indptr) >= 2).tolist():
        stories, positions, acts = (values[:most] for values in activity.strongest(feature))
        tokens = [int(activity.stories[s][p]) for s, p in zip(stories.tolist(), positions.tolist(), strict=True)]
        word, times = Counter(tokens).most_common(1)[0]
        text = bundle.token_strings(np.array([word]))[0].strip()
        named = bundle.tokenizer is None or (text.isalpha() and len(text) > 2)
        if named and times >= len(stories) / 2:
            some = _spread(np.arange(len(stories)), TRIED + JUDGED)
            found[feature] = (len(stories), float(acts.mean()), stories[some], positions[some])
    if not found:
        raise InputError("no target feature sits on one word in two stories; use other text or name a feature.")
    longest = max(n for n, *_ in found.values())
    active = {feature: act for feature, (n, act, *_) in found.items() if n == longest}
    return {feature: found[feature][2:] for feature in sorted(active, key=lambda f: -active[f])[:CANDIDATES]}


def _example(
    bundle: Bundle,
    pair: Pair,
    predictors: Predictors,
    feature: int,
    story: int,
    pos: int,
    act: float,
    rng: np.random.Generator,
) -> Example | None:
    target = np.array([[pos, feature]])
    edges = predictors.attributions(story, target, ("exact",))
    if not len(edges["exact"]):
        return None
    drivers = drivers_of(edges, predictors, rng)
    before, after = activation_left(bundle, pair, predictors, story, target, [drivers])
    left = dict(zip(CHOICES, (after[0] / before[0]).tolist(), strict=True))
    return Example(story, pos, act, drivers, left)
