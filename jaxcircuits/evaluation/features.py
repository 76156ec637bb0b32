"""Single features: where they are strongest, how often and how strongly they fire, what they write, who is near."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxcircuits.bundle import Bundle
from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation.batches import BOS, TextBatches, chosen
from jaxcircuits.evaluation.geometry import neighbours
from jaxcircuits.evaluation.histogram import Histogram
from jaxcircuits.evaluation.logits import logit_effects
from jaxcircuits.model import forward, side_by_side
from jaxcircuits.progress import progress
from jaxcircuits.sae import SAE, encode
from jaxcircuits.types import ModelWeights


@dataclass(frozen=True)
class Example:
    """A stretch of text around the token at which a feature is strongest in its row.

    Attributes:
        activation: There.
        at: Index of that token in `tokens`.
        tokens: As text.
        activations: The feature's, at each of them; 0 at BOS where that is left out.
    """

    activation: float
    at: int
    tokens: list[str]
    activations: list[float]


@dataclass(frozen=True)
class FeatureSummary:
    """One feature.

    Attributes:
        sae: Name of the autoencoder.
        feature: Which.
        density: Share of tokens at which it is active.
        mean_activation: Where it is active; `None` where it never is.
        max_activation: Its largest.
        histogram: `edges` and `counts` of its positive activations.
        examples: Strongest first, one a row of text.
        path: The way on which logits were computed, or `None` where there is no straight one.
        promoted, suppressed: Tokens of largest and smallest logit effect, with it.
        neighbours: Features of most similar decoder row, with the cosine.
    """

    sae: str
    feature: int
    density: float
    mean_activation: float | None
    max_activation: float
    histogram: dict[str, list]
    examples: list[Example]
    path: str | None
    promoted: list[tuple[str, float]] = field(default_factory=list)
    suppressed: list[tuple[str, float]] = field(default_factory=list)
    neighbours: list[tuple[int, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As nested dictionaries and lists."""
        return asdict(self)


class _Strongest:
    """The strongest rows of one feature; of equal ones the earlier."""

    def __init__(self, n: int) -> None:
        self._n, self._seen = n, 0
        self._heap: list[tuple[float, int, Any]] = []

    def offer(self, activation: float, what: Any) -> None:
        """Keeps a row if it is among the strongest."""
        self._seen += 1
        if activation > 0 and self._n > 0:
            entry = (activation, -self._seen, what)
            if len(self._heap) < self._n:
                heapq.heappush(self._heap, entry)
            elif entry > self._heap[0]:
                heapq.heapreplace(self._heap, entry)

    def __iter__(self):
        return (what for _, _, what in sorted(self._heap, key=lambda e: e[:2], reverse=True))


def describe_features(
    bundle: Bundle,
    sae_name: str,
    features: Sequence[int],
    texts: Iterable[str],
    *,
    n: int = 8,
    context: int = 12,
    tokens: int = 10,
    bos: BOS = BOS(),  # noqa: B008  (frozen)
    quiet: bool = True,
) -> list[FeatureSummary]:
    """Describes features from one pass over texts.

    Args:
        bundle: Model, autoencoder and tokenizer.
        sae_name: The autoencoder's name in the bundle.
        features: Which features.
        texts: Where to look: a list, or a `CorpusFile`.
        n: Examples of each.
        context: Tokens shown on either side.
        tokens: Promoted and suppressed tokens, and neighbours, of each.
        bos: Whether BOS counts (`statistics`).
        quiet: No progress bar.

    Raises:
        InputError: There is no such autoencoder or feature, or no text.

    >>> from jaxcircuits import describe_features, load_bundle
    >>> texts = ["She saw two birds and two cats.", "The dog ran home."]
    >>> found = describe_features(load_bundle(), "blocks.0.mlp.hook_post", range(200), texts)
    >>> most = max(found, key=lambda feature: len(feature.examples))
    >>> example = most.examples[0]
    >>> "".join(example.tokens) in ("<|endoftext|>" + text for text in texts), most.neighbours[0][0] != most.feature
    (True, True)
    """
    sae = chosen(bundle, [sae_name])[sae_name]
    for feature in features:
        if not 0 <= feature < sae.cfg.d_sae:
            raise InputError(f"the SAE {sae_name} has features 0..{sae.cfg.d_sae - 1}, got {feature}.")
    index = jnp.asarray(list(features), jnp.int32)
    strongest = [_Strongest(n) for _ in features]
    histograms = [Histogram() for _ in features]
    active, total, largest = (np.zeros(len(features)) for _ in range(3))
    count = 0
    with progress(quiet) as bar, jax.default_matmul_precision("highest"):
        task = bar.add_task("batches", total=None)
        for batch in TextBatches(bundle, texts, {sae_name: sae}):
            within = batch.counted if bos.statistics else batch.counted & ~batch.bos
            acts = np.asarray(_acts(bundle.params, bundle.cfg, sae, *map(jnp.asarray, (batch.tokens, within)), index))
            count += int(within.sum())
            active += (acts > 0).sum((0, 1))
            total += acts.sum((0, 1), dtype=np.float64)
            largest = np.maximum(largest, acts.max((0, 1)))
            lengths = batch.counted.sum(1)
            for column in range(len(features)):
                histograms[column].add(acts[..., column][acts[..., column] > 0])
                best = acts[..., column].argmax(1)
                for row in range(len(acts)):
                    window = slice(max(0, best[row] - context), min(lengths[row], best[row] + context + 1))
                    found = (batch.tokens[row, window], acts[row, window, column], int(best[row] - window.start))
                    strongest[column].offer(float(acts[row, best[row], column]), found)
            bar.update(task, advance=1)
    if not count:
        raise InputError("there is no token to look at; expected at least one word.")
    return [
        FeatureSummary(
            sae=sae_name,
            feature=int(feature),
            density=float(active[i] / count),
            mean_activation=float(total[i] / active[i]) if active[i] else None,
            max_activation=float(largest[i]),
            histogram={"edges": histograms[i].edges.tolist(), "counts": histograms[i].counts.tolist()},
            examples=[_example(bundle, *found) for found in strongest[i]],
            neighbours=neighbours(sae, int(feature), tokens),
            **_logits(bundle, sae, int(feature), tokens),
        )
        for i, feature in enumerate(features)
    ]


@partial(jax.jit, static_argnames="cfg")
def _acts(
    params: ModelWeights,
    cfg: ModelConfig,
    sae: SAE,
    tokens: Int[Array, "batch pos"],
    within: Bool[Array, "batch pos"],
    features: Int[Array, "n"],
) -> Float[Array, "batch pos n"]:
    hook = sae.cfg.hook_name
    _, acts = forward(params, cfg, tokens, taps=(hook,), logits_at=None)
    return jnp.where(within[..., None], encode(sae, side_by_side(hook, acts[hook]))[..., features], 0)


def _example(bundle: Bundle, tokens: Int[np.ndarray, "n"], acts: Float[np.ndarray, "n"], at: int) -> Example:
    return Example(float(acts[at]), at, bundle.token_strings(tokens), [float(a) for a in acts])


def _logits(bundle: Bundle, sae: SAE, feature: int, n: int) -> dict[str, Any]:
    found = logit_effects(bundle, sae, feature)
    if found is None:
        return {"path": None}
    path, effects = found
    order = np.argsort(-effects, kind="stable")

    def listed(ids: Int[np.ndarray, "_n"]) -> list[tuple[str, float]]:
        return [(text, float(effects[i])) for i, text in zip(ids, bundle.token_strings(ids), strict=True)]

    return {"path": path, "promoted": listed(order[:n]), "suppressed": listed(order[::-1][:n])}
