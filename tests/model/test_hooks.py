"""Hook points: their names, order and widths."""

import pytest

from jaxcircuits.config import ModelConfig
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names, hook_width, precedes
from tests.helpers import gemma_config, neox_config, random_params, random_tokens, tiny_config

CONFIGS = [tiny_config(n_layers=1), tiny_config(n_layers=3), neox_config(), neox_config(parallel_residual=False)]
CONFIGS += [gemma_config()]
each_config = pytest.mark.parametrize("cfg", CONFIGS, ids=["1", "3", "rotary, parallel", "rotary", "Gemma 2"])


@each_config
def test_names_are_listed_in_the_order_of_computation(cfg: ModelConfig) -> None:
    _, acts = forward(random_params(cfg), cfg, random_tokens(cfg, 5), taps=reversed(hook_names(cfg)))
    assert tuple(acts) == hook_names(cfg)


def test_precedes_follows_that_order() -> None:
    cfg = tiny_config()
    names = hook_names(cfg)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            assert precedes(cfg, first, second) == (i < j)


@each_config
def test_width_is_that_of_the_value(cfg: ModelConfig) -> None:
    _, acts = forward(random_params(cfg), cfg, random_tokens(cfg, 6), taps=hook_names(cfg))
    for name, value in acts.items():
        if name.endswith(("scale", "attn_scores", "pattern", "result")):
            with pytest.raises(InputError, match=f"hook point '{name}' has no single vector a position"):
                hook_width(cfg, name)
        else:
            assert hook_width(cfg, name) == value[0].size, name


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("blocks.0.mlp.hook_pst", "blocks.0.mlp.hook_post"),
        ("blocks.2.mlp.hook_post", "blocks.1.mlp.hook_post"),
        ("blocks.0.attn.hook_paterns", "blocks.0.attn.hook_pattern"),
        ("xyz", "hook points look like blocks."),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(wrong: str, suggestion: str) -> None:
    cfg = tiny_config()
    params, tokens = random_params(cfg), random_tokens(cfg, 4)
    for refuse in (
        lambda: forward(params, cfg, tokens, taps=[wrong]),
        lambda: forward(params, cfg, tokens, edits={wrong: lambda x: x}),
        lambda: hook_width(cfg, wrong),
        lambda: precedes(cfg, wrong, "hook_embed"),
    ):
        with pytest.raises(InputError) as error:
            refuse()
        assert repr(wrong) in str(error.value) and suggestion in str(error.value)
