import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.noise import VE, VP, RectifiedFlow, TrigFlow, karras_grid, linear_grid
from limbeck.samplers import ancestral, ddim, euler, heun, stochastic_edm


def sigma_times(process, n=6, low=0.05, high=20.0):
    return process.time_of(karras_grid(n, low, high))


def test_ancestral_is_ddim_with_eta_one(process, wobbly, normal):
    times, x = sigma_times(process), normal(3, 6)
    options = {"noise": lambda step: normal(3, 6, seed=step)}
    torch.testing.assert_close(
        ancestral(wobbly(process), x, times, **options),
        ddim(wobbly(process), x, times, eta=1.0, **options),
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.parametrize(("order", "solver"), [(1, euler), (2, heun)])
@pytest.mark.parametrize("final", [True, False])
def test_without_churn_it_is_the_deterministic_solver(order, solver, final, process, wobbly, normal):
    times, x = sigma_times(process), normal(3, 6)
    found = stochastic_edm(wobbly(process), x, times, s_churn=0.0, order=order, final=final)
    torch.testing.assert_close(found, solver(wobbly(process), x, times, final=final), rtol=1e-11, atol=1e-11)


def test_algorithm_2_written_out(wobbly, normal):
    denoiser, times, x = wobbly(VE()), karras_grid(8), 80 * normal(3, 6)
    s_churn, s_min, s_max, s_noise = 4.0, 0.05, 50.0, 1.003
    t, expected = [*times.tolist(), 0.0], x
    for i in range(8):
        gamma = min(s_churn / 8, math.sqrt(2) - 1) if s_min <= t[i] <= s_max else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = expected + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * normal(3, 6, seed=i)
        d = (x_hat - denoiser(x_hat, torch.full((3,), t_hat).double())) / t_hat
        expected = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (expected - denoiser(expected, torch.full((3,), t[i + 1]).double())) / t[i + 1]
            expected = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_next / 2)
    found = stochastic_edm(
        denoiser, x, times, noise=lambda i: normal(3, 6, seed=i), s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", ["ancestral", "churn", "churn order 1", "eta"])
@pytest.mark.parametrize("process", [VE(), VP(), RectifiedFlow(), TrigFlow(0.5)], ids=lambda p: type(p).__name__)
def test_the_law_of_the_samples_is_kept(sampler, process, exact_gaussian, normal):
    """From the exact marginal at the start, many small steps end at the exact marginal: mean and variance by coordinate."""
    gaussian, n, batch = exact_gaussian(process), 60, 4000
    times = sigma_times(process, n, 0.3, 3.0)
    x0 = gaussian.mean + gaussian.eigenvalues.sqrt() * normal(batch, 4, seed=1)
    x = process.add_noise(x0, normal(batch, 4, seed=2), times[:1].expand(batch))
    g = torch.Generator().manual_seed(0)
    options = {"noise": lambda step: torch.randn(batch, 4, generator=g, dtype=torch.float64), "final": False}
    if sampler == "ancestral":
        x = ancestral(gaussian, x, times, **options)
    elif sampler == "eta":
        x = ddim(gaussian, x, times, eta=0.5, **options)
    else:
        options |= {"s_churn": 6.0, "s_noise": 1.0, "order": 1 if sampler.endswith("1") else 2}
        x = stochastic_edm(gaussian, x, times, **options)
    a, s = process.a(times[-1]), process.s(times[-1])
    mean, spread = a * gaussian.mean, torch.sqrt(a**2 * gaussian.eigenvalues + s**2)
    bias = 0.04  # first-order steps; four standard errors of 4000 samples are 0.063 and 0.045
    assert ((x.mean(0) - mean) / spread).abs().max() < 0.063 + bias
    assert (x.std(0) / spread - 1).abs().max() < 0.045 + bias


@pytest.mark.parametrize("process", [RectifiedFlow(), RectifiedFlow(shift=3.0), TrigFlow(0.5)])
def test_churn_of_pure_noise_stays_pure_noise(process, wobbly, normal):
    """At sigma = inf the time stays and noise is exchanged for noise of the same variance."""
    seen = []

    class Spy:
        null = None

        def __init__(self):
            self.process, self.inner = process, wobbly(process)

        def __call__(self, x_t, t, cond=None):
            seen.append((x_t, t))
            return self.inner(x_t, t)

    z, n = process.s(torch.tensor(process.t_max)) * normal(2, 6), normal(2, 6, seed=9)
    stochastic_edm(Spy(), z, linear_grid(4, process.t_max, 0.1), noise=lambda i: n, s_churn=1.0, s_max=math.inf, s_noise=1.0)
    x, t = seen[0]
    s = process.s(t)[0]
    if process.a(t)[0] == 0:
        assert torch.equal(t, torch.full((2,), process.t_max, dtype=torch.float64))
    torch.testing.assert_close(x, z / 1.25 + s * 0.6 * n, rtol=1e-12, atol=1e-12)


def test_errors(wobbly, normal):
    denoiser, x = wobbly(VE()), normal(2, 6)
    with pytest.raises(LimbeckError, match="ancestral sampling needs noise"):
        ancestral(denoiser, x, [1.0, 0.5])
    with pytest.raises(LimbeckError, match="s_churn = 40 needs noise"):
        stochastic_edm(denoiser, x, [1.0, 0.5])
    with pytest.raises(LimbeckError, match=r"order 1 or 2, not 40, 1.003, 3"):
        stochastic_edm(denoiser, x, [1.0, 0.5], order=3)
