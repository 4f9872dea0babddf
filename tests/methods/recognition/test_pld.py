"""Plackett-Luce distillation in the loop: its gradients, micro-batches, resume, diagnostics, and every bad input."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.losses import dist_loss, dkd_loss, kd_loss, pld_loss
from limbeck.methods.recognition.pld import PLD, PRESETS, PLDOptions
from limbeck.training import Loop, LoopOptions, OptimizerOptions, TensorSource, Total
from limbeck.training.checkpoints import load

SGD = OptimizerOptions(lr=1.0, kind="sgd", betas=(0.0, 0.0))


def net(seed, hidden=6, dtype=torch.float64, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(hidden, 5)).to(dtype)


def source(n=24, dtype=torch.float64, ignored=0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (n,), generator=generator)
    labels[:ignored] = -100
    return TensorSource(torch.randn(n, 4, generator=generator, dtype=dtype), {"label": labels})


def loop(method, data, **options):
    return Loop(method, data, LoopOptions(**{"iterations": 1, "batch": 12, **options}), quiet=True)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


LOSSES = {
    "pld": lambda s, t, y: pld_loss(s, t, y, 4.0),
    "ce": lambda s, t, y: F.cross_entropy(s, y),
    "kd": lambda s, t, y: kd_loss(s, t, y, 4.0, 0.1).mean(),
    "dist": lambda s, t, y: dist_loss(s, t, y, 4.0).mean(),
    "dkd": lambda s, t, y: dkd_loss(s, t, y, 4.0, 0.1, beta=0.45).mean(),
    "listmle": lambda s, t, y: pld_loss(s, t, y, 1e12),
}


@pytest.mark.parametrize("given", ["module", "logits"])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_step_is_one_step_down_the_loss(loss, given):
    data, teacher, student = source(), net(1, 16), net(2)
    twin, logits = copy.deepcopy(student), teacher(data.x).detach()
    method = PLD(teacher if given == "module" else logits, student, PLDOptions(student=SGD, loss=loss))
    run = loop(method, data)
    rows = run.batches(0)[0].rows
    figures = run.iterate()
    expected = LOSSES[loss](twin(data.x[rows]), logits[rows], data.cond["label"][rows])
    assert figures["loss/student"] == pytest.approx(float(expected.detach()), rel=1e-12)
    expected.backward()
    torch.testing.assert_close(weights(student), weights(twin) - torch.cat([p.grad.flatten() for p in twin.parameters()]))


@pytest.mark.parametrize("loss", [loss for loss in [*LOSSES, "p_listmle"] if loss != "dist"])
def test_micro_batches_are_the_large_batch_also_where_labels_are_ignored(loss):
    data, students = source(ignored=5), [net(2), net(2)]
    for student, parts in zip(students, (1, 3), strict=True):
        run = loop(PLD(net(1), student, PLDOptions(student=SGD, loss=loss)), data, batch=24, micro_batches=parts)
        run.iterate()
    torch.testing.assert_close(weights(students[0]), weights(students[1]), rtol=0, atol=1e-14)
    assert float((weights(students[0]) - weights(net(2))).abs().max()) > 1e-4


def test_the_teacher_answers_in_evaluation_mode_and_is_not_trained():
    teacher = net(1, dropout=0.5).train()
    before = weights(teacher)
    method = PLD(teacher, net(2))
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    loop(method, source()).iterate()
    assert torch.equal(weights(teacher), before)


def test_resume_is_bitwise(tmp_path):
    def run(folder, iterations=9):
        torch.manual_seed(0)
        method = PLD(net(1, dtype=torch.float32), net(2, dtype=torch.float32, dropout=0.3), replace(PLDOptions(), tau=1e-3))
        return Loop(
            method, source(dtype=torch.float32), LoopOptions(iterations, batch=7, checkpoint_every=4), folder=folder, quiet=True
        )

    whole = run(tmp_path / "whole")
    whole.train()
    stopped = run(tmp_path / "stopped")
    for _ in range(4):
        stopped.iterate()
    stopped.save()
    torch.manual_seed(99)
    resumed = run(tmp_path / "stopped")
    resumed.restore(load(tmp_path / "stopped" / "checkpoints"))
    assert resumed.step == 4 and resumed.method.state()["low"].tolist() == [4, 0]
    resumed.train()
    assert torch.equal(weights(whole.method.student), weights(resumed.method.student))
    assert torch.equal(whole.method.state()["low"], resumed.method.state()["low"])


def test_a_teacher_that_adds_nothing_is_said_once():
    method = PLD(net(1), net(2), PLDOptions(tau=1e-3))
    run = loop(method, source(), iterations=60)
    for _ in range(19):
        figures = run.iterate()
    assert figures["effective_picks"] == pytest.approx(1, abs=1e-2)
    with pytest.warns(UserWarning, match=r"less than 1.05 classes .* tau=0.001 .* raise tau"):
        run.iterate()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            run.iterate()
        warm = loop(PLD(net(1), net(2), PLDOptions(tau=1e9)), source(), iterations=60)
        for _ in range(30):
            figures = warm.iterate()
    assert figures["effective_picks"] == pytest.approx(5, abs=1e-6)


def test_what_is_logged():
    data, teacher = source(), net(1)
    figures = loop(PLD(teacher, net(2), PLDOptions(tau=2.0, topk=2)), data, batch=24).iterate()
    p, y = (teacher(data.x) / 2).softmax(1), data.cond["label"]
    own = p[torch.arange(24), y]
    best = p.scatter(1, y[:, None], 0.0).amax(1)
    assert figures["label_weight"] == pytest.approx(float(own.mean()), rel=1e-12)
    assert figures["dropped_weight"] == pytest.approx(float((1 - own - best).mean()), rel=1e-12)
    assert figures["accuracy"] == pytest.approx(float((net(2)(data.x).argmax(1) == y).double().mean()))


def test_dense_logits_and_models_that_answer_with_an_object():
    class Dense(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.net = net(seed)

        def forward(self, x):
            return type("Answer", (), {"logits": self.net(x)})()

    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(6, 3, 4, generator=generator, dtype=torch.float64), torch.randint(5, (6, 3), generator=generator)
    labels[0] = -100
    teacher, student = Dense(1), Dense(2)
    expected = pld_loss(student.net(x), teacher.net(x), labels, 4.0)
    figures = loop(PLD(teacher, student, PLDOptions(student=SGD)), TensorSource(x, {"label": labels}), batch=6).iterate()
    assert figures["loss/student"] == pytest.approx(float(expected.detach()), rel=1e-12)


def test_a_batch_that_is_all_ignored_changes_nothing():
    student = net(2)
    figures = loop(PLD(net(1), student, PLDOptions(student=SGD)), source(ignored=24)).iterate()
    assert figures["loss/student"] == 0 and torch.equal(weights(student), weights(net(2)))


def test_presets():
    cifar, imagenet = PRESETS["paper-cifar100"], PRESETS["paper-imagenet"]
    assert (cifar.tau, cifar.batch, cifar.student.weight_decay, cifar.iterations) == (4.0, 128, 0.5, 250 * 50_000 // 128)
    assert (imagenet.tau, imagenet.batch, imagenet.student.weight_decay) == (1.0, 2048, 0.02)
    assert imagenet.iterations == 100 * 1_281_167 // 2048 and imagenet.student.warmup == 5 * 1_281_167 // 2048
    first = next(PLD(net(1), net(2)).step(loop(PLD(net(1), net(2)), source()).batches(0)[0]))
    assert isinstance(first, Total)


def shared():
    student = net(2)
    return nn.Sequential(student[0], nn.Tanh(), nn.Linear(6, 5).double()), student


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PLD(*[net(1)] * 2), "teacher and student are one object"),
        (lambda: PLD(*shared()), r"share parameters, .* copy.deepcopy\(teacher\)"),
        (lambda: PLD(None, net(2)), "loss='pld' needs a teacher"),
        (lambda: PLDOptions(tau=0.0), "tau=0 must be positive"),
    ],
)
def test_what_cannot_be_made(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def flat():
    return nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))


@pytest.mark.parametrize(
    ("teacher", "student", "data", "message"),
    [
        (torch.zeros(23, 5), net(2), source(), "the teacher's logits have 23 rows and the data 24"),
        (torch.zeros(24, 7), net(2), source(), "need the same class list; got 5 vs 7"),
        (torch.full((24, 5), torch.nan), net(2), source(), "the teacher's logits hold NaN"),
        (net(1), flat().double(), source(), r"logits \(B, ..., C\), the classes last, not \(12,\)"),
        (net(1), net(2), TensorSource(torch.zeros(24, 4, dtype=torch.float64)), "learns from inputs and labels"),
        (
            net(1),
            net(2),
            TensorSource(torch.zeros(24, 4, dtype=torch.float64), {"label": torch.full((24,), 5)}),
            "label 5 lies outside",
        ),
    ],
)
def test_what_cannot_be_trained(teacher, student, data, message):
    with pytest.raises(LimbeckError, match=message):
        loop(PLD(teacher, student), data).iterate()
