"""Every gate of likelihood matching's claim holds on good figures and fails on bad ones; its texts; a miniature; the control."""

import pytest
import torch

from limbeck.claims.sequences import alm
from limbeck.claims.sequences.alm import CLAIM, judge, measure, misaligned, vocabularies
from limbeck.claims.sequences.texts import BYTES, HELD_OUT, MODULES, documents, rows
from limbeck.tasks.language import chunk_gap

GOOD = {
    "teacher bits": 2.49, "SFT bits": 3.39, "SFT gap": 1.89, "SFT outcome gap": 3.32, "ULD bits": 3.25, "ULD gap": 1.63,
    "ULD outcome gap": 3.03, "ALM bits": 3.20, "ALM gap": 1.63, "ALM outcome gap": 2.84, "ALM alone bits": 3.20,
    "ALM alone gap": 1.63, "ALM alone outcome gap": 2.46, "misaligned bits": 3.34, "misaligned gap": 1.81,
    "misaligned outcome gap": 3.03, "best SFT bits": 3.20, "best SFT gap": 1.64, "best SFT outcome gap": 2.78,
}  # fmt: skip


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold_and_what_does_not_show_is_said():
    assert not lost()
    unshown = [c.statement for c in judge([GOOD]) if not c.gated and not c.holds]
    assert unshown == [f"ALM + SFT / SFT stopped when it is best: {name}" for name in ("outcome gap", "bits per byte")]


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("teacher bits", 2.7, "teacher, its own tokenizer"),
        ("ALM gap", 1.72, "ALM + SFT / SFT, equal steps: chunk gap"),
        ("ALM outcome gap", 3.1, "ALM + SFT / SFT, equal steps: outcome gap"),
        ("SFT bits", 3.25, "ALM + SFT / SFT, equal steps: bits per byte"),
        ("ALM alone outcome gap", 2.9, "ALM alone / SFT, equal steps"),
        ("ULD outcome gap", 2.8, "ALM + SFT / ULD + SFT: outcome gap"),
        ("misaligned gap", 1.7, "control: chunks misaligned by one / ALM + SFT: chunk gap"),
        ("misaligned bits", 3.2, "control: the same: bits per byte"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    failed = lost(**{figure: value})
    assert any(statement in s for s in failed), failed


def test_the_calibration_is_recorded():
    assert "5 seeds" in CLAIM.calibration


def test_the_texts_are_modules_that_every_python_has():
    texts, held_out = documents()
    assert {*HELD_OUT} < {*MODULES} and len(set(MODULES)) == len(MODULES)
    assert len(texts) > 3000 and len(held_out) > 300 and not {*texts} & {*held_out[:200]}
    assert all(len(text) > BYTES // 2 and (len(text.encode()) <= BYTES or text.count("\n") <= 1) for text in texts)
    assert sum(text.endswith("\n") for text in texts) > len(texts) - len(MODULES)  # the last one of a module may be cut


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path))
    texts, held_out = documents()
    for name, value in {"WIDTH": 16, "TEACHER_STEPS": 8, "STEPS": 4, "EARLY": (2,), "SHARE": 10, "HELD_OUT": 8}.items():
        monkeypatch.setattr(alm, name, value)
    monkeypatch.setattr(alm, "ARMS", {arm: alm.ARMS[arm] for arm in ("SFT", "ALM")})
    monkeypatch.setattr(alm, "documents", lambda: (texts[:60], held_out))
    for cached in (alm.vocabularies, alm.trained_teacher):
        cached.cache_clear()
    yield
    for cached in (alm.vocabularies, alm.trained_teacher):
        cached.cache_clear()


def test_a_miniature_is_the_same_twice(small, tmp_path):
    figures = measure(3)
    assert len(list(tmp_path.glob("alm-teacher-*.safetensors"))) == 1
    alm.trained_teacher.cache_clear()  # now from disk
    assert figures == measure(3) and figures["teacher bits"] < 8
    assert figures["SFT bits"] < figures["start bits"] and figures["ALM bits"] < figures["start bits"]
    assert figures["best SFT bits"] == min(figures["SFT bits"], figures["SFT 2 bits"])


def test_the_control_compares_each_chunk_with_the_next(small):
    source = rows(alm.documents()[0][:4], *vocabularies())
    moved = misaligned(source).cond
    for i in range(4):
        t, s = source.cond["teacher_chunks"][i], source.cond["student_chunks"][i]
        last = int(t.max())
        for k in range(last):
            assert torch.equal(moved["teacher_chunks"][i] == k, t == k + 1)
            assert torch.equal(moved["student_chunks"][i] == k, s == k)
        assert int(moved["student_chunks"][i].max()) == int(moved["teacher_chunks"][i].max()) == last - 1
    teacher = alm.recurrent(vocabularies()[0], 0)
    assert chunk_gap(teacher, teacher, rows(alm.documents()[0][:4], *[vocabularies()[0]] * 2)) == 0
