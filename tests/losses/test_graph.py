"""The losses along edges: the definition node by node, symmetries, minimisers, blindness to signs, and every bad input."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses import check_teacher_logits, high_frequency_loss, low_frequency_loss
from limbeck.spectral import undirected, with_loops

F64 = torch.float64
NODES, CLASSES = 9, 4


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def graph(seed=0):
    return undirected(torch.randint(NODES - 1, (2, 14), generator=torch.Generator().manual_seed(seed)), NODES)


def kl(p, q):
    return float(sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)))


def by_hand(z, h, edges, tau):
    """Both losses by their definitions: a double loop over nodes of the adjacency matrix."""
    dense = torch.zeros(NODES, NODES)
    dense[edges[0], edges[1]] = 1
    low, high = [], []
    for i in range(NODES):
        for j in range(NODES):
            if i == j or dense[i, j]:
                low.append(kl(h[j].softmax(0), z[i].softmax(0)))
            if dense[i, j]:
                high.append(kl(((h[i] - h[j]).abs() / tau).softmax(0), ((z[i] - z[j]).abs() / tau).softmax(0)))
    return sum(low) / len(low), sum(high) / len(high)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
def test_the_losses_are_their_definitions(tau):
    z, h, edges = normal(NODES, CLASSES, seed=1), normal(NODES, CLASSES, seed=2), graph()
    low, high = by_hand(z, h, edges, tau)
    assert float(low_frequency_loss(z, h, *with_loops(edges, NODES)).mean()) == pytest.approx(low, abs=1e-13)
    assert float(high_frequency_loss(z, h, *edges, tau).mean()) == pytest.approx(high, abs=1e-13)


def test_the_order_of_the_nodes_is_nothing():
    z, h, edges = normal(NODES, CLASSES, seed=1), normal(NODES, CLASSES, seed=2), graph()
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(3))
    moved = order.argsort()[edges]  # node order[k] is now called k
    for loss, lists, named in (
        (low_frequency_loss, with_loops(edges, NODES), order.argsort()[with_loops(edges, NODES)]),
        (high_frequency_loss, edges, moved),
    ):
        torch.testing.assert_close(loss(z[order], h[order], *named), loss(z, h, *lists), rtol=0, atol=0)


def test_gradients_are_the_students_alone():
    z, h, edges = normal(NODES, CLASSES, seed=1).requires_grad_(), normal(NODES, CLASSES, seed=2).requires_grad_(), graph()
    (low_frequency_loss(z, h, *edges).mean() + high_frequency_loss(z, h, *edges, 1.3).mean()).backward()
    assert h.grad is None and z.grad is not None
    assert torch.autograd.gradcheck(lambda v: low_frequency_loss(v, h, *edges), z)
    assert torch.autograd.gradcheck(lambda v: high_frequency_loss(v, h, *edges, 1.3), z)


def test_the_best_low_frequency_student_is_the_mean_of_the_neighbourhood():
    h, edges = 2 * normal(NODES, CLASSES, seed=2), with_loops(graph(), NODES)
    dense = torch.zeros(NODES, NODES, dtype=F64)
    dense[edges[0], edges[1]] = 1
    mean = dense @ h.softmax(1) / dense.sum(1, keepdim=True)
    best = mean.log().requires_grad_()
    low_frequency_loss(best, h, *edges).mean().backward()
    assert float(best.grad.abs().max()) < 1e-15
    z = torch.zeros(NODES, CLASSES, dtype=F64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = low_frequency_loss(z, h, *edges).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(z.detach().softmax(1), mean, rtol=0, atol=1e-5)


def test_high_frequencies_know_neither_constants_nor_signs():
    h, edges = normal(NODES, CLASSES, seed=2), graph()
    for z in (h, h + 3.0, h + normal(CLASSES), -h):
        assert float(high_frequency_loss(z, h, *edges, 1.2).abs().max()) < 1e-14
    assert float(high_frequency_loss(2 * h, h, *edges, 1.2).mean()) > 1e-2
    assert float(low_frequency_loss(-h, h, *edges).mean()) > 0.1


def test_with_two_classes_only_the_difference_of_the_differences_counts():
    z, h, edges = normal(NODES, 2, seed=1), normal(NODES, 2, seed=2), graph()

    def share(v):
        gap = (v[edges[0]] - v[edges[1]]).abs()
        return torch.sigmoid((gap[:, 0] - gap[:, 1]) / 0.7)

    p, q = share(h), share(z)
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(high_frequency_loss(z, h, *edges, 0.7), expected, rtol=0, atol=1e-13)


def test_loops_alone_are_node_wise_distillation():
    z, h = normal(NODES, CLASSES, seed=1), normal(NODES, CLASSES, seed=2)
    loops = torch.arange(NODES)
    expected = F.kl_div(z.log_softmax(1), h.softmax(1), reduction="none").sum(1)
    torch.testing.assert_close(low_frequency_loss(z, h, loops, loops), expected, rtol=0, atol=1e-14)
    assert high_frequency_loss(z, h, loops[:0], loops[:0]).shape == (0,)


def test_half_precision_is_computed_in_float32():
    z, h, edges = normal(NODES, CLASSES, seed=1).bfloat16(), normal(NODES, CLASSES, seed=2).bfloat16(), graph()
    for loss in (low_frequency_loss, high_frequency_loss):
        assert torch.equal(loss(z, h, *edges), loss(z.float(), h.float(), *edges))


def with_row(value):
    h = normal(NODES, CLASSES)
    h[3] = value
    return h


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (with_row(torch.nan), r"logits of 1 nodes \(the first: 3\) hold NaN or infinity"),
        (with_row(torch.inf), "hold NaN or infinity"),
        (normal(NODES, CLASSES).softmax(1), r"are probabilities \(no entry is negative, and every row sums to 1\)"),
        (normal(NODES - 1, CLASSES), "have 8 rows and the graph 9 nodes: give a row per node"),
        (normal(NODES, 1), r"must be floats \(N, C\) with C >= 2, not torch.float64 \(9, 1\)"),
        (torch.zeros(NODES, CLASSES, dtype=torch.int64), "must be floats"),
    ],
)
def test_bad_teachers(teacher, message):
    with pytest.raises(LimbeckError, match=message):
        check_teacher_logits(teacher, NODES)


def test_bad_pairs():
    edges = graph()
    with pytest.raises(LimbeckError, match="tau=0 must be positive"):
        high_frequency_loss(normal(NODES, CLASSES), normal(NODES, CLASSES), *edges, 0.0)
    for loss in (low_frequency_loss, high_frequency_loss):
        with pytest.raises(LimbeckError, match=r"student \(9, 4\) and teacher \(9, 5\) must be one shape"):
            loss(normal(NODES, CLASSES), normal(NODES, 5), *edges)
