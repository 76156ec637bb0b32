"""Attribution of target features to source features: one definition, one reference, faster paths that must agree."""

from jaxcircuits.attribution.api import attribute
from jaxcircuits.attribution.edges import Result
from jaxcircuits.attribution.engine import Engine
from jaxcircuits.attribution.pairs import attribute_pairs
from jaxcircuits.attribution.problem import Settings, resolve

__all__ = ["Engine", "Result", "Settings", "attribute", "attribute_pairs", "resolve"]
