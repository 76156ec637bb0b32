"""The edges of a graph: complete, equal to what others compute, and true of the model."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.attribution import attribute
from jaxcircuits.errors import InputError
from jaxcircuits.graph import KINDS, build_graph
from jaxcircuits.model import forward, hook_names, side_by_side
from jaxcircuits.model.freezing import gelu_line
from jaxcircuits.sae import pre_activations
from tests.graph.cases import MLP0, MLP1, plain, prompt_of, sums
from tests.graph.conftest import Case
from tests.graph.independent import Detached, differences
from tests.helpers import TOLERANCES

TOLERANCE = TOLERANCES["methods"]["float64"]


pytestmark = pytest.mark.xdist_group("graphs")  # what is compiled once serves all


@pytest.fixture(params=["plain", "mixed"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(f"{request.param}_case")


def test_frozen_edges_add_up_to_every_node(case: Case) -> None:
    _, _, graph = case
    ends = graph.nodes.are("feature", "logit")
    size = np.abs(graph.nodes.value[ends]).max()
    assert ends.sum() > 100
    assert np.abs(sums(graph) - graph.nodes.value)[ends].max() <= TOLERANCE * size
    assert np.abs(graph.nodes.unexplained).max() <= TOLERANCE * size
    assert not graph.nodes.cut.any()
    assert not np.isin(graph.target, np.flatnonzero(~ends)).any()
    kinds = set(KINDS) - ({"rest"} if graph.settings["include_bos"] else set())
    assert set(graph.nodes.kind.tolist()) == kinds
    for kind in kinds - {"logit"}:
        assert np.abs(graph.weight[graph.nodes.are(kind)[graph.source]]).max() > 1e-3, kind


def test_nodes_are_what_the_model_holds(case: Case) -> None:
    bundle, tokens, graph = case
    nodes = graph.nodes
    reads = {name: sae.cfg.hook_name for name, sae in bundle.saes.items()}
    with jax.enable_x64(True):
        logits, acts = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=reads.values())
        assert logits is not None
        for s, name in enumerate(graph.saes):
            x = side_by_side(reads[name], acts[reads[name]])
            pre = np.asarray(pre_activations(bundle.saes[name], x))
            mine = nodes.are("feature") & (nodes.sae == s)
            np.testing.assert_allclose(nodes.value[mine], pre[nodes.pos[mine], nodes.feature[mine]], atol=1e-12)
            assert nodes.value[mine].min() > 0
            if bundle.saes[name].cfg.activation == "relu":
                assert mine.sum() == (pre[int(not graph.settings["include_bos"]) :] > 0).sum()
        centred = np.asarray(logits[-1] - logits[-1].mean())
    ends = nodes.are("logit")
    np.testing.assert_allclose(nodes.value[ends], centred[nodes.feature[ends]], atol=1e-12)
    assert (np.diff(nodes.probability[ends]) <= 0).all()


def test_edges_lead_forwards_and_are_sorted(case: Case) -> None:
    _, _, graph = case
    assert (graph.source < graph.target).all()
    order = graph.target.astype(np.int64) * len(graph.nodes) + graph.source
    assert (np.diff(order) > 0).all()
    pos = graph.nodes.pos
    assert ((pos[graph.source] <= pos[graph.target]) | (pos[graph.source] < 0)).all()


def test_same_as_pytorch_with_everything_else_detached(plain_case: Case) -> None:
    bundle, tokens, graph = plain_case
    other = Detached(bundle, tokens)
    ends = np.flatnonzero(graph.nodes.are("feature", "logit"))
    some = np.random.default_rng(0).choice(ends[:-10], 40, replace=False)
    found = [differences(graph, other, end) for end in (*some, *ends[-10:])]
    assert max(np.abs(each).max() for each in found) <= TOLERANCE
    assert sum(map(len, found)) > 10_000


@pytest.mark.parametrize("derivative", ["frozen", pytest.param("exact", marks=pytest.mark.slow)])
def test_feature_edges_are_those_of_attribute(derivative: str, mixed_case: Case, x64: None) -> None:
    bundle, tokens, graph = mixed_case
    if derivative != "frozen":
        graph = build_graph(bundle, tokens, derivative=derivative)
    nodes, dense = graph.nodes, graph.adjacency().toarray()
    pairs = (("mlp", "stream"),) if derivative == "frozen" else (("mlp", "stream"), ("transcoder", "stream"))
    for source, target in pairs:
        asked = {"derivative": derivative, "through": "direct", "positions": "all", "completeness": False}
        edges = attribute(bundle, tokens, source=source, target=target, method="reference", **asked).edges
        ends = [
            {
                (int(nodes.pos[i]), int(nodes.feature[i])): i
                for i in np.flatnonzero(nodes.are("feature") & (nodes.sae == graph.saes.index(name)))
            }
            for name in (source, target)
        ]
        columns = {name: edges[name].to_numpy() for name in edges.column_names}
        pairs = ((columns[f"{end}_pos"], columns[f"{end}_feature"]) for end in ("source", "target"))
        s, t = ([ends[i][p, f] for p, f in zip(*pair, strict=True)] for i, pair in enumerate(pairs))
        assert len(s) > 100
        # The engine's columns are float32.
        np.testing.assert_allclose(dense[t, s], columns["attribution"], atol=1e-6 * np.abs(dense).max())


@pytest.mark.parametrize("derivative", ["frozen", "exact"])
def test_a_change_of_an_embedding_does_what_edges_say(derivative: str, plain_case: Case, x64: None) -> None:
    """The model is run with one embedding scaled, features between held; frozen: patterns and scales too."""
    bundle, tokens, graph = plain_case
    if derivative != "frozen":
        graph = build_graph(bundle, tokens, derivative=derivative, include_bos=True)
    nodes, dense = graph.nodes, graph.adjacency().toarray()
    names = hook_names(bundle.cfg)
    pres = [f"blocks.{layer}.mlp.hook_pre" for layer in range(2)]
    patterns = [n for n in names if n.endswith((".hook_pattern", ".hook_scale"))]
    taps = ["hook_embed", MLP0, MLP1, *pres, *patterns]
    acts = jax.jit(lambda t: forward(bundle.params, bundle.cfg, t, taps=taps)[1])(jnp.asarray(tokens))
    held: dict[str, Any] = {n: acts[n] for n in patterns} if derivative == "frozen" else {}

    def line(name):
        slope, constant = gelu_line(acts[name], "tangent", bundle.cfg.activation)
        seen = []
        return lambda u: seen.append(u) or u, lambda _: slope * seen.pop() + constant

    @partial(jax.jit, static_argnums=1)
    def values(factor: Any, number: int) -> Any:
        """Everything that SAE `number`, or the logits, hold when the embedding at position 2 is scaled."""
        edits = dict(held) | {"hook_embed": acts["hook_embed"].at[2].multiply(factor)}
        for layer, hook in enumerate((MLP0, MLP1)):
            if layer < number:
                edits[hook] = acts[hook]
            elif derivative == "frozen" and layer == number:
                edits[pres[layer]], edits[hook] = line(pres[layer])
        logits, found = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=(MLP0, MLP1), edits=edits)
        if number == 2:
            assert logits is not None
            return logits[-1] - logits[-1].mean()
        hook = (MLP0, MLP1)[number]
        return pre_activations(bundle.saes[hook], found[hook])

    (token,) = np.flatnonzero(nodes.are("token") & (nodes.pos == 2))
    # Frozen: linear, so a large change is as good as a small one.
    step = 0.5 if derivative == "frozen" else 1e-5
    for number in range(3):
        change = np.asarray(values(1 + step, number) - values(1 - step, number)) / (2 * step)
        if number == 2:
            ends = np.flatnonzero(nodes.are("logit"))
            expected = change[nodes.feature[ends]]
        else:
            ends = np.flatnonzero(nodes.are("feature") & (nodes.sae == number))
            expected = change[nodes.pos[ends], nodes.feature[ends]]
        tolerance = TOLERANCE if derivative == "frozen" else TOLERANCES["finite_difference"]["float64"]
        assert np.abs(dense[ends, token]).max() > 1e-3
        assert np.abs(dense[ends, token] - expected).max() <= tolerance * np.abs(dense[ends]).max()


def test_integrated_edges_make_up_the_rise(plain_case: Case, x64: None) -> None:
    bundle, tokens, _ = plain_case
    errors = []
    for points in (2, 24):
        graph = build_graph(bundle, tokens, derivative="integrated", points=points, include_bos=True)
        ends = graph.nodes.are("feature", "logit")
        rise = graph.nodes.value - graph.nodes.baseline
        errors.append(np.abs(sums(graph) - rise)[ends].max() / np.abs(rise[ends]).max())
        np.testing.assert_allclose(graph.nodes.unexplained[ends], (rise - sums(graph))[ends], atol=1e-12)
    assert errors[1] < 1e-4 < errors[0]
    assert set(graph.nodes.kind[graph.source].tolist()) == {"token", "feature"}


@pytest.mark.parametrize("derivative", ["frozen", pytest.param("exact", marks=pytest.mark.slow)])
def test_parts_add_up(derivative: str, mixed_case: Case, x64: None) -> None:
    bundle, tokens, graph = mixed_case
    if derivative != "frozen":
        graph = build_graph(bundle, tokens, derivative=derivative, parts=True)
    names = ["residual", "value"] if derivative == "frozen" else ["residual", "value", "query", "key"]
    assert list(graph.parts) == names
    size = np.abs(graph.weight).max()
    assert np.abs(sum(graph.parts.values()) - graph.weight).max() <= TOLERANCE * size
    nodes = graph.nodes
    for part in graph.parts.values():
        assert np.abs(part).max() > 1e-3 * size
    elsewhere = (nodes.pos[graph.source] != nodes.pos[graph.target]) & (nodes.pos[graph.source] >= 0)
    assert elsewhere.any()
    assert np.abs(graph.parts["residual"][elsewhere]).max() <= TOLERANCE * size


@pytest.mark.slow
@pytest.mark.parametrize("derivative", ["frozen", "exact"])
def test_parts_are_those_of_attribute(derivative: str, x64: None) -> None:
    """Where one block's attention lies between."""
    bundle = plain()
    graph = build_graph(bundle, prompt_of(bundle, 7), derivative=derivative, parts=True, logits=[3])
    nodes = graph.nodes
    asked = {"derivative": derivative, "positions": "all", "parts": "kinds", "method": "structured"}
    edges = attribute(bundle, prompt_of(bundle, 7), **asked, completeness=False).to_pandas()
    feature = nodes.are("feature")
    second = graph.weight[feature[graph.source] & feature[graph.target]]
    assert len(second) == (edges.gradient != 0).sum()
    for name, part in graph.parts.items():
        mine = np.sort(part[feature[graph.source] & feature[graph.target]])
        column = next(c for c in edges.columns if c.endswith(name))
        theirs = np.sort((edges[column] * edges.source_act)[edges.gradient != 0].to_numpy())
        np.testing.assert_allclose(mine, theirs, atol=1e-6 * np.abs(graph.weight).max())


def test_what_is_cut_is_summed(plain_case: Case) -> None:
    bundle, tokens, whole = plain_case
    size = np.nanmax(np.abs(whole.nodes.value))
    with jax.enable_x64(True):
        for asked in ({"top_k": 5}, {"min_weight": 0.1}, {"top_k": 4, "min_weight": 0.2}):
            graph = build_graph(bundle, tokens, include_bos=True, **asked)
            ends = graph.nodes.are("feature", "logit")
            assert np.abs(sums(graph) - graph.nodes.value)[ends].max() <= TOLERANCE * size
            assert np.bincount(graph.target).max() <= asked.get("top_k", 10**6)
            assert np.abs(graph.weight).min() > asked.get("min_weight", 0)
            assert 0 < len(graph.weight) < len(whole.weight)


def test_features_that_are_no_nodes_are_the_rest(plain_case: Case) -> None:
    bundle, tokens, whole = plain_case
    size = np.nanmax(np.abs(whole.nodes.value))
    assert not whole.nodes.are("rest").any()
    with jax.enable_x64(True):
        graph = build_graph(bundle, tokens, include_bos=True, max_features=100, threshold=0.1)
    features = graph.nodes.are("feature")
    assert features.sum() == 100 < whole.nodes.are("feature").sum()
    assert graph.nodes.value[features].min() > 0.1
    ends = graph.nodes.are("feature", "logit")
    assert np.abs(sums(graph) - graph.nodes.value)[ends].max() <= TOLERANCE * size
    assert graph.nodes.are("rest").any()


def test_a_difference_of_logits(plain_case: Case) -> None:
    bundle, tokens, _ = plain_case
    with jax.enable_x64(True):
        both, one = (
            build_graph(bundle, tokens, include_bos=True, **a) for a in ({"logits": [5, 7]}, {"difference": (5, 7)})
        )
    rows = {int(both.nodes.feature[i]): both.adjacency().toarray()[i] for i in (-1, -2)}
    difference = one.adjacency().toarray()[-1]
    np.testing.assert_allclose(difference[:-1], (rows[5] - rows[7])[:-2], atol=1e-12)
    assert one.label(len(one.nodes) - 1).startswith("logit ")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"derivative": "wrong"}, "derivative must be one of"),
        ({"logits": [99]}, "token ids must lie in 0..30, got 99"),
        ({"logits": ["w1 w2"]}, "must be one token of the model's, got 2"),
        ({"difference": (3, 3)}, "two different tokens"),
        ({"difference": (3, 4), "logits": [1]}, "not both"),
        ({"position": 40}, "position must lie in 0..8, got 40"),
        ({"saes": ("nowhere",)}, "has no SAE 'nowhere'"),
        ({"top_k": 0}, "top_k must be a whole number"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_what_cannot_be_used_is_said(asked: dict[str, Any], sentence: str, plain_case: Case, x64: None) -> None:
    bundle, tokens, _ = plain_case
    with pytest.raises(InputError, match=sentence):
        build_graph(bundle, tokens, **asked)


def test_two_saes_on_one_hook_are_refused(plain_case: Case) -> None:
    bundle, tokens, _ = plain_case
    twice = replace(bundle, saes={**bundle.saes, "again": bundle.saes[MLP0]})
    with pytest.raises(InputError, match="both write"):
        build_graph(twice, tokens)
