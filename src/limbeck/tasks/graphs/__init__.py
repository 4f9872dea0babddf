"""Graphs whose nodes are to be classified: files, made ones, and the graph networks that teach."""

from limbeck.tasks.graphs.computed import block_model, digits_graph, nearest_neighbours
from limbeck.tasks.graphs.files import load_graph
from limbeck.tasks.graphs.graph import Graph, graph_of, per_class_split
from limbeck.tasks.graphs.task import GraphTask, graph_task, load_perceptron
from limbeck.tasks.graphs.teachers import GraphTeacherOptions, mean_confidence, node_logits, train_teacher

__all__ = [
    "Graph",
    "GraphTask",
    "GraphTeacherOptions",
    "block_model",
    "digits_graph",
    "graph_of",
    "graph_task",
    "load_graph",
    "load_perceptron",
    "mean_confidence",
    "nearest_neighbours",
    "node_logits",
    "per_class_split",
    "train_teacher",
]
