"""What all few-step generators must do: sample as they train, split batches exactly, resume bit for bit."""

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.noise import RectifiedFlow
from limbeck.training import OptimizerOptions
from limbeck.training.checkpoints import load

F64 = torch.float64
CT = {"target": "ema", "distance": "l2", "weight": "one", "curriculum": "growing", "s0": 2}
FASTER = OptimizerOptions(lr=2e-2, warmup=2, decay="cosine", clip=1.0)
VARIANTS = {
    "dmd": ("dmd", {}),
    "dmd steps": ("dmd", {"sigmas": (5.0, 1.0, 0.2), "critic_steps": 2}),
    "dmd gan on teacher": ("dmd", {"gan_weight": 0.1, "gan_r1": 0.5, "critic_steps": 2}),
    "dmd gan on critic": ("dmd", {"gan_weight": 0.1, "gan_on": "critic", "gan_time": "shared"}),
    "sid": ("sid", {"sigmas": (5.0, 1.0)}),
    "sid gan": ("sid", {"gan_weight": 0.1, "gan_on": "critic", "gan_head": "mean", "gan_scale": "batch", "gan_time": "shared"}),
    "tdm": ("tdm", {"critic_steps": 2}),
    "tdm unify": ("tdm", {"counts": (1, 2, 4), "critic_target": "is", "surrogate": "huber", "randmid": 0.1}),
    "tdm overlap fisher": ("tdm", {"separate": False, "divergence": "fisher", "anchor": "x"}),
    "phased": ("phased-dmd", {"critic_steps": 2}),
    "phased joint": ("phased-dmd", {"order": "joint", "nested": False, "normaliser": "kl"}),
    "swiftbrush": ("swiftbrush", {"critic": FASTER, "critic_rank": 2, "critic_null": 0.5}),
    "swiftbrush low-rank": ("swiftbrush", {"critic": FASTER, "critic_rank": 2, "student_rank": 2, "critic_steps": 2}),
    "sds": ("swiftbrush", {"sds": True}),
    "snoopi": ("snoopi", {"critic": FASTER, "critic_rank": 2, "sigmas": (5.0, 1.0)}),
    "rcm": ("rcm", {"cycle": 2, "warmup": 1, "dmd_weight": 1.0}),
    "scm": ("rcm", {"dmd_weight": 0.0, "jvp": "semi"}),
    "ict": ("ict", {}),
    "ct": ("ict", {**CT, "law": "uniform"}),
    "cd": ("ict", {**CT, "path": "teacher", "start": "teacher"}),
    "ect": ("ict", {"schedule": "ect", "start": "teacher", "c": 0.0, "double": 4}),
}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def test_two_pieces_of_a_batch_train_like_the_whole(variant, tiny):
    name, options = variant
    whole, split = tiny.loop(tiny.make(name, **options)), tiny.loop(tiny.make(name, **options), micro_batches=2)
    before = tiny.weights(whole)
    for _ in range(4):
        whole.iterate()
        split.iterate()
    a, b = tiny.weights(whole), tiny.weights(split)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-10, atol=1e-10, msg=key)
    for role in whole.trained:
        moved = [
            float((a[k] - before[k]).abs().max())
            for k in before
            if k.startswith(f"{role}.") and k.rpartition(".")[2] in ("weight", "A", "B")
        ]
        assert max(moved) > 1e-3, role


def test_resuming_is_bitwise(variant, tiny, tmp_path):
    name, options = variant
    whole, first = tiny.loop(tiny.make(name, **options)), tiny.loop(tiny.make(name, **options), tmp_path)
    for _ in range(6):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    torch.manual_seed(123)
    second = tiny.loop(tiny.make(name, **options), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(3):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key
    assert second.step == 6


def test_the_teacher_never_moves(variant, tiny):
    name, options = variant
    parts = tiny.ingredients()
    before = {n: p.clone() for n, p in parts.teacher.named_parameters()}
    loop = tiny.loop(tiny.make(name, parts, **options))
    loop.iterate()
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in parts.teacher.named_parameters())
    assert not any(p.requires_grad for p in parts.teacher.parameters())


@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_one_step_is_one_call_at_the_first_noise_level(name, tiny):
    method = tiny.make(name, sigmas=(2.5,))
    at = tiny.batch(method)
    z = method.normal(at, "z")
    t = torch.full((len(z),), 2.5, dtype=F64)
    expected = method.student(2.5 * z, t, at.cond)
    assert torch.equal(method.produce(at, grad_step=0).x, expected)
    assert torch.equal(method.sampler(ema=False)(z, at.cond), expected)


@pytest.mark.parametrize("name", ["dmd", "sid"])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_training_sees_the_inputs_that_the_sampler_sees(name, k, tiny, monkeypatch):
    method = tiny.make(name, sigmas=(5.0, 1.0, 0.2))
    at = tiny.batch(method)
    calls = tiny.spy(method.student, monkeypatch)
    sample = method.produce(at, grad_step=k)
    trained = list(calls)
    calls.clear()
    renoise = lambda i: method.normal(at, f"renoise {i}")  # noqa: E731
    method.sampler(ema=False)(method.normal(at, "z"), at.cond, renoise)
    assert len(trained) == k + 1 and len(calls) == 3
    for (x, t, cond), (y, u, other) in zip(trained, calls, strict=False):
        assert torch.equal(x, y) and torch.equal(t, u) and torch.equal(cond["label"], other["label"])
    assert sample.x.requires_grad and sample.level is None
    fewer = method.sampler(ema=False, steps=k + 1)(method.normal(at, "z"), at.cond, renoise)
    assert torch.equal(fewer, sample.x)  # the first steps of the sampler are what step k was trained to end


def test_only_the_last_step_carries_the_gradient(tiny):
    method = tiny.make("dmd", sigmas=(5.0, 1.0))
    at = tiny.batch(method)
    x = method.produce(at, grad_step=1).x
    (through,) = torch.autograd.grad(x.sum(), method.student.network.output.weight)
    inner = method.rollout(method.student, method.normal(at, "z"), at.cond, noise=lambda i: method.normal(at, f"renoise {i}"))
    y = method.student(inner.inputs[1].detach(), inner.times[1], at.cond)
    (alone,) = torch.autograd.grad(y.sum(), method.student.network.output.weight)
    torch.testing.assert_close(through, alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_every_step_of_a_rollout_gets_its_turn(name, tiny, monkeypatch):
    method = tiny.make(name, sigmas=(5.0, 1.0, 0.2))
    seen = set()
    produce = method.produce
    monkeypatch.setattr(method, "produce", lambda b, grad_step: (seen.add(grad_step), produce(b, grad_step))[1])
    for step in range(12):
        tiny.yields(method, tiny.batch(method, step))
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_noise_levels_outside_the_schedule(name, tiny):
    with pytest.raises(LimbeckError, match=r"noise levels \(100.0,\) leave the schedule .* 0.002 to 80; choose levels inside"):
        tiny.make(name, sigmas=(100.0,))
    with pytest.raises(LimbeckError, match="must decrease strictly"):
        tiny.make(name, sigmas=(1.0, 5.0))


def test_a_flow_teacher_gets_its_own_times(tiny):
    parts = tiny.ingredients(tiny.teacher(process=RectifiedFlow()))
    for name in ("dmd", "sid"):
        method = tiny.make(name, parts, sigmas=(9.0, 1.0))
        torch.testing.assert_close(method.times, torch.tensor([0.9, 0.5], dtype=F64))  # sigma = t / (1 - t)
        tiny.loop(method).iterate()


@pytest.mark.parametrize("name", ["dmd", "sid"])
def test_a_teacher_without_parameters_cannot_be_copied(name, tiny):
    class Closed(nn.Module):
        process, null = tiny.teacher().process, {}

        def forward(self, x, t, cond=None):
            return x

    with pytest.raises(LimbeckError, match="a Closed has no parameters to train"):
        tiny.make(name, tiny.ingredients(Closed()))


def test_the_sampler_takes_the_average_unless_told_otherwise(tiny):
    method = tiny.make("dmd")
    z, cond = torch.randn(4, 2, dtype=F64), {"label": torch.tensor([0, 1, 2, 0])}
    loop = tiny.loop(method)
    loop.iterate()  # the critic is the teacher still: nothing pulls the student
    loop.iterate()
    averaged, plain = method.sampler()(z, cond), method.sampler(ema=False)(z, cond)
    assert float((averaged - plain).abs().max()) > 1e-6
    assert torch.equal(averaged, method.roles["student"].best(2.5 * z, torch.full((4,), 2.5, dtype=F64), cond))
    assert isinstance(method.roles["student"].best, Preconditioned) and not averaged.requires_grad
