"""Splicing and changing features, against the same edits written out by hand and against TransformerLens' hooks."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits import Change, ablate, intervene, scale, set_feature, splice_edits, steer
from jaxcircuits.config import SAEConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, side_by_side
from jaxcircuits.sae import SAE, decode, encode, reconstruct
from jaxcircuits.types import SAEWeights
from tests.helpers import assert_close, random_params, random_tokens, tiny_bundle, tiny_config, tiny_sae

CFG = tiny_config()
POST, Z = "blocks.0.mlp.hook_post", "blocks.1.attn.hook_z"
MID = "blocks.0.hook_resid_mid"


def transcoder(skip: bool = False) -> SAE:
    """Reads the residual stream before an MLP and writes the MLP's hidden layer, of another width."""
    rng = np.random.default_rng(7)
    shapes = {"W_enc": (12, 24), "b_enc": (24,), "W_dec": (24, 20), "b_dec": (20,)}
    shapes |= {"W_skip": (12, 20)} if skip else {}
    weights = {name: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    cfg = SAEConfig(12, 24, MID, subtract_b_dec=False, hook_out=POST, d_out=20, skip=skip)
    return SAE(SAEWeights(**weights), cfg)


def jumprelu() -> SAE:
    sae = tiny_sae(CFG, POST)
    cfg = dataclasses.replace(sae.cfg, activation="jumprelu")
    return SAE(sae.weights._replace(threshold=jnp.full(24, 0.3)), cfg)


SAES = {
    "relu": tiny_sae(CFG, POST),
    "jumprelu": jumprelu(),
    "topk": tiny_sae(CFG, POST, activation="topk", k=5),
    "groupmax": tiny_sae(CFG, POST, activation="groupmax", k=6),
    "constant norm": tiny_sae(CFG, POST, normalization="constant_norm_rescale"),
    "layer norm": tiny_sae(CFG, POST, normalization="layer_norm"),
    "heads": tiny_sae(CFG, Z),
    "transcoder": transcoder(),
    "skip transcoder": transcoder(skip=True),
}
EVERY_KIND = pytest.mark.parametrize("kind", list(SAES))


@pytest.fixture(scope="module")
def params():
    return random_params(CFG, 3)


@pytest.fixture(scope="module")
def tokens():
    return random_tokens(CFG, 2, 9)


def values(params, tokens, sae: SAE):
    """What the autoencoder reads and what it writes over, in a plain pass."""
    hooks = (sae.cfg.hook_name, sae.cfg.hook_written)
    _, acts = forward(params, CFG, tokens, taps=hooks)
    return [side_by_side(hook, acts[hook]) for hook in hooks]


def by_hand(params, tokens, sae: SAE, new) -> jax.Array:
    """Logits with a given value at the hook that is written, and nothing else changed."""
    edit = {sae.cfg.hook_written: lambda old: jnp.asarray(new, old.dtype).reshape(old.shape)}
    logits, _ = forward(params, CFG, tokens, edits=edit)
    assert logits is not None
    return logits


@EVERY_KIND
def test_splicing_is_the_reconstruction_in_its_hook_s_place(kind, params, tokens):
    sae = SAES[kind]
    read, _ = values(params, tokens, sae)
    expected = by_hand(params, tokens, sae, reconstruct(sae, read))
    assert_close(intervene(params, CFG, {"a": sae}, tokens, splice=["a"]).logits, expected, "methods")
    logits, _ = forward(params, CFG, tokens, edits=splice_edits([sae]))
    assert_close(logits, expected, "methods")
    assert float(abs(expected - forward(params, CFG, tokens)[0]).max()) > 1e-3


@EVERY_KIND
def test_a_feature_set_to_its_own_value_changes_nothing(kind, params, tokens):
    sae = SAES[kind]
    before = intervene(params, CFG, {"a": sae}, tokens, read=["a"])
    own = before.feature_acts["a"][..., 4]
    for change in (set_feature("a", 4, own), scale("a", 4, 1.0), steer("a", 4, 0.0)):
        after = intervene(params, CFG, {"a": sae}, tokens, [change])
        assert_close(after.logits, before.logits, "exact")
    run = partial(intervene, params, CFG, {"a": sae}, tokens, splice=["a"])
    assert_close(run([set_feature("a", 4, own)]).logits, run().logits, "methods")


@EVERY_KIND
@pytest.mark.parametrize("keep_error", [True, False])
def test_changes_at_positions_equal_those_written_out(kind, keep_error, params, tokens):
    """Three changes in order, two of one feature; the last position and two others."""
    sae = SAES[kind]
    changes = [set_feature("a", 3, 2.5, [2, -1]), scale("a", 3, -0.5, [2]), steer("a", 8, 1.25), ablate("a", 10, 5)]
    found = intervene(params, CFG, {"a": sae}, tokens, changes, keep_error=keep_error, taps=[sae.cfg.hook_written])
    read, written = values(params, tokens, sae)
    old = np.asarray(encode(sae, read))
    new = old.copy()
    new[:, [2, 8], 3] = 2.5
    new[:, 2, 3] *= -0.5
    new[..., 8] += 1.25
    new[:, 5, 10] = 0
    value = decode(sae, jnp.asarray(new), read)
    if keep_error:
        value = written + value - reconstruct(sae, read)
    assert_close(found.logits, by_hand(params, tokens, sae, value), "methods")
    assert_close(side_by_side(sae.cfg.hook_written, found.acts[sae.cfg.hook_written]), value, "methods")


def test_a_later_autoencoder_sees_an_earlier_change_and_not_its_own(params, tokens):
    saes = {"first": tiny_sae(CFG, POST), "second": tiny_sae(CFG, "blocks.1.mlp.hook_post")}
    changes = [set_feature("first", 2, 4.0, 3), set_feature("second", 5, 9.0)]
    before = intervene(params, CFG, saes, tokens, read=["first", "second"], logits_at=None)
    after = intervene(params, CFG, saes, tokens, changes, read=["first", "second"], logits_at=None)
    assert after.logits is None and after.acts == {}
    assert_close(after.feature_acts["first"], before.feature_acts["first"], "exact")
    apart = np.abs(np.asarray(after.feature_acts["second"] - before.feature_acts["second"]))
    assert apart[:, 3:].max() > 1e-3 and apart[:, :3].max() == 0
    only_first = intervene(params, CFG, saes, tokens, changes[:1], read=["second"])
    assert_close(after.feature_acts["second"], only_first.feature_acts["second"], "methods")


def test_bos_keeps_its_value_where_splicing_leaves_it_out(params, tokens):
    sae = tiny_sae(CFG, POST)
    tokens = tokens.at[1, 0].set(5)  # the second row does not begin with BOS
    _, written = values(params, tokens, sae)
    run = partial(intervene, params, CFG, {"a": sae}, tokens, splice=["a"], splice_bos=False, taps=[POST])
    found = run().acts[POST]
    expected = np.array(reconstruct(sae, written))
    expected[0, 0] = written[0, 0]
    assert_close(found, expected, "methods")
    changed = run([steer("a", 1, 2.0)])
    expected += 2 * np.asarray(sae.weights.W_dec[1])
    assert_close(changed.acts[POST], expected, "methods")


def test_two_autoencoders_change_one_hook(params, tokens):
    """Both read what arrives; one is spliced, the other's change is added."""
    saes = {"b": tiny_sae(CFG, POST, 30, 1), "a": tiny_sae(CFG, POST)}
    found = intervene(params, CFG, saes, tokens, [steer("b", 7, 3.0)], splice=["a"], taps=[POST]).acts[POST]
    _, written = values(params, tokens, saes["a"])
    assert_close(found, reconstruct(saes["a"], written) + 3 * saes["b"].weights.W_dec[7], "methods")
    with pytest.raises(InputError, match=r"the SAEs b and a both write blocks.0.mlp.hook_post"):
        intervene(params, CFG, saes, tokens, splice=["a", "b"])


def test_one_compiled_program_serves_every_feature_value_and_position(params, tokens):
    saes = {"a": tiny_sae(CFG, POST)}
    traces = []

    @jax.jit
    def run(change: Change):
        traces.append(None)
        return intervene(params, CFG, saes, tokens, [change]).logits

    for feature, value, position in ((2, 1.0, 3), (5, -2.0, -1)):
        change = set_feature("a", feature, value, position)
        assert_close(run(change), intervene(params, CFG, saes, tokens, [change]).logits, "methods")
    assert len(traces) == 1
    zeroed = partial(Change, "a", "set", value=0.0)
    ablated = jax.vmap(lambda f: intervene(params, CFG, saes, tokens, [zeroed(f)]).logits)(jnp.arange(4))
    assert_close(ablated[2], intervene(params, CFG, saes, tokens, [ablate("a", 2)]).logits, "methods")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([ablate("b", 0)], "there is no SAE 'b'; there are a"),
        ([ablate("a", 24)], r"has features 0\.\.23, got 24"),
        ([ablate("a", 1, 9)], r"at position 9, but the prompt has 9 tokens, numbered 0\.\.8"),
        ([ablate("a", 1, -10)], "at position -10"),
        ([Change("a", "double", 1, 2.0)], "must be one of set, scale, steer, got 'double'"),
    ],
)
def test_what_cannot_be_done_is_refused(changes, message, params, tokens):
    with pytest.raises(InputError, match=message):
        intervene(params, CFG, {"a": tiny_sae(CFG, POST)}, tokens, changes)


@pytest.mark.torch
def test_logits_equal_transformer_lens_hooks():
    """Two splices and a feature set at one position, as forward hooks of TransformerLens."""
    from tests.oracle import TorchSAE, transformer_lens_model

    torch = pytest.importorskip("torch")
    bundle, tokens = tiny_bundle(CFG), random_tokens(CFG, 9)
    first, second = bundle.saes
    model = transformer_lens_model(CFG, random_params(CFG))
    theirs = [TorchSAE(sae) for sae in bundle.saes.values()]

    def hook(sae: TorchSAE, spliced: bool, value, hook):
        features = sae.encode(value)
        new = features.clone()
        if sae is theirs[0]:
            new[:, 4, 7] = 3.0
        out = sae.decode(new)
        return out if spliced else value + out - sae.decode(features)

    for splice in ([], [second], [first, second]):
        names = [(s.hook_name, partial(hook, s, name in splice)) for name, s in zip(bundle.saes, theirs, strict=True)]
        ids = torch.tensor(np.asarray(tokens)).long()[None]
        expected = model.run_with_hooks(ids, return_type="logits", fwd_hooks=names if splice else names[:1])
        run = intervene(bundle.params, CFG, bundle.saes, tokens, [set_feature(first, 7, 3.0, 4)], splice=splice)
        assert_close(run.logits, expected[0], "oracle", str(splice))
