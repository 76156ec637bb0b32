"""Sparse autoencoders on hook points; knows nothing of transformers."""

from jaxcircuits.sae.coder import SAE, activate, decode, encode, pre_activations, reconstruct, sae_error

__all__ = ["SAE", "activate", "decode", "encode", "pre_activations", "reconstruct", "sae_error"]
