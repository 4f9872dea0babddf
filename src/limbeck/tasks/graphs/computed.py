"""Graphs that are computed: the contextual stochastic block model, and neighbours among scikit-learn's digits."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.spectral import undirected
from limbeck.tasks.digit_features import load_digits
from limbeck.tasks.graphs.graph import Graph, graph_of, per_class_split

MOST_NODES = 20_000  # pairs of nodes are drawn one by one


def block_model(
    nodes: int = 1200,
    classes: int = 4,
    homophily: float = 0.8,
    degree: float = 6.0,
    features: int = 64,
    separation: float = 1.5,
    labels: int = 20,
    seed: int = 0,
) -> Graph:
    """The contextual stochastic block model (arXiv 1807.09596).

    Classes of equal size. Every pair of nodes is an edge with one of two probabilities, so that the mean degree is ``degree`` and
    ``homophily`` is the share of edges within a class. A node's features are N(mu, I), with mu of length ``separation``, the
    classes' mu orthogonal. ``labels`` per class are known, a fifth of the nodes choose, the rest judge.
    """
    if not (0 <= homophily <= 1 and degree > 0 and 2 <= classes <= features and nodes >= 2 * classes and separation >= 0):
        raise LimbeckError(
            f"homophily={homophily:g} must lie in [0, 1], degree={degree:g} be positive, and there are 2 to features={features} "
            f"classes, not {classes}, with at least 2 nodes each"
        )
    if nodes > MOST_NODES:
        raise LimbeckError(f"nodes={nodes}: every pair is drawn, so at most {MOST_NODES}")
    val = nodes // 5
    if labels < 1 or labels * classes + val >= nodes:
        raise LimbeckError(
            f"labels={labels} of each of {classes} classes and {val} nodes to choose leave none of {nodes} to judge; at least 1 label"
        )
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % classes
    same = y[:, None] == y
    inside, outside = nodes / classes - 1, nodes - nodes / classes
    chance = torch.where(same, degree * homophily / inside, degree * (1 - homophily) / outside)
    if float(chance.max()) > 1:
        raise LimbeckError(f"degree={degree:g} is more than {nodes} nodes in {classes} classes can have; give more nodes")
    drawn = torch.rand(nodes, nodes, generator=generator) < chance
    edges = drawn.triu(1).nonzero().T
    directions = torch.linalg.qr(torch.randn(features, classes, generator=generator))[0].T
    x = separation * directions[y] + torch.randn(nodes, features, generator=generator)
    train, val_rows, test = per_class_split(y, labels, val, nodes - val - labels * classes, seed)
    return graph_of(x=x, edges=undirected(edges, nodes), y=y, train=train, val=val_rows, test=test, name="block model")


def nearest_neighbours(x: Tensor, k: int = 8) -> Tensor:
    """Undirected edges (2, E): i and j where one is among the k nearest of the other (Euclidean)."""
    if not 1 <= k < len(x):
        raise LimbeckError(f"k={k} neighbours: between 1 and {len(x) - 1}, one less than the {len(x)} points")
    distance = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    near = distance.topk(k, largest=False).indices
    start = torch.arange(len(x), device=x.device)[:, None].expand_as(near)
    return undirected(torch.stack([start.flatten(), near.flatten()]), len(x))


def digits_graph(k: int = 8, labels: int = 5, seed: int = 0) -> Graph:
    """scikit-learn's 1,797 digits: edges are the ``k`` nearest by their left half, features are the 32 pixels of the right half.

    ``labels`` per class are known, 300 digits choose, the rest judge.
    """
    images, y = load_digits()
    train, val, test = per_class_split(y, labels, 300, len(y) - 300 - 10 * labels, seed)
    edges = nearest_neighbours(images[..., :4].flatten(1), k)
    return graph_of(x=images[..., 4:].flatten(1), edges=edges, y=y, train=train, val=val, test=test, name="digits")
