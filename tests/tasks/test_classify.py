"""The task classify: its split and figures against plain counts, runs from the command line to the program, and every bad input."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import limbeck
from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.methods.recognition.pld import PLD, PLDOptions
from limbeck.methods.recognition.self_distillation import SelfDistillation
from limbeck.metrics import kendall_tau
from limbeck.runs import open_run
from limbeck.tasks import AnyTask, digit_split, load_classifier, load_digit_features, load_digits
from limbeck.tasks.classify import classify, held_out_rows, with_wrong
from limbeck.tasks.confusion import confusion

SHORT = {"iterations": 4, "batch": 10, "quiet": True, "track": ("none",)}
MODULE = """
import torch
from torch import nn

class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x):
        bright = self.scale * x.mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)

class Student(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 2))

one = Student()
wide = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
number = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Dark and light pictures, ten of each, and a module beside them."""
    generator = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(10):
            pixels = (level + generator.integers(-40, 40, (8, 8))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    (tmp_path / "shades.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    yield tmp_path
    __import__("sys").modules.pop("shades", None)


def test_the_digits_that_judge_are_those_that_the_teacher_has_not_seen():
    task, (x, y) = classify(), load_digits()
    _, judged = digit_split(y)
    assert isinstance(task, AnyTask) and task.source.size == 150 and torch.equal(task.images, x[judged])
    seen = {image.numpy().tobytes() for image in task.source.x}
    assert not seen & {image.numpy().tobytes() for image in task.images}
    expected = load_digit_features().logits(x[judged])
    torch.testing.assert_close(task.judged_logits.double(), expected, rtol=1e-4, atol=1e-4)
    assert task.figures(task.judged_logits)["accuracy"] == pytest.approx(0.9805555555555555)  # as the file beside the net says


def test_the_figures_are_plain_counts():
    task = classify(train_images=10)
    logits = torch.randn(360, 10, generator=torch.Generator().manual_seed(0))
    found = task.figures(logits)
    said, taught = logits.argmax(1).tolist(), task.judged_logits.argmax(1).tolist()
    assert found["accuracy"] == sum(a == b for a, b in zip(said, task.labels.tolist(), strict=True)) / 360
    assert found["agreement"] == sum(a == b for a, b in zip(said, taught, strict=True)) / 360
    assert found["kendall"] == pytest.approx(float(kendall_tau(logits, task.judged_logits).mean()))
    picture = confusion(torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 1, 1, 1, 1]), 2)
    assert picture.shape == (1, 120, 120) and picture[0, 0, 0] == -0.5 and picture[0, 0, -1] == 0.5 and picture[0, -1, -1] == 1


def test_every_fifth_of_a_class_judges_and_wrong_labels_are_wrong():
    labels = torch.tensor([0, 1] * 10)
    learned, judged = held_out_rows(labels, 5)
    assert judged.tolist() == [8, 9, 18, 19] and sorted([*learned.tolist(), *judged.tolist()]) == list(range(20))
    told = with_wrong(labels, 0.25, 3)
    assert int((told != labels).sum()) == 5 and 0 <= int(told.min()) <= int(told.max()) < 3
    assert torch.equal(with_wrong(labels, 0.0, 3), labels)


def test_the_command_line_distils_judges_and_exports(folder, capsys):
    asked = ["distill", "pld", "--teacher", "shades:Teacher", "--data", "pictures", "--iterations", "30", "--batch", "8"]
    assert cli.main([*asked, "--out", "run", "--quiet", "--track", "none"]) == 0
    out = capsys.readouterr().out
    assert "Parameters" in out and "of 4 images held out are right; the teacher's 100.0%; distilled in" in out
    summary = json.loads((folder / "run" / "summary.json").read_text())
    rows = summary["table"]["rows"]
    assert list(rows) == ["teacher", "student"] and rows["teacher"]["parameters"] == 1
    assert rows["student"]["accuracy"] == 1.0  # dark or light
    student, about = load_classifier(folder / "run" / "student")
    assert (about["method"], about["task"], about["classes"]) == ("pld", "classify", ["dark", "light"])
    done, task = open_run(folder / "run", quiet=True, trust_code=True)
    assert torch.equal(student(task.images), done.student(task.images))
    assert "Confusion</b>" in (folder / "run" / "report.html").read_text()
    assert cli.main(["evaluate", "run", "--trust-code"]) == 0 and "Parameters" in capsys.readouterr().out
    assert cli.main(["evaluate", "run"]) == 2 and "'shades:Teacher', which may do anything" in capsys.readouterr().err
    assert cli.main(["export", "run", "--to", "torch-export", "student.pt2", "--trust-code"]) == 0
    seven = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    program = torch.export.load(folder / "student.pt2").module()
    torch.testing.assert_close(program(seven), student(seven), rtol=1e-5, atol=1e-6)
    assert cli.main(["report", "run"]) == 0


@pytest.mark.slow
def test_onnx_names_images_and_logits(folder):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    done = limbeck.distill("shades:Teacher", "pld", "pictures", student_network="shades:Student", out="run", **SHORT)
    task = open_run("run", quiet=True, trust_code=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task.exports()["onnx"](done.method, folder / "student.onnx")
    session = onnxruntime.InferenceSession(str(folder / "student.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": task.images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), done.student(task.images), rtol=1e-5, atol=1e-6)


def test_logits_in_a_file_teach_as_the_module_does(folder):
    pictures = limbeck.tasks.load_pictures("pictures")
    module = limbeck.distill("shades:Teacher", "pld", "pictures", out="one", **SHORT)
    bright = pictures.images.mean((1, 2, 3))
    np.savez(folder / "logits.npz", logits=torch.stack([-bright, bright], 1).numpy())
    file = limbeck.distill("logits.npz", "pld", "pictures", out="two", **SHORT)
    memory = limbeck.distill(
        torch.stack([-bright, bright], 1), "pld", pictures.images, labels=pictures.labels, out="three", **SHORT
    )
    for other in (file, memory):
        for a, b in zip(module.student.parameters(), other.student.parameters(), strict=True):
            assert torch.equal(a, b)
    assert "parameters" not in file.summary["table"]["rows"]["teacher"]


@pytest.mark.parametrize(
    "method, options",
    [("pld", {"iterations": 8}), ("self-distillation", {"rounds": 2, "per_round": 4})],
)
def test_a_stopped_run_goes_on_bit_for_bit(method, options, tmp_path, monkeypatch):
    kind = {"pld": PLD, "self-distillation": SelfDistillation}[method]
    common = {"method": method, "batch": 12, "quiet": True, "track": ("none",), "checkpoint_every": 3, **options}
    whole = limbeck.distill(out=tmp_path / "whole", **common)
    step = kind.step

    def dies(self, batch):
        if batch.step == 7:
            raise KeyboardInterrupt
        yield from step(self, batch)

    monkeypatch.setattr(kind, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        limbeck.distill(out=tmp_path / "stopped", **common)
    monkeypatch.setattr(kind, "step", step)
    again = limbeck.distill(out=tmp_path / "stopped", resume=True, **common)
    for a, b in zip(whole.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(a, b)
    names = ["teacher", "student"] if method == "pld" else ["teacher", "round before", "student"]
    assert list(again.summary["table"]["rows"]) == names
    reopened, task = open_run(tmp_path / "stopped", quiet=True)
    judged = task.judged(reopened.method)["table"]["rows"]
    for name, row in again.summary["table"]["rows"].items():
        assert judged[name]["kendall"] == row["kendall"] and judged[name]["accuracy"] == row["accuracy"]


@pytest.mark.parametrize("method, options", [("pld", {"iterations": 2}), ("self-distillation", {"rounds": 2, "per_round": 1})])
def test_micro_batches_are_the_large_batch(method, options, tmp_path):
    sgd = {"lr": 0.1, "kind": "sgd", "betas": (0.0, 0.0), "decay": "constant"}
    common = {"method": method, "batch": 12, "quiet": True, "track": ("none",), "dtype": "float64", "student": sgd, **options}
    one, three = (limbeck.distill(out=tmp_path / str(n), micro_batches=n, **common) for n in (1, 3))
    for a, b in zip(one.student.parameters(), three.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_self_distillation_needs_no_teacher_but_new_students(folder):
    done = limbeck.distill(
        method="self-distillation", data="pictures", student_network="shades:Student", rounds=2, per_round=3, out="run",
        batch=8, quiet=True, track=("none",),
    )  # fmt: skip
    assert list(done.summary["table"]["rows"]) == ["round before", "student"]
    assert list(done.summary["table"]["columns"]) == ["accuracy", "parameters", "images_per_second"]
    assert json.loads((folder / "run" / "student.json").read_text())["network"] is None  # the person's own


def test_a_students_seed_is_the_runs_and_a_module_stays_as_it_was(folder):
    task = classify(train_images=10)
    first, same, other = (torch.cat([p.flatten() for p in task.new_student(s).parameters()]) for s in (1, 1, 2))
    assert torch.equal(first, same) and not torch.equal(first, other)
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = own[1].weight.clone()
    done = limbeck.distill(method="pld", student_network=own, out="run", **SHORT)
    assert torch.equal(own[1].weight, before) and not torch.equal(done.student[1].weight, before)


def test_the_memory_of_rounds_is_planned(folder, capsys):
    assert cli.main(["plan", "self-distillation", "--json"]) == 0
    roles = {role["name"]: role for role in json.loads(capsys.readouterr().out)["roles"]}
    assert roles["student"]["weights"] == roles["teacher"]["weights"] == 1626 * 4
    assert roles["student"]["optimizer"] >= 2 * 1626 * 4 and roles["teacher"]["optimizer"] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pld", "--data", "pictures"], "loss='pld' needs a teacher"),
        (["pld", "--data", "pictures/dark"], "pictures/dark has no classes; give a folder with a subfolder per class"),
        (["pld", "--held-out", "5"], "--held-out are for images of your own: give --data"),
        (["pld", "--data", "pictures", "--held-out", "1"], "held_out=1: every 2nd image of a class or fewer"),
        (["pld", "--data", "pictures", "--held-out", "11"], "no class has 11 images, so none is held out"),
        (["pld", "--train-images", "2000"], "train_images=2000: there are 1437 images to learn from"),
        (["pld", "--wrong-labels", "1"], "wrong_labels=1 is a share of the labels, in [0, 1)"),
        (["pld", "--teacher", "shades:Teacher"], "the teacher has 2 classes and the data 10 (0, 1, 2, 3, 4, ...)"),
        (["pld", "--teacher", "shades:number"], "the teacher shades:number is a int; name a function or class"),
        (["pld", "--teacher", "logits.npy"], "the teacher logits.npy does not exist"),
        (["pld", "--teacher", "shades"], "the teacher 'shades' is neither a file of logits"),
        (["pld", "--teacher", "few.npy"], "the teacher's logits are torch.float64 (3, 10); give floating point (1797, C)"),
        (["pld", "--teacher", "two.npz"], 'two.npz holds a, b; name the teacher\'s logits "logits"'),
        (["pld", "--student-network", "shades:wide"], "the student has 3 outputs and the data 10 classes: give it as many"),
        (["pld", "--student-network", "shades:number"], "the student shades:number is a int; name a function or class"),
        (["pld", "--data", "pictures", "--image-size", "16", "--student-network", "shades:Student"], "the student failed on images"),
        (["born-again", "--data", "pictures", "--student-network", "shades:one"], "self-distillation begins every round with new"),
        (["pld", "--model", "x"], "--model"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, message, folder, capsys):
    np.save("few.npy", np.zeros((3, 10)))
    np.savez("two.npz", a=np.zeros(2), b=np.zeros(2))
    assert cli.main(["distill", *arguments, "--out", "run", "--quiet", "--track", "none"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_bad_objects_are_named(tmp_path):
    for given, message in (
        ({"teacher": 3}, "the teacher is a int; give a torch.nn.Module, its logits"),
        ({"labels": torch.zeros(3)}, "labels=, --image-size and --held-out are for images of your own"),
        ({"student_network": lambda: 3}, "the student <lambda> is a int, not a torch.nn.Module"),
        ({"teacher": nn.Flatten(0)}, r"the teacher answered \(65536,\) for 1024 images; a classifier gives logits"),
    ):
        with pytest.raises(LimbeckError, match=message):
            classify(**given)
    with pytest.raises(LimbeckError, match="pld distils classifiers, and ring is no such task"):
        PLD.on(SimpleNamespace(name="ring"), PLDOptions(), 0)
    with pytest.raises(LimbeckError, match="unknown name in options 'iterations'"):
        limbeck.distill(method="self-distillation", iterations=3, out=tmp_path / "run")
    with pytest.raises(LimbeckError, match="nowhere .* holds no classifier"):
        load_classifier("nowhere")
