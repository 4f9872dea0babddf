"""limbeck export and limbeck sample --noise torch: what is refused, with what message, and programs of small students."""

import shutil
from pathlib import Path

import pytest
import torch

from limbeck import cli
from limbeck.runs import distill, open_run
from limbeck.runs.exporting import export_run, sample_as_pipelines_do


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(cli, "one_thread", lambda: None)


@pytest.fixture(scope="module")
def run(tiny_task, tmp_path_factory):
    """A student of the tiny task, which is no network of diffusers."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return distill(
        task=tiny_task, method="dmd", iterations=1, batch=4, out=out, quiet=True, renoise="ode", sigmas=(5.0, 1.0)
    ).path


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "needs the folder of a run first"),
        (["nowhere"], "needs --to FORM PLACE: diffusers DIR, lora DIR"),
        (["nowhere", "--to", "diffuser", "out"], "unknown form to export to (--to) 'diffuser': did you mean 'diffusers'?"),
        (["nowhere", "--to", "diffusers", "out"], "nowhere is not a run"),
        (["nowhere", "--to", "diffusers", "there"], "there already exists; --overwrite replaces it"),
        (["nowhere", "--to", "diffusers", "there", "--overwrite"], "there was not written by `limbeck export`"),
        (["nowhere", "--to", "onnx", "a.onnx", "--dtype", "float16"], "--dtype and --push-to-hub are for --to diffusers"),
        (["nowhere", "--to", "diffusers", "out", "--dtype", "half"], "unknown dtype 'half'"),
    ],
)
def test_errors_are_one_line_and_write_nothing(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("keep me")
    assert cli.main(["export", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("limbeck: ") and err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine.txt", "there"]


@pytest.mark.parametrize("form", ["diffusers", "lora"])
def test_a_student_of_the_library_names_what_it_can_be_exported_as(form, run, capsys, tmp_path):
    assert cli.main(["export", str(run), "--to", form, str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "no network of diffusers (its task is 'tiny')" in err
    assert "--to torch-export FILE.pt2 or --to onnx FILE.onnx" in err and "student.safetensors" in err
    assert not list(tmp_path.iterdir())


def test_a_program_from_the_command_line(run, capsys, tmp_path):
    file = tmp_path / "student.pt2"
    assert cli.main(["export", str(run), "--to", "torch-export", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    done, task = open_run(run, quiet=True)
    z, label = torch.randn(5, *task.shape, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 1, 0, 1])
    ours = done.sampler()(z.to(task.evaluator.real), {"label": label})
    torch.testing.assert_close(torch.export.load(file).module()(z, label), ours.float(), rtol=1e-4, atol=1e-5)
    assert cli.main(["export", str(run), "--to", "torch-export", str(file)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_an_unfinished_run_exports_its_last_checkpoint_and_says_so(run, capsys, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(run, half)
    (half / "summary.json").unlink()
    export_run(half, "torch-export", tmp_path / "student.pt2")
    assert "half is not finished: its last checkpoint is exported" in capsys.readouterr().err
    shutil.rmtree(half / "checkpoints")
    assert cli.main(["export", str(half), "--to", "torch-export", str(tmp_path / "other.pt2")]) == 2
    assert "checkpoint" in capsys.readouterr().err


def test_torch_noise_comes_from_one_generator_in_order(tiny_task, tmp_path, capsys):
    fresh = distill(task=tiny_task, method="dmd", iterations=1, batch=4, out=tmp_path / "run", quiet=True, sigmas=(5.0, 1.0))
    done, task = open_run(fresh.path, quiet=True)
    got = sample_as_pipelines_do(done, task, 3, 11)
    generator, real = torch.Generator().manual_seed(11), task.evaluator.real
    z, n = (torch.randn(3, *task.shape, generator=generator).to(real) for _ in range(2))
    cond = {name: value[:3] for name, value in task.evaluator.cond.items()}
    assert torch.equal(got, done.sampler()(z, cond, lambda i: n))
    assert not torch.equal(got, task.evaluator.sample(done.sampler(), 3, 11))
    picture = tmp_path / "drawn.png"
    asked = ["sample", str(fresh.path), "--noise", "torch", "--seed", "11", "--count", "3", "--out", str(picture)]
    assert cli.main(asked) == 0 and picture.is_file()


def test_the_table_is_what_the_docs_say(capsys):
    assert cli.main(["export", "--table"]) == 0
    table = capsys.readouterr().out.strip()
    page = (Path(__file__).parents[1] / "docs" / "diffusers.md").read_text()
    assert table in page, "write what `limbeck export --table` prints into docs/diffusers.md, Taking the student home"
    assert "| WanPipeline" not in table and "| Wan | FlowMatchEulerDiscrete " in table


def test_the_table_names_every_method_that_distils_a_generator():
    from limbeck.methods import METHODS
    from limbeck.runs.export_table import KINDS

    named = {name for kind in KINDS.values() for name in kind.methods}
    assert named == {entry.id for entry in METHODS.values() if entry.distils and entry.wing == "generators"}
