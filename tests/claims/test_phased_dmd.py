"""The toy of the critic's target in small, and every gate of the claim can fail."""

import pytest
import torch

from limbeck.claims.generators.phased_dmd import CLAIM, judge, noisy_points, velocity_loss
from limbeck.denoisers import Preconditioned
from limbeck.networks import ResidualMLP
from limbeck.noise import RectifiedFlow

F64 = torch.float64


def test_the_losses_of_the_toy_are_those_of_their_targets():
    """exact: u = ((a^2 s_t + a_t s^2) / (a^2 s_{t|s})) e - x_s / a at s = 0.5; naive: e - x_s; both damped or not as the weight says."""
    process = RectifiedFlow()
    torch.manual_seed(0)
    critic = Preconditioned(ResidualMLP((1,), width=8, blocks=1), process, "edm", 1.0)
    losses = {}
    for naive in (False, True):
        torch.manual_seed(1)
        losses[naive] = float(velocity_loss(critic, 64, naive).detach())
    torch.manual_seed(1)
    x, t, e, s = noisy_points(process, 64)
    t_ = t[:, None].float()
    step, noise = (v[:, None].float() for v in process.transition(s, t))
    x_t = step * x + noise * e
    v = (x_t - critic(x_t, t).detach()) / t_
    u = (0.25 * t_ + (1 - t_) * 0.25) / (0.25 * noise) * e - x / 0.5
    exact = (noise.square().mul(10).clamp(max=1) * (v - u).square()).mean()
    assert losses[False] == pytest.approx(float(exact), rel=1e-4)
    assert losses[True] == pytest.approx(float((v - (e - x)).square().mean()), rel=1e-4)


GOOD = {
    "target exact error": 0.03, "target naive error": 0.4, "phased tv": 0.05, "ode tv": 0.12, "phased energy": 5.0,
    "ode energy": 9.0, "truncated tv": 0.1, "truncated energy": 8.0, "own tv": 0.05, "own energy": 4.0, "phased diversity": 1.0,
    "own diversity": 0.9, "start energy": 17.0, "start tv": 0.14, "dead critic energy": 700.0,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost() and CLAIM.calibration


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("target exact error", 0.2, "critic with the exact target"),
        ("target naive error", 0.1, "control: with the naive target"),
        ("dead critic energy", 6.0, "control: critics that never learn"),
        ("phased diversity", 0.5, "Phased: variance within classes"),
        ("phased tv", 0.15, "Phased / start network: total"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed
