"""FF-G2M in the loop: its loss by a double loop over nodes, reductions, micro- and mini-batches, resume, and every bad input."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.methods import METHODS, find
from limbeck.methods.structures.ff_g2m import FFG2M, PRESETS, TEACHERS, FFG2MOptions, new_student
from limbeck.tasks.graphs import Graph, graph_of
from limbeck.training import Loop, LoopOptions, OptimizerOptions
from limbeck.training.checkpoints import load

F64, NODES, CLASSES = torch.float64, 12, 4
SGD = OptimizerOptions(lr=1.0, kind="sgd", betas=(0.0, 0.0))
ARMS = ("ff-g2m", "mlp", "glnn", "lfd", "hfd")


def graph(dtype=F64, edges=20):
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(NODES - 1, (2, edges), generator=generator)  # the last node is isolated
    y = torch.arange(NODES) % CLASSES
    return graph_of(
        x=torch.randn(NODES, 5, generator=generator, dtype=dtype), edges=torch.cat([pairs, pairs.flip(0)], 1), y=y,
        train=torch.tensor([0, 1, 2, 7]), val=torch.tensor([3, 4]), test=torch.tensor([5, 6, 8, 9, 10]),
    )  # fmt: skip


def logits(seed=1):
    return 3 * torch.randn(NODES, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=F64)


def net(seed=0, dropout=0.0, dtype=F64, outputs=CLASSES):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, outputs)).to(dtype)


def options(**changes):
    return replace(FFG2MOptions(student=SGD), **changes)


def loop(method, **changes):
    return Loop(method, method.source(), LoopOptions(**{"iterations": 1, "batch": method.batch, **changes}), quiet=True)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def gradient(method, **changes):
    """Minus what one step of the loop adds to the student's weights."""
    before = weights(method.student)
    loop(method, **changes).iterate()
    return before - weights(method.student)


def by_hand(z, h, g, arm, tau, weight):
    """(5) by its definition: a double loop over the nodes of the adjacency matrix."""
    dense = torch.zeros(g.nodes, g.nodes)
    dense[g.edges[0], g.edges[1]] = 1
    labelled = F.cross_entropy(z[g.train], g.y[g.train])
    if arm == "mlp":
        return labelled

    def kl(p, q):
        return (p * (p.log() - q.log())).sum()

    low, high = [], []
    for i in range(g.nodes):
        for j in range(g.nodes):
            if i == j or (dense[i, j] and arm != "glnn"):
                low.append(kl(h[j].softmax(0), z[i].softmax(0)))
            if dense[i, j]:
                high.append(kl(((h[i] - h[j]).abs() / tau).softmax(0), ((z[i] - z[j]).abs() / tau).softmax(0)))
    mean_low, mean_high = (torch.stack(v).mean() for v in (low, high))
    terms = {"ff-g2m": mean_low + mean_high, "glnn": mean_low, "lfd": mean_low, "hfd": mean_high}
    return weight * labelled + (1 - weight) * terms[arm]


@pytest.mark.parametrize("arm", ARMS)
def test_one_step_is_one_step_down_the_loss(arm):
    g, h, student = graph(), logits(), net()
    twin = copy.deepcopy(student)
    method = FFG2M(h, student, g, options(arm=arm, tau=1.3, label_weight=0.3))
    figures = loop(method).iterate()
    expected = by_hand(twin(g.x), h, g, arm, 1.3, 0.3)
    assert figures["loss/student"] == pytest.approx(float(expected.detach()), rel=1e-12)
    expected.backward()
    after = weights(twin) - torch.cat([p.grad.flatten() for p in twin.parameters()])
    torch.testing.assert_close(weights(student), after, rtol=0, atol=1e-13)


@pytest.mark.parametrize("arm", ARMS)
def test_micro_batches_are_the_whole_graph(arm):
    found = [gradient(FFG2M(logits(), net(), graph(), options(arm=arm)), micro_batches=parts) for parts in (1, 3)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-14)
    assert float(found[0].abs().max()) > 1e-3


@pytest.mark.parametrize("arm", ARMS)
def test_mini_batches_are_the_whole_graph_on_the_mean(arm):
    method = FFG2M(logits(), net(), graph(), options(arm=arm))
    rows = method.batch
    size = next(n for n in (3, 2, 5, 7) if rows % n == 0)
    whole, parts = gradient(FFG2M(logits(), net(), graph(), options(arm=arm))), []
    for step in range(rows // size):  # the batches of one epoch, each from the same weights
        one = FFG2M(logits(), net(), graph(), options(arm=arm, batch=size))
        run = loop(one)
        run.step = step
        before = weights(one.student)
        run.iterate()
        parts.append(before - weights(one.student))
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=0, atol=1e-13)
    assert float((parts[0] - whole).abs().max()) > 1e-4


def test_reductions():
    def found(g=None, h=None, **changes):
        return gradient(FFG2M(logits() if h is None else h, net(), g or graph(), options(**changes)))

    same = torch.testing.assert_close
    same(found(label_weight=1.0), found(arm="mlp"), rtol=0, atol=1e-15)
    same(found(label_weight=0.0) + found(arm="hfd", label_weight=0.0), found(arm="lfd", label_weight=0.0)
         + 2 * found(arm="hfd", label_weight=0.0), rtol=0, atol=1e-14)  # fmt: skip
    same(found(h=logits() / 0.5), found(teacher_temperature=0.5), rtol=0, atol=1e-15)
    bare = replace(graph(), edges=torch.zeros(2, 0, dtype=torch.int64))
    with pytest.warns(UserWarning, match="the graph has no edges: .* node-wise distillation"):
        assert torch.equal(found(bare), found(arm="glnn"))
    with pytest.warns(UserWarning, match="no edges"):
        assert torch.equal(found(bare, arm="hfd", label_weight=0.0), torch.zeros_like(weights(net())))


def test_the_order_of_the_nodes_is_nothing():
    g, h = graph(), logits()
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(5))
    name = order.argsort()
    moved = replace(g, x=g.x[order], y=g.y[order], edges=name[g.edges], train=name[g.train])
    found = [gradient(FFG2M(t, net(), of, options())) for t, of in ((h, g), (h[order], moved))]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-14)


class Smoothed(nn.Module):
    """A teacher that takes features and edges; it counts how often it is asked."""

    def __init__(self):
        super().__init__()
        self.body, self.dropout, self.asked = net(7), nn.Dropout(0.9), 0

    def forward(self, x, edges):
        self.asked += 1
        return self.dropout(5 * self.body(x).index_add(0, edges[0], self.body(x)[edges[1]]))


def test_a_module_is_asked_once_in_evaluation_mode_and_gets_no_gradient():
    g, teacher = graph(), Smoothed().train()
    method = FFG2M(teacher, net(), g, options())
    expected = teacher.eval()(g.x, g.edges).detach()
    assert teacher.asked == 2 and torch.equal(method.logits, expected)
    assert torch.equal(gradient(method), gradient(FFG2M(expected, net(), g, options())))
    assert teacher.asked == 2 and all(p.grad is None for p in teacher.parameters())
    h = logits().requires_grad_()
    loop(FFG2M(h, net(), g, options())).iterate()
    assert h.grad is None


def test_hidden_nodes_are_not_used():
    g = graph().inductive(0.6, seed=1)
    assert len(g.hidden) == 3 and set(g.hidden.tolist()) < {5, 6, 8, 9, 10}
    assert not bool(torch.isin(g.edges, g.hidden).any()) and 0 < g.edges.shape[1] < graph().edges.shape[1]
    first = gradient(FFG2M(logits(), net(), g, options()))
    other, h = g.x.clone(), logits()
    other[g.hidden], h[g.hidden] = 100.0, -7.0
    assert torch.equal(first, gradient(FFG2M(h, net(), replace(g, x=other), options())))
    assert float((first - gradient(FFG2M(logits(), net(), graph(), options()))).abs().max()) > 1e-4


@pytest.mark.parametrize("batch", [None, 11])
def test_resume_is_bitwise(tmp_path, batch):
    def run(folder, iterations=9):
        torch.manual_seed(0)
        student = net(dropout=0.3, dtype=torch.float32)
        method = FFG2M(logits().float(), student, graph(torch.float32), FFG2MOptions(batch=batch))
        chosen = LoopOptions(iterations, batch=method.batch, checkpoint_every=4)
        return Loop(method, method.source(), chosen, folder=folder, quiet=True)

    whole = run(tmp_path / "whole")
    whole.train()
    stopped = run(tmp_path / "stopped")
    for _ in range(4):
        stopped.iterate()
    stopped.save()
    torch.manual_seed(99)
    resumed = run(tmp_path / "stopped")
    resumed.restore(load(tmp_path / "stopped" / "checkpoints"))
    assert resumed.step == 4
    resumed.train()
    assert torch.equal(weights(whole.method.student), weights(resumed.method.student))


def test_a_teacher_close_to_chance_is_said():
    with pytest.warns(UserWarning, match=r"mean confidence is 0.3\d, and chance is 0.25: .*teacher_temperature < 1"):
        FFG2M(0.1 * logits(), net(), graph(), options())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FFG2M(0.1 * logits(), net(), graph(), options(teacher_temperature=0.1))


def test_presets_and_the_table():
    assert find("glnn").id == "ff-g2m" and METHODS["ff-g2m"].extra == "graph" and METHODS["ff-g2m"].load()[0] is FFG2M
    assert len(PRESETS) == 19 and set(PRESETS) == set(TEACHERS)
    cora, photo = PRESETS["paper-cora-gat"], PRESETS["paper-amazon-photo-sage"]
    assert (cora.layers, cora.hidden, cora.dropout, cora.tau, cora.label_weight) == (3, 1024, 0.3, 1.2, 0.5)
    assert (photo.tau, photo.label_weight, photo.student.lr, photo.student.weight_decay) == (1.5, 0.2, 1e-3, 5e-4)
    assert TEACHERS["paper-cora-gat"].dropout == 0.6 and TEACHERS["paper-cora-gat"].choose
    assert PRESETS["paper-pubmed-gcn"].label_weight == 0 and PRESETS["paper-citeseer-sage"].tau == 1.2
    student = new_student(graph(), cora)
    assert [tuple(m.weight.shape) for m in student if isinstance(m, nn.Linear)] == [(1024, 5), (1024, 1024), (4, 1024)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 0.0}, "tau=0 and teacher_temperature=1 must be positive"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1 must be positive"),
        ({"label_weight": 1.1}, r"label_weight=1.1 must lie in \[0, 1\]"),
        ({"label_weight": -0.1}, r"label_weight=-0.1 must lie in \[0, 1\]"),
        ({"batch": 0}, "batch=0 must be at least 1 edge"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(LimbeckError, match=message):
        options(**changes)


def bad_logits():
    h = logits()
    h[4, 1] = torch.nan
    return h


def hide(nodes, keep_edges):
    g = graph()
    return replace(g, hidden=torch.tensor(nodes)) if keep_edges else g.without_edges_of(torch.tensor(nodes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FFG2M(None, net(), graph()), "arm='ff-g2m' needs a teacher"),
        (lambda: FFG2M(*[net()] * 2, graph()), "teacher and student are one object"),
        (lambda: FFG2M(logits().softmax(1), net(), graph()), "are probabilities"),
        (lambda: FFG2M(bad_logits(), net(), graph()), r"1 nodes \(the first: 4\) hold NaN"),
        (lambda: FFG2M(logits()[:5], net(), graph()), "have 5 rows and the graph 12 nodes"),
        (lambda: FFG2M(logits(), net(), hide([5], True)), r"\d+ edges touch hidden nodes, .* graph.without_edges_of\(hidden\)"),
        (lambda: FFG2M(logits(), net(), hide([1], False)), "1 labelled nodes are hidden"),
    ],
)
def test_what_cannot_be_made(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def relabelled() -> Graph:
    g = graph()
    return replace(g, y=g.y + 4)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: FFG2M(logits(), net(outputs=3), graph()), "need the same class list; got 3 vs 4 classes"),
        (lambda: FFG2M(logits(), net(), relabelled()), r"label \d lies outside \[0, 4\)"),
        (lambda: FFG2M(None, net(), relabelled(), options(arm="mlp")), r"label \d lies outside \[0, 4\)"),
        (
            lambda: FFG2M(logits(), nn.Sequential(net(outputs=1), nn.Flatten(0)), graph()),
            r"a classifier gives logits \(B, ..., C\)",
        ),
    ],
)
def test_what_cannot_be_trained(method, message):
    with pytest.raises(LimbeckError, match=message):
        loop(method()).iterate()


def test_rows_of_another_graph_are_refused():
    method, other = FFG2M(logits(), net(), graph()), FFG2M(logits(), net(), graph(edges=5))
    with pytest.raises(LimbeckError, match=r"give the loop method.source\(\)"):
        Loop(method, other.source(), LoopOptions(1, batch=4), quiet=True).iterate()
