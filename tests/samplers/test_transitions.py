"""Chains: every kind is the sampler that it names, its moments are those of its samples, and its densities are normal ones."""

import pytest
import torch
from torch.distributions import Normal

from limbeck.errors import LimbeckError
from limbeck.noise import DDPM, VE, RectifiedFlow, ddpm_grid
from limbeck.samplers import Chain, Rollout, ancestral, ddim, log_prob, tcd

F64 = torch.float64
SIGMAS = torch.tensor([10.0, 3.0, 0.5, 0.1], dtype=F64)


@pytest.fixture
def keyed(normal):
    return lambda step: normal(4, 6, seed=100 + step)


def test_log_prob_is_the_mean_over_elements_of_the_normal_density(normal):
    x, mean, std = normal(4, 3, 2), normal(4, 3, 2, seed=1), torch.tensor([0.1, 0.5, 2.0, 7.0], dtype=F64)
    expected = Normal(mean, std[:, None, None]).log_prob(x)
    torch.testing.assert_close(log_prob(x, mean, std), expected.mean((1, 2)), rtol=1e-12, atol=1e-12)
    twice = [torch.cat([v, v], 1) for v in (x, mean)]  # a sum would double, and clipped ratios would be clipped at once
    torch.testing.assert_close(log_prob(*twice, std), log_prob(x, mean, std), rtol=1e-12, atol=1e-12)
    low = log_prob(x.half(), mean.half(), std)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), log_prob(x, mean, std), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_renoise_is_the_rollout_bit_for_bit(dtype, process, wobbly, normal, keyed):
    times, z = process.time_of(SIGMAS), normal(4, 6).to(dtype)
    chain = Chain(process, times)(wobbly(process), z, noise=keyed)
    rollout = Rollout(process, times)(wobbly(process), z, noise=keyed)
    assert torch.equal(chain.x, rollout.x) and len(chain.inputs) == len(rollout.inputs) == 4
    assert all(torch.equal(a, b) for a, b in zip(chain.inputs, rollout.inputs, strict=True))


@pytest.mark.parametrize("kind", ["ancestral", "ddim", "tcd"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_the_other_kinds_are_the_solvers_of_that_name(kind, eta, process, wobbly, normal, keyed):
    times, z = process.time_of(SIGMAS), normal(4, 6)
    found = Chain(process, times, kind, eta)(wobbly(process), z, noise=keyed)
    x, noise = process.s(times[0]) * z, lambda i: keyed(i + 1)
    solver = {"ancestral": ancestral, "ddim": ddim, "tcd": tcd}[kind]
    options = {} if kind == "ancestral" else {"eta": eta}
    expected = solver(wobbly(process), x, times, noise=noise, **options)
    torch.testing.assert_close(found.x, expected, rtol=1e-10, atol=1e-10)


def test_tcd_goes_below_and_noises_up(normal):
    chain, x, x0 = Chain(VE(), SIGMAS, "tcd", 0.3), normal(4, 6), normal(4, 6, seed=1)
    mean, std = chain.moments(x, x0, 1)  # from 3 by way of 0.35 to 0.5
    torch.testing.assert_close(mean, x0 + 0.35 * (x - x0) / 3, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(std, torch.tensor((0.5**2 - 0.35**2) ** 0.5, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["renoise", "ancestral", "tcd"])
def test_the_noise_of_the_new_state_is_that_of_its_time(kind, process, normal):
    """From the exact marginal x_t = a x0 + s e with the exact x0 the step lands on a_u x0 + s_u e: keep^2 s_t^2 + std^2 = s_u^2."""
    times = process.time_of(SIGMAS)
    chain = Chain(process, times, kind, 0.3)
    keep, clean, std = chain.coefficients
    a, s = process.a(times), process.s(times)
    torch.testing.assert_close(keep**2 * s[:-1] ** 2 + std**2, s[1:] ** 2, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(keep * a[:-1] + clean, a[1:], rtol=1e-9, atol=1e-12)


def test_each_sample_at_its_own_step(process, normal):
    chain, x, x0 = Chain(process, process.time_of(SIGMAS), "ancestral"), normal(3, 6), normal(3, 6, seed=1)
    mean, std = chain.moments(x, x0, torch.tensor([2, 0, 1]))
    for row, step in enumerate([2, 0, 1]):
        one, sd = chain.moments(x[row : row + 1], x0[row : row + 1], step)
        torch.testing.assert_close(mean[row : row + 1], one, rtol=1e-12, atol=1e-13)
        assert float(std[row]) == float(sd)


def test_moments_of_diffusers_euler_ancestral(wobbly, normal):
    diffusers = pytest.importorskip("diffusers")
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    table, times, n = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012), ddpm_grid(4), 10_000
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**betas, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == times.tolist()
    chain, denoiser, g = Chain(table, times, "ancestral"), wobbly(table), torch.Generator().manual_seed(0)
    for i, t in enumerate(times[:-1]):
        a, a_to = table.a(t), table.a(times[i + 1])
        x_t = (table.s(t) * normal(1, 6, seed=i)).expand(n, 6)
        x0 = denoiser(x_t, t.expand(n))
        eps = (x_t - a * x0) / table.s(t)
        scheduler.scale_model_input(x_t / a, scheduler.timesteps[i])
        y = scheduler.step(eps, scheduler.timesteps[i], x_t / a, generator=g).prev_sample
        found = y.double() * a_to
        mean, std = chain.moments(x_t[:1], x0[:1], i)
        assert ((found.mean(0) - mean[0]).abs() < 4 * std / n**0.5).all()
        assert (found.var(0) / std**2 - 1).abs().max() < 0.05


@pytest.mark.parametrize(
    ("chain", "step"),
    [
        (Chain(VE(), [5.0, 1.0, 0.2], "ddim", 0.0), 0),
        (Chain(VE(), [5.0, 1.0, 0.2], "tcd", 0.0), 0),
        (Chain(VE(), [5.0]), 0),
    ],
)
def test_without_fresh_noise_there_is_no_density(chain, step):
    message = f"transition at step {step} has zero variance; online PSO needs a stochastic sampler: use eta > 0"
    with pytest.raises(LimbeckError, match=message):
        chain.require_density()


@pytest.mark.parametrize("kind", ["renoise", "ancestral", "ddim", "tcd"])
def test_with_fresh_noise_there_is_one(kind, process):
    Chain(process, process.time_of(SIGMAS), kind, 0.5).require_density()


def test_errors(wobbly, normal):
    with pytest.raises(LimbeckError, match="unknown kind of sampler 'renoize': did you mean 'renoise'"):
        Chain(VE(), [1.0, 0.5], "renoize")
    with pytest.raises(LimbeckError, match=r"eta must lie in \[0, 1\], not 1.5: 0 is deterministic"):
        Chain(VE(), [1.0, 0.5], "ddim", 1.5)
    with pytest.raises(LimbeckError, match=r"a stochastic sampler \(renoise\) needs noise"):
        Chain(VE(), [1.0, 0.5])(wobbly(VE()), normal(4, 6))
    with pytest.raises(LimbeckError, match="the denoiser lives in RectifiedFlow.*, the sampler in VE"):
        Chain(VE(), [1.0, 0.5])(wobbly(RectifiedFlow()), normal(4, 6))
    assert Chain(VE(), [1.0, 0.5], "ddim", 0.0)(wobbly(VE()), normal(4, 6)).x.shape == (4, 6)  # deterministic: asks for none
