"""The main job on a person's own teacher: from Python and from the command line, resumed, sampled and judged."""

import json
import sys

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import limbeck
from limbeck import cli
from limbeck.denoisers import load_denoiser
from limbeck.errors import LimbeckError

SOURCE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Noise from (x, t, y): exact for images whose pixels are normal with mean 0 and variance 0.09, whatever the class."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.label = nn.Linear(16, 8), nn.Linear(8, 16), nn.Embedding(3, 8)
        nn.init.zeros_(self.second.weight), nn.init.zeros_(self.second.bias)

    def forward(self, x, t, y):
        t = t[:, None, None, None]
        h = self.second(torch.tanh(self.first(x.flatten(1)) + self.label(y))).reshape(x.shape)
        return x * t / ((1 - t) ** 2 * 0.09 + t**2) + h


def teacher():
    torch.manual_seed(0)
    return Net()
'''
OPTIONS = {"iterations": 4, "batch": 8, "sigmas": (2.5,), "score_high": 5.0}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current directory with the module mine.py and twelve pictures in two classes."""
    (tmp_path / "mine.py").write_text(SOURCE)
    generator = torch.Generator().manual_seed(0)
    for i in range(12):
        pixels = (127.5 + 38 * torch.randn(4, 4, generator=generator)).clamp(0, 255).to(torch.uint8)
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    yield tmp_path
    sys.modules.pop("mine", None)


def command(*more):
    return [
        "distill", "dmd", "--teacher", "mine:teacher", "--data", "pictures", "--prediction", "eps", "--process", "flow",
        "--null-label", "2", "--teacher-nodes", "3", "--iterations", "4", "--batch", "8", "--quiet", *more,
    ]  # fmt: skip


def test_the_command_line_distils_resumes_samples_and_judges(place, capsys):
    assert cli.main(command("--out", "run")) == 0
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert config["task"] == "own" and config["task_options"] == {
        "teacher": "mine:teacher", "data": "pictures", "prediction": "eps", "process": "flow", "null_label": 2, "teacher_nodes": 3,
    }  # fmt: skip
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["teacher"]["nfe"] == 5 and summary["student"]["nfe"] == 1 and summary["iterations"] == 4
    assert summary["student"]["accuracy"] is None and summary["student"]["frechet"] >= 0
    assert (place / "run" / "report.html").is_file() and (place / "run" / "samples" / "student.png").is_file()
    with safe_open(place / "run" / "student.safetensors", "pt") as file:
        assert file.metadata()["prediction"] == "eps" and json.loads(file.metadata()["process"])["kind"] == "flow"
    import mine

    student = mine.Net()
    student.load_state_dict(load_file(place / "run" / "student.safetensors"))
    assert not torch.equal(student.second.weight, mine.teacher().second.weight)
    assert cli.main(["distill", "--resume", "run", "--quiet", "--trust-code"]) == 0
    assert cli.main(["distill", "--config", "run/config.yaml", "--out", "again", "--quiet", "--trust-code"]) == 0
    again = load_file(place / "again" / "student.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in student.state_dict().items())
    assert cli.main(["sample", "run", "--count", "4", "--columns", "2", "--trust-code"]) == 0
    assert cli.main(["evaluate", "run", "--trust-code"]) == 0
    assert "student / teacher" in capsys.readouterr().out


def test_the_student_is_a_teacher_again(place):
    assert cli.main(command("--out", "run")) == 0
    again = [
        "distill", "dmd", "--teacher", "run/student.safetensors", "--network", "mine:Net", "--data", "pictures", "--prediction", "eps",
        "--process", "flow", "--iterations", "1", "--batch", "8", "--teacher-nodes", "2", "--quiet", "--out", "second",
    ]  # fmt: skip
    assert cli.main(again) == 0


def test_a_wrong_teacher_costs_no_folder(place, capsys):
    for teacher, message in [("mine:techer", "did you mean 'teacher'"), ("absent.pt2", "does not exist")]:
        arguments = command("--out", "run")
        arguments[arguments.index("mine:teacher")] = teacher
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err and not (place / "run").exists()
    assert cli.main(["distill", "--data", "pictures", "--out", "run"]) == 2
    assert "data without a teacher: give --teacher" in capsys.readouterr().err


@pytest.fixture
def images():
    return (0.3 * torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


def test_python_distils_objects_and_the_command_line_says_that_it_cannot_resume_them(place, images, capsys):
    import mine

    given = dict(
        labels=torch.arange(24) % 2,
        prediction="eps",
        process="flow",
        teacher_nodes=2,
        method="dmd",
        batch=8,
        out="run",
        quiet=True,
    )
    run = limbeck.distill(mine.teacher(), data=images, iterations=3, **given)
    assert isinstance(run, limbeck.Run) and run.config.task_options == {
        "python": "teacher Net, data Tensor (24, 1, 4, 4), labels Tensor (24,), prediction eps, process flow, teacher_nodes 2"
    }
    x = run.sampler()(torch.randn(5, 1, 4, 4), {"label": torch.zeros(5, dtype=torch.int64)}, None)
    assert x.shape == (5, 1, 4, 4)
    for arguments in (
        ["distill", "--resume", "run"],
        ["distill", "--config", "run/config.yaml", "--out", "x"],
        ["sample", "run"],
        ["evaluate", "run"],
    ):
        assert cli.main(arguments) == 2
        assert "started from Python with objects that no file holds (teacher Net" in capsys.readouterr().err
    more = limbeck.distill(mine.teacher(), data=images, iterations=3, **{**given, "resume": True})
    assert more.summary["iterations"] == 3
    with pytest.raises(LimbeckError, match="already exists"):
        limbeck.distill(mine.teacher(), data=images, iterations=3, **given)


@pytest.mark.filterwarnings("ignore:the teacher denoises")
def test_a_rescaled_teacher_is_distilled_and_its_student_saved(place, images):
    from limbeck.denoisers import Preconditioned
    from limbeck.networks import ResidualMLP
    from limbeck.noise import VE

    torch.manual_seed(0)
    teacher = Preconditioned(ResidualMLP((1, 4, 4), width=8, blocks=1), VE(), "edm", 0.15)
    run = limbeck.distill(
        teacher, data=images, data_range=(0, 1), method="sid", iterations=2, batch=8, teacher_nodes=2, out="run", quiet=True
    )
    student, info = load_denoiser(place / "run" / "student.safetensors")
    assert info["data_range"] == "0,1" and info["times"] == [2.5]
    assert torch.equal(student.network.input.weight, run.student.denoiser.network.input.weight)
    assert not torch.equal(student.network.output.weight, teacher.network.output.weight)


def test_an_exported_program_is_distilled(place, images):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1)

        def forward(self, x, t):
            return 0.01 * torch.tanh(self.layer(x)) + x * (0.09 / (0.09 + t**2))[:, None, None, None]

    B = torch.export.Dim("B")
    arguments = (torch.zeros(2, 1, 4, 4), torch.ones(2))
    torch.export.save(torch.export.export(Small(), arguments, dynamic_shapes=({0: B}, {0: B})), place / "t.pt2")
    run = limbeck.distill(
        "t.pt2", data=images, prediction="x0", process="ve", iterations=2, batch=8, teacher_nodes=2, out="run", quiet=True
    )
    assert load_file(place / "run" / "student.safetensors").keys() == Small().state_dict().keys()
    assert run.config.task_options == {
        "python": "teacher t.pt2, data Tensor (24, 1, 4, 4), prediction x0, process ve, teacher_nodes 2"
    }
    assert run.summary["student"]["images_per_second"] > 0
