"""How much of what the model does a circuit does alone: ablation of what is outside, circuits chosen in several ways.

Definitions are in `graph.curves`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float
from scipy.special import softmax

from jaxcircuits.attribution.api import Prompt, tokenized
from jaxcircuits.attribution.prompts import check_tokens
from jaxcircuits.bundle import Bundle
from jaxcircuits.errors import InputError
from jaxcircuits.graph.ablation import Parts, parts_of, run_edges, run_nodes
from jaxcircuits.graph.build import Prepared, graph_of
from jaxcircuits.graph.curves import Faithfulness
from jaxcircuits.graph.graph import Graph
from jaxcircuits.graph.rankings import METHODS, circuit_row, edge_scores, node_scores
from jaxcircuits.graph.settings import GraphSettings, Token
from jaxcircuits.progress import progress

METRICS = ("logit", "difference", "probability")
FILLS = ("zero", "mean", "resample")
UNITS = ("nodes", "edges")
SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""MIB's, and nothing at all."""


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
