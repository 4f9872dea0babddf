"""The sine's table, a miniature of the rest, and every gate of self-distillation's claim failing on bad figures."""

import pytest

from limbeck.claims.recognition import self_distillation
from limbeck.claims.recognition.self_distillation import CLAIM, GRID, TABLE, judge, measure, toy_errors

GOOD = {
    "table error": 5e-6, "ridge": 0.62, "one round": 0.55, "five rounds": 0.53, "labels alone": 0.62, "tuned": 0.517,
    "tuned one round": 0.5165, "wins": 19.0, "first accuracy": 86.0, "estimated accuracy": 87.0, "estimated error": 0.34,
    **{f"alpha {a:g} accuracy": 89.0 - a for a in GRID}, **{f"alpha {a:g} error": 0.335 + 0.1 * (a - 0.6) ** 2 for a in GRID},
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


@pytest.mark.parametrize("alpha", TABLE)
def test_the_table_of_the_sine(alpha):
    assert toy_errors(alpha) == pytest.approx(TABLE[alpha], rel=0, abs=1e-5)


def test_good_figures_hold_and_what_does_not_show_is_said():
    assert not lost()
    reported = {c.statement: c.holds for c in judge([GOOD]) if not c.gated}
    assert list(reported.values()) == [True, False, True] and all("digits" in statement for statement in reported)


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("table error", 2e-5, "table of the sine"),
        ("one round", 0.58, "error that one round takes away"),
        ("wins", 13.0, "splits that one round improves"),
        ("five rounds", 0.56, "error that five rounds take away"),
        ("labels alone", 0.6200001, "control: five rounds of labels alone"),
        ("tuned one round", 0.50, "control: at the best penalty"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_a_miniature_is_the_same_twice(monkeypatch):
    for name, value in {"SHUFFLES": 2, "NETS": 1, "LAMBDAS": [0.3, 1.0], "PER_ROUND": 8}.items():
        monkeypatch.setattr(self_distillation, name, value)
    figures = measure(1)
    assert figures == measure(1)
    assert figures["one round"] < figures["ridge"] == pytest.approx(figures["labels alone"], rel=1e-12)
    assert figures["first error"] < 1 and set(GOOD) <= set(figures)


def test_the_calibration_is_recorded():
    assert "seeds" in CLAIM.calibration
