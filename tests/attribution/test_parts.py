"""What an edge is made of, and the stages from cosine to gradient: against autodiff with the rest held."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import forward
from jaxcircuits.attribution import Engine, Settings
from jaxcircuits.attribution.edges import part_names
from jaxcircuits.attribution.problem import resolve, source_side
from jaxcircuits.attribution.reference import hook_gradients
from jaxcircuits.sae import encode
from tests.attribution.cases import MODELS, bundle_of, prompts_of, thinned
from tests.helpers import TOLERANCES


@pytest.mark.parametrize("parts", ["kinds", "heads"])
@pytest.mark.parametrize("derivative", ["exact", "frozen", pytest.param("integrated", marks=pytest.mark.slow)])
@pytest.mark.parametrize("positions", ["same", "all"])
def test_parts_add_up(positions: str, derivative: str, parts: str) -> None:
    bundle = bundle_of("global then local")
    asked = Settings(positions=positions, derivative=derivative, points=4)
    whole, _ = Engine(bundle, asked).run(prompts_of(bundle, 11))
    edges, _ = Engine(bundle, replace(asked, parts=parts)).run(prompts_of(bundle, 11))
    size = np.abs(whole["gradient"]).max()
    np.testing.assert_allclose(edges["gradient"], whole["gradient"], atol=1e-5 * size)
    names = part_names(parts, bundle.cfg.n_heads)
    np.testing.assert_allclose(sum(edges[n] for n in names), edges["gradient"], atol=1e-6 * size)
    if derivative == "frozen":
        assert not any(np.any(edges[n]) for n in names if n.startswith(("query", "key")))
    earlier = edges["source_pos"] < edges["target_pos"]
    assert not any(np.any(edges[n][earlier]) for n in names if n.startswith(("query", "residual")))


@pytest.mark.parametrize("model", thinned(MODELS))
def test_heads_add_up_to_kinds(model: str, x64: None) -> None:
    bundle = bundle_of(model, jnp.float64)
    ends = dict(zip(("source", "target"), list(bundle.saes)[-2:], strict=True))
    kinds, heads = (
        Engine(bundle, Settings(**ends, positions="all", parts=p)).run(prompts_of(bundle, 9))[0]
        for p in ("kinds", "heads")
    )
    for kind in ("value", "query", "key"):
        total = sum(heads[f"{kind}_{h}"] for h in range(bundle.cfg.n_heads))
        np.testing.assert_allclose(total, kinds[kind], atol=1e-12)


def test_one_head_is_what_autodiff_gives_with_all_else_held(x64: None) -> None:
    """The value part of a head: the gradient where everything but this head's values is a constant."""
    bundle = bundle_of("global then local", jnp.float64)
    (_, tokens), *_ = prompts = prompts_of(bundle, 9)
    edges, _ = Engine(bundle, Settings(positions="all", parts="heads")).run(prompts)
    source, target = bundle.saes.values()
    pair = resolve(bundle, Settings())
    _, h = source_side(pair.problem, bundle.params, pair.source, jnp.asarray(tokens))
    hold = jax.lax.stop_gradient
    directions, attn = source.weights.W_dec, "blocks.1.attn"
    for head in range(bundle.cfg.n_heads):

        def only_this(v, head=head):
            return hold(v).at[:, head].set(v[:, head])

        def target_acts(h, only_this=only_this):
            edits = {
                source.cfg.hook_name: lambda _: h,
                f"{attn}.hook_q": hold,
                f"{attn}.hook_k": hold,
                f"{attn}.hook_v": only_this,
            }
            hook = target.cfg.hook_name
            _, acts = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=(hook,), edits=edits)
            return encode(target, acts[hook])

        # What goes past attention is held by taking it away: the same with all values held.
        jacobian = jax.jacrev(target_acts)(h) - jax.jacrev(lambda h: target_acts(h, hold))(h)
        at = (edges["target_pos"], edges["target_feature"], edges["source_pos"])
        expected = np.einsum("ed,ed->e", np.asarray(jacobian)[at], np.asarray(directions)[edges["source_feature"]])
        size = np.abs(edges["gradient"]).max()
        assert np.abs(edges[f"value_{head}"] - expected).max() <= TOLERANCES["methods"]["float64"] * size


@pytest.mark.parametrize("processed", [True, False], ids=["processed", "as trained"])
def test_stages_from_cosine_to_gradient(processed: bool, x64: None) -> None:
    """The norm stage is the gradient with attention held and the GELU replaced by the identity."""
    bundle = bundle_of("global then local", jnp.float64, processed=processed)
    (_, tokens), *_ = prompts = prompts_of(bundle, 9)
    edges, _ = Engine(bundle, Settings(positions="all", stages=True)).run(prompts)
    source, target = bundle.saes.values()
    pair = resolve(bundle, Settings())
    _, h = source_side(pair.problem, bundle.params, pair.source, jnp.asarray(tokens))
    same = edges["source_pos"] == edges["target_pos"]
    assert np.isnan(edges["norm_stage"][~same]).all()

    def reads(h):
        edits = {source.cfg.hook_name: lambda _: h, "blocks.1.hook_attn_out": jax.lax.stop_gradient}
        _, acts = forward(bundle.params, bundle.cfg, jnp.asarray(tokens), taps=("blocks.1.mlp.hook_pre",), edits=edits)
        return acts["blocks.1.mlp.hook_pre"] @ target.weights.W_enc

    jacobian = np.asarray(jax.jacrev(reads)(h))
    at = (edges["target_pos"][same], edges["target_feature"][same], edges["source_pos"][same])
    rows = np.asarray(source.weights.W_dec)[edges["source_feature"][same]]
    expected = np.einsum("ed,ed->e", jacobian[at], rows)
    np.testing.assert_allclose(edges["norm_stage"][same], expected, atol=1e-10 * np.abs(expected).max())


def test_the_gelu_stage_is_the_residual_part(x64: None) -> None:
    bundle = bundle_of("global then local", jnp.float64)
    (_, tokens), *_ = prompts = prompts_of(bundle, 9)
    edges, _ = Engine(bundle, Settings(parts="kinds")).run(prompts)
    pair = resolve(bundle, Settings())
    held = replace(pair.problem, held=("blocks.1.hook_attn_out",))
    _, h = source_side(held, bundle.params, pair.source, jnp.asarray(tokens))
    pos, feature = jnp.asarray(edges["target_pos"]), jnp.asarray(edges["target_feature"])
    gradients = hook_gradients(bundle.params, pair.target, jnp.asarray(tokens), h, pos, feature, problem=held)
    own = np.asarray(gradients)[np.arange(len(pos)), edges["source_pos"]]
    expected = np.einsum("ed,ed->e", own, np.asarray(pair.source.weights.W_dec)[edges["source_feature"]])
    np.testing.assert_allclose(edges["residual"], expected, atol=1e-10 * np.abs(expected).max())
