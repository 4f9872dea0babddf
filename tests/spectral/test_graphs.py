"""Filters and energy against dense eigenvectors, and edge lists against dense adjacency matrices."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.spectral import (
    check_edges,
    degrees,
    dirichlet_energy,
    high_pass,
    is_undirected,
    low_pass,
    propagate,
    undirected,
    with_loops,
    without_loops,
)

F64 = torch.float64


def graph(nodes=12, edges=20, seed=0):
    """Undirected edges of a random graph, its last node isolated, and its dense adjacency matrix."""
    generator = torch.Generator().manual_seed(seed)
    found = undirected(torch.randint(nodes - 1, (2, edges), generator=generator), nodes)
    dense = torch.zeros(nodes, nodes, dtype=F64)
    dense[found[0], found[1]] = 1
    return found, dense


def operator(dense):
    scale = dense.sum(1).clamp(min=1).rsqrt()
    return scale[:, None] * dense * scale


@pytest.mark.parametrize("seed", [0, 1])
def test_filters_scale_the_eigenvectors(seed):
    edges, dense = graph(seed=seed)
    values, vectors = torch.linalg.eigh(operator(dense))
    assert float(values.min()) >= -1 - 1e-12 and float(values.max()) == pytest.approx(1, abs=1e-12)
    for x in (torch.randn(12, 3, dtype=F64), torch.randn(12, dtype=F64), torch.randn(12, 2, 2, dtype=F64)):
        at = torch.einsum("ik,i...->k...", vectors, x)
        for found, gain in ((propagate, values), (low_pass, 1 + values), (high_pass, 1 - values)):
            expected = torch.einsum("ik,k,k...->i...", vectors, gain, at)
            torch.testing.assert_close(found(x, edges), expected, rtol=0, atol=1e-13)
        energy = torch.einsum("k,k...->...", 1 - values, at.square())
        torch.testing.assert_close(dirichlet_energy(x, edges), energy, rtol=0, atol=1e-12)
        torch.testing.assert_close((low_pass(x, edges) + high_pass(x, edges)) / 2, x, rtol=0, atol=1e-14)


def test_the_energy_is_a_sum_of_squared_differences_along_edges():
    edges, dense = graph()
    x = torch.randn(12, dtype=F64)
    scaled = x / dense.sum(1).clamp(min=1).sqrt()
    alone = dense.sum(1) == 0
    expected = (scaled[edges[0]] - scaled[edges[1]]).square().sum() / 2 + x[alone].square().sum()
    assert bool(alone[-1]) and float(dirichlet_energy(x, edges)) == pytest.approx(float(expected), rel=1e-13)
    smooth = dense.sum(1).sqrt()
    assert float(dirichlet_energy(smooth, edges)) == pytest.approx(0, abs=1e-12)


def test_filters_can_be_trained_through():
    edges, _ = graph()
    assert torch.autograd.gradcheck(lambda x: dirichlet_energy(x, edges), torch.randn(12, 2, dtype=F64, requires_grad=True))


def test_edge_lists():
    given = torch.tensor([[0, 2, 2, 3, 0], [1, 2, 0, 0, 1]])
    assert not is_undirected(given, 5)
    both = undirected(given, 5)
    assert both.tolist() == [[0, 0, 0, 1, 2, 3], [1, 2, 3, 0, 0, 0]]
    assert is_undirected(both, 5) and torch.equal(undirected(both, 5), both)
    assert degrees(both, 5).tolist() == [3, 1, 1, 1, 0]
    loops = with_loops(given, 5)
    assert loops.shape == (2, 4 + 5) and torch.equal(without_loops(loops), without_loops(given))
    assert torch.equal(loops[:, 4:], torch.arange(5).expand(2, -1))
    empty = torch.zeros(2, 0, dtype=torch.int64)
    assert undirected(empty, 3).shape == (2, 0) and is_undirected(empty, 3)
    assert torch.equal(propagate(torch.ones(3, 2), empty), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.zeros(4, 2, dtype=torch.int64), r"edges must be integers \(2, E\).*\(4, 2\); transpose a list of pairs"),
        (torch.zeros(2, 4), r"edges must be integers \(2, E\).*torch.float32"),
        (torch.tensor([[0, 5], [1, 2]]), "edges name the nodes 0 to 5, but there are 5: number them 0 to 4"),
        (torch.tensor([[0, -1], [1, 2]]), "edges name the nodes -1 to 2"),
    ],
)
def test_bad_edges(edges, message):
    with pytest.raises(LimbeckError, match=message):
        check_edges(edges, 5)
