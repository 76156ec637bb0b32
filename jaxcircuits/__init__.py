"""Exact attribution between the features of sparse autoencoders, in JAX."""

from importlib.metadata import version

from jaxcircuits.attribution import Result, Settings, attribute, attribute_pairs
from jaxcircuits.bulk import Run, load_run
from jaxcircuits.bundle import Bundle, check_bundle, load_bundle, load_sae, save_bundle
from jaxcircuits.config import ModelConfig, SAEConfig
from jaxcircuits.convert import export_sae, sae_from_arrays
from jaxcircuits.corpus import read_corpus
from jaxcircuits.errors import InputError
from jaxcircuits.evaluation import BOS, CorpusFile, Evaluation, describe_features, evaluate, token_losses
from jaxcircuits.generation import generate
from jaxcircuits.interventions import Change, ablate, intervene, scale, set_feature, splice_edits, steer
from jaxcircuits.model import forward, hook_names, process_weights
from jaxcircuits.sae import SAE, decode, encode, pre_activations, reconstruct, sae_error

__version__ = version("jaxcircuits")

__all__ = [
    "BOS",
    "SAE",
    "Bundle",
    "Change",
    "CorpusFile",
    "Evaluation",
    "InputError",
    "ModelConfig",
    "Result",
    "Run",
    "SAEConfig",
    "Settings",
    "ablate",
    "attribute",
    "attribute_pairs",
    "check_bundle",
    "decode",
    "describe_features",
    "encode",
    "evaluate",
    "export_sae",
    "forward",
    "generate",
    "hook_names",
    "intervene",
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
    "scale",
    "set_feature",
    "splice_edits",
    "steer",
    "token_losses",
]
