"""Transformers as pure functions of weights, tokens and edits at named hook points."""

from jaxcircuits.model.cache import Cache, empty_cache, forward_cached
from jaxcircuits.model.hooks import Edits, hook_names, hook_width, precedes, side_by_side
from jaxcircuits.model.processing import process_weights
from jaxcircuits.model.transformer import forward

__all__ = [
    "Cache",
    "Edits",
    "empty_cache",
    "forward",
    "forward_cached",
    "hook_names",
    "hook_width",
    "precedes",
    "process_weights",
    "side_by_side",
]
