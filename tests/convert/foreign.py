"""Foreign sources as their own libraries write them: Hugging Face models, the study's autoencoders, `torch.save`."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

CONFIG: dict[str, Any] = {
    "vocab_size": 31,
    "max_position_embeddings": 16,
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 3,
    "intermediate_size": 20,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "embed_dropout": 0.0,
    "attention_dropout": 0.0,
    "resid_dropout": 0.0,
}
SETTINGS: dict[str, Any] = {
    **{"cfg_file": None, "data_path": "data", "save_path": "saves", "use_wandb": True, "num_eval_tokens": 800000},
    **{"num_training_tokens": 2e9, "batch_size": 10000, "buffer_mult": 10000, "seq_len": 127, "seed": 0},
    **{"model": "tiny-stories-2L-33M", "layer": 0, "act": "mlp.hook_post", "expansion_factor": 4, "lr": 5e-4},
    **{"l1_coeff": 1e-4, "l1_target": None, "wd": 0.01, "beta1": 0.9, "beta2": 0.99, "num_eval_prompts": 200},
    **{"save_checkpoint_models": False, "wandb_name": "morning-sun-18", "save_name": "18_morning_sun"},
}
"""The JSON of an old run: neither `d_in` nor `reg`."""


def hugging_face(**overrides: Any) -> Any:
    """A `GPTNeoForCausalLM` of random parameters, all of them; its own start leaves norms at one and biases at zero."""
    transformers = pytest.importorskip("transformers")
    return randomised(transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(**(CONFIG | overrides))))


def randomised(model: Any) -> Any:
    """The model with every parameter random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                parameter.add_(1.0)
    return model.requires_grad_(False).eval()


def logits_and_posts(model: Any, tokens: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Hugging Face's logits and each layer's MLP activations."""
    posts: list[np.ndarray] = []
    hooks = [b.mlp.act.register_forward_hook(lambda m, x, y: posts.append(y.numpy())) for b in model.transformer.h]
    logits = model(torch.tensor(tokens)).logits.numpy()
    for hook in hooks:
        hook.remove()
    return logits, posts


def save_old(model: Any, path: Path) -> None:
    """As transformers 4.28 did: a pickle with the mask buffers and without the tied head."""
    model.save_pretrained(path)
    (path / "model.safetensors").unlink()
    state = model.state_dict()
    assert state._metadata, "an attribute of the state dict that the pickle sets"
    del state["lm_head.weight"]
    n_ctx, window = model.config.max_position_embeddings, model.config.window_size
    mask = torch.ones(n_ctx, n_ctx, dtype=torch.bool).tril()
    for layer, kind in enumerate(model.config.attention_layers):
        local = mask ^ mask.tril(-window) if kind == "local" else mask
        state[f"transformer.h.{layer}.attn.attention.bias"] = local[None, None]
        state[f"transformer.h.{layer}.attn.attention.masked_bias"] = torch.tensor(-1e9)
    torch.save(state, path / "pytorch_model.bin")
    config = json.loads((path / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    del config["tie_word_embeddings"]
    (path / "config.json").write_text(json.dumps(config))


def autoencoder(d_in: int = 20, d_sae: int = 80, seed: int = 0) -> dict[str, Any]:
    """The tensors of the study's autoencoder; the rows of `W_dec` are *not* of norm one, so that scaling would show."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save_original(path: Path, tensors: Mapping[str, Any] | None = None, **settings: Any) -> Path:
    """Writes `path` and the JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(autoencoder() if tensors is None else tensors, path)
    path.with_suffix(".json").write_text(json.dumps(SETTINGS | settings))
    return path


def save_mixin(path: Path, tensors: Mapping[str, Any], *, pickled: bool = False, **fields: Any) -> Path:
    """Writes a directory as huggingface_hub's mixin does, or as its older versions did."""
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    d_in, d_hidden = tensors["W_enc"].shape
    config = {"d_hidden": d_hidden, "d_in": d_in, "dtype": "torch.float32", "hook_name": "blocks.1.mlp.hook_post"}
    config |= {"layer": 1, "model": "tiny-stories-2L-33M", "regularization": "l1", "seed": 0, "wandb_id": 291}
    (path / "config.json").write_text(json.dumps(config | {"wandb_name": "giddy-water-291"} | fields))
    if pickled:
        torch.save(dict(tensors), path / "pytorch_model.bin")
    else:
        save_file(dict(tensors), path / "model.safetensors")
    return path


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED) -> Path:
    """Unpacks a zip, changes its entries (named without the root), and packs it again."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        entries = {name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    change(entries)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as archive:
        for name, entry in entries.items():
            archive.writestr(f"{root}/{name}", entry)
    path.write_bytes(content.getvalue())
    return path
