"""Preference losses: their values and gradients by formula, ties, clips, and the Gaussian policy whose optimum is known."""

import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.losses import clipped, customisation_loss, denoising_ratios, pair_loss, ranked
from limbeck.samplers import log_prob

F64 = torch.float64


def rhos(*values):
    return torch.tensor(values, dtype=F64, requires_grad=True)


def test_equal_ratios_lose_log_two_with_half_beta_as_gradient():
    w, l = rhos(0.0, 0.3), rhos(0.0, 0.3)
    loss = pair_loss(w, l, beta=5.0)
    torch.testing.assert_close(loss, torch.full((2,), math.log(2), dtype=F64), rtol=0, atol=1e-15)
    loss.sum().backward()
    torch.testing.assert_close(w.grad, torch.full((2,), -2.5, dtype=F64), rtol=0, atol=1e-14)
    torch.testing.assert_close(l.grad, torch.full((2,), 2.5, dtype=F64), rtol=0, atol=1e-14)


def test_both_forms_by_formula():
    w, l, beta = rhos(0.4, -0.2, 0.1), rhos(-0.1, 0.3, 0.1), 3.0
    torch.testing.assert_close(pair_loss(w, l, beta), torch.log1p(torch.exp(-beta * (w - l))), rtol=1e-13, atol=0)
    expected = torch.tensor([0.0, 1 + 3 * 0.5, 1.0], dtype=F64)
    torch.testing.assert_close(pair_loss(w, l, beta, "hinge"), expected, rtol=1e-13, atol=1e-15)
    with pytest.raises(LimbeckError, match="unknown form of the pair loss 'hing': did you mean 'hinge'"):
        pair_loss(w, l, beta, "hing")


def test_ranks_and_ties():
    a, b = rhos(0.1, 0.2, 0.3), rhos(-0.1, -0.2, -0.3)
    w, l = ranked(a, b, torch.tensor([1.0, -1.0, 0.0], dtype=F64))
    assert w.tolist() == [0.1, -0.2, 0.0] and l.tolist() == [-0.1, 0.2, 0.0]
    loss = pair_loss(w, l, beta=5.0)
    assert float(loss[2].detach()) == pytest.approx(math.log(2), abs=1e-15)
    loss.sum().backward()
    assert float(a.grad[2]) == float(b.grad[2]) == 0.0 and float(a.grad[:2].abs().min()) > 0.01
    assert float(a.grad[0]) < 0 < float(a.grad[1])  # descent raises winners and lowers losers


def test_the_symmetric_clip_is_that_of_the_ratio_and_kills_the_gradient_on_both_sides():
    w, l = rhos(-0.5, -0.05, 0.05, 0.5), rhos(0.5, 0.05, -0.05, -0.5)
    cw, cl = clipped(w, l, 0.1)
    torch.testing.assert_close(cw, torch.log(torch.exp(w).clamp(0.9, 1.1)), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(cl, torch.log(torch.exp(l).clamp(0.9, 1.1)), rtol=1e-12, atol=1e-15)
    pair_loss(cw, cl, 5.0).sum().backward()
    assert (w.grad != 0).tolist() == [False, True, True, False] == (l.grad != 0).tolist()


def test_the_ppo_clip_brings_back_what_left_in_the_wrong_direction():
    w, l = rhos(-0.5, 0.5), rhos(0.5, -0.5)
    cw, cl = clipped(w, l, 0.1, "ppo")
    pair_loss(cw, cl, 1.0).sum().backward()
    assert (w.grad != 0).tolist() == [True, False] == (l.grad != 0).tolist()
    assert clipped(w, l, 0.1, None) == (w, l)
    with pytest.raises(LimbeckError, match="0 < eps < 1, not eps=1; clip=None clips nothing"):
        clipped(w, l, 1.0)
    with pytest.raises(LimbeckError, match="unknown clip 'ppoo': did you mean 'ppo'"):
        clipped(w, l, 0.1, "ppoo")


def test_denoising_ratios_and_the_customisation_loss_by_formula():
    d_w, d_l, ref_w, ref_l = (torch.tensor([v], dtype=F64) for v in (0.3, 0.7, 0.5, 0.6))
    beta, kappa = 4.0, 0.25
    w, l = denoising_ratios(d_w, d_l, ref_w, ref_l, kappa)
    margin = beta * ((ref_w - kappa * ref_l) - (d_w - kappa * d_l))
    torch.testing.assert_close(pair_loss(w, l, beta), -torch.log(torch.sigmoid(margin)), rtol=1e-13, atol=0)
    expected = torch.relu(1 - beta * -(d_w - kappa * d_l)) + 0.5 * d_l
    torch.testing.assert_close(customisation_loss(d_w, d_l, beta, kappa, 0.5), expected, rtol=1e-13, atol=0)
    far = customisation_loss(d_w, 10 * d_l, beta, kappa, 0.5)  # the hinge is satisfied, and the prior alone is left
    torch.testing.assert_close(far, 5 * d_l, rtol=1e-13, atol=0)


@pytest.mark.parametrize("beta", [1.0, 2.0, 5.0])
def test_the_gaussian_policy_reaches_the_tilted_law(beta):
    """Pairs from N(0, 1), a wins with probability sigmoid(x_a - x_b): the optimum N(mu, 1) is p_ref exp(x / beta) / Z."""
    g = torch.Generator().manual_seed(0)
    x, u = torch.randn(2, 100_000, 1, generator=g, dtype=F64), torch.rand(100_000, generator=g, dtype=F64)
    sign = torch.where(u < torch.sigmoid(x[0] - x[1])[:, 0], 1.0, -1.0)
    mu, one = torch.zeros((), dtype=F64, requires_grad=True), torch.ones((), dtype=F64)
    reference = [log_prob(x_i, torch.zeros_like(x_i), one) for x_i in x]
    for _ in range(8):  # Newton's method
        rho = [log_prob(x_i, mu.expand_as(x_i), one) - r for x_i, r in zip(x, reference, strict=True)]
        loss = pair_loss(*ranked(*rho, sign), beta).mean()
        (slope,) = torch.autograd.grad(loss, mu, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, mu)
        with torch.no_grad():
            mu -= slope / curvature
    assert abs(float(slope.detach())) < 1e-10 and float(mu.detach()) == pytest.approx(1 / beta, abs=0.02)
