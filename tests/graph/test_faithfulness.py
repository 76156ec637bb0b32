"""Ablating features and edges: against edits made by hand; curves and areas against a pencil."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.graph import Faithfulness, Question, build_graph, faithfulness
from jaxcircuits.graph.ablation import run_edges, run_nodes
from jaxcircuits.graph.attributions import edge_attributions, node_attributions
from jaxcircuits.graph.faithfulness import Case, _fills
from jaxcircuits.graph.influence import edge_effect
from jaxcircuits.graph.rankings import METHODS, circuit_row, edge_scores, node_scores
from jaxcircuits.model import forward
from jaxcircuits.sae import encode
from tests.graph.cases import MLP0, MLP1, plain, prompt_of
from tests.helpers import TOLERANCES

TOLERANCE = TOLERANCES["methods"]["float64"]


pytestmark = pytest.mark.xdist_group("graphs")  # what is compiled once serves all


@pytest.fixture(scope="module")
def made() -> Case:
    with jax.enable_x64(True):
        bundle = plain()
        return Case(bundle, Question(prompt_of(bundle)), "logit", {"include_bos": True})


def test_everything_kept_is_the_model(made: Case, x64: None) -> None:
    n = len(made.parts.act)
    zero = np.zeros(n)
    assert n > 100
    kept = np.ones((n + 1, n), bool)
    logits = run_edges(made.made, kept, zero)
    size = np.abs(made.made.logits).max()
    assert np.abs(logits - made.made.logits).max() <= TOLERANCE * size
    (logits,) = run_nodes(made.made, np.ones((1, n), bool), zero)
    assert np.abs(logits - made.made.logits).max() <= TOLERANCE * size


def test_features_outside_take_their_fill(made: Case, x64: None) -> None:
    bundle, parts = made.bundle, made.parts
    rng = np.random.default_rng(0)
    kept, fill = rng.random(len(parts.act)) < 0.5, rng.random(len(parts.act))
    (logits,) = run_nodes(made.made, kept[None], fill)
    out = [np.zeros((len(made.graph.tokens), sae.cfg.d_sae), bool) for sae in bundle.saes.values()]
    new = [np.zeros(o.shape) for o in out]
    for i in np.flatnonzero(~kept):
        out[parts.sae[i]][parts.pos[i], parts.number[i]] = True
        new[parts.sae[i]][parts.pos[i], parts.number[i]] = fill[i]

    def by(layer, acts):
        return jnp.where(out[layer], new[layer] - acts, 0)

    tokens = jnp.asarray(made.graph.tokens)
    edits = {
        hook: partial(lambda sae, layer, v: v + by(layer, encode(sae, v)) @ sae.weights.W_dec, bundle.saes[hook], layer)
        for layer, hook in enumerate((MLP0, MLP1))
    }
    expected, _ = forward(bundle.params, bundle.cfg, tokens, edits=edits)
    assert expected is not None
    assert np.abs(logits - expected[-1]).max() <= TOLERANCE * np.abs(expected[-1]).max()
    assert np.abs(logits - made.made.logits).max() > 0.1


def test_an_edge_that_is_cut_changes_its_target_alone(made: Case, x64: None) -> None:
    """By hand: the source is moved, the target read, and its new value put into a clean run."""
    bundle, parts, graph = made.bundle, made.parts, made.graph
    feature = np.flatnonzero(graph.nodes.are("feature"))
    both = graph.nodes.are("feature")[graph.source] & graph.nodes.are("feature")[graph.target]
    strongest = np.flatnonzero(both)[np.argmax(np.abs(graph.weight[both]))]
    s, t = (int(np.flatnonzero(feature == end[strongest])[0]) for end in (graph.source, graph.target))
    fill = 0.3 * parts.act
    kept = np.ones((len(parts.act) + 1, len(parts.act)), bool)
    kept[t, s] = False
    logits = run_edges(made.made, kept, fill)

    tokens = jnp.asarray(graph.tokens)
    first, second = bundle.saes[MLP0], bundle.saes[MLP1]
    by = (fill[s] - parts.act[s]) * first.weights.W_dec[parts.number[s]]
    _, acts = forward(
        bundle.params, bundle.cfg, tokens, taps=(MLP1,), edits={MLP0: lambda v: v.at[parts.pos[s]].add(by)}
    )
    new = encode(second, acts[MLP1])[parts.pos[t], parts.number[t]]
    move = (new - parts.act[t]) * second.weights.W_dec[parts.number[t]]
    expected, _ = forward(bundle.params, bundle.cfg, tokens, edits={MLP1: lambda v: v.at[parts.pos[t]].add(move)})
    assert expected is not None
    assert abs(new - parts.act[t]) > 1e-2
    assert np.abs(logits - expected[-1]).max() <= TOLERANCE * np.abs(expected[-1]).max()


def test_integrated_gradients_make_up_what_an_sae_s_features_do(made: Case, x64: None) -> None:
    parts = made.parts
    found = node_attributions(made.made, np.zeros(len(parts.act)), "one SAE")
    for s in range(2):
        fill = np.where(parts.sae == s, 0.0, parts.act)
        (logits,) = run_nodes(made.made, (parts.sae != s)[None], fill)
        drop = made.model - made.value(logits[None])[0]
        assert found[parts.sae == s].sum() == pytest.approx(drop, rel=0.02)


def test_attributions_of_features_are_derivatives_of_the_ablation(made: Case, x64: None) -> None:
    """Each feature a little nearer to its fill, by `run_nodes`; and the sum over the line is what ablation does."""
    act, rng = made.parts.act, np.random.default_rng(0)
    fill = 0.5 * act * rng.random(len(act))
    exact, step = node_attributions(made.made, fill, "exact"), 1e-5
    for i in np.argsort(-np.abs(exact))[[0, 5, 40]]:
        nearer = act.copy()
        nearer[i] += step * (fill[i] - act[i])
        (logits,) = run_nodes(made.made, np.arange(len(act))[None] != i, nearer)
        assert exact[i] == pytest.approx((made.model - made.value(logits[None])[0]) / step, rel=1e-3)
    nothing = made.value(run_nodes(made.made, np.zeros((1, len(act)), bool), fill))[0]
    found = node_attributions(made.made, fill)
    assert found.sum() == pytest.approx(made.model - nothing, rel=0.02)
    assert np.abs(found - exact).max() > 0.01 * np.abs(exact).max()


def test_attributions_of_edges_add_up_to_what_ablating_all_does(made: Case, x64: None) -> None:
    parts, n = made.parts, len(made.parts.act)
    fill = 0.5 * parts.act
    nothing = made.value(run_edges(made.made, np.zeros((n + 1, n), bool), fill)[None])[0]
    found = edge_attributions(made.made, fill)
    assert abs(made.model - nothing) > 0.02
    assert found.sum() == pytest.approx(made.model - nothing, rel=1e-4)
    # In the model as it is, an edge's is the product of derivatives along every path behind it.
    settings = {"include_bos": True, "derivative": "exact", "logits": (int(made.made.logit_targets.token[0]),)}
    graph = build_graph(made.bundle, made.graph.tokens, **settings)
    edges, row = np.flatnonzero(graph.nodes.are("feature")[graph.source]), circuit_row(graph)
    exact = edge_attributions(made.made, np.zeros(n), "exact")
    expected = edge_effect(graph)[edges]  # none of an edge into a feature from which no edge leads on
    assert np.count_nonzero(exact) == np.count_nonzero(expected) > 200
    difference = exact[row[graph.target[edges]], row[graph.source[edges]]] - expected
    assert np.abs(difference).max() <= TOLERANCE * np.abs(expected).max()


def test_every_way_to_choose_scores_every_candidate(made: Case, x64: None) -> None:
    nodes = made.graph.nodes
    edges = np.flatnonzero(nodes.are("feature")[made.graph.source])
    fill = np.zeros(len(made.parts.act))
    for method in METHODS:
        rng = np.random.default_rng(0)
        scores = node_scores(made.bundle, made.made, made.graph, method, fill, rng)
        assert scores.shape == made.parts.act.shape
        assert scores.min() >= 0
        assert scores.std() > 0
        of_edges = edge_scores(made.bundle, made.made, made.graph, method, fill, rng, edges)
        assert of_edges.shape == edges.shape
        assert np.isfinite(of_edges).all()
        if method == "cosine":
            i = int(scores.argmax())
            W_out = made.bundle.params.blocks[int(made.parts.sae[i])].mlp.W_out
            written = np.asarray(made.made.saes[made.parts.sae[i]].weights.W_dec[made.parts.number[i]] @ W_out)
            token = made.made.logit_targets.token[0]
            read = np.asarray(made.bundle.params.W_U[:, token] - made.bundle.params.W_U.mean(1))
            assert scores[i] == pytest.approx(abs(written @ read) / np.linalg.norm(written) / np.linalg.norm(read))


def test_curves_and_areas_by_hand() -> None:
    key = ("nodes", "effect")
    shares = np.array([0.0, 0.5, 1.0])
    circuit = np.array([[1.0, 4.0, 5.0], [0.0, 1.0, 4.0]])  # the metric of two prompts' circuits
    found = Faithfulness(
        shares=shares,
        circuit={key: circuit, ("nodes", "random"): circuit[:, [0, 0, 2]]},
        complement={key: circuit[:, ::-1], ("nodes", "random"): circuit[:, ::-1]},
        model=np.array([5.0, 4.0]),
        empty={"nodes": np.array([1.0, 0.0])},
        sizes={"nodes": np.array([4, 4])},
    )
    # Of sums over prompts: (3 + 1) of (4 + 4) half way.
    assert [e.value for e in found.curve("nodes", "effect")] == [0.0, 0.5, 1.0]
    assert [e.value for e in found.curve("nodes", "effect", complete=True)] == [1.0, 0.5, 0.0]
    areas = found.areas("nodes", "effect")
    assert {name: e.value for name, e in areas.items()} == {"cpr": 0.5, "cmd": 0.5, "gap": 0.5, "completeness": 0.5}
    # Resampling the two prompts gives only these three: either twice, or both.
    assert (areas["cpr"].low, areas["cpr"].high) == (pytest.approx((0.125 + 0.625) / 2), pytest.approx(0.625))
    assert found.against("nodes", "effect", "random")["cpr"].value == 0.25
    # One prompt overshoots by what the other lacks: together they look perfect, one by one they do not.
    crossed = replace(found, circuit={key: np.array([[1.0, 6.0, 5.0], [0.0, 3.0, 4.0]])}).areas("nodes", "effect")
    assert (crossed["cmd"].value, crossed["gap"].value) == (0.25, pytest.approx((1 + 0.25) / 4 + 0.25 / 4))
    assert found.to_json()["nodes"]["methods"]["random"]["faithfulness"][1][0] == 0.0


def test_one_prompt_has_no_intervals() -> None:
    key, circuit = ("nodes", "effect"), np.array([[1.0, 4.0, 5.0]])
    shares, model, empty = np.array([0.0, 0.5, 1.0]), np.array([5.0]), {"nodes": np.array([1.0])}
    found = Faithfulness(shares, {key: circuit}, {key: circuit}, model, empty, {"nodes": np.array([4])})
    middle = found.curve("nodes", "effect")[1]
    assert middle.value == 0.75 and np.isnan([middle.low, middle.high]).all()
    assert found.to_json()["nodes"]["methods"]["effect"]["gap"][1] == [0.25, None, None]


def test_fills(made: Case) -> None:
    assert not _fills([made, made], "zero", np.random.default_rng(0))[0].any()
    parts, acts = made.parts, made.made.acts
    mean = _fills([made, made], "mean", np.random.default_rng(0))[0]
    i = int(np.flatnonzero(parts.sae == 1)[3])
    assert mean[i] == pytest.approx(acts[1][1 : made.made.n, parts.number[i]].mean())
    # Of another prompt at the same position: here the same prompt again.
    again, late = _fills([made, made], "resample", np.random.default_rng(0))[0], parts.pos > 0
    np.testing.assert_array_equal(again[late], parts.act[late])
    assert (again[~late] != parts.act[~late]).any()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"metric": "loss"}, "metric must be of"),
        ({"fill": "noise"}, "fill must be of"),
        ({"methods": []}, "methods: expected at least one"),
        ({"units": ["heads"]}, "units must be of"),
        ({"fill": "resample"}, "takes at least 2 prompts, got 1"),
    ],
)
def test_what_cannot_be_measured_is_said(asked: dict[str, Any], sentence: str, made: Case) -> None:
    with pytest.raises(InputError, match=sentence):
        faithfulness(made.bundle, [Question(made.graph.tokens)], **asked)
