"""From edges to circuits."""

from jaxcircuits.graph.build import build_graph
from jaxcircuits.graph.graph import KINDS, LEAVES, PARTS, Graph, Nodes
from jaxcircuits.graph.settings import GraphSettings

__all__ = ["KINDS", "LEAVES", "PARTS", "Graph", "GraphSettings", "Nodes", "build_graph"]
