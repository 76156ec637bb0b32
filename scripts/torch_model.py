"""A bundle in PyTorch: the model as TransformerLens has it, and autoencoders."""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import relu
from transformer_lens import HookedTransformer, HookedTransformerConfig

from jaxcircuits.config import ModelConfig
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights


def transformer_lens_model(cfg: ModelConfig, params: ModelWeights) -> HookedTransformer:
    """A TransformerLens model of *unprocessed* weights, which TransformerLens itself processes as `cfg` says.

    Every parameter requires gradients, as TransformerLens leaves them.
    """
    if cfg.attention_scale != 1.0:
        raise ValueError("GPT-Neo does not scale its scores")
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=cfg.n_layers,
            d_model=cfg.d_model,
            n_heads=cfg.n_heads,
            d_head=cfg.d_head,
            d_mlp=cfg.d_mlp,
            d_vocab=cfg.d_vocab,
            n_ctx=cfg.n_ctx,
            eps=cfg.eps,
            attn_types=list(cfg.attention),
            window_size=cfg.window,
            act_fn="gelu_new",
            use_attn_scale=False,
            use_local_attn=True,
            normalization_type="LN",
            original_architecture="GPTNeoForCausalLM",
            init_weights=False,
            device="cpu",
        ),
        tokenizer=None,
        move_to_device=False,
    )
    model.load_and_process_state_dict(
        _state_dict(params),
        fold_ln="fold_layer_norm" in cfg.processing,
        center_writing_weights="center_writing_weights" in cfg.processing,
        center_unembed="center_unembed" in cfg.processing,
        fold_value_biases="fold_value_biases" in cfg.processing,
    )
    return model.requires_grad_(True).eval()


def _state_dict(params: ModelWeights) -> dict[str, torch.Tensor]:
    named: dict[str, Any] = {"embed.W_E": params.W_E, "pos_embed.W_pos": params.W_pos}
    named |= {"unembed.W_U": params.W_U, "unembed.b_U": params.b_U}
    parts: dict[str, Any] = {"ln_final": params.ln_final}
    for layer, block in enumerate(params.blocks):
        parts |= {f"blocks.{layer}.{part}": weights for part, weights in block._asdict().items()}
    for part, weights in parts.items():
        named |= {} if weights is None else {f"{part}.{name}": w for name, w in weights._asdict().items()}
    return {name: torch.tensor(np.asarray(w)) for name, w in named.items()}


class TorchSAE:
    """A ReLU autoencoder; its weights require no gradients, which spares the notebook's way some work."""

    def __init__(self, sae: SAE) -> None:
        if sae.cfg.activation != "relu":
            raise ValueError(f"expected a ReLU autoencoder, got {sae.cfg.activation}")
        self.hook_name = sae.cfg.hook_name
        self.layer = int(self.hook_name.split(".")[1])
        if self.hook_name != f"blocks.{self.layer}.mlp.hook_post":
            raise ValueError(f"expected an autoencoder on mlp.hook_post, got {self.hook_name}")
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (torch.tensor(np.asarray(w)) for w in sae.weights[:4])
        self.readers = self.W_enc.T.contiguous()  # a target's column in one piece
        self.subtracted = self.b_dec if sae.cfg.subtract_b_dec else torch.zeros_like(self.b_dec)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature activations."""
        return relu((x - self.subtracted) @ self.W_enc + self.b_enc)

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """What splicing puts in the place of `x`."""
        return self.encode(x) @ self.W_dec + self.b_dec


Pair = tuple[TorchSAE, TorchSAE]
"""The source's autoencoder and the target's, on `mlp.hook_post` of a layer and of the next."""


def torch_saes(source: SAE, target: SAE) -> Pair:
    """Both autoencoders in PyTorch."""
    pair = TorchSAE(source), TorchSAE(target)
    if pair[1].layer != pair[0].layer + 1:
        raise ValueError(f"expected adjacent layers, got {pair[0].layer} and {pair[1].layer}")
    return pair
