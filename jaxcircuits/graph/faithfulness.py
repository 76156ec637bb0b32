"""How much of what the model does a circuit does alone: curves over size, against circuits chosen in simpler ways.

With F the metric of the model M, of a circuit C, and of the model with every feature (or edge) outside ablated, ∅:

    faithfulness(C) = (F(C) - F(∅)) / (F(M) - F(∅)),   completeness(C) = faithfulness(M without C)

The ratios are of sums over prompts. Areas are over the share of features or edges that a circuit has: `cpr`, of
faithfulness (1 is good, more overshoots); `cmd`, of its distance from 1 (0 is best); `gap`, of |F(C) - F(M)| as a share
of |F(M) - F(∅)|, in which prompts that overshoot and others that fall short do not cancel (0 is best); `completeness`
(0 is best).

Source: faithfulness and completeness as in Sparse Feature Circuits (Marks et al. 2024); areas as in MIB (Mueller et al.
2025).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import softmax

from jaxcircuits.attribution.api import Prompt, tokenized
from jaxcircuits.attribution.engine import check_tokens
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.graph.ablation import Parts, parts_of, run_edges, run_nodes
from jaxcircuits.graph.build import Prepared, graph_of
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.rankings import METHODS, circuit_row, edge_scores, node_scores
from jaxcircuits.graph.settings import GraphSettings, Token
from jaxcircuits.progress import progress
from jaxcircuits.statistics import Estimate, without_nan

METRICS = ("logit", "difference", "probability")
FILLS = ("zero", "mean", "resample")
UNITS = ("nodes", "edges")
SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's, and nothing at all."""

RESAMPLES = 1000


@dataclass(frozen=True)
class Question:
    """A prompt and what is asked of its last position.

    Attributes:
        prompt: Text or token ids.
        answer: Token whose logit or probability is the metric; by default the most probable one.
        foil: Token whose logit is subtracted where the metric is a difference; by default the second.
    """

    prompt: Prompt
    answer: Token | None = None
    foil: Token | None = None


@dataclass(frozen=True)
class Faithfulness:
    """Curves of every way to choose circuits, on the same prompts.

    Attributes:
        shares: Sizes as shares of all features or edges.
        circuit: Metric of circuits, by (unit, method): `[prompt, share]`.
        complement: Metric of what is left without them, likewise.
        model: Metric of the model, a prompt each.
        empty: Metric with everything ablated, by unit, a prompt each.
        sizes: How many features or edges there are, by unit, a prompt each.
        settings: What was asked, JSON-able.
    """

    shares: Float[np.ndarray, "share"]
    circuit: Mapping[tuple[str, str], Float[np.ndarray, "prompt share"]]
    complement: Mapping[tuple[str, str], Float[np.ndarray, "prompt share"]]
    model: Float[np.ndarray, "prompt"]
    empty: Mapping[str, Float[np.ndarray, "prompt"]]
    sizes: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def curve(self, unit: str, method: str, *, complete: bool = False) -> list[Estimate]:
        """Faithfulness (or completeness) at each share, with intervals over prompts; of one prompt without."""
        values = self._ratios(self.complement if complete else self.circuit, unit, method)
        return [_estimate(values[:, i]) for i in range(values.shape[1])]

    def gaps(self, unit: str, method: str, other: str | None = None) -> list[Estimate]:
        """|F(C) - F(M)| of each prompt as a share of |F(M) - F(∅)| at each size; of two ways, the difference."""
        values = self._gaps(unit, method) - (0 if other is None else self._gaps(unit, other))
        return [_estimate(values[:, i]) for i in range(values.shape[1])]

    def areas(self, unit: str, method: str) -> dict[str, Estimate]:
        """The areas `cpr`, `cmd`, `gap` and `completeness`, with intervals over prompts."""
        return {name: _estimate(values) for name, values in self._areas(unit, method).items()}

    def against(self, unit: str, method: str, other: str) -> dict[str, Estimate]:
        """Areas of one way minus those of another, on the same resampled prompts."""
        mine, theirs = self._areas(unit, method), self._areas(unit, other)
        return {name: _estimate(mine[name] - theirs[name]) for name in mine}

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON: curves, areas, differences from the first method, and the metric of every prompt."""
        content: dict[str, Any] = {**self.settings, "shares": self.shares.tolist(), "model": self.model.tolist()}
        methods = list(dict.fromkeys(method for _, method in self.circuit))
        for unit in self.empty:
            content[unit] = {"empty": self.empty[unit].tolist(), "sizes": self.sizes[unit].tolist(), "methods": {}}
            for method in methods:
                content[unit]["methods"][method] = {
                    "faithfulness": [_row(e) for e in self.curve(unit, method)],
                    "completeness": [_row(e) for e in self.curve(unit, method, complete=True)],
                    "gap": [_row(e) for e in self.gaps(unit, method)],
                    "areas": {name: _row(e) for name, e in self.areas(unit, method).items()},
                    "first_minus_this": {n: _row(e) for n, e in self.against(unit, methods[0], method).items()},
                    "circuit": self.circuit[unit, method].tolist(),
                    "complement": self.complement[unit, method].tolist(),
                }
        return content

    def _samples(self) -> Int[np.ndarray, "sample prompt"]:
        """All prompts first, then resampled ones."""
        n, rng = len(self.model), np.random.default_rng(0)
        return np.concatenate([np.arange(n)[None], rng.integers(0, n, (RESAMPLES if n > 1 else 0, n))])

    def _ratios(self, metric: Mapping, unit: str, method: str) -> Float[np.ndarray, "sample share"]:
        samples, empty = self._samples(), self.empty[unit]
        gained = (metric[unit, method] - empty[:, None])[samples].sum(1)
        return gained / (self.model - empty)[samples].sum(1)[:, None]

    def _gaps(self, unit: str, method: str) -> Float[np.ndarray, "sample share"]:
        samples = self._samples()
        missed = np.abs(self.circuit[unit, method] - self.model[:, None])[samples].sum(1)
        return missed / np.abs(self.model - self.empty[unit])[samples].sum(1)[:, None]

    def _areas(self, unit: str, method: str) -> dict[str, Float[np.ndarray, "sample"]]:
        faithful = self._ratios(self.circuit, unit, method)
        left = self._ratios(self.complement, unit, method)
        areas = {
            "cpr": faithful,
            "cmd": np.abs(1 - faithful),
            "gap": self._gaps(unit, method),
            "completeness": left,
        }
        return {name: np.trapezoid(values, self.shares, axis=1) for name, values in areas.items()}


def _estimate(values: Float[np.ndarray, "sample"]) -> Estimate:
    if len(values) == 1:
        return Estimate(float(values[0]), np.nan, np.nan)
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def _row(e: Estimate) -> list[float | None]:
    return without_nan([e.value, e.low, e.high])


def faithfulness(
    bundle: Bundle,
    questions: Sequence[Question],
    *,
    metric: str = "logit",
    fill: str = "zero",
    units: Sequence[str] = UNITS,
    methods: Sequence[str] = METHODS,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    quiet: bool = True,
    **settings: Any,
) -> Faithfulness:
    """Ablates what is outside circuits of several sizes, chosen in several ways, and measures what is left.

    Args:
        bundle: Model and SAEs.
        questions: Prompts and what is asked of them; with one there are no intervals.
        metric: `"logit"` of the answer, the mean over the vocabulary taken off; `"difference"` from the foil's; or
            `"probability"` of the answer.
        fill: What an ablated feature takes: `"zero"`; its `"mean"` over the prompts; or `"resample"`, what it is at
            the same position of another prompt. Features that are off are left alone.
        units: Circuits of `"nodes"`, of `"edges"` or both.
        methods: Ways to choose, of `METHODS`; differences are of the first against the others.
        shares: Sizes of circuits as shares of all.
        seed: Of random circuits and resampling.
        quiet: Whether there is no progress bar.
        **settings: Of the graphs, as of `GraphSettings`.

    Raises:
        InputError: Something cannot be used.

    >>> from jaxcircuits import load_bundle
    >>> from jaxcircuits.graph import Question, faithfulness
    >>> asked = [Question("Once upon a"), Question("The dog was")]
    >>> found = faithfulness(load_bundle(), asked, methods=["effect", "random"], units=["nodes"], shares=[0, 0.2, 1])
    >>> [round(e.value, 4) for e in found.curve("nodes", "effect")][::2]  # nothing, and the whole model
    [0.0, 1.0]
    """
    for what, words, allowed in (("metric", [metric], METRICS), ("fill", [fill], FILLS), ("units", units, UNITS)):
        _check(what, words, allowed)
    _check("methods", methods, METHODS)
    least = 2 if fill == "resample" else 1
    if len(questions) < least:
        raise InputError(f"{fill} ablation takes at least {least} prompt{'s' * (least > 1)}, got {len(questions)}.")
    sizes = np.unique(np.clip(np.asarray(shares, float), 0, 1))
    rng = np.random.default_rng(seed)
    with progress(quiet) as bar, jax.default_matmul_precision("highest"):
        task = bar.add_task("circuits", total=2 * len(questions))
        cases = []
        for question in questions:
            cases.append(Case(bundle, question, metric, settings))
            bar.advance(task)
        fills = _fills(cases, fill, rng)
        found = []
        for case, filled in zip(cases, fills, strict=True):
            found.append(case.curves(units, methods, sizes, filled, rng))
            bar.advance(task)
    keys = [(unit, method) for unit in units for method in methods]
    return Faithfulness(
        shares=sizes,
        circuit={key: np.stack([f.circuit[key] for f in found]) for key in keys},
        complement={key: np.stack([f.complement[key] for f in found]) for key in keys},
        model=np.array([case.model for case in cases]),
        empty={unit: np.array([f.empty[unit] for f in found]) for unit in units},
        sizes={unit: np.array([f.sizes[unit] for f in found]) for unit in units},
        settings={
            "metric": metric,
            "fill": fill,
            "seed": seed,
            "derivative": cases[0].graph.settings["derivative"],
            "prompts": ["".join(case.graph.token_strings) for case in cases],
            "answers": [case.graph.label(len(case.graph.nodes) - 1) for case in cases],
        },
    )


def _check(what: str, words: Sequence[str], allowed: Sequence[str]) -> None:
    if not words:
        raise InputError(f"{what}: expected at least one of {', '.join(allowed)}, got none.")
    for word in words:
        if word not in allowed:
            raise InputError(f"{what} must be of {', '.join(allowed)}, got {word!r}.")


@dataclass
class Curves:
    """The metric of one prompt's circuits."""

    circuit: dict[tuple[str, str], Float[np.ndarray, "share"]] = field(default_factory=dict)
    complement: dict[tuple[str, str], Float[np.ndarray, "share"]] = field(default_factory=dict)
    empty: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


class Case:
    """One prompt: its graph, and the means to run circuits of it."""

    def __init__(self, bundle: Bundle, question: Question, metric: str, settings: Mapping[str, Any]) -> None:
        self.bundle, self.metric = bundle, metric
        tokens = tokenized(bundle, question.prompt)
        check_tokens(tokens, bundle, 0)
        asked = GraphSettings(**settings, top_logits=2, logit_mass=1.0)
        if question.answer is None or (metric == "difference" and question.foil is None):
            first, second = Prepared(bundle, asked, tokens).logit_targets.token.tolist()
            answer = first if question.answer is None else question.answer
            foil = question.foil if question.foil is not None else (second if answer == first else first)
        else:
            answer, foil = question.answer, question.foil
        if metric == "difference":
            assert foil is not None
            asked = replace(asked, difference=(answer, foil))
        else:
            asked = replace(asked, logits=(answer,))
        self.made = Prepared(bundle, asked, tokens)
        self.graph: Graph = graph_of(bundle, self.made, tokens)
        # Circuits run in the model as it is, so nothing of theirs is frozen.
        self.made.wiring = replace(self.made.wiring, gelu=None)
        self.parts: Parts = parts_of(self.made)
        self.model = self.value(self.made.logits[None])[0]

    def value(self, logits: Float[np.ndarray, "n d_vocab"]) -> Float[np.ndarray, "n"]:
        """The metric."""
        logits = np.asarray(logits, np.float64)
        if self.metric == "probability":
            return softmax(logits, axis=-1)[:, self.made.logit_targets.token[0]]
        return logits @ self.made.logit_targets.directions[0]

    def curves(
        self,
        units: Sequence[str],
        methods: Sequence[str],
        shares: Float[np.ndarray, "share"],
        fill: Float[np.ndarray, "feature"],
        rng: np.random.Generator,
    ) -> Curves:
        """Runs circuits of every unit, method and share, and their complements."""
        found = Curves()
        for unit in units:
            run, n, scores = self._nodes(fill) if unit == "nodes" else self._edges(fill)
            found.sizes[unit] = n
            ranked = {method: np.argsort(-scores(method, rng), kind="stable") for method in methods}
            kept = np.zeros((len(methods), len(shares), n), bool)
            for i, order in enumerate(ranked.values()):
                for j, share in enumerate(shares):
                    kept[i, j, order[: round(share * n)]] = True
            every = np.concatenate([kept, ~kept], axis=1).reshape(-1, n)
            values = run(np.concatenate([np.zeros((1, n), bool), every]))
            found.empty[unit] = float(values[0])
            table = values[1:].reshape(len(methods), 2, len(shares))
            for i, method in enumerate(methods):
                found.circuit[unit, method], found.complement[unit, method] = table[i]
        return found

    def _nodes(self, fill: Float[np.ndarray, "feature"]):
        def scores(method, rng):
            return node_scores(self.bundle, self.made, self.graph, method, fill, rng)

        def run(kept: Bool[np.ndarray, "n feature"]) -> Float[np.ndarray, "n"]:
            return self.value(run_nodes(self.made, kept, fill))

        return run, len(self.parts.act), scores

    def _edges(self, fill: Float[np.ndarray, "feature"]):
        row = circuit_row(self.graph)
        edges = np.flatnonzero(self.graph.nodes.are("feature")[self.graph.source])
        at = row[self.graph.target[edges]], row[self.graph.source[edges]]

        def scores(method, rng):
            return edge_scores(self.bundle, self.made, self.graph, method, fill, rng, edges)

        def run(kept: Bool[np.ndarray, "n edge"]) -> Float[np.ndarray, "n"]:
            logits = []
            seen: dict[bytes, np.ndarray] = {}
            for circuit in kept:
                key = circuit.tobytes()
                if key not in seen:
                    matrix = np.zeros((len(self.parts.act) + 1, len(self.parts.act)), bool)
                    matrix[at] = circuit
                    seen[key] = run_edges(self.made, matrix, fill)
                logits.append(seen[key])
            return self.value(np.stack(logits))

        return run, len(edges), scores


def _fills(cases: Sequence[Case], fill: str, rng: np.random.Generator) -> list[Float[np.ndarray, "feature"]]:
    """What an ablated feature of each case takes."""
    if fill == "zero":
        return [np.zeros(len(case.parts.act)) for case in cases]
    first = int(cases[0].bundle.cfg.bos_token_id is not None)
    acts = [[a[first : case.made.n] for a in case.made.acts] for case in cases]
    if fill == "mean":
        means = [np.concatenate([a[s] for a in acts]).mean(0) for s in range(len(acts[0]))]
        return [np.array([means[s][f] for s, f in zip(c.parts.sae, c.parts.number, strict=True)]) for c in cases]
    found = []
    for i, case in enumerate(cases):
        other = acts[(i + int(rng.integers(1, len(cases)))) % len(cases)]
        pos = np.clip(case.parts.pos - first, 0, len(other[0]) - 1)  # of a shorter prompt, the last position
        found.append(np.array([other[s][p, f] for s, p, f in zip(case.parts.sae, pos, case.parts.number, strict=True)]))
    return found
