"""The Gaussian miniature: its critic against a Gaussian's denoiser, the rule's expected gradient, the root, and training."""

import pytest
import torch

from limbeck.claims.scenes.entropy import COVARIANCE, LAMS, MEAN, TIMES, RenderLaws, gaussian_figures, stationary, trained
from limbeck.denoisers import GaussianDenoiser
from limbeck.noise import CosineVP
from limbeck.rules import DistributionMatching, Sample

M, P = (torch.tensor(value, dtype=torch.float64) for value in (MEAN, COVARIANCE))
MU = torch.tensor([[0.3, 0.1], [1.0, 2.0]], dtype=torch.float64)
L = torch.tensor([[[0.7, 0.1], [0.0, 0.4]], [[1.2, 0.0], [0.5, 0.3]]], dtype=torch.float64)


def test_the_critic_is_a_gaussian_per_arm_and_a_point_where_it_is_told():
    generator = torch.Generator().manual_seed(0)
    critic = RenderLaws(MU, L @ L.mT, CosineVP())
    x_t, t = torch.randn(6, 2, dtype=torch.float64, generator=generator), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    for arm, rows in ((0, slice(0, 3)), (1, slice(3, 6))):
        alone = GaussianDenoiser.from_covariance(MU[arm], L[arm] @ L[arm].T, CosineVP())
        assert torch.allclose(critic(x_t, t)[rows], alone(x_t[rows], t[rows]), atol=1e-12)
    assert torch.equal(critic(x_t, t, {"render": 2 * x_t}), 2 * x_t)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_rule_has_the_expected_gradient(lam):
    # by quadrature over t and the exact moments of z and eps: both are replaced by sigma points, exact for linear maps
    mu, factor = MU[0], L[0]
    process, n = CosineVP(), 2
    t = TIMES[0] + (TIMES[1] - TIMES[0]) * (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    points = torch.cat([torch.eye(2 * n), -torch.eye(2 * n)]).double() * (2 * n) ** 0.5
    z, eps = (part.repeat(64, 1) for part in points.split(n, 1))
    time = t.repeat_interleave(4 * n)
    x = mu + z @ factor.T
    teacher = GaussianDenoiser.from_covariance(M, P, process)
    critic = RenderLaws(mu[None], (factor @ factor.T)[None], process)
    rule = DistributionMatching(teacher, critic, critic_guidance=1 - lam, normaliser="vsd")
    pull = rule(Sample(x, {"render": x}, goal={}), time, eps).gradient
    a, s, one = process.a(t)[:, None, None], process.s(t)[:, None, None], torch.eye(n).double()
    VP, VQ = a**2 * P + s**2 * one, a**2 * factor @ factor.T + s**2 * one
    weight = s**3 * a
    by_mean = (weight * torch.linalg.inv(VP)).mean(0) @ (mu - M)  # (1)
    by_factor = (weight * (torch.linalg.inv(VP) - lam * torch.linalg.inv(VQ))).mean(0) @ factor  # (2)
    assert torch.allclose(pull.mean(0), by_mean, atol=1e-10)
    assert torch.allclose(pull.T @ z / len(z), by_factor, atol=1e-10)


def test_the_root_is_the_teachers_variance_at_one_and_less_for_less():
    variances = [0.2, 0.9]
    found = [stationary(lam, variances) for lam in LAMS]
    assert found[0] == [0.0, 0.0] and found[-1] == pytest.approx(variances, rel=1e-9)
    totals = [sum(x) for x in found]
    assert totals == sorted(totals) and totals[2] < totals[3] < totals[4]


def test_training_goes_to_the_root_within_its_steps():
    mu, Q = trained(0, steps=80, batch=64, lr=0.2)
    ratio = [float(q.trace() / P.trace()) for q in Q]
    assert ratio[0] < ratio[2] < ratio[3] < ratio[4] and ratio[0] < 0.05 and ratio[4] == pytest.approx(1, abs=0.1)
    assert float((mu - M).abs().max()) < 0.1


@pytest.mark.slow
def test_lam_decides_between_a_point_and_the_teachers_law():
    figures = gaussian_figures(0)
    ratio = [figures[f"gaussian trace ratio {lam:g}"] for lam in LAMS]
    assert ratio == sorted(ratio) and ratio[0] < 0.01 and ratio[-1] > 0.95 and figures["gaussian mean error"] < 0.01
    for lam, found in zip(LAMS, ratio, strict=True):
        assert found == pytest.approx(figures[f"gaussian root {lam:g}"], abs=0.02)
