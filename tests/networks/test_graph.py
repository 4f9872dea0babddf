"""Graph networks against their formulas on dense adjacency matrices, and the perceptron."""

import builtins
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.networks import GraphNetwork, perceptron
from limbeck.spectral import undirected

F64, NODES = torch.float64, 8


def graph():
    generator = torch.Generator().manual_seed(0)
    edges = undirected(torch.randint(NODES - 1, (2, 10), generator=generator), NODES)  # the last node is isolated
    dense = torch.eye(NODES, dtype=F64)
    dense[edges[0], edges[1]] = 1
    return edges, dense, torch.randn(NODES, 5, generator=generator, dtype=F64)


def network(kind, **options):
    torch.manual_seed(0)
    net = GraphNetwork(kind, 5, 6, 3, **options).double().eval()
    for p in net.parameters():  # biases begin at 0
        nn.init.normal_(p, std=0.5)
    return net


def convolved(kind, layer, x, dense, heads):
    """One convolution by its paper's formula; ``dense`` is the adjacency matrix with loops."""
    if kind == "gcn":
        scale = dense.sum(1).rsqrt()
        return scale[:, None] * dense * scale @ x @ layer.lin.weight.T + layer.bias
    if kind == "sage":
        return dense / dense.sum(1, keepdim=True) @ x @ layer.lin_l.weight.T + layer.lin_l.bias
    h = (x @ layer.lin.weight.T).reshape(len(x), heads, -1)
    source, target = ((h * a).sum(2) for a in (layer.att_src, layer.att_dst))
    scores = F.leaky_relu(target[:, None] + source[None], 0.2)  # (to, from, heads)
    weights = scores.masked_fill(dense[..., None] == 0, -torch.inf).softmax(1)
    mixed = torch.einsum("ijh,jhd->ihd", weights, h)
    return (mixed.flatten(1) if layer.concat else mixed.mean(1)) + layer.bias


@pytest.mark.parametrize("kind", ["gcn", "gat", "sage"])
def test_networks_are_their_formulas(kind):
    edges, dense, x = graph()
    net = network(kind, layers=3, heads=2)
    expected = x
    for i, layer in enumerate(net.convolutions):
        expected = convolved(kind, layer, expected, dense, 2)
        expected = expected.relu() if i < 2 else expected
    torch.testing.assert_close(net(x, edges), expected, rtol=0, atol=1e-12)
    assert net(x, edges).shape == (NODES, 3)


def test_dropout_acts_in_training_alone():
    edges, _, x = graph()
    net = network("gcn", dropout=0.5)
    assert torch.equal(net(x, edges), net(x, edges))
    assert not torch.equal(net.train()(x, edges), net.eval()(x, edges))


def test_the_perceptron():
    net = perceptron(5, 6, 3, layers=3, dropout=0.4)
    assert [type(m).__name__ for m in net] == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert net[2].p == 0.4 and net(torch.zeros(2, 5)).shape == (2, 3)
    assert [type(m).__name__ for m in perceptron(5, 6, 3, layers=1)] == ["Linear"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GraphNetwork("gin", 5, 6, 3), "unknown graph network 'gin'"),
        (lambda: GraphNetwork("gat", 5, 6, 3, heads=4), "hidden=6 must be a multiple of heads=4"),
        (lambda: GraphNetwork("gcn", 5, 6, 3, layers=0), "layers=0 and hidden=6 must be at least 1"),
        (lambda: perceptron(5, 6, 3, dropout=1.0), r"dropout=1 lie in \[0, 1\)"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_without_torch_geometric_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("torch_geometric"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.startswith("torch_geometric")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(LimbeckError, match=r"graph networks need torch-geometric: pip install 'limbeck\[graph\]'"):
        GraphNetwork("gcn", 5, 6, 3)
