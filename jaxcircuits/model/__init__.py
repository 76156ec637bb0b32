"""Transformers as pure functions of weights, tokens and edits at named hook points."""

from jaxcircuits.model.hooks import Edits, hook_names, hook_width, precedes
from jaxcircuits.model.processing import process_weights
from jaxcircuits.model.transformer import forward

__all__ = ["Edits", "forward", "hook_names", "hook_width", "precedes", "process_weights"]
