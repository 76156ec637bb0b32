"""Interactions of drivers, against single interventions; nothing interacts where everything is linear."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import ablate, intervene
from jaxcircuits.errors import InputError
from jaxcircuits.graph import FeatureAt, Interaction, conjunctions, interactions, leading_to, prune
from jaxcircuits.graph.interactions import drivers_of, feature_at
from jaxcircuits.sae import pre_activations
from tests.graph.conftest import Case
from tests.helpers import TOLERANCES

FROZEN = ("attention", "norms", "gelu")


def target_and_drivers(case: Case, n: int = 3) -> tuple[FeatureAt, list[FeatureAt]]:
    """The last feature of the last position, and its strongest drivers."""
    _, _, graph = case
    node = int(np.flatnonzero(graph.nodes.are("feature"))[-1])
    return feature_at(graph, node), [feature_at(graph, i) for i in drivers_of(graph, node, n)]


pytestmark = pytest.mark.xdist_group("graphs")  # what is compiled once serves all


@pytest.fixture(scope="module")
def found(plain_case: Case) -> list[Interaction]:
    with jax.enable_x64(True):
        bundle, tokens, _ = plain_case
        return interactions(bundle, tokens, *target_and_drivers(plain_case))


def test_effects_are_those_of_single_interventions(plain_case: Case, found: list[Interaction]) -> None:
    bundle, tokens, _ = plain_case
    target, drivers = target_and_drivers(plain_case)
    assert {(p.a, p.b) for p in found} == set(combinations(drivers, 2))
    assert [abs(p.interaction) for p in found] == sorted((abs(p.interaction) for p in found), reverse=True)

    def read(*gone: FeatureAt) -> tuple[float, float]:
        changes = [ablate(e.sae, e.feature, e.pos) for e in gone]
        hook = bundle.saes[target.sae].cfg.hook_name
        run = intervene(
            bundle.params, bundle.cfg, bundle.saes, jnp.asarray(tokens), changes, read=[target.sae], taps=[hook]
        )
        pre = pre_activations(bundle.saes[target.sae], run.acts[hook])
        return tuple(float(x[target.pos, target.feature]) for x in (run.feature_acts[target.sae], pre))

    p = found[0]
    plain, a, b, both = (np.array(read(*gone)) for gone in ((), (p.a,), (p.b,), (p.a, p.b)))
    mixed = plain - a - b + both
    expected = [plain[0], *(x[0] - plain[0] for x in (a, b, both)), *mixed]
    tolerance = TOLERANCES["methods"]["float64"] * abs(plain[0])
    np.testing.assert_allclose(p[3:], expected, rtol=0, atol=tolerance)


def test_nothing_interacts_where_all_is_linear(plain_case: Case, found: list[Interaction]) -> None:
    bundle, tokens, _ = plain_case
    frozen = interactions(bundle, tokens, *target_and_drivers(plain_case), freeze=FROZEN)
    tolerance = TOLERANCES["methods"]["float64"] * frozen[0].activation
    assert max(abs(p.pre_activation) for p in frozen) <= tolerance
    assert max(abs(p.pre_activation) for p in found) > 1e4 * tolerance  # it is not there for the asking


def test_a_sign_says_what_drivers_are_to_each_other() -> None:
    end = FeatureAt("sae", 0, 0)

    def kind(neither: float, a: float, b: float, both: float) -> str:
        effects = (b - both, a - both, neither - both)  # without a, b is left
        return Interaction(end, end, end, both, *effects, effects[2] - effects[0] - effects[1], 0.0).kind

    assert kind(0, 0, 0, 1) == "and"
    assert kind(0, 1, 1, 1) == "or"
    assert kind(0, 1, 2, 3) == "none"


def test_conjunctions_of_a_graph(plain_case: Case) -> None:
    bundle, _, graph = plain_case
    node = int(np.flatnonzero(graph.nodes.are("feature"))[-1])
    part = leading_to(graph, node)
    assert prune(part, node_threshold=0.3).label(-1) == graph.label(node)
    (only,) = conjunctions(bundle, part, targets=1, drivers=2)
    target, drivers = target_and_drivers(plain_case, 2)
    assert (only.target, {only.a, only.b}) == (target, set(drivers))


@pytest.mark.parametrize(
    ("target", "drivers", "sentence"),
    [
        (("x", 1, 0), [(0, 1, 0), (0, 1, 1)], "no SAE 'x'"),
        ((1, 1, 0), [(0, 1, 0)], "at least two, got 1"),
        ((1, 1, 0), [(0, 1, 0), (0, 1, 0)], "at least two, got 1"),
        ((1, 1, 0), [(0, 1, 0), (0, 99, 0)], "positions 0..8, got 99"),
        ((1, 1, 0), [(0, 1, 0), (0, 1, 99)], "features 0..23, got 99"),
    ],
)
def test_what_cannot_be_used(plain_case: Case, target, drivers, sentence: str) -> None:
    bundle, tokens, _ = plain_case
    names = dict(enumerate(bundle.saes))
    ends = [FeatureAt(names.get(sae, sae), pos, feature) for sae, pos, feature in (target, *drivers)]
    with pytest.raises(InputError, match=sentence):
        interactions(bundle, tokens, ends[0], ends[1:])
