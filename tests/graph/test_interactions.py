"""Conjunctions: against ablations by hand, and none where everything adds up."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.graph import conjunction_rows, interactions
from jaxcircuits.model import forward
from jaxcircuits.sae import pre_activations
from tests.graph.cases import MLP0, MLP1
from tests.graph.conftest import Case


def test_pairs_are_what_double_ablations_do(plain_case: Case, x64: None) -> None:
    bundle, tokens, graph = plain_case
    nodes = graph.nodes
    strongest = int(np.flatnonzero(nodes.are("feature") & (nodes.sae == 1))[-1])
    pos, feature = int(nodes.pos[strongest]), int(nodes.feature[strongest])
    found = interactions(bundle, tokens, (MLP1, pos, feature), drivers=5, include_bos=True)
    assert found.target == strongest
    assert found.value == pytest.approx(nodes.value[strongest], rel=1e-10)
    assert len(found.pairs) == 10
    first, second = bundle.saes[MLP0], bundle.saes[MLP1]
    _, acts = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=("hook_embed", MLP0), logits_at=None)

    def without(*drivers: int) -> float:
        """The target with drivers at zero, the layer between held."""
        embed, hidden = acts["hook_embed"], acts[MLP0]
        for driver in drivers:
            at = int(nodes.pos[driver])
            if nodes.kind[driver] == "token":
                embed = embed.at[at].set(0)
            else:
                hidden = hidden.at[at].add(-nodes.value[driver] * first.weights.W_dec[int(nodes.feature[driver])])
        edits = {"hook_embed": embed, MLP0: hidden}
        _, moved = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=(MLP1,), edits=edits, logits_at=None)
        return float(pre_activations(second, moved[MLP1][pos])[feature])

    for pair in (found.pairs[0], found.pairs[4]):
        a, b, both = without(pair.first), without(pair.second), without(pair.first, pair.second)
        assert pair.value == pytest.approx(without() - a - b + both, abs=1e-9)
        assert pair.together == pytest.approx(without() - both, abs=1e-9)
    values = [abs(pair.value) for pair in found.pairs]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1e-3
    rows = conjunction_rows(found, 3)
    assert len(rows) == 3
    assert rows[0]["interaction"] == pytest.approx(
        rows[0]["first_alone"] + rows[0]["second_alone"] - rows[0]["together"]
    )


def test_what_has_no_pair_is_said(plain_case: Case, x64: None) -> None:
    bundle, tokens, _ = plain_case
    asked = {"include_bos": True}
    with pytest.raises(InputError, match="needs two drivers, got 1"):
        interactions(bundle, tokens, drivers=1, **asked)
    with pytest.raises(InputError, match="has no SAE"):
        interactions(bundle, tokens, ("nowhere", 2, 3), **asked)
    with pytest.raises(InputError, match="is no node at position 2"):
        interactions(bundle, tokens, (MLP1, 2, 999), **asked)
