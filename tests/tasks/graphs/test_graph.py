"""Graphs: from torch-geometric, from tensors, computed ones by their laws, the inductive split, teachers, and every bad input."""

from dataclasses import replace

import pytest
import torch
from sklearn.neighbors import kneighbors_graph
from torch import nn
from torch_geometric.data import Data, HeteroData

from limbeck.errors import LimbeckError
from limbeck.spectral import is_undirected, undirected
from limbeck.tasks import load_digits
from limbeck.tasks.graphs import (
    GraphTeacherOptions,
    block_model,
    digits_graph,
    graph_of,
    load_graph,
    mean_confidence,
    nearest_neighbours,
    node_logits,
    per_class_split,
    teachers,
    train_teacher,
)


def tensors(**changes):
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    given = {"x": torch.eye(4), "edges": edges, "y": torch.tensor([0, 1, 0, 1]), "train": torch.tensor([0, 1])}
    return graph_of(**given | changes)


def test_a_graph_of_torch_geometric_is_that_of_its_tensors():
    mask = torch.tensor([True, True, False, False])
    data = Data(x=torch.eye(4), edge_index=torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), y=torch.tensor([[0], [1], [0], [1]]))
    data.train_mask, data.test_mask = mask, ~mask
    found, expected = graph_of(data), tensors(test=torch.tensor([2, 3]))
    assert all(
        torch.equal(getattr(found, k), getattr(expected, k)) for k in ("x", "edges", "y", "train", "val", "test", "hidden")
    )
    assert len(found.val) == 0 and found.classes == 2 and found.nodes == 4
    with pytest.raises(LimbeckError, match=r"several kinds of nodes .* data.to_homogeneous\(\)"):
        graph_of(HeteroData())


def test_directed_edges_are_made_undirected_with_a_warning_and_the_rest_silently():
    with pytest.warns(UserWarning, match="the edges are directed"):
        g = tensors(edges=torch.tensor([[0, 1], [1, 2]]))
    assert torch.equal(g.edges, tensors().edges)
    twice = torch.tensor([[0, 1, 1, 2, 3, 0, 1], [1, 0, 2, 1, 3, 1, 0]])
    assert torch.equal(tensors(edges=twice).edges, tensors().edges)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, r"a graph needs x \(N, F\), edges"),
        ({"train": None}, "which nodes are labelled"),
        ({"x": torch.zeros(4)}, r"features \(4,\) must be \(N, F\)"),
        ({"y": torch.zeros(4)}, "classes .* integers, not torch.float32"),
        ({"x": torch.full((4, 4), torch.nan)}, r"features of 4 nodes \(the first: 0\) hold NaN"),
        ({"edges": torch.tensor([[0, 4], [4, 0]])}, "edges name the nodes 0 to 4, but there are 4"),
        ({"train": torch.tensor([4])}, r"train must be a mask \(4,\) or numbers of nodes below 4"),
        ({"val": torch.zeros(3, dtype=torch.bool)}, r"val must be a mask \(4,\)"),
        ({"train": torch.zeros(4, dtype=torch.bool)}, "0 nodes are in train: it needs at least one"),
        ({"y": torch.tensor([-1, 0, 1, 1])}, "each needs its class"),
    ],
)
def test_bad_graphs(changes, message):
    with pytest.raises(LimbeckError, match=message):
        tensors(**changes)


def test_the_block_model_has_its_law():
    g = block_model(1600, 4, 0.7, 10.0, 32, 3.0, 20, seed=3)
    assert is_undirected(g.edges, 1600) and not bool((g.edges[0] == g.edges[1]).any())
    assert g.edges.shape[1] / 1600 == pytest.approx(10, abs=4 * (2 * 10 / 1600) ** 0.5)  # four deviations of a Poisson number
    same = (g.y[g.edges[0]] == g.y[g.edges[1]]).double().mean()
    assert float(same) == pytest.approx(0.7, abs=4 * (0.21 / 8000) ** 0.5)
    means = torch.stack([g.x[g.y == c].mean(0) for c in range(4)])
    torch.testing.assert_close(means @ means.T, 9 * torch.eye(4) + 32 / 400 * torch.eye(4), rtol=0, atol=0.75)
    assert float((g.x - means[g.y]).var()) == pytest.approx(1, abs=0.02)
    assert torch.bincount(g.y[g.train]).tolist() == 4 * [20] and len(g.val) == 320 and len(g.test) == 1600 - 80 - 320
    assert torch.equal(g.edges, block_model(1600, 4, 0.7, 10.0, 32, 3.0, 20, seed=3).edges)
    assert not torch.equal(g.x, block_model(1600, 4, 0.7, 10.0, 32, 3.0, 20, seed=4).x)


def test_neighbours_are_scikit_learns():
    images, labels = load_digits()
    left = images[:200, ..., :4].flatten(1).double() + torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 1e-4
    dense = kneighbors_graph(left.numpy(), 8).toarray()
    expected = torch.from_numpy(((dense + dense.T) > 0).nonzero()[0]), torch.from_numpy(((dense + dense.T) > 0).nonzero()[1])
    assert torch.equal(nearest_neighbours(left, 8), torch.stack(expected))
    g = digits_graph(labels=5, seed=1)
    assert torch.equal(g.x, images[..., 4:].flatten(1)) and torch.equal(g.y, labels)
    assert torch.bincount(g.y[g.train]).tolist() == 10 * [5] and len(g.test) == 1797 - 350 and is_undirected(g.edges, 1797)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: block_model(homophily=1.2), r"homophily=1.2 must lie in \[0, 1\]"),
        (lambda: block_model(nodes=30_000), "nodes=30000: every pair is drawn, so at most 20000"),
        (lambda: block_model(nodes=40, degree=20.0, labels=2), "degree=20 is more than 40 nodes in 4 classes can have"),
        (lambda: block_model(nodes=100), "labels=20 of each of 4 classes and 20 nodes to choose leave none of 100 to judge"),
        (lambda: nearest_neighbours(torch.zeros(4, 2), 4), "k=4 neighbours: between 1 and 3"),
        (
            lambda: per_class_split(torch.arange(6) % 2, 2, 2, 2),
            "6 classified nodes do not hold 2 of each of 2 classes and 2 . 2",
        ),
        (lambda: tensors(test=torch.tensor([2, 3])).inductive(0.0), r"share=0 of the test nodes .* \(0, 1\]"),
        (lambda: train_teacher(tensors(), GraphTeacherOptions(choose=True)), "choose=True needs validation nodes"),
        (lambda: load_graph("/nowhere"), "/nowhere holds no graph 'cora'"),
    ],
)
def test_what_cannot_be_made(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_the_inductive_graph():
    g = block_model(400, labels=10)
    part = g.inductive(0.25, seed=2)
    assert len(part.hidden) == round(0.25 * len(g.test)) and bool(torch.isin(part.hidden, g.test).all())
    touching = torch.isin(g.edges, part.hidden).any(0)
    assert torch.equal(part.edges, g.edges[:, ~touching]) and int(touching.sum()) > 0
    assert sorted(part.seen.tolist() + part.hidden.tolist()) == list(range(400))
    moved = part.to("cpu", torch.float64)
    assert moved.x.dtype == torch.float64 and torch.equal(moved.edges, part.edges) and moved.name == part.name


def test_a_trained_teacher_is_right_sure_and_the_same_twice():
    g = block_model(400, separation=2.5, labels=10)
    options = GraphTeacherOptions(hidden=16, epochs=30, seed=4)
    torch.manual_seed(0)
    first = node_logits(train_teacher(g, options), g)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    network = train_teacher(g, options)
    assert torch.equal(first, node_logits(network, g)) and torch.equal(state, torch.get_rng_state()) and not network.training
    assert float((first.argmax(1) == g.y)[g.test].double().mean()) > 0.85 and mean_confidence(first) > 0.6
    other = node_logits(train_teacher(g, replace(options, seed=5)), g)
    assert not torch.equal(first, other)


def test_the_chosen_epoch_is_the_best_on_the_validation_nodes(monkeypatch):
    g = block_model(400, separation=1.0, labels=5)
    seen = []

    def watched(network, graph):
        seen.append(node_logits(network, graph))
        return seen[-1]

    monkeypatch.setattr(teachers, "node_logits", watched)
    network = train_teacher(g, GraphTeacherOptions(hidden=8, epochs=60, choose=True))
    correct = [int((h.argmax(1) == g.y)[g.val].sum()) for h in seen]
    best = max(i for i, c in enumerate(correct) if c == max(correct))
    assert len(seen) == 60 and correct[-1] < max(correct) and torch.equal(node_logits(network, g), seen[best])


def test_logits_are_asked_in_evaluation_mode():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x, edges):
            return self.dropout(x)

    network, g = Noisy().train(), tensors()
    assert torch.equal(node_logits(network, g), g.x) and network.training


def test_confidence():
    assert mean_confidence(torch.zeros(3, 4)) == 0.25
    assert mean_confidence(torch.log(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.0, 0.8]]))) == pytest.approx(0.7)
    assert undirected(torch.zeros(2, 0, dtype=torch.int64), 2).shape == (2, 0)
