"""Every gate of DisBack's claim holds on good figures and fails on bad ones; the far student is where it is said to be."""

import pytest
import torch

from limbeck.claims.generators.disback import ARMS, CLAIM, JUDGED, Shifted, judge
from limbeck.denoisers import GaussianDenoiser
from limbeck.noise import VE

LEVEL = {"plain": 2.0, "plain, normalised": 2.0, "DisBack": 3.0, "DisBack by loss": 1.5, "control": 0.5, "forward": 3.5}
GOOD = {
    **{f"{arm} at {k}": LEVEL[arm] if k < JUDGED[-1] else 0.5 for arm in ARMS for k in JUDGED},
    "start sliced_w2": 6.5,
    "mismatch at 0.3": 30.0,
}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold_and_what_does_not_show_is_said():
    assert not lost()
    shown = {c.statement: c.holds for c in judge([GOOD]) if not c.gated}
    assert shown["DisBack / warm critic alone, the same"] is False and len(shown) == 6


@pytest.mark.parametrize(
    ("figures", "statement"),
    [
        ({"mismatch at 0.3": 1.5}, "the teacher's error at the first student's samples"),
        ({"DisBack at 420": 4.0}, "DisBack at the end / at the start"),
        ({f"DisBack by loss at {k}": 3.0 for k in JUDGED}, "nodes at equal drops of the loss / at equal iterations"),
        ({f"control at {k}": 2.0 for k in JUDGED}, "warm critic alone / host alone"),
    ],
)
def test_every_gate_can_fail(figures, statement):
    assert any(statement in s for s in lost(**figures))


def test_the_far_student_is_shifted_along_the_first_axis():
    inner = GaussianDenoiser.from_covariance(torch.zeros(2), torch.eye(2), VE())
    x, t = torch.randn(5, 2), torch.full((5,), 2.0, dtype=torch.float64)
    moved = Shifted(inner, 9.0)(x, t) - inner(x, t)
    torch.testing.assert_close(moved, torch.tensor([[9.0, 0.0]]).expand(5, 2))


def test_the_calibration_is_recorded():
    assert "seeds" in CLAIM.calibration
