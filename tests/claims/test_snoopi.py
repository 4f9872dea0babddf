"""SNOOPI's claim on made-up figures: what holds, how each gate fails, and distances at equal shares removed."""

from math import inf

import pytest

from limbeck.claims.generators.snoopi import CLAIM, STRENGTHS, distance_at, judge

REMOVED = (0.84, 0.89, 0.94, 0.96)
DISTANCES = {
    "nasa": (4.8, 5.2, 6.5, 8.4),
    "nag": (4.9, 5.4, 6.4, 8.5),
    "output": (5.5, 8.2, 11.0, 14.0),
    "text": (4.8, 5.6, 6.6, 6.9),
}
WANTED = {
    "nasa": (0.74, 0.78, 0.75, 0.7),
    "nag": (0.74, 0.8, 0.84, 0.8),
    "output": (0.75, 0.8, 0.85, 0.88),
    "text": 4 * (0.75,),
}
GOOD = {
    "random frechet": 2.8,
    "fixed 1.5 frechet": 2.5,
    "fixed 4 frechet": 4.4,
    "teacher only frechet": 2.6,
    "prompts frechet": 2.0,
    "none removed": 0.74,
    "none kept": 0.92,
    "none wanted": 0.67,
    "none frechet": 5.2,
    "itself wanted": 0.43,
    "itself removed": 0.74,
    "prompts accuracy": 0.89,
    "nasa 1 kept": 0.76,
}
for name, values in (("removed", dict.fromkeys(STRENGTHS, REMOVED)), ("frechet", DISTANCES), ("wanted", WANTED)):
    for arm, strengths in STRENGTHS.items():
        GOOD |= {f"{arm} {a:g} {name}": v for a, v in zip(strengths, values[arm], strict=True)}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()
    reported = [c.statement.partition(":")[0] for c in judge([GOOD]) if not c.gated and not c.holds]
    assert len(reported) == 4 and "random in the teacher alone / in both, Frechet distance" in reported


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("random frechet", 4.2, "random scale / the worst fixed one"),
        ("random frechet", 3.4, "random scale / the best fixed one"),
        ("prompts accuracy", 0.8, "one-step student asked in words: prompts"),
        ("nasa 0.5 removed", 0.77, "removed by NASA, alpha 0.5"),
        ("nasa 1 removed", 0.88, "removed by NASA, alpha 1"),
        ("itself wanted", 0.7, "control: NASA against the positive prompt"),
        ("itself removed", 0.86, "control: removed by NASA, alpha 0.5 - by NASA against another"),
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
