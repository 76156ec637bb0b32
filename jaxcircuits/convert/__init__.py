"""Bundles from foreign checkpoints: one format a file; its names occur nowhere else."""

from jaxcircuits.convert.api import convert

__all__ = ["convert"]
