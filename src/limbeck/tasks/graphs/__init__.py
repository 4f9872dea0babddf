"""Graphs whose nodes are to be classified: files, made ones, and the graph networks that teach."""

from limbeck.tasks.graphs.computed import block_model, digits_graph, nearest_neighbours
from limbeck.tasks.graphs.files import load_graph
from limbeck.tasks.graphs.graph import Graph, graph_of, per_class_split
from limbeck.tasks.graphs.teachers import GraphTeacherOptions, mean_confidence, node_logits, train_teacher

__all__ = [
    "Graph",
    "GraphTeacherOptions",
    "block_model",
    "digits_graph",
    "graph_of",
    "load_graph",
    "mean_confidence",
    "nearest_neighbours",
    "node_logits",
    "per_class_split",
    "train_teacher",
]
