"""Adversarial losses: values by hand, gradients by finite differences, R1 against autograd."""

import math

import pytest
import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.losses import discriminator_loss, generator_loss, logit_accuracy, r1_finite_difference

F64 = torch.float64
REAL, FAKE = torch.tensor([0.5, -2.0], dtype=F64), torch.tensor([1.5, -0.25], dtype=F64)


def softplus(x):
    return math.log1p(math.exp(x))


def test_softplus_values():
    d = (softplus(-0.5) + softplus(2.0)) / 2 + (softplus(1.5) + softplus(-0.25)) / 2
    assert float(discriminator_loss(REAL, FAKE)) == pytest.approx(d, rel=1e-14)
    assert float(generator_loss(FAKE)) == pytest.approx((softplus(-1.5) + softplus(0.25)) / 2, rel=1e-14)


def test_hinge_values():
    assert float(discriminator_loss(REAL, FAKE, "hinge")) == (0.5 + 3.0) / 2 + (2.5 + 0.75) / 2
    assert float(generator_loss(FAKE, "hinge")) == -0.625


def test_unknown_kinds():
    for call in (lambda: discriminator_loss(REAL, FAKE, "hinges"), lambda: generator_loss(FAKE, "hinges")):
        with pytest.raises(LimbeckError, match="unknown adversarial loss 'hinges': did you mean 'hinge'"):
            call()


@pytest.mark.parametrize("kind", ["softplus", "hinge"])
def test_the_generators_gradient_pulls_fakes_towards_real(kind):
    logits = FAKE.clone().requires_grad_()
    generator_loss(logits, kind).backward()
    h = 1e-6
    moved = torch.stack([torch.eye(2, dtype=F64)[i] * h for i in range(2)])
    numeric = torch.stack([generator_loss(FAKE + m, kind) - generator_loss(FAKE - m, kind) for m in moved]) / (2 * h)
    torch.testing.assert_close(logits.grad, numeric, rtol=1e-8, atol=1e-9)
    assert bool((logits.grad < 0).all())  # a larger logit, more real, is a smaller loss


def test_the_best_softplus_discriminator_is_the_log_ratio():
    # p on two points (0.8, 0.2), q (0.3, 0.7): the gradient of E_p softplus(-l) + E_q softplus(l) is 0 at l = log p / q
    p, q = torch.tensor([0.8, 0.2], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64)
    logits = (p / q).log().requires_grad_()
    real, fake = (logits.repeat_interleave((10 * w).round().long()) for w in (p, q))
    discriminator_loss(real, fake).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, dtype=F64), rtol=0, atol=1e-15)


def test_r1_by_finite_difference_is_the_mean_squared_gradient():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(6, 3, dtype=F64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf).sum(), leaf)
    exact = gradient.square().sum(1).mean().detach()
    noise = math.sqrt(3) * torch.eye(3, dtype=F64)  # three draws with the covariance of the normal: a quadrature
    rows, draws = x.repeat_interleave(3, 0), noise.repeat(6, 1)

    def estimate(delta):
        return r1_finite_difference(net, rows, draws, delta).detach() / delta**2

    assert float(exact) > 1e-3
    torch.testing.assert_close(estimate(1e-5), exact, rtol=1e-4, atol=0)
    errors = [abs(float(estimate(d) - exact)) for d in (2e-2, 1e-2)]
    assert 1.7 < errors[0] / errors[1] < 2.3  # first order in delta
    r1_finite_difference(net, x, torch.randn_like(x)).backward()
    assert float(net[0].weight.grad.abs().max()) > 0  # it trains the discriminator


def test_logit_accuracy_counts_both_sides():
    assert float(logit_accuracy(REAL, FAKE)) == 0.5
    assert float(logit_accuracy(torch.ones(3), -torch.ones(1))) == 1.0
    assert float(logit_accuracy(torch.tensor([1.0, -1.0, 1.0]), torch.tensor([1.0]))) == 0.5
