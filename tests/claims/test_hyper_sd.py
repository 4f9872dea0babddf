"""Every gate of Hyper-SD's claim on made-up figures: they hold, and each fails when its figure is bad."""

import pytest

from limbeck.claims.generators.hyper_sd import CLAIM, judge

GOOD = {
    **{f"TSCD {k} rmse": v for k, v in ((8, 0.17), (4, 0.19), (2, 0.24), (1, 0.24))},
    **{f"TSCD {k} energy": v for k, v in ((8, 0.004), (4, 0.004), (2, 0.007), (1, 0.006))},
    **{f"CD {k} rmse": v for k, v in ((8, 0.31), (4, 0.29), (2, 0.26), (1, 0.27))},
    **{f"CD {k} energy": v for k, v in ((8, 0.022), (4, 0.019), (2, 0.013), (1, 0.0075))},
    **{f"DDIM {k} rmse": v for k, v in ((8, 0.076), (4, 0.23), (2, 0.73), (1, 1.96))},
    **{f"DDIM {k} energy": v for k, v in ((8, 0.004), (4, 0.009), (2, 0.16), (1, 1.41))},
    "TSCD 1, equal budget rmse": 0.65,
    "two segments in one step rmse": 1.05,
    **{f"digits TSCD {k} frechet": v for k, v in ((4, 1.4), (2, 2.7), (1, 9.0))},
    **{f"digits CD {k} frechet": v for k, v in ((4, 0.7), (2, 1.4), (1, 7.0))},
    **{f"digits DDIM {k} frechet": v for k, v in ((4, 2.0), (2, 4.3), (1, 13.3))},
    "after score frechet": 2.0,
    "after score reward": -0.2,
    "after score judge": -0.01,
    "after score accuracy": 0.99,
    "after reward frechet": 2.1,
    "after reward reward": -0.15,
    "after reward judge": -0.005,
    "after reward accuracy": 0.995,
    **{f"unified {k} frechet": v for k, v in ((1, 2.0), (2, 1.4), (4, 1.9), (8, 2.9))},
}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()
    reported = [c.statement for c in judge([GOOD]) if not c.gated and not c.holds]
    assert any("all stages together as long as CD" in s for s in reported)
    assert any("TSCD / CD, Frechet distance" in s for s in reported) and any("one adapter, 8 steps / 4" in s for s in reported)


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("TSCD 8 energy", 0.02, "ring, 8 steps: TSCD / CD, energy distance"),
        ("TSCD 4 energy", 0.018, "ring, 4 steps: TSCD / CD, energy distance"),
        ("TSCD 2 energy", 0.012, "ring, 2 steps: TSCD / CD, energy distance"),
        ("DDIM 2 energy", 0.02, "ring, 2 steps: teacher's DDIM / TSCD, energy distance"),
        ("CD 2 energy", 0.06, "ring, 2 steps: teacher's DDIM / CD, energy distance"),
        ("TSCD 1 energy", 0.5, "ring, 1 step: teacher's DDIM / TSCD, energy distance"),
        ("CD 1 energy", 0.5, "ring, 1 step: teacher's DDIM / CD, energy distance"),
        ("TSCD 4 rmse", 0.24, "ring, 4 steps: TSCD / teacher's DDIM, error"),
        ("TSCD 2 rmse", 0.8, "ring, 2 steps: TSCD / teacher's DDIM, error"),
        ("DDIM 1 rmse", 0.2, "ring, 1 step: TSCD / teacher's DDIM, error"),
        ("TSCD 8 rmse", 0.07, "limit, ring, 8 steps"),
        ("TSCD 1 rmse", 0.31, "a last stage as long as CD: TSCD / CD, error"),
        ("two segments in one step rmse", 0.4, "control, ring: two segments in one step"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_the_calibration_is_recorded():
    assert "seeds" in CLAIM.calibration
