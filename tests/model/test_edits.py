"""Edits: one mechanism for splicing, ablating and nudging."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names
from tests.helpers import assert_close, random_params, random_tokens, tiny_config

CFG = tiny_config()
EVERY_HOOK = pytest.mark.parametrize("name", hook_names(CFG))
POST = "blocks.0.mlp.hook_post"


@pytest.fixture(scope="module")
def params():
    return random_params(CFG, 4)


@pytest.fixture(scope="module")
def tokens():
    return random_tokens(CFG, 2, 9)


@pytest.fixture(scope="module")
def plain(params, tokens):
    return forward(params, CFG, tokens, taps=hook_names(CFG))


@EVERY_HOOK
@pytest.mark.parametrize("by", ["array", "function"])
def test_putting_back_a_hooks_own_value_changes_nothing(name: str, by: str, params, tokens, plain) -> None:
    logits, acts = plain
    edit = acts[name] if by == "array" else lambda value: value
    again, again_acts = forward(params, CFG, tokens, taps=hook_names(CFG), edits={name: edit})
    assert_close(again, logits, "exact", "logits")
    for tap, value in again_acts.items():
        assert_close(value, acts[tap], "exact", tap)


@EVERY_HOOK
def test_an_edit_changes_what_comes_after_and_nothing_before(name: str, params, tokens, plain) -> None:
    logits, acts = plain
    noise = jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.5, acts[name].shape), jnp.float32)
    edited, edited_acts = forward(params, CFG, tokens, taps=hook_names(CFG), edits={name: lambda x: x + noise})
    assert_close(edited_acts[name], acts[name] + noise, "exact", "the tap sees the edited value")
    for tap in hook_names(CFG)[: hook_names(CFG).index(name)]:
        assert_close(edited_acts[tap], acts[tap], "exact", tap)
    assert float(abs(edited - logits).max()) > 1e-4


def test_the_function_gets_the_value_that_arrives(params, tokens) -> None:
    _, plain = forward(params, CFG, tokens, taps=[POST])
    arrived = []

    def edit(value):
        arrived.append(value)
        return 2 * value

    _, acts = forward(params, CFG, tokens, taps=[POST], edits={POST: edit})
    assert_close(arrived[0], plain[POST], "exact", "arriving")
    assert_close(acts[POST], 2 * plain[POST], "exact", "leaving")


def test_a_later_edit_sees_what_an_earlier_one_did(params, tokens) -> None:
    later = "blocks.1.mlp.hook_post"
    zero = {POST: lambda value: 0 * value}
    _, first = forward(params, CFG, tokens, taps=[later], edits=zero)
    _, both = forward(params, CFG, tokens, taps=[later], edits=zero | {later: lambda value: value + 1})
    assert_close(both[later], first[later] + 1, "exact", later)


def test_replacing_the_residual_stream_hides_everything_before_it(params, tokens) -> None:
    """With the last residual stream given, the logits no longer depend on the tokens."""
    resid = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, CFG.d_model)), jnp.float32)
    edits = {"blocks.1.hook_resid_post": resid}
    one, _ = forward(params, CFG, tokens, edits=edits)
    other, _ = forward(params, CFG, (tokens + 1) % CFG.d_vocab, edits=edits)
    assert one is not None and other is not None
    assert_close(one, other, "exact", "logits")


def test_ablating_both_writers_leaves_the_stream_as_it_was(params, tokens) -> None:
    edits = {f"blocks.0.{name}": jnp.zeros_like for name in ("hook_attn_out", "hook_mlp_out")}
    names = ["hook_embed", "hook_pos_embed", "blocks.1.hook_resid_pre"]
    _, acts = forward(params, CFG, tokens, taps=names, edits=edits)
    assert_close(acts[names[2]], acts[names[0]] + acts[names[1]], "exact", names[2])


@pytest.mark.parametrize(
    "bad", [lambda x: x[..., :-1], lambda x: x.sum(-1), lambda x: x[:, :1], lambda x: jnp.zeros(()), lambda x: x[None]]
)
def test_an_edit_that_changes_the_shape_is_refused(bad, params, tokens, plain) -> None:
    with pytest.raises(InputError, match=r"the edit at 'blocks.0.mlp.hook_post' must keep the shape \(2, 9, 20\)"):
        forward(params, CFG, tokens, edits={POST: bad})
    with pytest.raises(InputError, match="must keep the shape"):
        forward(params, CFG, tokens, edits={POST: bad(plain[1][POST])})


def test_edits_may_be_empty(params, tokens) -> None:
    logits, acts = forward(params, CFG, tokens, edits={})
    assert acts == {}
    assert_close(logits, forward(params, CFG, tokens)[0], "exact", "logits")
