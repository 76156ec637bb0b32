"""From edges to circuits."""

from jaxcircuits.graph.build import build_graph
from jaxcircuits.graph.faithfulness import Faithfulness, Question, faithfulness
from jaxcircuits.graph.graph import KINDS, LEAVES, PARTS, Graph, Nodes
from jaxcircuits.graph.influence import Scores, edge_influence, effect, influence, scores
from jaxcircuits.graph.prune import prune
from jaxcircuits.graph.settings import GraphSettings

__all__ = [
    "KINDS",
    "LEAVES",
    "PARTS",
    "Faithfulness",
    "Graph",
    "GraphSettings",
    "Nodes",
    "Question",
    "Scores",
    "build_graph",
    "edge_influence",
    "effect",
    "faithfulness",
    "influence",
    "prune",
    "scores",
]
