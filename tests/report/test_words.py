# ruff: noqa: RUF001
from dataclasses import replace
from pathlib import Path

import pytest

from limbeck.report.record import Figures, Record
from limbeck.report.words import achievement, best_of, claims_outcome, context, duration, figure, measured, times

NAN, INF = float("nan"), float("inf")
RUN = Record(
    Path("runs/a"), "dmd", "Distribution matching", "digits", "0",
    teacher=Figures(35.0, 1.83, 0.985, 1900.0), student=Figures(1.0, 1.75, 0.991, 72200.0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.8312, "1.83"), (41.0, "41.0"), (999.4, "999"), (999.6, "1,000"), (1899.6, "1,900"), (12345678.0, "1.23e+07"),
        (0.21, "0.210"), (-0.5, "-0.500"), (3e-5, "3.00e-05"), (None, "–"), (NAN, "nan"), (INF, "∞"), (-INF, "−∞"),
        (100.0, "100"), (0.0, "0"),
    ],
)  # fmt: skip
def test_figures_have_three_digits(value: float | None, text: str):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.52, "0.5 s"),
        (9.46, "9.5 s"),
        (52.1, "52 s"),
        (60.0, "1 min 0 s"),
        (200.0, "3 min 20 s"),
        (7260.0, "2 h 1 min"),
        (None, "–"),
    ],
)
def test_durations(seconds: float | None, text: str):
    assert duration(seconds).replace("\u00a0", " ") == text


def test_factors():
    assert [times(ratio) for ratio in (38.0, 9.96, 3.14, 0.5, 1234.0)] == ["38×", "10×", "3.1×", "0.5×", "1,234×"]


def test_achievement_says_calls_distance_and_speed():
    assert achievement(RUN) == (
        "One network call instead of 35: Fréchet distance 1.75 against the teacher’s 1.83, 38× the images per second"
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher": None}, "One network call: Fréchet distance 1.75, 72,200 images per second"),
        (
            {"student": Figures(4.0, 2.5, None, 950.0)},
            "4 network calls instead of 35: Fréchet distance 2.50 against the teacher’s 1.83, 0.5× the images per second",
        ),
        (
            {"student": Figures(35.0, NAN, None, NAN)},
            "35 network calls: no finite Fréchet distance against the teacher’s 1.83",
        ),
        ({"student": Figures(1.0)}, "One network call instead of 35: no finite Fréchet distance against the teacher’s 1.83"),
        ({"student": Figures(1.0), "teacher": Figures(35.0)}, "One network call instead of 35"),
        ({"student": Figures(), "teacher": None}, "Finished; nothing was measured"),
        ({"student": None}, "Not finished: 0 iterations so far"),
        (
            {"student": None, "curves": {"gap": ([1, 40], [1.0, 2.0]), "frechet": ([30], [3.1])}},
            "Not finished: 40 iterations so far, Fréchet distance 3.10 when last measured",
        ),
    ],
)
def test_achievement_leaves_out_what_is_not_known(changes: dict, sentence: str):
    assert achievement(replace(RUN, **changes)) == sentence


def test_context_compares_with_the_teacher_at_as_few_calls_and_the_noise_floor():
    run = replace(
        RUN,
        teacher_at_student_nfe=Figures(1.0, 41.2),
        noise_floor=0.213,
        seconds=52.1,
        teacher_seconds=61.0,
        teacher_origin="trained",
    )
    text = " ".join(context(run)).replace("\u00a0", " ")
    assert "with 1 network call gets 41.2" in text
    assert "0.213" in text
    assert "99.1% of the samples show what they were asked for (teacher 98.5%)" in text
    assert text.endswith("Distilled in 52 s, after 1 min 1 s for its teacher.")
    assert "from a cached teacher" in " ".join(context(replace(run, teacher_origin="cached")))
    assert context(Record(Path("x"), "m", "m", "t", "")) == []


def test_best_of_several():
    other = replace(RUN, student=Figures(2.0, 9.0))
    assert best_of([RUN, other]) == (
        "2 runs on digits: dmd comes closest to the data, Fréchet distance 1.75 with 1 network call, the teacher 1.83 with 35"
    )
    assert best_of([replace(RUN, student=None)]) == "1 run on digits: none with a finite Fréchet distance"


def _results(*claims: tuple[bool, bool]) -> list[dict]:
    return [{"method": "dmd", "claims": [{"gated": gated, "holds": holds, "statement": ""} for gated, holds in claims]}]


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ([(True, True), (True, True)], "All 2 gated claims of 1 method hold"),
        ([(True, True), (True, False)], "1 of 2 gated claims of 1 method hold"),
        ([(True, True)], "The one gated claim of 1 method holds"),
        ([(True, False)], "The one gated claim of 1 method fails"),
        ([(False, False)], "No gated claims of 1 method; of 1 reported without a gate, 0 are shown"),
        ([(True, True), (False, True)], "The one gated claim of 1 method holds; of 1 reported without a gate, 1 is shown"),
    ],
)
def test_outcome_of_claims(claims: list[tuple[bool, bool]], sentence: str):
    assert claims_outcome(_results(*claims)) == sentence


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23"), (3, "3"), ("≤ 2", "≤ 2"), (None, "–"), (True, "yes"), ([1.5, 2.0], "1.50, 2.00"), ({"a": 3}, "a 3")],
)  # fmt: skip
def test_measurements_of_every_kind(value: object, text: str):
    assert measured(value) == text
