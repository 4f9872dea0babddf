"""Graphs as edge lists, and what is smooth on them.

Edges are integers (2, E), the nodes that an edge leaves and enters; an undirected graph lists each edge both ways. A is its
adjacency matrix, D the diagonal of degrees, P = D^-1/2 A D^-1/2 the normalised operator, with eigenvalues in [-1, 1]. I - P is the
normalised Laplacian: eigenvectors of P near 1 are smooth (low frequency), those near -1 change sign along edges (high frequency).
I = (I + P) / 2 + (I - P) / 2 splits every signal into the two.
"""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError


def check_edges(edges: Tensor, nodes: int) -> None:
    """Raise LimbeckError unless edges are integers (2, E) in [0, nodes)."""
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype not in (torch.int64, torch.int32):
        raise LimbeckError(
            f"edges must be integers (2, E), the nodes that an edge leaves and enters, not {edges.dtype} {tuple(edges.shape)}; "
            "transpose a list of pairs"
        )
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
        raise LimbeckError(
            f"edges name the nodes {int(edges.min())} to {int(edges.max())}, but there are {nodes}: number them 0 to {nodes - 1}"
        )


def undirected(edges: Tensor, nodes: int) -> Tensor:
    """Every edge both ways and once, sorted, without loops (2, E), int64."""
    check_edges(edges, nodes)
    edges = without_loops(edges.long())
    both = torch.cat([edges, edges.flip(0)], 1)
    keys = torch.unique(both[0] * nodes + both[1])
    return torch.stack([keys // nodes, keys % nodes])


def is_undirected(edges: Tensor, nodes: int) -> bool:
    """Is every edge listed both ways?"""
    check_edges(edges, nodes)
    there, back = (torch.unique(a.long() * nodes + b.long()) for a, b in ((edges[0], edges[1]), (edges[1], edges[0])))
    return torch.equal(there, back)


def without_loops(edges: Tensor) -> Tensor:
    """The edges between two different nodes."""
    return edges[:, edges[0] != edges[1]]


def with_loops(edges: Tensor, nodes: int) -> Tensor:
    """The edges, and one loop at each of the nodes: (2, E + nodes), the loops last."""
    loops = torch.arange(nodes, device=edges.device)
    return torch.cat([without_loops(edges), loops.expand(2, -1)], 1)


def degrees(edges: Tensor, nodes: int) -> Tensor:
    """How many edges leave each node (nodes,), int64."""
    return torch.bincount(edges[0], minlength=nodes)


def propagate(x: Tensor, edges: Tensor) -> Tensor:
    """P x for a signal x (N, ...) on an undirected graph, linear in E. An isolated node gets 0."""
    scale = degrees(edges, len(x)).to(x.dtype).clamp(min=1).rsqrt().reshape(-1, *(1,) * (x.ndim - 1))
    scaled = x * scale
    return torch.zeros_like(x).index_add(0, edges[0], scaled[edges[1]]) * scale


def low_pass(x: Tensor, edges: Tensor) -> Tensor:
    """(I + P) x: a sum over the neighbourhood."""
    return x + propagate(x, edges)


def high_pass(x: Tensor, edges: Tensor) -> Tensor:
    """(I - P) x: how a node differs from its neighbours. (low_pass + high_pass) / 2 is x."""
    return x - propagate(x, edges)


def dirichlet_energy(x: Tensor, edges: Tensor) -> Tensor:
    """x^T (I - P) x of every column of x (N, ...), so (...): 0 for the smoothest signal, at most 2 |x|^2."""
    return (x * high_pass(x, edges)).sum(0)
