import copy

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.noise import DDPM, VE, RectifiedFlow
from limbeck.samplers import Rollout, ddim

FLOW = RectifiedFlow()
TIMES = [1.0, 0.75, 0.5, 0.25]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(7, 6)
        self.calls = 0

    def forward(self, x, t, cond=None):
        self.calls += 1
        return torch.tanh(self.layer(torch.cat([x, t[:, None].expand(len(x), 1)], 1)))


@pytest.fixture
def student():
    return Preconditioned(Net(), FLOW, "velocity").double()


@pytest.fixture
def keyed(normal):
    return lambda step: normal(4, 6, seed=100 + step)


def gradients(student, loss):
    return torch.autograd.grad(loss, list(student.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_step_is_the_direct_call_bit_for_bit(dtype, wobbly, normal):
    z, cond = normal(4, 6).to(dtype), {"shift": normal(4, 1)}
    found = Rollout(VE(), [2.5])(wobbly(VE()), z, cond)
    assert torch.equal(found.x, wobbly(VE())(2.5 * z, torch.full((4,), 2.5).double(), cond))
    table = DDPM("scaled_linear")
    t = torch.full((4,), 999.0, dtype=torch.float64)
    assert torch.equal(Rollout(table, [999])(wobbly(table), z).x, wobbly(table)(table.s(t)[0].item() * z, t))
    assert torch.equal(Rollout(table, [999], start="unit")(wobbly(table), z).x, wobbly(table)(z, t))


@pytest.mark.parametrize("renoise", ["fresh", "fixed", "ode"])
def test_the_steps_written_out(renoise, process, wobbly, normal, keyed):
    times = process.time_of(torch.tensor([10.0, 3.0, 0.5], dtype=torch.float64))
    z, gamma, denoiser = normal(4, 6), 0.45, wobbly(process)
    found = Rollout(process, times, renoise, noise_scale=gamma)(denoiser, z, noise=keyed)
    x_t = process.s(times[0]) * gamma * z
    for i, t in enumerate(times):
        torch.testing.assert_close(found.inputs[i], x_t, rtol=1e-12, atol=1e-12)
        x = denoiser(x_t, t.expand(4))
        torch.testing.assert_close(found.outputs[i], x, rtol=1e-12, atol=1e-12)
        assert torch.equal(found.times[i], t.expand(4))
        if i < 2:
            implied = (x_t - process.a(t) * x) / process.s(t)
            n = {"fresh": gamma * keyed(i + 1), "fixed": gamma * z, "ode": implied}[renoise]
            x_t = process.a(times[i + 1]) * x + process.s(times[i + 1]) * n
    assert len(found.inputs) == len(found.outputs) == len(found.times) == 3
    assert found.x is found.outputs[-1]


def test_renoising_along_the_ode_is_ddim(process, wobbly, normal):
    times = process.time_of(torch.tensor([10.0, 3.0, 0.5, 0.1], dtype=torch.float64))
    z = normal(4, 6)
    found = Rollout(process, times, "ode")(wobbly(process), z).x
    expected = ddim(wobbly(process), process.s(times[0]) * z, times)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("renoise", ["fresh", "fixed", "ode"])
@pytest.mark.parametrize("k", range(4))
def test_training_sees_the_inputs_of_inference(k, renoise, student, normal, keyed):
    rollout, z = Rollout(FLOW, TIMES, renoise), normal(4, 6)
    with torch.no_grad():
        sampled = rollout(student, z, noise=keyed)
    trained = rollout(student, z, noise=keyed, grad_step=k)
    assert len(trained.outputs) == k + 1 == len(trained.inputs)
    for ours, theirs in zip(trained.inputs + trained.outputs, sampled.inputs[: k + 1] + sampled.outputs[: k + 1], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("k", range(4))
def test_gradient_only_through_step_k(k, student, normal, keyed):
    z = normal(4, 6).requires_grad_()
    found = Rollout(FLOW, TIMES)(student, z, noise=keyed, grad_step=k)
    assert student.network.calls == k + 1
    with torch.no_grad():
        x_t = z
        for i in range(k):
            x = student(x_t, torch.full((4,), TIMES[i]).double())
            x_t = (1 - TIMES[i + 1]) * x + TIMES[i + 1] * keyed(i + 1)
    expected = student(x_t.detach(), torch.full((4,), TIMES[k]).double())
    for ours, theirs in zip(
        gradients(student, found.x.square().sum()), gradients(student, expected.square().sum()), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert ours.abs().max() > 0
    assert not any(t.requires_grad for t in found.inputs + found.outputs[:-1])
    assert torch.autograd.grad(Rollout(FLOW, TIMES)(student, z, noise=keyed, grad_step=k).x.sum(), z, allow_unused=True) == (
        None,
    )


def test_gradient_through_the_whole_chain(student, normal, keyed):
    """grad_step=None under autograd back-propagates through every step: each step's own copy of the weights gets its share."""
    z = normal(4, 6)
    whole = gradients(student, Rollout(FLOW, TIMES)(student, z, noise=keyed).x.square().sum())
    copies = [copy.deepcopy(student) for _ in TIMES]
    x_t = z
    for i, t in enumerate(TIMES):
        x = copies[i](x_t, torch.full((4,), t).double())
        if i < 3:
            x_t = (1 - TIMES[i + 1]) * x + TIMES[i + 1] * keyed(i + 1)
    shares = [torch.autograd.grad(x.square().sum(), list(c.parameters()), retain_graph=True) for c in copies]
    for ours, theirs in zip(whole, [sum(parts) for parts in zip(*shares, strict=True)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert all(share[0].abs().max() > 0 for share in shares)


def test_the_implied_noise_is_a_constant_for_gradients(student, normal):
    z = normal(4, 6)
    found = Rollout(FLOW, TIMES[:2], "ode")(student, z)
    first = student(z, torch.ones(4).double())
    second = student(0.25 * first + 0.75 * z, torch.full((4,), 0.75).double())
    for ours, theirs in zip(gradients(student, found.x.sum()), gradients(student, second.sum()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_callers_no_grad_holds(student, normal, keyed):
    with torch.no_grad():
        for k in (None, 2, torch.tensor([0, 1, 2, 3])):
            assert not Rollout(FLOW, TIMES)(student, normal(4, 6), noise=keyed, grad_step=k).x.requires_grad


@pytest.mark.parametrize("renoise", ["fresh", "fixed", "ode"])
def test_a_gradient_step_per_sample_equals_a_loop_over_samples(renoise, student, normal, keyed):
    rollout, z, step = Rollout(FLOW, TIMES, renoise), normal(4, 6), torch.tensor([2, 0, 1, 2])
    found = rollout(student, z, noise=keyed, grad_step=step)
    assert student.network.calls == 3
    alone = [rollout(student, z[[i]], noise=lambda s, i=i: keyed(s)[[i]], grad_step=int(step[i])) for i in range(4)]
    torch.testing.assert_close(found.x, torch.cat([t.x for t in alone]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.inputs[-1], torch.cat([t.inputs[-1] for t in alone]), rtol=1e-12, atol=1e-12)
    assert found.times[-1].tolist() == [0.5, 1.0, 0.75, 0.5]
    loss = sum(t.x.square().sum() for t in alone)
    for ours, theirs in zip(gradients(student, found.x.square().sum()), gradients(student, loss), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_whole_trajectory_gives_each_samples_step(student, normal, keyed):
    rollout, z, step = Rollout(FLOW, TIMES), normal(4, 6), torch.tensor([3, 0, 1, 2])
    with torch.no_grad():
        x_t, t = rollout(student, z, noise=keyed).at(step)
    trained = rollout(student, z, noise=keyed, grad_step=step)
    assert torch.equal(x_t, trained.inputs[-1]) and torch.equal(t, trained.times[-1])
    assert t.tolist() == [0.25, 1.0, 0.75, 0.5]


def test_times_are_kept_as_numbers():
    rollout = Rollout(FLOW, torch.tensor(TIMES))
    assert rollout.times == tuple(TIMES) and rollout.K == 4
    assert rollout == Rollout(FLOW, TIMES) != Rollout(FLOW, TIMES[:3])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"times": [0.5, 0.75]}, "decrease"),
        ({"times": [1.5, 0.5]}, "range"),
        ({"times": []}, "decrease"),
        ({"renoise": "ddim"}, "unknown renoise 'ddim'.*fixed, fresh, ode"),
        ({"start": "zero"}, "unknown start 'zero'"),
        ({"noise_scale": -1.0}, "at least 0, not -1"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(LimbeckError, match=words):
        Rollout(FLOW, **{"times": TIMES, **options})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"grad_step": 4}, r"0\.\.3, not 4"),
        ({"grad_step": -1}, r"0\.\.3, not -1"),
        ({"grad_step": torch.tensor([0, 1, 2, 7])}, r"0\.\.3, not 7"),
        ({"grad_step": torch.tensor([0, 1])}, r"shape \(4,\), not torch.int64 of shape \(2,\)"),
        ({"grad_step": torch.zeros(4)}, "long tensor"),
        ({}, "renoise='fresh' needs noise"),
    ],
)
def test_calls_are_checked(call, words, student, normal):
    with pytest.raises(LimbeckError, match=words):
        Rollout(FLOW, TIMES)(student, normal(4, 6), **call)


def test_the_denoiser_must_live_in_the_process(student, normal):
    with pytest.raises(LimbeckError, match="in_process"):
        Rollout(VE(), [2.5])(student, normal(4, 6))
