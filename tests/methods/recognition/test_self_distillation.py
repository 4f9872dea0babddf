"""Self-distillation in rounds: what each learns, fresh starts, resume across a round's end, and every bad input."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.methods.recognition.self_distillation import PRESETS, SelfDistillation, SelfDistillationOptions
from limbeck.training import Loop, LoopOptions, OptimizerOptions, TensorSource
from limbeck.training.checkpoints import load

SGD = OptimizerOptions(lr=1.0, kind="sgd", betas=(0.0, 0.0))


def net(dropout=0.0):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 5)).double()


def source(n=24):
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.randint(5, (n,), generator=generator)
    return TensorSource(x, {"label": labels})


def options(**more):
    return SelfDistillationOptions(
        **{"rounds": 3, "per_round": 4, "batch": 24, "student": SGD, "alphas": (0.3, 0.8), "penalty_weight": 0.0, **more}
    )


def loop(method, folder=None, **more):
    o = method.options
    return Loop(
        method, source(), LoopOptions(**{"iterations": o.iterations, "batch": o.batch, **more}), folder=folder, quiet=True
    )


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def by_hand(twin, teacher, x, y, alpha, distance):
    """One step of a plain gradient descent on the two-term objective."""
    truth, q, p = nn.functional.one_hot(y, 5).double(), teacher(x).softmax(1).detach(), twin(x).softmax(1)
    if distance == "mse":
        loss = alpha * (p - truth).square().mean() + (1 - alpha) * (p - q).square().mean()
    else:
        loss = -(alpha * (truth * p.log()).sum(1) + (1 - alpha) * (q * p.log()).sum(1)).mean()
    return weights(twin) - torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(twin.parameters()))])


@pytest.mark.parametrize("distance", ["mse", "ce"])
def test_rounds_learn_labels_then_the_mixture(distance):
    """The mixed target has the gradient of the two terms; round 1 has no teacher, alphas follow, the last one stays."""
    method, data = SelfDistillation(net, options(distance=distance, rounds=4)), source()
    run, starts, ends = loop(method), [], []
    for step in range(16):
        if step % 4 == 0:
            ends.append(copy.deepcopy(method.student))
        figures = run.iterate()
        if step % 4 == 0:
            twin = method._new(step // 4)
            alpha = (1.0, 0.3, 0.8, 0.8)[step // 4]
            expected = by_hand(twin, ends[-1], data.x, data.cond["label"], alpha, distance)
            torch.testing.assert_close(weights(method.student), expected, rtol=0, atol=1e-14)
            starts.append(weights(twin))
        assert figures["round"] == step // 4 + 1
    for a, b in itertools.combinations(starts, 2):
        assert float((a - b).abs().max()) > 0.1


def test_a_given_teacher_teaches_from_the_first_round():
    teacher = net(dropout=0.5).train()
    before, method, data = weights(teacher), SelfDistillation(net, options(), teacher=teacher), source()
    assert not teacher.training
    expected = by_hand(method._new(0), teacher, data.x, data.cond["label"], 0.3, "mse")
    run = loop(method)
    run.iterate()
    torch.testing.assert_close(weights(method.student), expected, rtol=0, atol=1e-14)
    for _ in range(4):
        run.iterate()
    assert torch.equal(weights(teacher), before) and method.teacher is not teacher
    assert method.roles["teacher"].module is method.teacher and not method.teacher.training


def test_a_round_begins_with_a_new_optimizer():
    adam = OptimizerOptions(lr=1e-2, betas=(0.9, 0.999), decay="cosine", final=0.0)
    run = loop(SelfDistillation(net, options(student=adam)))
    rates = []
    for _ in range(12):
        rates.append(run.iterate()["lr/student"])
        counts = {int(s["step"]) for s in run.trained["student"].optimizer.state.values()}
        assert counts == {(run.step - 1) % 4 + 1}
    assert rates[:4] == pytest.approx(rates[4:8]) and rates[3] < rates[4]


@pytest.mark.parametrize("penalty", ["squared", "norm"])
def test_the_penalty(penalty):
    plain, held = (SelfDistillation(net, options(penalty=penalty, penalty_weight=w)) for w in (0.0, 0.01))
    norms = [p.detach().norm() for p in held.student.parameters()]
    expected = 0.01 * sum(n**2 if penalty == "squared" else n for n in norms)
    losses = [loop(method).iterate()["loss/student"] for method in (plain, held)]
    assert losses[1] - losses[0] == pytest.approx(float(expected), rel=1e-10)


def test_micro_batches_are_the_large_batch():
    methods = [SelfDistillation(net, options(penalty_weight=0.01)) for _ in range(2)]
    for method, parts in zip(methods, (1, 3), strict=True):
        run = loop(method, micro_batches=parts)
        for _ in range(6):
            run.iterate()
    torch.testing.assert_close(weights(methods[0].student), weights(methods[1].student), rtol=0, atol=1e-13)


@pytest.mark.parametrize("stop", [3, 4, 6])
@pytest.mark.parametrize("taught", [False, True])
def test_resume_is_bitwise_within_a_round_and_at_its_end(stop, taught, tmp_path):
    adam = OptimizerOptions(lr=1e-2, betas=(0.9, 0.999))

    def run(folder):
        torch.manual_seed(5)
        teacher = net() if taught else None
        torch.manual_seed(0)
        method = SelfDistillation(lambda: net(0.3), options(student=adam, batch=7), teacher=teacher)
        return loop(method, folder, checkpoint_every=100)

    whole = run(tmp_path / "whole")
    whole.train()
    stopped = run(tmp_path / "stopped")
    for _ in range(stop):
        stopped.iterate()
    stopped.save()
    torch.manual_seed(99)
    resumed = run(tmp_path / "stopped")
    resumed.restore(load(tmp_path / "stopped" / "checkpoints"))
    resumed.train()
    assert torch.equal(weights(whole.method.student), weights(resumed.method.student))
    assert torch.equal(weights(whole.method.teacher), weights(resumed.method.teacher))


def test_making_weights_leaves_the_random_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    SelfDistillation(net, options())
    assert torch.equal(torch.rand(1), expected)


def test_presets():
    paper = PRESETS["paper-cifar10"]
    assert (paper.rounds, paper.alphas, paper.student.lr, paper.per_round) == (5, (0.6,), 1e-4, 75 * 50_000 // 16)
    assert paper.iterations == 5 * paper.per_round


def one():
    model = net()
    return lambda: model


def test_what_cannot_be_made():
    model = net()
    with pytest.raises(LimbeckError, match="teacher and student are one object"):
        SelfDistillation(lambda: model, options(), teacher=model)
    with pytest.raises(LimbeckError, match="rounds=0 and per_round=4 must be at least 1"):
        options(rounds=0)
    with pytest.raises(LimbeckError, match=r"alphas=\(\) hold a weight"):
        options(alphas=())


def test_what_cannot_be_trained():
    run = loop(SelfDistillation(one(), options(per_round=1)))
    run.iterate()
    with pytest.raises(LimbeckError, match="the same object again"):
        run.iterate()
    method = SelfDistillation(lambda: nn.Linear(4, 3).double(), replace(options()))
    with pytest.raises(LimbeckError, match=r"logits \(24, 3\) must be \(B, C\), and labels lie in \[0, C\); they reach 4"):
        loop(method).iterate()
