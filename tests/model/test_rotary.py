"""Rotary positions, parallel residuals and activation functions: what each of them means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.config import ACTIVATIONS as WORDS
from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names
from jaxcircuits.model.activations import ACTIVATIONS
from jaxcircuits.model.freezing import gelu_line
from jaxcircuits.model.rotary import turned, turns
from tests.helpers import assert_close, neox_config, random_params, random_tokens

CFG = neox_config(d_head=6, rotary_dim=4, rotary_base=50.0)


def _turned(x: np.ndarray, pos: int) -> np.ndarray:
    """Written out anew, pair by pair, as complex numbers."""
    out = x.copy()
    for pair in range(2):
        z = (x[pair] + 1j * x[pair + 2]) * np.exp(1j * pos * 50.0 ** (-pair / 2))
        out[pair], out[pair + 2] = z.real, z.imag
    return out


def test_pairs_are_turned_by_their_position(x64: None) -> None:
    x = np.random.default_rng(0).standard_normal((16, 6))
    by = turns(CFG, jnp.arange(16), jnp.float64)
    assert by is not None
    found = turned(jnp.asarray(x), by)
    np.testing.assert_allclose(found, [_turned(row, pos) for pos, row in enumerate(x)], atol=1e-14)
    np.testing.assert_allclose(turned(found, by.back), x, atol=1e-14)


def test_scores_depend_on_the_distance_alone(x64: None) -> None:
    """The same query and key everywhere: a head's score is a function of how far apart they are."""
    q, k = np.random.default_rng(1).standard_normal((2, 6))
    by = turns(CFG, jnp.arange(16), jnp.float64)
    assert by is not None
    both = (turned(jnp.broadcast_to(jnp.asarray(x), (16, 6)), by) for x in (q, k))
    scores = np.einsum("id,jd->ij", *both)
    for distance in range(-15, 16):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-13)
    assert np.ptp(scores) > 0.5


def test_a_model_without_them_turns_nothing() -> None:
    cfg = neox_config(positions="learned", rotary_dim=None)
    assert turns(cfg, jnp.arange(4), jnp.float32) is None
    names = hook_names(cfg)
    assert "hook_pos_embed" in names and not any("hook_rot" in name for name in names)


@pytest.mark.parametrize("parallel", [True, False])
def test_what_the_mlp_reads(parallel: bool) -> None:
    """With parallel residuals attention moves the block's MLP by nothing, else it does."""
    cfg = neox_config(parallel_residual=parallel)
    params, tokens = random_params(cfg, 3), random_tokens(cfg, 2, 9)
    taps = [name for name in hook_names(cfg) if name.startswith("blocks.0.")]
    _, plain = forward(params, cfg, tokens, taps=taps)
    _, moved = forward(params, cfg, tokens, taps=taps, edits={"blocks.0.hook_attn_out": lambda x: x + 1.0})
    behind = [name for name in taps if ".ln2." in name or ".mlp." in name or name.endswith("hook_mlp_out")]
    assert len(behind) == 5
    if not parallel:  # a shift that is the same in every direction is what a norm takes away
        assert "blocks.0.hook_resid_mid" in taps
        _, moved = forward(params, cfg, tokens, taps=taps, edits={"blocks.0.hook_attn_out": lambda x: 2 * x})
    for name in behind:
        same = bool(jnp.array_equal(moved[name], plain[name]))
        assert same == parallel, name
    assert not jnp.allclose(moved["blocks.0.hook_resid_post"], plain["blocks.0.hook_resid_post"], atol=0.1)
    if parallel:
        pre, attn, mlp = (plain[f"blocks.0.{name}"] for name in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out"))
        assert_close(plain["blocks.0.hook_resid_post"], pre + attn + mlp, "exact", "hook_resid_post")


@pytest.mark.parametrize("name", WORDS)
def test_activations_and_their_lines(name: str, x64: None) -> None:
    """Against PyTorch; the secant passes through the origin, the tangent touches."""
    torch = pytest.importorskip("torch")
    theirs = {
        "gelu_new": lambda u: torch.nn.functional.gelu(u, approximate="tanh"),
        "gelu": torch.nn.functional.gelu,
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
    }[name]
    u = np.linspace(-6, 6, 100)
    leaf = torch.tensor(u, requires_grad=True)
    value = theirs(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    value = value.detach().numpy()
    np.testing.assert_allclose(ACTIVATIONS[name].value(jnp.asarray(u)), value, atol=1e-14)
    secant, none = gelu_line(jnp.asarray(u), "secant", name)
    np.testing.assert_allclose(secant * u, value, atol=1e-14)
    assert not np.any(none) and np.isfinite(gelu_line(jnp.zeros(1), "secant", name)[0]).all()
    tangent, constant = gelu_line(jnp.asarray(u), "tangent", name)
    np.testing.assert_allclose(tangent, slope, atol=1e-13)
    np.testing.assert_allclose(tangent * u + constant, value, atol=1e-13)


def test_the_models_activation_is_its_lines() -> None:
    cfg = neox_config(activation="relu")
    pre, post = "blocks.1.mlp.hook_pre", "blocks.1.mlp.hook_post"
    _, acts = forward(random_params(cfg, 1), cfg, random_tokens(cfg, 7), taps=[pre, post])
    np.testing.assert_array_equal(acts[post], jax.nn.relu(acts[pre]))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"positions": "alibi"}, "positions must be one of learned, rotary, got 'alibi'"),
        ({"activation": "selu"}, "activation must be one of gelu_new, gelu, relu, silu, got 'selu'"),
        ({"rotary_dim": None}, "rotary_dim belongs to rotary positions, got None"),
        ({"positions": "learned"}, "rotary_dim belongs to rotary positions, got 2 and positions learned"),
        ({"rotary_dim": 3}, "rotary_dim must be an even number of the head's 4, got 3"),
        ({"rotary_dim": 6}, "rotary_dim must be an even number of the head's 4, got 6"),
        ({"rotary_dim": True}, "rotary_dim must be an even number of the head's 4, got True"),
        ({"rotary_base": 0}, "rotary_base must be a positive number, got 0"),
    ],
    ids=str,
)
def test_configs_that_make_no_sense_are_refused(fields: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        neox_config(**fields)


def test_a_config_of_before_means_what_it_meant() -> None:
    """Files without the new fields are GPT-Neo's."""
    new = ("positions", "rotary_dim", "rotary_base", "parallel_residual", "activation")
    cfg = neox_config(family="gpt_neo", positions="learned", rotary_dim=None, activation="gelu_new")
    old = {name: value for name, value in cfg.to_json().items() if name not in new}
    read = ModelConfig.from_json(old)
    assert (read.positions, read.rotary_dim, read.parallel_residual) == ("learned", None, False)
    assert read.activation == "gelu_new" and read.mlp_stream == "hook_resid_mid"
