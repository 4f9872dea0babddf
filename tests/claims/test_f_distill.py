"""Every gate of f-distill's claim holds on good figures and fails on bad ones; what it calls exact is exact."""

import math

import pytest
import torch

from limbeck.claims.generators.f_distill import ARMS, CLAIM, RARE, WEIGHTS, Rigid, judge

GOOD = {
    **{f"{arm} tv": value for arm, value in zip(ARMS, (0.32, 0.18, 0.19, 0.32, 0.31, 0.33, 0.32), strict=True)},
    **{f"{arm} rare": value for arm, value in zip(ARMS, (0.5, 1, 1, 0.5, 0.5, 0.5, 0.5), strict=True)},
    "kl correlation at 0.5": 0.87, "js correlation at 0.5": 0.86, "dead correlation at 0.5": 0.0,
    "kl correlation at 1": 0.75, "kl bin error": 0.06, "js bin error": 0.05,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("kl tv", 0.3, "kl / rkl, total variation"),
        ("js tv", 0.3, "js / rkl, total variation"),
        ("alone tv", 0.19, "control: every sample alone in its bin"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    assert any(statement in s for s in lost(**{figure: value}))


def test_the_rigid_student_knows_its_density():
    student = Rigid(0.5)
    with torch.no_grad():
        student.A.copy_(torch.tensor([[0.3, 0.1], [-0.2, 0.4]]))
    x = torch.tensor([[0.1, -0.4], [0.7, 0.2]], dtype=torch.float64)
    A = student.A.detach().double()
    S = A @ A.T + 0.25 * torch.eye(2, dtype=torch.float64)
    q = x - torch.tensor([0.5, 0.0], dtype=torch.float64)
    expected = -0.5 * (q @ torch.linalg.inv(S) * q).sum(1) - 0.5 * torch.logdet(S) - math.log(2 * math.pi)
    torch.testing.assert_close(student.log_prob(x, 0.5), expected)
    z = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(student(2.5 * z, z).T.cov().double(), A @ A.T, atol=0.005, rtol=0)


def test_the_weights_are_a_law_with_two_rare_modes():
    assert sum(WEIGHTS) == pytest.approx(1) and sorted(WEIGHTS)[:2] == [WEIGHTS[i] for i in RARE] == [0.01, 0.01]


def test_the_calibration_is_recorded():
    assert "seed" in CLAIM.calibration
