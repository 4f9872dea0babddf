"""Graph networks as teachers: trained for a fixed number of epochs, asked once, and how sure they are.

A teacher that is chosen by its accuracy on validation nodes may be one of the first epochs, right but hardly surer than chance:
its students have next to nothing to follow. So nothing is chosen unless asked for, and :func:`mean_confidence` says how sure it is.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks import GraphNetwork
from limbeck.tasks.graphs.graph import Graph
from limbeck.training import Batch, Loop, LoopOptions, Method, OptimizerOptions, Role, Step, TensorSource, Update


@dataclass(frozen=True)
class GraphTeacherOptions:
    """A graph network and its training, on the whole graph at a time."""

    kind: str = "gcn"
    """gcn, gat or sage."""
    layers: int = 2
    hidden: int = 64
    dropout: float = 0.5
    heads: int = 4
    epochs: int = 200
    lr: float = 1e-2
    weight_decay: float = 5e-4
    choose: bool = False
    """Keep the epoch that is best on the validation nodes (the latest of equals)."""
    seed: int = 0


class _NodeClassifier(Method):
    """Cross-entropy on the labelled nodes."""

    def __init__(self, graph: Graph, network: nn.Module, optimizer: OptimizerOptions):
        self.graph, self.network = graph, network
        self.roles = {"teacher": Role(network, optimizer)}

    def step(self, batch: Batch) -> Step:
        g = self.graph
        yield Update("teacher", F.cross_entropy(self.network(g.x, g.edges)[g.train], g.y[g.train]))


def train_teacher(graph: Graph, options: GraphTeacherOptions = GraphTeacherOptions()) -> GraphNetwork:
    """A graph network after its training on the graph, in eval mode. The same seed gives the same one."""
    o = options
    if o.choose and not len(graph.val):
        raise LimbeckError("choose=True needs validation nodes; this graph has none")
    with torch.random.fork_rng(devices=[graph.x.device] if graph.x.is_cuda else []):
        torch.manual_seed(o.seed)
        network = GraphNetwork(o.kind, graph.x.shape[1], o.hidden, graph.classes, o.layers, o.dropout, o.heads)
        network.to(graph.x)
        adam = OptimizerOptions(lr=o.lr, betas=(0.9, 0.999), weight_decay=o.weight_decay)
        method = _NodeClassifier(graph, network, adam)
        loop = Loop(
            method, TensorSource(None, size=1), LoopOptions(o.epochs, batch=1, seed=o.seed), device=graph.x.device, quiet=True
        )
        best, kept = -1.0, network.state_dict()
        if not o.choose:
            loop.train()
        else:
            for _ in range(o.epochs):
                loop.iterate()
                correct = node_logits(network, graph)[graph.val].argmax(1) == graph.y[graph.val]
                if (accuracy := float(correct.double().mean())) >= best:
                    best, kept = accuracy, copy.deepcopy(network.state_dict())
            network.load_state_dict(kept)
    return network.eval()


@torch.no_grad()
def node_logits(network: nn.Module, graph: Graph) -> Tensor:
    """The logits (N, C) of a network (x, edges) -> (N, C) at all nodes, in eval mode; it is left in the mode that it was in."""
    mode = network.training
    try:
        answer = network.eval()(graph.x, graph.edges)
    finally:
        network.train(mode)
    return getattr(answer, "logits", answer)


def mean_confidence(logits: Tensor) -> float:
    """The mean of a node's highest probability: 1 / C (it says nothing) to 1 (it is sure)."""
    return float(logits.double().softmax(1).amax(1).mean())
