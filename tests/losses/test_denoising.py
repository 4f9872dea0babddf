"""Denoising losses: every weight is the error that it names, and the anchored target has the true denoiser as its mean."""

import pytest
import torch
from torch import nn

from limbeck.denoisers import FiniteSetDenoiser, Preconditioned
from limbeck.errors import LimbeckError
from limbeck.losses import WEIGHTS, denoising_loss, denoising_target
from limbeck.networks import ResidualMLP
from limbeck.noise import VE, VP, RectifiedFlow

F64 = torch.float64
PROCESSES = [VE(), VP(), RectifiedFlow(shift=2.0)]
POINTS = torch.tensor([-1.5, -0.4, 0.3, 1.2], dtype=F64)
LEVEL, T = 0.5, 0.8


class Halved(nn.Module):
    """D(x_t, t) = x_t / 2 + t / 3: any denoiser will do where errors are compared."""

    null = None

    def __init__(self, process):
        super().__init__()
        self.process, self.gain = process, nn.Parameter(torch.tensor(0.5, dtype=F64))

    def forward(self, x_t, t, cond=None):
        return self.gain * x_t + t[:, None] / 3


def batch(process):
    torch.manual_seed(0)
    x, eps = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    t = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.9], dtype=F64)
    a, s, da, ds = (f(t)[:, None] for f in (process.a, process.s, process.da, process.ds))
    return x, eps, t, a, s, da, ds


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", WEIGHTS)
def test_each_weight_is_the_error_that_it_names(process, name):
    x, eps, t, a, s, da, ds = batch(process)
    denoiser = Halved(process)
    x_t = a * x + s * eps
    answer = denoiser(x_t, t)
    e = (x_t - a * answer) / s  # the noise that the answer implies
    sigma = s / a
    network = (answer - a * 0.49 / (s**2 + 0.49 * a**2) * x_t) * torch.sqrt(s**2 + 0.49 * a**2) / (0.7 * s)  # EDM's F
    wanted = (x - a * 0.49 / (s**2 + 0.49 * a**2) * x_t) * torch.sqrt(s**2 + 0.49 * a**2) / (0.7 * s)
    errors = {
        "x0": answer - x,
        "edm": network - wanted,  # EDM weighs so that the loss is the plain error of its network
        "eps": e - eps,
        "signal_eps": a * (e - eps),
        "v": (a * e - s * answer) - (a * eps - s * x),
        "velocity": (da * answer + ds * e) - (da * x + ds * eps),
        "min_snr_5": (answer - x) * torch.minimum(1 / sigma, torch.tensor(5.0, dtype=F64).sqrt()),
    }
    loss = denoising_loss(denoiser, x, t, eps, weight=name, sigma_data=0.7)
    torch.testing.assert_close(loss, errors[name].square().mean(), rtol=1e-11, atol=0)


def test_the_loss_trains_the_denoiser_and_not_the_data():
    x, eps, t, *_ = batch(VE())
    denoiser, x = Halved(VE()), x.requires_grad_()
    denoising_loss(denoiser, x, t, eps).backward()
    assert x.grad is None and float(denoiser.gain.grad.abs()) > 0.01
    with pytest.raises(LimbeckError, match="unknown loss weight 'epss': did you mean 'eps'"):
        denoising_loss(denoiser, x, t, eps, weight="epss")


def test_conditions_reach_the_network():
    torch.manual_seed(0)
    denoiser = Preconditioned(ResidualMLP((3,), width=8, blocks=1, classes=2), VE()).double()
    nn.init.normal_(denoiser.network.output.weight)
    nn.init.normal_(denoiser.network.blocks[0].modulation.weight)
    nn.init.normal_(denoiser.network.blocks[0].outer.weight)
    x, eps, t, *_ = batch(VE())
    a, b = (float(denoising_loss(denoiser, x, t, eps, {"label": torch.full((5,), k)}).detach()) for k in (0, 1))
    assert abs(a - b) > 1e-4 * a


def anchored(process, naive=False):
    """(E[target | x_t] by quadrature over the point x at LEVEL, the exact denoiser) at several x_t at T."""
    level, t = torch.tensor([LEVEL], dtype=F64), torch.tensor([T], dtype=F64)
    a, s = float(process.a(level)), float(process.s(level))
    step, noise = (float(v) for v in process.transition(level, t))
    x = torch.linspace(-8, 8, 40_001, dtype=F64)
    density = torch.exp(-0.5 * ((x[:, None] - a * POINTS) / s) ** 2).mean(1)
    means, exact = [], []
    for x_t in torch.linspace(-1.5, 1.5, 5, dtype=F64):
        eps = (x_t - step * x) / noise
        weight = density * torch.exp(-0.5 * eps**2)
        rows = torch.full_like(x, T)
        shape = (-1, 1)
        target = denoising_target(
            process,
            x.reshape(shape),
            x_t.expand(len(x), 1),
            eps.reshape(shape),
            rows,
            None if naive else torch.full_like(x, LEVEL),
        )
        means.append((weight * target[:, 0]).sum() / weight.sum())
        exact.append(FiniteSetDenoiser(POINTS[:, None], process)(x_t.reshape(1, 1), t)[0, 0])
    return torch.stack(means), torch.stack(exact)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_anchored_target_has_the_exact_denoiser_as_its_mean(process):
    mean, exact = anchored(process)
    torch.testing.assert_close(mean, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_noisy_sample_itself_as_a_target_is_wrong(process):
    mean, exact = anchored(process, naive=True)
    assert float((mean - exact).abs().max()) > 0.1


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_level_near_zero_is_no_level(process):
    x, eps, *_ = batch(process)
    t = torch.linspace(0.5, 0.95, 5, dtype=F64)
    low = process.time_of(torch.full((5,), 1e-7, dtype=F64))
    losses = [denoising_loss(Halved(process), x, t, eps, weight="x0", level=level) for level in (None, low)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


def test_the_weight_is_damped_where_the_level_is_reached():
    process, level = VE(), torch.full((4,), LEVEL, dtype=F64)
    torch.manual_seed(0)
    x, eps = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    for gap, factor in ((1e-4, 10.0), (1e-4, 3.0), (0.5, 1e9)):
        t = torch.sqrt(level**2 + gap)  # s^2 from the level to t is the gap
        x_t = x + gap**0.5 * eps
        target = x_t - t[:, None] ** 2 / gap**0.5 * eps
        error = (Halved(process)(x_t, t) - target).square().mean()
        loss = denoising_loss(Halved(process), x, t, eps, weight="x0", level=level, damping=factor)
        torch.testing.assert_close(loss, min(1.0, factor * gap) * error, rtol=1e-9, atol=0)
