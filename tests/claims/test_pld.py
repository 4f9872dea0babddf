"""Every gate of Plackett-Luce distillation's claim holds on good figures and fails on bad ones; a miniature; the control."""

import pytest
import torch

from limbeck.claims.recognition import pld
from limbeck.claims.recognition.pld import CLAIM, judge, measure, shuffled_but_label

GOOD = {
    "teacher accuracy": 98.0, "picks at 1": 1.003, "picks at 4": 1.8, "CE accuracy": 91.7, "CE kendall": 0.69,
    "KD 0.1 accuracy": 92.2, "KD 0.9 accuracy": 91.8, "ListMLE accuracy": 93.9, "PLD 1 accuracy": 91.72, "PLD 1 warned": 1.0,
    "PLD 4 accuracy": 94.0, "PLD 4 kendall": 0.83, "PLD 4 warned": 0.0, "shuffled accuracy": 91.3,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold_and_what_does_not_show_is_said():
    assert not lost()
    assert [c.statement for c in judge([GOOD]) if not c.gated and not c.holds] == ["PLD over ListMLE"]


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("teacher accuracy", 95.0, "teacher's test accuracy"),
        ("CE accuracy", 93.2, "PLD, tau 4, over cross-entropy: test"),
        ("KD 0.9 accuracy", 93.3, "PLD over KD"),
        ("KD 0.1 accuracy", 93.3, "PLD over KD"),
        ("CE kendall", 0.77, "Kendall's tau"),
        ("shuffled accuracy", 92.0, "control: the teacher's other classes shuffled"),
        ("shuffled accuracy", 93.1, "control: PLD over the same"),
        ("PLD 1 accuracy", 91.2, "tau 1 with a sure teacher"),
        ("picks at 1", 1.06, "picks that count at tau 1"),
        ("PLD 1 warned", 0.9, "at tau 1 that say so"),
        ("PLD 4 warned", 0.1, "at tau 4 that say so"),
        ("picks at 4", 1.4, "picks that count at tau 4"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_a_miniature_is_the_same_twice(monkeypatch):
    monkeypatch.setattr(pld, "STUDENTS", 1)
    monkeypatch.setattr(pld, "ARMS", {name: pld.ARMS[name] | {"iterations": 40} for name in ("CE", "PLD 4")})
    monkeypatch.setattr(pld, "TEACHER_EPOCHS", 2)
    figures = measure(3)
    assert figures == measure(3) and figures["teacher accuracy"] > 80 and figures["PLD 4 kendall"] > figures["CE kendall"]


def test_shuffling_moves_all_but_the_label():
    logits = torch.arange(40.0).reshape(4, 10)
    labels = torch.tensor([0, 3, 9, 5])
    moved = shuffled_but_label(logits, labels, 1)
    rows = torch.arange(4)
    assert torch.equal(moved[rows, labels], logits[rows, labels])
    assert torch.equal(moved.sort(1).values, logits) and int((moved != logits).sum()) > 20
    assert torch.equal(moved, shuffled_but_label(logits, labels, 1))


def test_the_calibration_is_recorded():
    assert "5 seeds" in CLAIM.calibration
