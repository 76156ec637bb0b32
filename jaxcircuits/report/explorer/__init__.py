"""The explorer: a graph as one self-contained HTML page, drawn with d3, without a network or a server."""

from jaxcircuits.report.explorer.cards import describe_graph
from jaxcircuits.report.explorer.content import content
from jaxcircuits.report.explorer.page import page, write_page
from jaxcircuits.report.explorer.run_graph import run_to_graph

__all__ = ["content", "describe_graph", "page", "run_to_graph", "write_page"]
