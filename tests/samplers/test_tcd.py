"""Gamma sampling of trajectory models: diffusers' scheduler, its two ends, and bad input."""

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.noise import DDPM, VE, RectifiedFlow, linear_grid
from limbeck.samplers import ddim, ddim_step, generator_noise, tcd

TABLE = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)
F64 = torch.float64


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_diffusers(eta, steps, wobbly, normal):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.TCDScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    scheduler.alphas_cumprod = TABLE.table
    scheduler.set_timesteps(steps)
    denoiser, x = wobbly(TABLE), normal(3, 6)
    theirs, g = x, torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        time = torch.full((3,), float(t), dtype=F64)
        eps = TABLE.convert(denoiser(theirs, time), theirs, time, "x0", "eps")
        theirs = scheduler.step(eps, t, theirs, eta=eta, generator=g).prev_sample
    nodes = [*scheduler.timesteps.double().tolist(), 0.0]
    noise = generator_noise(x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(tcd(wobbly(TABLE), x, nodes, eta=eta, noise=noise, final=False), theirs, rtol=1e-9, atol=1e-9)


def test_eta_zero_is_ddim(process, wobbly, normal):
    times, x = process.time_of(torch.tensor([9.0, 2.0, 0.4], dtype=F64)), normal(4, 6)
    below = None if not isinstance(process, DDPM) else times[1:]  # an index is rounded down
    torch.testing.assert_close(
        tcd(wobbly(process), x, times, eta=0.0, below=below), ddim(wobbly(process), x, times), rtol=1e-12, atol=1e-12
    )


def test_the_noise_level_of_a_node_is_kept():
    """Where the denoiser knows the one point there is, every node's sample is a x0 + s n, whatever the way below."""

    class Point:
        process, null = RectifiedFlow(), None

        def __call__(self, x_t, t, cond=None):
            return torch.full_like(x_t, 2.0)

    flow, n = Point.process, 40_000
    times = linear_grid(3)
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    noise = generator_noise(x, torch.Generator().manual_seed(1))
    for eta in (0.3, 1.0):
        at = tcd(Point(), x, times, eta=eta, noise=noise, final=False)
        s = float(flow.s(times[-1]))
        assert abs(float(at.mean()) - 2 * (1 - s)) < 0.01 and abs(float(at.std()) - s) < 0.01


def test_one_step_by_hand(wobbly, normal):
    x, e, times = normal(4, 6), normal(4, 6, seed=5), torch.tensor([5.0, 1.0], dtype=F64)
    denoiser, below = wobbly(VE()), torch.tensor([0.25], dtype=F64)
    low = ddim_step(VE(), x, denoiser(x, times[:1].expand(4)), times[0], below[0])
    expected = denoiser(low + (1 - 0.0625) ** 0.5 * e, times[1:].expand(4))
    got = tcd(denoiser, x, times, below=below, noise=lambda i: e)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_bad_input(wobbly, normal):
    x, times = normal(2, 6), [5.0, 1.0]
    with pytest.raises(LimbeckError, match=r"eta must lie in \[0, 1\], not 1.5"):
        tcd(wobbly(VE()), x, times, eta=1.5)
    with pytest.raises(LimbeckError, match="tcd with eta = 0.3 needs noise"):
        tcd(wobbly(VE()), x, times)
    for below in ([2.0], [0.5, 0.5]):
        with pytest.raises(LimbeckError, match="one time for each of the 1 nodes after the first, none above its node"):
            tcd(wobbly(VE()), x, times, below=below, noise=lambda i: x)
