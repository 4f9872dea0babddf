"""SwiftBrush's claim on made-up figures: what holds, and how each gate fails."""

import pytest
import torch

from limbeck.claims.generators.swiftbrush import CLAIM, STABLE_DIFFUSION, judge

GOOD = {
    "teacher frechet": 0.7,
    "teacher accuracy": 0.985,
    "naive frechet": 2.5,
    "vsd frechet": 1.8,
    "vsd accuracy": 0.985,
    "vsd variance": 0.78,
    "vsd seconds": 33.0,
    "vsd other accuracy": 0.002,
    "sds frechet": 11.9,
    "sds variance": 0.11,
}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()
    reported = [c.statement for c in judge([GOOD]) if not c.gated and not c.holds]
    assert reported == ["the same, far below", "VSD / teacher at 35 NFE, Frechet distance"]


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("teacher frechet", 1.0, "teacher's Frechet distance"),
        ("naive frechet", 1.85, "VSD / the teacher called once"),
        ("vsd accuracy", 0.97, "VSD: class accuracy - teacher's"),
        ("vsd variance", 0.55, "VSD: variance within the classes / real"),
        ("vsd variance", 1.6, "VSD: variance within the classes / real"),
        ("sds variance", 0.3, "SDS: variance within the classes"),
        ("sds variance", 0.21, "VSD / SDS, variance"),
        ("sds frechet", 5.0, "SDS / VSD, Frechet distance"),
        ("vsd seconds", 70.0, "CPU seconds"),
        ("vsd other accuracy", 0.2, "control: accuracy against other classes"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    assert any(statement in s for s in lost(**{figure: value}))


def test_the_schedule_is_stable_diffusions():
    assert float(STABLE_DIFFUSION.table[-1]) == pytest.approx(0.00466010, abs=5e-9)
    assert float(1 / STABLE_DIFFUSION.a(torch.tensor(999.0))) == pytest.approx(14.65, abs=0.01)


def test_the_calibration_is_recorded():
    assert "seeds" in CLAIM.calibration
