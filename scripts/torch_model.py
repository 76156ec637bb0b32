"""A bundle in PyTorch, as the benchmarks run it: the package's `validation.torch_model`, timed as users run it."""

import torch
from transformer_lens import HookedTransformer

from jaxcircuits.config import ModelConfig
from jaxcircuits.sae import SAE
from jaxcircuits.types import ModelWeights
from jaxcircuits.validation import torch_model


def transformer_lens_model(cfg: ModelConfig, params: ModelWeights) -> HookedTransformer:
    """A TransformerLens model of *unprocessed* weights, which TransformerLens itself processes as `cfg` says.

    Every parameter requires gradients, as TransformerLens leaves them.
    """
    return torch_model.transformer_lens_model(cfg, params, attn_result=False).requires_grad_(True)


class TorchSAE(torch_model.TorchSAE):
    """A ReLU or JumpReLU autoencoder; its weights require no gradients, which spares the notebook's way some work.

    Targets are active, and above its threshold a JumpReLU is a ReLU.
    """

    def __init__(self, sae: SAE) -> None:
        super().__init__(sae)
        if sae.cfg.activation not in ("relu", "jumprelu"):
            raise ValueError(f"expected a ReLU or JumpReLU autoencoder, got {sae.cfg.activation}")
        self.layer = int(self.hook_name.split(".")[1])
        if self.hook_name != f"blocks.{self.layer}.mlp.hook_post":
            raise ValueError(f"expected an autoencoder on mlp.hook_post, got {self.hook_name}")
        self.readers = self.W_enc.T.contiguous()  # a target's column in one piece
        self.subtracted = self.b_dec if sae.cfg.subtract_b_dec else torch.zeros_like(self.b_dec)


Pair = tuple[TorchSAE, TorchSAE]
"""The source's autoencoder and the target's, on `mlp.hook_post` of a layer and of the next."""


def torch_saes(source: SAE, target: SAE) -> Pair:
    """Both autoencoders in PyTorch."""
    pair = TorchSAE(source), TorchSAE(target)
    if pair[1].layer != pair[0].layer + 1:
        raise ValueError(f"expected adjacent layers, got {pair[0].layer} and {pair[1].layer}")
    return pair
