"""Exact attribution between the features of sparse autoencoders, in JAX."""

from importlib.metadata import version

from jaxcircuits.attribution import Result, Settings, attribute
from jaxcircuits.bulk import Run, load_run
from jaxcircuits.bundle import Bundle, load_bundle, load_sae, save_bundle
from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.convert import export_sae, sae_from_arrays
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.model import forward, hook_names, process_weights
from jaxcircuits.sae import SAE, decode, encode, pre_activations, reconstruct, sae_error

__version__ = version("jaxcircuits")

__all__ = [
    "SAE",
    "Bundle",
    "InputError",
    "ModelConfig",
    "Result",
    "Run",
    "SAEConfig",
    "Settings",
    "attribute",
    "decode",
    "encode",
    "export_sae",
    "forward",
    "hook_names",
    "load_bundle",
    "load_run",
    "load_sae",
    "pre_activations",
    "process_weights",
    "read_corpus",
    "reconstruct",
    "sae_error",
    "sae_from_arrays",
    "save_bundle",
]
