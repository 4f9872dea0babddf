import json
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck.errors import LimbeckError
from limbeck.report.record import Figures, flat, labels, read_record

MakeRun = Callable[..., Path]


def test_a_whole_run_is_read(make_run: MakeRun):
    run = read_record(make_run())
    assert (run.method, run.task, run.seed, run.arxiv) == ("dmd", "digits", "0", "2311.18828")
    assert run.teacher == Figures(35.0, 1.83, 0.985, 1900.0)
    assert run.student is not None and run.student.nfe == 1
    assert run.options["options.student.lr"] == "0.0005"
    assert list(run.pictures) == ["real", "teacher", "teacher_at_student_nfe", "student"]
    assert run.columns == list("0123456789")
    assert run.curves["gap"][0] == list(range(10, 901, 10))
    assert run.curves["grad_norm/student"][1][40] == float("inf")


def test_history_serves_where_metrics_lack_the_figure(make_run: MakeRun):
    folder = make_run()
    assert read_record(folder).curves["frechet"][0] == list(range(100, 901, 100))
    (folder / "metrics.jsonl").unlink()
    curves = read_record(folder).curves
    assert curves["frechet"] == ([300, 900], [3.2, 1.75])
    assert curves["accuracy"] == ([300], [0.97])


def test_null_teacher_and_accuracy_and_numbers_as_text(make_run: MakeRun):
    run = read_record(make_run(teacher=None, student={"nfe": 1, "frechet": "nan", "accuracy": None}))
    assert run.teacher is None
    assert run.student is not None and run.student.accuracy is None and run.student.frechet != run.student.frechet


def test_a_folder_that_is_no_run_is_told_what_it_lacks(tmp_path: Path):
    with pytest.raises(LimbeckError, match=r"is no run: config\.yaml and summary\.json are missing"):
        read_record(tmp_path)
    with pytest.raises(LimbeckError, match=r"no folder at .*nowhere"):
        read_record(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("summary.json", "{", r"summary\.json is damaged"),
        ("summary.json", "[1]", r"summary\.json holds a list"),
        ("config.yaml", "a: [", r"config\.yaml is damaged"),
        ("config.yaml", "just words", r"config\.yaml holds a str"),
        ("samples/columns.json", "5", "columns is 5, not a list"),
        ("metrics.jsonl", "{}\n{}\n", "line 1 is damaged"),
    ],
)
def test_damaged_files_are_named(make_run: MakeRun, name: str, text: str, match: str):
    folder = make_run()
    (folder / name).write_text(text)
    with pytest.raises(LimbeckError, match=match):
        read_record(folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"noise_floor": "low"}, "noise_floor is 'low', which is no number"),
        ({"student": {"nfe": [1]}}, r"nfe is \[1\], which is no number"),
        ({"teacher": 5}, "teacher is 5, not a dict"),
        ({"messages": "one"}, "messages is 'one', not a list"),
        ({"history": [[1]]}, "history is no list of"),
        ({"history": [[1, {"frechet": []}]]}, "history is no list of"),
    ],
)
def test_wrong_content_is_named(make_run: MakeRun, changes: dict, match: str):
    with pytest.raises(LimbeckError, match=match):
        read_record(make_run(**changes))


def test_labels_name_what_differs(make_run: MakeRun):
    runs = [read_record(make_run(f"run{seed}", seed=seed)) for seed in (0, 1)] + [read_record(make_run("sid", method="sid"))]
    assert labels(runs) == ["dmd seed=0", "dmd seed=1", "sid"]
    assert labels(runs[:1]) == ["dmd"]


def test_labels_fall_back_to_folders(make_run: MakeRun):
    runs = [read_record(make_run(name)) for name in ("first", "second")]
    assert labels(runs) == ["dmd first", "dmd second"]
    (runs[1].folder / "config.yaml").write_text(json.dumps({"method": "dmd", "seed": 9, "a": 1, "b": 2, "c": 3, "d": 4}))
    changed = read_record(runs[1].folder)
    assert labels([runs[0], changed]) == ["dmd first", "dmd second"]


def test_flat_joins_names_by_dots():
    assert flat({"seed": 0, "options": {"student": {"lr": 0.1}, "sigmas": [1, 2]}}) == {
        "seed": "0",
        "options.student.lr": "0.1",
        "options.sigmas": "[1, 2]",
    }
