"""Bundles from foreign checkpoints, and autoencoders back: one format a file; its names occur nowhere else."""

from jaxcircuits.convert.api import SAESource, convert
from jaxcircuits.convert.arrays import sae_from_arrays
from jaxcircuits.convert.export import export_sae

__all__ = ["SAESource", "convert", "export_sae", "sae_from_arrays"]
