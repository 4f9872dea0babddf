"""Every divergence's pull is its gradient between noised laws, and leads to the minimiser that theory names."""

import math

import pytest
import torch
from torch import nn

from limbeck.denoisers import MixtureDenoiser
from limbeck.noise import VE, spread
from limbeck.rules import DIVERGENCES, DistributionMatching, Sample, divergence, surrogate

F64 = torch.float64


def log_normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)


class Normal(nn.Module):
    """The exact denoiser of N(mean, std^2) in one dimension: the critic that would be learned."""

    process, null = VE(), None

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.log_std = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (mean, math.log(std)))

    def forward(self, x_t, t, cond=None):
        variance = self.log_std.exp() ** 2
        return self.mean + spread(variance / (variance + t**2), x_t) * (x_t - self.mean)

    def log_prob(self, x_t, t):
        return log_normal(x_t[:, 0], self.mean, torch.sqrt((2 * self.log_std).exp() + t**2))


# -- A: the exact gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_pull_is_the_gradient_of_the_divergence_between_noised_laws(name):
    # p = N(0, 1), q = N(0.6, std^2), both noised to sigma = 0.5: s^2 d D_f / d(mean, log std), by a fine grid
    student, sigma = Normal(0.6, 0.7 if name == "neyman" else 1.1), 0.5  # Neyman's integral needs q's tails inside p's
    teacher, grid = Normal(0.0, 1.0), torch.linspace(-16, 16, 100_001, dtype=F64)[:, None]
    width, t = float(grid[1] - grid[0]), torch.full((len(grid),), sigma, dtype=F64)
    log_q, log_p = student.log_prob(grid, t), teacher.log_prob(grid, t).detach()
    inside = log_q > -200  # beyond, q is nothing
    value = (log_q.exp() * divergence(name).f((log_p - log_q).exp()))[inside].sum() * width
    exact = torch.autograd.grad(value, [student.mean, student.log_std])

    def measured(h):
        # x = E[x | x_t] up to a mean-zero part that no weight sees: x_t = mean + root z, x = mean + std^2 / root z
        with torch.no_grad():
            std, root = student.log_std.exp(), torch.sqrt((2 * student.log_std).exp() + sigma**2)
            z = (grid - student.mean) / root
            rule = DistributionMatching(teacher, student, normaliser="none", ratio_weight=lambda x_t, t, c: h)
            pull = rule(Sample(grid), t, torch.zeros_like(grid)).gradient
            density = student.log_prob(grid, t).exp()[:, None] * width
            return float((pull * density).sum()), float((pull * density * z * std**2 / root).sum())

    r = torch.exp(log_p - log_q).detach().clamp(1e-100, 1e100)
    h = divergence(name).h(r)
    expected = [sigma**2 * float(e) for e in exact]
    assert measured(h) == pytest.approx(expected, rel=1e-7, abs=1e-10)
    if name != "rkl":
        for wrong in (h / r**2, h / r):  # f'' and r f''
            assert max(abs(a - b) for a, b in zip(measured(wrong), expected, strict=True)) > 1e-3


# -- B: the exact minimiser -------------------------------------------------------------------------------------------


def gauss(n):
    """Nodes and weights of E under N(0, 1)."""
    edge = torch.linspace(-6, 6, n + 1, dtype=F64)
    z = (edge[1:] + edge[:-1]) / 2
    w = torch.exp(-(z**2) / 2)
    return z, w / w.sum()


def minimiser(name, start=(-1.5, 0.6), steps=150):
    """(mean, std) of the normal generator at which the expected pull vanishes; teacher 0.7 N(-2, 1/4) + 0.3 N(2, 1/4)."""
    means, weights = torch.tensor([[-2.0], [2.0]], dtype=F64), torch.tensor([0.7, 0.3], dtype=F64)
    teacher, student = MixtureDenoiser(weights, means, 0.25, VE()), Normal(*start)
    (z, wz), (e, we) = gauss(28), gauss(16)
    levels = 0.05 + 0.95 * (torch.arange(5, dtype=F64) + 0.5) / 5
    z, e, t = (v.flatten() for v in torch.meshgrid(z, e, levels, indexing="ij"))
    weight = (wz[:, None, None] * we[None, :, None]).expand(28, 16, 5).flatten()

    def ratio(x_t, t, cond):
        return divergence(name).h(torch.exp(teacher.log_prob(x_t, t) - student.log_prob(x_t, t).detach()).clamp(1e-12, 1e12))

    rule = DistributionMatching(teacher, student, normaliser="none", ratio_weight=None if name == "rkl" else ratio)
    optimizer = torch.optim.Adam(student.parameters(), betas=(0.5, 0.9))
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - k / steps) ** 2
        x = (student.mean + student.log_std.exp() * z)[:, None]
        pull = rule(Sample(x), t, e[:, None]).gradient
        optimizer.zero_grad()
        surrogate(x, pull * weight[:, None] * len(x)).backward()
        optimizer.step()
    return float(student.mean.detach()), float(student.log_std.detach().exp())


@pytest.mark.parametrize(
    ("name", "expected"), [("kl", (-0.8, 1.9)), ("js", (-0.823, 1.846)), ("sh", (-0.791, 1.815)), ("rkl", (-1.914, 0.628))]
)
def test_the_minimiser_in_closed_form(name, expected):
    mean, std = minimiser(name)
    assert abs(mean - expected[0]) < 0.03 and abs(std - expected[1]) < 0.03
    assert {"kl": std > 1.87, "js": std > 1.5, "sh": std > 1.5, "rkl": std < 0.8}[name]  # moments, or the big mode alone
