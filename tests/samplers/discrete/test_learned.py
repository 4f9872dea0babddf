"""Learned steps: the plain sampler bit for bit, what Phi does, step lengths, warnings and bad input."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.samplers.discrete import (
    Absorbing,
    LearnedSteps,
    Linear,
    LogLinear,
    Uniform,
    euler,
    generator_uniforms,
    scaled_score,
    teacher_times,
    uniform_times,
)

F64 = torch.float64


def written_out(world, x, noise, steps, kernel):
    """The plain sampler in a dozen lines of its own, with the same noise, for any graph."""
    times = [1 - (1 - 1e-3) * k / steps for k in range(steps + 1)]
    u, alive, count = noise(0), torch.ones(x.shape, dtype=F64), torch.zeros_like(x)
    for k in range(steps):
        t, to = (torch.tensor(v, dtype=F64) for v in times[k : k + 2])
        p = kernel(world.graph, world.schedule, x, world(x, t.expand(len(x))).exp(), t, to).clamp(min=0)
        if k == steps - 1 and world.graph.mask is not None:
            p[..., world.graph.mask] = 0
        p = p / p.sum(-1, keepdim=True)
        y, v = x.clone(), u.clone()
        for b in range(len(x)):
            for i in range(x.shape[1]):
                alive[b, i] *= p[b, i, x[b, i]]
                if u[b, i, 0] < alive[b, i]:
                    continue
                away = [c for c in range(p.shape[-1]) if c != x[b, i] and p[b, i, c] > 0]
                if not away:
                    continue
                y[b, i] = max(away, key=lambda c: float(p[b, i, c].log() - torch.log(-torch.log(u[b, i, 1 + c]))))
                count[b, i] += 1
                alive[b, i], v[b, i] = 1.0, noise(int(count[b, i]))[b, i]
        x, u = y, v
    return x


def test_nothing_learned_is_the_plain_sampler_bit_for_bit(world):
    noise = generator_uniforms((40, 2, world.graph.symbols + 1), torch.Generator().manual_seed(3))
    start = world.graph.start(torch.rand(40, 2, generator=torch.Generator().manual_seed(4), dtype=F64))
    steps = LearnedSteps(world.graph, world.schedule, 8, param="score")
    expected = written_out(world, start, noise, 8, euler)
    assert torch.equal(steps.sample(world, start, noise), expected)
    assert not torch.equal(expected, start)
    torch.nn.init.constant_(steps.phi, 0.3)
    assert not torch.equal(steps.sample(world, start, noise), expected)


def test_nothing_stays_masked(absorbing):
    noise = generator_uniforms((100, 2, 5), torch.Generator().manual_seed(0))
    for kernel in ("euler", "tweedie"):
        x = LearnedSteps(absorbing.graph, absorbing.schedule, 2, kernel=kernel).sample(
            absorbing, torch.full((100, 2), 3), noise
        )
        assert not (x == 3).any()


@pytest.mark.parametrize("param", ["score", "log_score"])
def test_the_coefficient_is_on_ratios_and_never_on_the_own_entry(param):
    x, log_s = torch.tensor([[1]]), torch.tensor([[[0.5, 0.0, -2.0]]], dtype=F64)
    s = scaled_score(log_s, torch.tensor(1.5, dtype=F64), param, x)
    expected = torch.tensor([0.5, 0.0, -2.0], dtype=F64)
    expected = 1.5 * expected.exp() if param == "score" else (1.5 * expected).exp()
    expected[1] = 1.0
    assert torch.allclose(s[0, 0], expected)


@pytest.mark.parametrize("param", ["score", "log_score"])
def test_impossible_symbols_stay_so_and_have_no_gradient(param):
    phi = torch.ones((), dtype=F64, requires_grad=True)
    s = scaled_score(torch.tensor([[[-torch.inf, 0.0, 0.7]]], dtype=F64), phi, param, torch.tensor([[1]]))
    (gradient,) = torch.autograd.grad(s.sum(), phi)
    size = math.exp(0.7)
    assert float(s[0, 0, 0].detach()) == 0 and float(gradient) == pytest.approx(size if param == "score" else 0.7 * size)


def test_the_coefficient_matters_to_tweedie(world):
    """It would cancel there if it were on the own entry too."""
    kls = []
    for phi in (1.0, 0.8):
        steps = LearnedSteps(world.graph, world.schedule, 4, kernel="tweedie", param="score")
        torch.nn.init.constant_(steps.phi, phi)
        kls.append(world.kl(world.laws(steps)[-1]))
    assert abs(kls[0] - kls[1]) > 1e-3


def test_step_lengths_end_at_eps_and_their_order_matters():
    steps = LearnedSteps(Uniform(3), Linear(), 4, end=0.01)
    assert torch.allclose(steps.times(), uniform_times(4, 0.01), atol=1e-15)
    with torch.no_grad():
        steps.theta.copy_(torch.tensor([2.0, 1.0, 1.0, 4.0], dtype=F64).log())
    assert torch.allclose(steps.lengths(), 0.99 * torch.tensor([2.0, 1.0, 1.0, 4.0], dtype=F64) / 8)
    assert torch.allclose(steps.times(), 1 - 0.99 * torch.tensor([0.0, 2.0, 3.0, 4.0, 8.0], dtype=F64) / 8)


def test_free_lengths_may_stop_early_but_not_run_over():
    steps = LearnedSteps(Uniform(3), Linear(), 4, end=0.01, free=True)
    assert torch.allclose(steps.times(), uniform_times(4, 0.01), atol=1e-15)
    with torch.no_grad():
        steps.theta.mul_(0.5)
    assert float(steps.times()[-1]) == pytest.approx(1 - 0.495)
    with torch.no_grad():
        steps.theta.mul_(2.1)
    with pytest.raises(LimbeckError, match="step lengths sum to 1.0395 .* at most 0.99"):
        steps.times()
    with torch.no_grad():
        steps.theta.fill_(0.2).view(-1)[1] = -0.1
    with pytest.raises(LimbeckError, match="smallest -0.1"):
        steps.times()


def test_defaults_by_graph():
    assert LearnedSteps(Uniform(3), Linear(), 2).param == "score"
    assert LearnedSteps(Absorbing(3), LogLinear(), 2).param == "log_score"
    assert LearnedSteps(Absorbing(3), LogLinear(), 2, param="score").param == "score"


def test_steps_that_are_too_large_are_warned_of_once(uniform):
    noise = generator_uniforms((50, 2, 4), torch.Generator().manual_seed(0))
    x = torch.randint(3, (50, 2), generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="step too large: .* use tweedie") as seen:
        LearnedSteps(uniform.graph, Linear(20.0), 2).sample(uniform, x, noise)
    assert len(seen) == 1
    LearnedSteps(uniform.graph, uniform.schedule, 64).sample(uniform, x, noise)  # a warning would be an error


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: teacher_times(8, 100, 1e-3), "teacher steps must be a multiple of student steps, not 100 and 8; take e.g. 96"),
        (lambda: LearnedSteps(Uniform(3), Linear(), 2, kernel="eulr"), "unknown kernel 'eulr': did you mean 'euler'"),
        (lambda: LearnedSteps(Uniform(3), Linear(), 2, param="scores"), "unknown param 'scores': did you mean 'score'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(LimbeckError, match=message):
        call()
