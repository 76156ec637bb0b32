"""From edges to circuits."""

from jaxcircuits.graph.build import build_graph
from jaxcircuits.graph.curves import Faithfulness
from jaxcircuits.graph.exchange import to_circuit_tracer, to_networkx
from jaxcircuits.graph.faithfulness import Question, faithfulness
from jaxcircuits.graph.graph import KINDS, LEAVES, PARTS, Graph, Nodes
from jaxcircuits.graph.influence import Scores, edge_influence, effect, influence, scores
from jaxcircuits.graph.interactions import FeatureAt, Interaction, conjunctions, interactions
from jaxcircuits.graph.labels import Labels, read_labels
from jaxcircuits.graph.prune import feature_node, leading_to, prune
from jaxcircuits.graph.schema import schema_problems
from jaxcircuits.graph.settings import GraphSettings
from jaxcircuits.graph.store import load_graph, save_graph, write_graph

__all__ = [
    "KINDS",
    "LEAVES",
    "PARTS",
    "Faithfulness",
    "FeatureAt",
    "Graph",
    "GraphSettings",
    "Interaction",
    "Labels",
    "Nodes",
    "Question",
    "Scores",
    "build_graph",
    "conjunctions",
    "edge_influence",
    "effect",
    "faithfulness",
    "feature_node",
    "influence",
    "interactions",
    "leading_to",
    "load_graph",
    "prune",
    "read_labels",
    "save_graph",
    "schema_problems",
    "scores",
    "to_circuit_tracer",
    "to_networkx",
    "write_graph",
]
