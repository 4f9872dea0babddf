"""Every gate of the claim of consistency training passes good figures and fails bad ones."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from limbeck.claims.generators import ict
from limbeck.claims.generators.ict import CLAIM, judge
from limbeck.methods.generators.ict import PRESETS

GOOD = {
    "teacher frechet": 0.7,
    "teacher at 1 NFE frechet": 11.6,
    "iCT 1 step frechet": 1.3,
    "iCT 1 step accuracy": 0.98,
    "iCT 2 steps frechet": 1.4,
    "CT 1 step frechet": 2.9,
    "CT 1 step accuracy": 0.97,
    "CT 2 steps frechet": 2.7,
}


def lost(runs):
    return [c.statement for c in judge(runs) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost(3 * [GOOD])
    reported = [c.statement for c in judge([GOOD]) if not c.gated and not c.holds]
    assert [s.partition(",")[0] for s in reported] == ["iCT", "iCT / teacher", "iCT / teacher"]


@pytest.mark.parametrize(
    ("figure", "value", "statements"),
    [
        ("iCT 1 step frechet", 2.2, ["iCT / CT, one step"]),
        ("iCT 2 steps frechet", 2.0, ["iCT / CT, two steps"]),
        ("CT 2 steps frechet", 1.9, ["iCT / CT, two steps"]),
        ("CT 1 step frechet", 1.7, ["iCT / CT, one step"]),
        ("iCT 1 step accuracy", 0.9, ["iCT's class accuracy"]),
        ("CT 1 step accuracy", 0.15, ["the baseline has converged"]),
        ("CT 1 step frechet", 60.0, ["control: teacher called once / CT"]),
        ("teacher at 1 NFE frechet", 1.0, ["control: teacher called once / CT", "control: teacher called once / iCT"]),
    ],
)
def test_every_gate_can_fail(figure, value, statements):
    failed = lost(3 * [GOOD | {figure: value}])
    assert len(failed) == len(statements)
    for statement, found in zip(statements, failed, strict=True):
        assert found.startswith(statement)


def test_one_bad_seed_of_three_is_outvoted_and_two_are_not():
    bad = GOOD | {"iCT 1 step frechet": 2.2}
    assert not lost([GOOD, GOOD, bad]) and lost([GOOD, bad, bad])


def test_both_arms_train_as_long_on_as_much(monkeypatch):
    """Equal compute: the same iterations and batch, each arm with its own preset; the students are judged alike."""
    trained = []

    def distil(name, seed, preset, **options):
        trained.append((name, seed, preset, options))
        return preset, 1.0

    monkeypatch.setattr(ict, "distil", distil)
    monkeypatch.setattr(ict, "teacher_figures", lambda: {"teacher frechet": 0.7})
    monkeypatch.setattr(ict, "judged", lambda method, label, steps: {f"{label} frechet": steps, f"{label} preset": method})
    figures = ict.measure(5)
    assert [other for *_, other in trained] == [{"iterations": ict.ITERATIONS, "s1": s1} for s1 in (32, 16)]
    assert [t[:3] for t in trained] == [("ict", 5, "recommended"), ("ict", 5, "ct")]
    assert figures["iCT 1 step preset"] == "recommended" and figures["CT 2 steps preset"] == "ct"
    assert PRESETS["recommended"].batch == PRESETS["ct"].batch


def test_the_ladder_goes_from_one_arm_to_the_other():
    """benchmarks/ict_ladder.py changes one ingredient a rung, from this claim's CT to its iCT."""
    path = Path(__file__).parents[2] / "benchmarks" / "ict_ladder.py"
    spec = importlib.util.spec_from_file_location("ict_ladder", path)
    ladder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ladder)
    rungs = [replace(PRESETS["ct"], **ict.ARMS["CT"][1])]
    for _, change in ladder.LADDER:
        rungs.append(replace(rungs[-1], **change))
    assert len(set(rungs)) == len(ladder.LADDER) == 6
    assert rungs[1] == rungs[0] and rungs[-1] == replace(PRESETS["recommended"], **ict.ARMS["iCT"][1])


def test_the_calibration_is_recorded():
    assert "seeds" in CLAIM.calibration
