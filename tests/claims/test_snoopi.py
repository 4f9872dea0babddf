"""SNOOPI's claim on made-up figures: what holds, how each gate fails, and distances at equal shares removed."""

from math import inf

import pytest

from limbeck.claims.generators.snoopi import CLAIM, STRENGTHS, distance_at, judge

REMOVED = (0.84, 0.89, 0.93, 0.95)
DISTANCES = {
    "nasa": (4.8, 5.2, 6.5, 8.4),
    "nag": (4.9, 5.4, 7.0, 8.5),
    "output": (5.5, 8.2, 11.0, 14.0),
    "text": (4.8, 5.6, 6.2, 6.7),
}
GOOD = {
    "random frechet": 3.0,
    "fixed 1.5 frechet": 2.8,
    "fixed 4 frechet": 9.0,
    "teacher only frechet": 8.0,
    "prompts frechet": 2.0,
    "none removed": 0.74,
    "none kept": 0.92,
    "none wanted": 0.67,
    "none frechet": 5.2,
    "itself wanted": 0.43,
    **{f"{arm} {a:g} removed": r for arm, strengths in STRENGTHS.items() for a, r in zip(strengths, REMOVED, strict=True)},
    **{f"{arm} {a:g} frechet": d for arm, ds in DISTANCES.items() for a, d in zip(STRENGTHS[arm], ds, strict=True)},
    "nasa 0.5 wanted": 0.75,
    "nasa 1 kept": 0.76,
}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("random frechet", 8.5, "random scale / the worst fixed one"),
        ("teacher only frechet", 2.5, "random in the teacher alone"),
        ("prompts frechet", 4.0, "one-step student asked in words"),
        ("none removed", 0.85, "removed without a negative prompt"),
        ("nasa 1 removed", 0.9, "removed by NASA"),
        ("output 0.35 frechet", 5.0, "guidance of the outputs / NASA"),
        ("nasa 0.5 wanted", 0.66, "NASA, alpha 0.5 - none"),
        ("itself wanted", 0.6, "control: the positive prompt"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    assert any(s.startswith(statement) for s in lost(**{figure: value}))


def test_distances_are_taken_between_the_strengths_tried():
    assert distance_at(GOOD, "nasa", 0.87) == pytest.approx(4.8 + 0.6 * 0.4)
    assert distance_at(GOOD, "output", 0.79) == pytest.approx(5.35)  # half way from none at 0.74 to 0.84
    assert distance_at(GOOD, "text", 0.99) == inf


def test_the_calibration_is_recorded():
    assert "seed" in CLAIM.calibration
