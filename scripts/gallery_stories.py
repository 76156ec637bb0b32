"""The gallery's three stories: each computes, draws its figures, and tells them with the numbers it found."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from jaxcircuits import Bundle, attribute
from jaxcircuits.attribution.problem import Pair
from jaxcircuits.bulk import Run, questions
from jaxcircuits.bulk.edge_statistics import facts_of, statistics_of
from jaxcircuits.errors import InputError
from jaxcircuits.graph import FeatureAt, build_graph, feature_node, interactions, leading_to, prune
from jaxcircuits.graph.interactions import ablated
from jaxcircuits.report import top
from jaxcircuits.report.effect_figures import collapse
from jaxcircuits.report.graph_figure import circuit, circuit_size, drawable
from jaxcircuits.report.plots import drawn, waterfall
from jaxcircuits.report.tables import one_line
from jaxcircuits.validation.activity import Activity, find_activity
from jaxcircuits.validation.collapse import ABLATED, CHOICES
from jaxcircuits.validation.drivers import RULE, Drivers
from jaxcircuits.validation.effects import measure

Ids = Int[np.ndarray, "_pos"]

LONGEST = 24
"""Tokens of the sentence that is drawn, at most."""

STAGES = {
    "cosine_similarity": "cosine\nof the weights",
    "virtual_weight": "× both norms:\nvirtual weight",
    "norm_stage": "layer norm:\nscale, projection",
    "residual": "GELU gates",
    "gradient": "attention\nat this token",
}
"""The way from a cosine to a gradient: column of `attribute(..., stages=True)`, and its name in the figure."""


@dataclass(frozen=True)
class Story:
    """A section of the page.

    Attributes:
        text: Markdown.
        numbers: What the text's numbers were rounded from.
    """

    text: str
    numbers: dict[str, Any]


def text_of(bundle: Bundle, ids: Ids) -> str:
    """Tokens as text, BOS left out."""
    start = int(bundle.cfg.bos_token_id is not None and ids[0] == bundle.cfg.bos_token_id)
    return "".join(bundle.token_strings(ids[start:]))


def code(text: str) -> str:
    """Text in a table's cell or a line, whatever is in it."""
    return f"`{one_line(text).replace('`', '´').replace('|', '∣')}`"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


# --- one feature in one sentence ---------------------------------------------------------------------


def a_feature_drawn(bundle: Bundle, pair: Pair, activity: Activity, drivers: Drivers, out: Path) -> Story:
    """A feature that earlier tokens drive: found, drawn in a sentence, ablated."""
    feature = drivers.feature
    ids = _sentence(bundle, pair, activity, drivers)
    at = len(ids) - 1
    target = FeatureAt(pair.target_name, at, feature)

    graph = build_graph(bundle, ids, top_logits=1, saes=(pair.source_name, pair.target_name))
    whole = leading_to(graph, feature_node(graph, feature))
    shown = drawable(prune(whole), nodes=24, edges=60)
    with drawn(out / "circuit.png", *circuit_size(shown)) as ax:
        into = int((whole.target == len(whole.nodes) - 1).sum())
        circuit(ax, shown, title=f"What drives target feature {feature}: the largest of {into} direct edges into it")

    edges = attribute(
        bundle, ids, source=pair.source_name, target=pair.target_name, targets=[(at, feature)], positions="all"
    ).to_pandas()
    best = edges.nlargest(ABLATED, "attribution")
    ends = [FeatureAt(pair.source_name, p, f) for p, f in zip(best.source_pos, best.source_feature, strict=True)]
    alone = ~np.eye(len(ends), dtype=bool)
    kept = np.concatenate([np.ones((1, len(ends)), bool), alone, np.zeros((1, len(ends)), bool)])
    acts = ablated(bundle, ids, target, ends, kept)[1].astype(float)
    left = acts[1:] / acts[0]
    with drawn(out / "ablated.png", 6.8, 3.2) as ax:
        collapse(ax, drivers)
        ax.set_title(f"Target feature {feature}, sources ablated in {len(drivers.examples)} texts")
    strings = bundle.token_strings(ids)
    rows = [
        (f"feature {e.feature} at {code(strings[e.pos])}", at - e.pos, f"{a:+.3f}", f"{x:.0%}")
        for e, a, x in zip(ends, best.attribution, left, strict=False)
    ]
    rows.append(("all of them together", "", f"{best.attribution.sum():+.3f}", f"{left[-1]:.0%}"))
    pairs = interactions(bundle, ids, target, ends) if len(ends) > 1 else []
    numbers = {
        "feature": feature,
        "token": drivers.word,
        "on_token": drivers.on_word,
        "earlier": drivers.earlier,
        "sentence": ids.tolist(),
        "quoted": shlex.quote(text_of(bundle, ids)),
        "activation": acts[0],
        "drivers": [e._asdict() for e in ends],
        "attribution": best.attribution.tolist(),
        "left": left.tolist(),
        "left_by_choice": {name: vars(e) for name, e in drivers.left.items()},
        "interaction": [p._asdict() | {"kind": p.kind} for p in pairs[:1]],
    }
    others = ", ".join(f"{CHOICES[n]}: {drivers.left[n]:.0%}" for n in CHOICES if n != "exact")
    text = f"""
**Find.** The rule: {RULE}. It names target feature **{feature}**. In
{drivers.on_word:.0%} of its {len(drivers.examples)} strongest examples it is on {code(drivers.word)}, and
{drivers.earlier:.0%} of its {ABLATED} strongest drivers are at earlier tokens.

**Draw.** In the sentence {code(text_of(bundle, ids).strip())} its activation on the last token is {acts[0]:.3f}.
The graph has the direct edges of the frozen derivative; {len(whole.weight):,} lie on a path to the feature, the
figure shows {len(shown.weight)}.

![The circuit of feature {feature}]({out.name}/circuit.png)

**Ablate.** The {len(ends)} source features of largest exact attribution, ablated in this sentence:

{table(("ablated", "tokens earlier", "attribution", "activation left"), rows)}
{_conjunction(pairs, strings)}
The same in its {len(drivers.examples)} strongest examples, one a text, {ABLATED} sources at a time. Chosen by exact
attribution, {drivers.left["exact"]:.0%} of the activation is left; {others} (95 % intervals).

![What is left of feature {feature}]({out.name}/ablated.png)
"""
    return Story(text, numbers)


def _conjunction(pairs: Sequence[Any], strings: Sequence[str]) -> str:
    if not pairs:
        return ""
    p = pairs[0]
    a, b = (f"feature {e.feature} at {code(strings[e.pos])}" for e in (p.a, p.b))
    what = {
        "and": "each gives more where the other is there, as in a conjunction",
        "or": "one stands in for the other",
        "none": "they add up",
    }[p.kind]
    return f"""
The pair that adds up least is {a} and {b}: ablated alone they change the activation by {p.effect_a:+.3f} and
{p.effect_b:+.3f}, together by {p.effect_both:+.3f}. The interaction is {p.interaction:+.3f}: {what}, if only by
that much.
"""


def _sentence(bundle: Bundle, pair: Pair, activity: Activity, drivers: Drivers) -> Ids:
    """The sentence up to the feature, by itself, in which it is strongest; or where it is in none, its first text."""
    found = []
    for example in drivers.examples:
        ids = activity.stories[example.story][: example.pos + 1]
        ends = [i for i, s in enumerate(bundle.token_strings(ids[:-1])) if s.strip()[-1:] in (*'.!?"”', "")]
        start = max([0, *ends]) + 1
        if 3 <= len(ids) - start <= LONGEST:
            found.append(np.concatenate([ids[:1], ids[start:]]))
    if found:
        alone = find_activity(bundle, pair, found)
        stories, positions, _ = alone.strongest(drivers.feature)
        for story, pos in zip(stories, positions, strict=True):
            if pos == len(found[story]) - 1:
                return found[story]
    first = drivers.examples[0]
    return activity.stories[first.story][: first.pos + 1]


# --- one feature in a corpus -------------------------------------------------------------------------


def a_feature_in_a_corpus(run: Run, feature: int, out: Path, limit: int = 12) -> Story:
    """The drivers of a feature over every story of a run."""
    on = (pc.field("target_feature") == feature) & (pc.field("target_act") > 0)
    active = sum(a > 0 for a in run.targets.to_table(columns=["activation"])["activation"].to_pylist())
    if not active:
        raise InputError(f"target feature {feature} is off in the first tokens of all stories; use others.")
    pairs = statistics_of(run, rows=on, quiet=True)
    facts = facts_of(pairs)
    found = questions.Statistics(pairs, False, facts["min_stories"], facts["edges_cut"])
    least = min(found.min_stories, max(pairs["stories"].to_pylist()))
    rows = questions.ranked(found, questions.Order(min_stories=least, limit=limit)).to_pylist()
    top.draw_features(out / "drivers.png", rows, "source", feature)
    places = ("prompt", "source_pos", "target_pos")
    where = pa.table({n: pa.array([r[f"largest_{n}"] for r in rows], pa.int32()) for n in places})
    prompts = run.prompts.to_table().take(np.unique(where["prompt"].to_numpy()))
    texts = [row["text"] for row in top.example_rows(where, prompts)]
    cells = [
        (
            r["source_feature"], r["offset"], f"{r['mean']:+.3f}", _interval(r), f"{r['edges']:,}", r["stories"],
            f"{r['edges'] / active:.0%}", "" if r["q_mean"] is None else f"{r['q_mean']:.0e}",
            code(text.strip()),
        )
        for r, text in zip(rows, texts, strict=True)
    ]  # fmt: skip
    earlier = sum(r["offset"] > 0 for r in rows)
    names = ("source_feature", "offset", "mean", "mean_low", "mean_high", "edges", "stories", "q_mean")
    numbers = {
        "feature": feature,
        "stories": run.record["prompts"],
        "pairs": found.table.num_rows,
        "active": active,
        "earlier": earlier,
        "drivers": [{n: r[n] for n in names} for r in rows],
    }
    header = ("source", "offset", "mean", "95 % interval", "edges", "stories", "of its activations", "q", "strongest")
    text = f"""
The same feature over {run.record["prompts"]:,} stories, their first {len(prompts["tokens"][0])} tokens, where it is
active {active:,} times. Its edges come from {found.table.num_rows:,} pairs of a source feature and an offset (how
many tokens earlier the source is). The {len(rows)} of largest mean attribution,
shrunk the more the less is known of a pair, among those that occur in at least {least} stories; {earlier}
of them at earlier tokens:

{table(header, cells)}

The mean is over the edges where both are active, its interval clustered by story. “Of its activations” is the share
of the feature's activations that have this edge, q the false-discovery rate of the mean, among these pairs. The last
column is the place
where |attribution| is largest, ‹source› and «target».

![Drivers of feature {feature}]({out.name}/drivers.png)
"""
    return Story(text, numbers)


def _interval(row: dict[str, Any]) -> str:
    return "" if row["mean_low"] is None else f"{row['mean_low']:+.3f} … {row['mean_high']:+.3f}"


# --- cosine against gradient -------------------------------------------------------------------------


def a_cosine_that_misleads(bundle: Bundle, pair: Pair, stories: Sequence[Ids], out: Path) -> Story:
    """A pair whose weights' cosine has another sign than its gradient, stage by stage."""
    edges = attribute(
        bundle, list(stories), source=pair.source_name, target=pair.target_name, positions="same", stages=True
    ).to_pandas()
    wrong = edges[edges.gradient * edges.cosine_similarity < 0]
    strong = edges[edges.attribution.abs() >= edges.attribution.abs().quantile(0.9)]
    share = len(wrong) / len(edges)
    share_strong = float((strong.gradient * strong.cosine_similarity < 0).mean())
    edge = wrong.loc[(wrong.attribution.abs() * wrong.cosine_similarity.abs()).idxmax()]
    story, pos = int(edge.prompt), int(edge.target_pos)
    source, target = int(edge.source_feature), int(edge.target_feature)
    ids = stories[story]
    effects = measure(bundle, pair, ids, np.array([[[pos, source]]]), np.array([[pos, target]]))
    values = np.array([edge[name] for name in STAGES], float)
    with drawn(out / "stages.png", 7.4, 3.8) as ax:
        title = f"Source {source} → target {target}, same position: from cosine to gradient"
        waterfall(ax, list(STAGES.values()), values, "the gradient", ylabel="cosine, then derivatives", title=title)
    changes = np.diff(values)
    turn = int(np.flatnonzero(np.sign(values) == np.sign(values[-1]))[0])
    while not (np.sign(values[turn:]) == np.sign(values[-1])).all():
        turn += 1
    name = {i: STAGES[n].replace("\n", " ") for i, n in enumerate(STAGES)}
    name[len(STAGES) - 1] += ": the gradient"
    rows = [(name[0], f"{values[0]:+.4f}", "")]
    rows += [(name[i], f"{values[i]:+.4f}", f"{changes[i - 1]:+.4f}") for i in range(1, len(values))]
    parts = ", ".join(f"{kind} {edge[kind]:+.4f}" for kind in ("value", "query", "key"))
    start = max(pos - 12, int(bundle.cfg.bos_token_id is not None))
    effect = float(effects.act[0, 0])
    numbers = {
        "story": ids.tolist(),
        "pos": pos,
        "source": source,
        "target": target,
        "stages": dict(zip(STAGES, values.tolist(), strict=True)),
        "attribution": float(edge.attribution),
        "source_act": float(edge.source_act),
        "effect": effect,
        "edges": len(edges),
        "share": share,
        "share_strong": share_strong,
    }
    agrees = "as the gradient says" if effect * edge.attribution < 0 else "against the gradient, which is local"
    text = f"""
Of {len(edges):,} same-position edges in {len(stories):,} stories, {share:.0%} have a gradient whose sign is not
that of the cosine; of the tenth with the largest |attribution|, {share_strong:.0%}. Of those with the other sign this
one has the largest |attribution × cosine|: source feature **{source}** and target feature **{target}** at the last
token of
{code(("… " if start > 1 else "") + "".join(bundle.token_strings(ids[start : pos + 1])).strip())}.

{table(("stage", "value", "change"), rows)}

![From cosine to gradient]({out.name}/stages.png)

The cosine compares what the source writes with what the target reads. Their lengths make it a virtual weight; the layer
norm divides by the scale of this token and projects; the GELUs let through what their gates at this token say;
attention from the token to itself adds the last step ({parts}). The sign is that of the gradient from
“{name[turn]}” on.

**Ablated.** The source's activation here is {edge.source_act:.3f} and its attribution {edge.attribution:+.3f}. When
it is set to zero, the target goes from {effects.before[0]:.3f} to {effects.before[0] + effect:.3f} ({effect:+.3f}):
{agrees}. The cosine says the {"opposite" if effect * values[0] > 0 else "same"} sign.
"""
    return Story(text, numbers)
