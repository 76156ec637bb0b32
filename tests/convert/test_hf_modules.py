"""Hook points that stand for what a Hugging Face module takes or gives have its very value, in the bundle made."""

import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcircuits.bundle import Bundle, load_bundle, load_sae
from jaxcircuits.config import PROCESSING_STEPS, ModelConfig
from jaxcircuits.convert import SAESource, convert
from jaxcircuits.convert.hf_modules import module_hooks, module_layer
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward
from jaxcircuits.sae import decode, encode
from tests.convert.recorded import save_plain_model, source
from tests.helpers import assert_close

torch = pytest.importorskip("torch")
from tests.convert.foreign import hugging_face  # noqa: E402
from tests.convert.test_gpt_neox import converted, neox  # noqa: E402

pytestmark = pytest.mark.torch

INSIDE = ("ln_1", "attn", "attn.attention", "attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj")
INSIDE += ("attn.attention.out_proj", "ln_2", "mlp", "mlp.c_fc", "mlp.act", "mlp.c_proj")
MODULES = [f"transformer.h.1{part}" for part in ("", *(f".{name}" for name in INSIDE))]
MODULES += ["transformer.wte", "transformer.wpe"]
TOKENS = np.array([0, 3, 17, 4, 9, 22, 1])


@pytest.fixture(scope="module")
def neo() -> Any:
    return hugging_face(hidden_size=16, num_heads=4)


@pytest.fixture(scope="module")
def values(neo: Any) -> dict[str, tuple[Any, Any]]:
    """What each module takes and gives."""
    seen: dict[str, tuple[Any, Any]] = {}

    def hook(name: str) -> Any:
        def keep(module: Any, args: Any, kwargs: Any, out: Any) -> None:
            taken = args[0] if args else kwargs.get("hidden_states")
            seen[name] = (taken, out[0] if isinstance(out, tuple) else out)

        return keep

    named = dict(neo.named_modules())
    handles = [named[name].register_forward_hook(hook(name), with_kwargs=True) for name in MODULES]
    neo(torch.tensor(TOKENS)[None])
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="module")
def raw(neo: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The unprocessed model."""
    path = tmp_path_factory.mktemp("raw")
    neo.save_pretrained(path / "neo")
    convert(str(path / "neo"), [], path / "bundle")
    return load_bundle(path / "bundle", processed=False)


def _value(bundle: Any, hook: str) -> Any:
    _, acts = forward(bundle.params, bundle.cfg, jnp.asarray(TOKENS), taps=(hook,))
    return acts[hook].reshape(len(TOKENS), -1)


def _normed(value: Any, hook: str, bundle: Any) -> Any:
    """What the module takes: a norm's value scaled and shifted."""
    if not hook.endswith("hook_normalized"):
        return value
    norm = getattr(bundle.params.blocks[1], hook.split(".")[2])
    return value * norm.w + norm.b


@pytest.mark.parametrize("name", MODULES)
def test_equal_to_hugging_face(name: str, raw: Any, values: dict[str, tuple[Any, Any]]) -> None:
    hooks = module_hooks(name)
    assert hooks == module_hooks(name.removeprefix("transformer.")), "the path in the base model"
    assert hooks.given is not None or name.endswith(("ln_1", "ln_2"))
    for hook, value in zip(hooks, values[name], strict=True):
        if hook is not None:
            assert_close(_normed(_value(raw, hook), hook, raw), value.reshape(len(TOKENS), -1), "oracle", hook)


RAW = {
    "sparsify/topk_1": ("transformer.h.1", 1, {"center_writing_weights"}),
    "sparsify/topk_1_mlp": ("transformer.h.1.mlp", 1, {"center_writing_weights"}),
    "sparsify/transcoder_skip": ("transformer.h.1.mlp", 0, {"center_writing_weights"}),
    "circuit_tracer/jumprelu": ("transformer.h.1.mlp", 0, {"center_writing_weights"}),
    "gemma_scope/att_1": ("transformer.h.1.attn.attention.out_proj", 0, {"fold_value_biases"}),
}
"""Samples that know the raw model; a number at the end puts them on another layer than theirs."""


@pytest.mark.parametrize("sample", RAW)
def test_what_was_trained_on_the_raw_model(sample: str, neo: Any, values: Any, tmp_path: Path) -> None:
    """It has the features there that it has on the module's own value: the step that would change them is left out."""
    module, side, left_out = RAW[sample]
    name, given = sample.replace("_1", ""), source(sample.replace("_1", "")).path
    if name != sample:
        layer = Path(given).parts[-1].replace("h.0", "h.1")
        given = str(tmp_path / "gemma-scope-x-att" / "layer_1" if "gemma" in name else tmp_path / layer)
        shutil.copytree(source(name).path, given)
    neo.save_pretrained(tmp_path / "neo")
    convert(str(tmp_path / "neo"), [given], tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.cfg.processing == tuple(step for step in PROCESSING_STEPS if step not in left_out)
    (sae,) = bundle.saes.values()
    value = jnp.asarray(values[module][side].reshape(len(TOKENS), -1).numpy())
    save_plain_model(tmp_path / "plain")
    convert(str(tmp_path / "plain"), [source(name)], tmp_path / "same")
    (added,) = set(load_bundle(tmp_path / "same").saes) - set(load_bundle(tmp_path / "plain").saes)
    stored = load_sae(tmp_path / "same" / "saes" / added)  # with the weights of its file
    found = encode(sae, _value(bundle, sae.cfg.hook_name))
    assert_close(found, encode(stored, value), "oracle", sae.cfg.hook_name)
    if sae.cfg.transcodes:
        assert_close(
            decode(sae, found, _value(bundle, sae.cfg.hook_name)),
            decode(stored, encode(stored, value), value),
            "oracle",
        )
    convert(str(tmp_path / "neo"), [], tmp_path / "processed")
    other = encode(stored, _value(load_bundle(tmp_path / "processed"), sae.cfg.hook_name))
    assert float(jnp.abs(other - encode(stored, value)).max()) > 0.01, "the model's value would have done as well"


def test_a_norm_is_no_autoencoders(neo: Any, tmp_path: Path) -> None:
    neo.save_pretrained(tmp_path / "neo")
    shutil.copytree(source("sparsify/topk").path, tmp_path / "norm")
    given = SAESource(str(tmp_path / "norm"), hook="blocks.1.ln2.hook_normalized")
    with pytest.raises(InputError, match="is the value before them; this is supported for transcoders alone"):
        convert(str(tmp_path / "neo"), [given], "bundle")
    shutil.copytree(source("sparsify/transcoder").path, tmp_path / "h.7.mlp")
    with pytest.raises(InputError, match=r"no hook point 'blocks\.7\.ln2\.hook_normalized'"):
        convert(str(tmp_path / "neo"), [str(tmp_path / "h.7.mlp")], "bundle")


def test_processing_that_agrees_with_all(neo: Any, tmp_path: Path) -> None:
    neo.save_pretrained(tmp_path / "neo")
    model = str(tmp_path / "neo")

    def processing(*names: str, out: str, model: str = model) -> tuple[str, ...]:
        convert(model, [source(name) for name in names], tmp_path / out)
        cfg: ModelConfig = load_bundle(tmp_path / out).cfg
        return cfg.processing

    assert processing("sae_lens_6/standard_processed", out="on") == PROCESSING_STEPS
    without = tuple(step for step in PROCESSING_STEPS if step != "center_writing_weights")
    assert processing("sae_lens_6/standard_raw", "sparsify/topk", out="raw") == without
    assert processing("sae_lens_6/standard_none", out="unknown") == PROCESSING_STEPS
    for names, start in (
        (("sae_lens_6/standard_processed", "sae_lens_6/standard_raw"), model),
        (("sparsify/topk",), str(tmp_path / "on")),
    ):
        with pytest.raises(
            InputError, match="with the step center_writing_weights, .*make two bundles|without the step"
        ):
            processing(*names, out="both", model=start)


@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "one after the other"])
def test_modules_of_gpt_neox(parallel: bool, tmp_path: Path) -> None:
    model = neox(use_parallel_residual=parallel)
    bundle = converted(model, tmp_path, processed=False)
    seen: dict[str, tuple[Any, Any]] = {}

    def keep(name: str) -> Any:
        return lambda module, args, kwargs, out: seen.update(
            {name: ((*args, kwargs.get("hidden_states"))[0], out[0] if isinstance(out, tuple) else out)}
        )

    for name, module in model.named_modules():
        if name.startswith("gpt_neox.layers.1") or name == "gpt_neox.embed_in":
            module.register_forward_hook(keep(name), with_kwargs=True)
    model(torch.tensor(TOKENS)[None])
    compared = []
    for name, values in seen.items():
        for hook, value in zip(module_hooks(name), values, strict=True):
            if hook is not None:
                expected = value.reshape(len(TOKENS), -1)
                assert_close(_normed(_value(bundle, hook), hook, bundle), expected, "oracle", f"{name}: {hook}")
                compared.append((name.removeprefix("gpt_neox.layers.1"), hook.removeprefix("blocks.1.")))
    assert ("", "hook_resid_post") in compared and ("gpt_neox.embed_in", "hook_embed") in compared
    assert (".attention.dense", "attn.hook_z") in compared and (".mlp.act", "mlp.hook_post") in compared
    assert len(compared) == 17
    assert module_hooks("gpt_neox.layers.1.post_attention_layernorm") == (None, None), (
        "which stream depends on the config"
    )


def test_paths_of_other_models() -> None:
    assert module_hooks("model.layers.3") == ("blocks.3.hook_resid_pre", "blocks.3.hook_resid_post")
    assert module_hooks("gpt_neox.layers.12.mlp") == ("blocks.12.ln2.hook_normalized", "blocks.12.hook_mlp_out")
    assert module_hooks("resid_post_layer_4") == (None, "blocks.4.hook_resid_post")
    assert module_hooks("layers.3.mystery") == (None, None)
    assert module_hooks("best") == (None, None)
    assert (module_layer("h.7.mlp"), module_layer("attn_out_layer_2"), module_layer("wte")) == (7, 2, None)


def test_a_hook_that_is_asked_for_must_agree(neo: Any, tmp_path: Path) -> None:
    neo.save_pretrained(tmp_path / "neo")
    given = source("sparsify/topk").path
    with pytest.raises(
        InputError, match="its files say blocks.0.hook_resid_post, but --hook is blocks.1.hook_resid_post"
    ):
        convert(str(tmp_path / "neo"), [SAESource(given, hook="blocks.1.hook_resid_post")], "bundle")
    with pytest.raises(InputError, match="is no transcoder, so it has no --hook-out blocks.1.hook_mlp_out"):
        convert(str(tmp_path / "neo"), [SAESource(given, hook_out="blocks.1.hook_mlp_out")], "bundle")
