"""A method of another wing is distilled, resumed, judged, shown and exported as any other: through its task's contract alone."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import limbeck
from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.methods import METHODS
from limbeck.report import write_comparison
from limbeck.runs import open_run
from limbeck.tasks import TASKS, WINGS, AnyTask, Column, Picture, judgement, student_of
from limbeck.training import Method, OptimizerOptions, Role, TensorSource, Update

GOAL = torch.tensor([0.5, -0.25, 0.75])


@dataclass(frozen=True)
class PointOptions:
    """Options of the method of this test."""

    iterations: int = 12
    batch: int = 2
    student: OptimizerOptions = OptimizerOptions(lr=0.1)


class Point(Method):
    """A point that goes where noisy sights of another one are."""

    def __init__(self, goal, options):
        self.goal, self.point = goal, nn.ParameterList([nn.Parameter(torch.zeros(3))])
        self.roles = {"student": Role(self.point, options.student)}

    @classmethod
    def on(cls, task, options, seed):
        return cls(task.goal, options)

    def step(self, batch):
        seen = self.goal + 0.01 * batch.noise.normal("sight", (3,), torch.float32)
        yield Update("student", (self.point[0] - seen).square().mean())


@dataclass(frozen=True)
class PointTask:
    """The task of this test, another one than the generators'."""

    goal: torch.Tensor
    name: str = "point"
    source: TensorSource = field(default_factory=lambda: TensorSource(None, size=4))
    facts: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    best: str | None = "error"

    def watched(self, method):
        return {"error": float((student_of(method)[0].detach() - self.goal).norm())}

    def judged(self, method):
        rows = {"start": {"error": float(self.goal.norm()), "share": 0.0}, "student": {**self.watched(method), "share": 0.5}}
        columns = {"error": Column("Distance to the goal", "lower"), "share": Column("Share of the way", unit="percent")}
        return judgement(rows, columns, "The point is nearly there", ["It began at zero."])

    def album(self, method):
        return {"way": Picture(torch.zeros(2, 1, 4, 4), 2, "The way", "of the point")}

    def leave(self, folder, method, about):
        (folder / "point.json").write_text(json.dumps({**about, "point": student_of(method)[0].tolist()}))

    def exports(self):
        return {"text": lambda method, path: path.write_text(str(student_of(method)[0].tolist()))}


def point(shift: float = 0.0, *, device="cpu", dtype="float32", quiet=False):
    return PointTask(GOAL + shift)


@dataclass(frozen=True)
class PointTaskOptions:
    """What the task may be told."""

    shift: float | None = None
    """How far the goal is moved."""


@pytest.fixture
def wing(monkeypatch):
    room, task = ModuleType("point_room"), ModuleType("point_task")
    room.METHOD, room.OPTIONS, room.PRESETS = Point, PointOptions, {"recommended": PointOptions()}
    task.point, task.OPTIONS = point, PointTaskOptions
    monkeypatch.setitem(__import__("sys").modules, "point_room", room)
    monkeypatch.setitem(__import__("sys").modules, "point_task", task)
    entry = replace(METHODS["pld"], id="point", title="Point", module="point_room", wing="points", aliases=())
    monkeypatch.setitem(METHODS, "point", entry)
    monkeypatch.setitem(TASKS, "point", "point_task:point")
    monkeypatch.setitem(WINGS, "points", ("point",))
    monkeypatch.setattr(cli, "one_thread", lambda: None)


def test_the_task_meets_the_contract():
    assert isinstance(point(), AnyTask)


def test_the_command_line_distils_shows_and_exports(wing, tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["distill", "point", "--shift", "0.1", "--out", str(run), "--quiet", "--track", "none"]) == 0
    out = capsys.readouterr().out
    assert "Distance to the goal" in out and "50.0 %" in out and "The point is nearly there; distilled in" in out
    summary = json.loads((run / "summary.json").read_text())
    assert (
        summary["table"]["rows"]["student"]["error"]
        < summary["table"]["rows"]["start"]["error"]
        == pytest.approx(float((GOAL + 0.1).norm()))
    )
    assert summary["pictures"] == [{"name": "way", "title": "The way", "note": "of the point"}]
    left = json.loads((run / "point.json").read_text())
    assert (left["method"], left["task"]) == ("point", "point") and (run / "samples" / "way.png").is_file()
    page = (run / "report.html").read_text()
    assert "<h1>The point is nearly there</h1>" in page and "It began at zero." in page and "The way</b>" in page
    assert "Share of the way" in page and "lower is better" in page and "50.0%" in page and "Fréchet" not in page
    assert cli.main(["evaluate", str(run)]) == 0 and "Distance to the goal" in capsys.readouterr().out
    assert cli.main(["export", str(run), "--to", "text", str(tmp_path / "p.txt")]) == 0
    assert json.loads((tmp_path / "p.txt").read_text()) == pytest.approx(left["point"])
    compared = write_comparison([run, run], tmp_path / "two.html").read_text()
    assert compared.count("Distance to the goal") == 1 and "2 runs on point" in compared
    capsys.readouterr()
    for arguments, message in (
        (["sample", str(run)], "a student of the task point draws no samples; its pictures (way) are in"),
        (["export", str(run), "--to", "onnx", "x"], "unknown form to export a student of the task point to (--to) 'onnx'"),
        (["distill", "point", "--task", "digits"], "unknown task for methods of the wing points 'digits': Allowed: point"),
        (["distill", "dmd", "--task", "point"], "unknown task for methods of the wing generators 'point'"),
        (["distill", "point", "--from-run", str(run), "--quiet"], "students of the task point do not start from another run's"),
        (["distill", "point", "--fail-above", "1"], "--fail-above is for few-step generators; point is none"),
    ):
        assert cli.main(arguments) == 2, arguments
        assert message in capsys.readouterr().err


def test_a_stopped_run_goes_on_bit_for_bit_and_is_judged(wing, tmp_path, monkeypatch):
    whole = limbeck.distill(method="point", out=tmp_path / "whole", quiet=True, track=("none",))
    step = Point.step

    def dies(self, batch):
        if batch.step == 7:
            raise KeyboardInterrupt
        yield from step(self, batch)

    monkeypatch.setattr(Point, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        limbeck.distill(method="point", out=tmp_path / "stopped", quiet=True, track=("none",), checkpoint_every=3)
    monkeypatch.setattr(Point, "step", step)
    again = limbeck.distill(
        method="point", out=tmp_path / "stopped", resume=True, quiet=True, track=("none",), checkpoint_every=3
    )
    assert torch.equal(whole.student[0], again.student[0])
    reopened, task = open_run(tmp_path / "whole", quiet=True)
    assert torch.equal(reopened.student[0], whole.student[0]) and isinstance(task, PointTask)


def test_a_task_object_is_taken_and_the_memory_planned(wing, tmp_path, capsys):
    task = PointTask(-GOAL, options={"point": {"batch": 4}})
    done = limbeck.distill(method="point", task=task, out=tmp_path / "run", quiet=True, track=("none",))
    assert done.config.options["batch"] == 4 and float((done.student[0].detach() + GOAL).norm()) < float(GOAL.norm())
    with pytest.raises(LimbeckError, match="a task knows its own data"):
        limbeck.distill(data=GOAL, method="point", task=task, out=tmp_path / "other")
    assert cli.main(["plan", "point", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["roles"][0]["weights"] == 12


def test_methods_without_tasks_say_how_they_are_trained():
    with pytest.raises(LimbeckError, match="Method has no tasks to distil: it is trained by limbeck.training.Loop"):
        Method.on(None, None, 0)


def test_the_folder_of_a_table_that_is_damaged_is_named(wing, tmp_path):
    from limbeck.report.record import read_record

    folder = Path(tmp_path / "run")
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps({"table": {"rows": {"student": 3}, "columns": {"a": {"title": "A"}}}}))
    with pytest.raises(LimbeckError, match=r"summary.json: table has no rows of figures by name, or columns without"):
        read_record(folder)
