"""Runs of pipelines of diffusers, on the command line and from Python."""

import json
import shutil

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import limbeck
from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.tasks.diffusers import diffusers_task

pytestmark = [pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("prompts have more than", "are mostly noise")]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty current directory with a cache of its own, and prompts."""
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    (tmp_path / "prompts.txt").write_text("a cat\n\na cat\n  red dog \n")
    return tmp_path


def command(folder, *more):
    return [
        "distill", "dmd", "--model", str(folder), "--prompts", "prompts.txt", "--iterations", "3", "--batch", "2", "--judged", "4",
        "--teacher-nodes", "2", "--quiet", *more,
    ]  # fmt: skip


def test_the_command_line_distils_resumes_samples_and_judges(tiny_pipeline, place, capsys):
    from diffusers import UNet2DConditionModel

    folder = tiny_pipeline("stable_diffusion")
    assert cli.main(command(folder, "--out", "run")) == 0
    assert "Frechet distances are against the teacher's samples" in capsys.readouterr().out
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert config["task"] == "diffusers" and config["task_options"] == {
        "model": str(folder), "prompts": "prompts.txt", "judged": 4, "teacher_nodes": 2
    }  # fmt: skip
    assert config["options"]["student"]["lr"] == 1e-5 and config["options"]["sigmas"] == [pytest.approx(14.6146, rel=1e-4)]
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["reference"] == "the teacher's samples" and summary["teacher"]["nfe"] == 3 and summary["student"]["nfe"] == 1
    state = load_file(place / "run" / "student.safetensors")
    student = UNet2DConditionModel.from_pretrained(folder / "unet")
    student.load_state_dict(state)  # its own names, all of them
    assert cli.main(["distill", "--resume", "run", "--quiet"]) == 0
    assert cli.main(["sample", "run", "--count", "4", "--columns", "2"]) == 0
    assert Image.open(place / "run" / "samples" / "sample-0.png").size == (33, 33)  # 2 x 2 decoded pictures of 16 x 16
    assert cli.main(["evaluate", "run"]) == 0 and cli.main(["report", "run"]) == 0
    assert "against the teacher's samples" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_bit_for_bit(tiny_pipeline, place):
    folder = tiny_pipeline("ddpm")
    how = ["distill", "sid", "--model", str(folder), "--batch", "2", "--judged", "4", "--teacher-nodes", "2", "--quiet"]
    how += ["--checkpoint-every", "2", "--iterations", "4"]
    assert cli.main([*how, "--out", "whole"]) == 0 and cli.main([*how, "--out", "cut"]) == 0
    for step in (place / "cut" / "checkpoints").iterdir():
        if step.is_dir() and step.name.endswith("4"):
            shutil.rmtree(step)
    assert cli.main(["distill", "--resume", "cut", "--quiet"]) == 0
    whole, cut = (load_file(place / name / "student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in whole.items())


def test_python_takes_a_pipeline_in_memory(tiny_pipeline, place, capsys):
    from diffusers import StableDiffusionPipeline

    folder = tiny_pipeline("stable_diffusion")
    more = {"iterations": 2, "batch": 2, "judged": 4, "teacher_nodes": 2, "quiet": True}
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    run = limbeck.distill(pipe, method="dmd", prompts=["a cat", "red dog"], out="object", **more)
    assert run.config.task == "diffusers" and run.config.task_options["python"].startswith("model StableDiffusionPipeline")
    named = limbeck.distill(model=str(folder), method="dmd", prompts=["a cat", "red dog"], out="folder", **more)
    assert named.config.task_options["prompts"] == ["a cat", "red dog"]
    assert all(torch.equal(a, b) for a, b in zip(run.student.parameters(), named.student.parameters(), strict=True))
    assert cli.main(["sample", "object"]) == 2 and "objects that no file holds" in capsys.readouterr().err
    assert cli.main(["sample", "folder", "--count", "2"]) == 0
    other = diffusers_task(str(tiny_pipeline("ddpm")), judged=4, teacher_nodes=2, quiet=True)
    with pytest.raises(LimbeckError, match="a task knows its own model"):
        limbeck.distill(model=str(folder), task=other, method="dmd")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--task", "digits", "--prompts", "p.txt"], "the task digits does not take --prompts; that is for the task diffusers"),
        (["--task", "own", "--model", "x"], "the task own does not take --model; that is for the task diffusers"),
        (
            ["--teacher", "x", "--model", "y"],
            "no task takes all of these options: --teacher is for the task own; --model is for",
        ),
        (["--model", "absent"], "absent is no folder"),
        (["--prompts", "prompts.txt"], "the task diffusers needs --model"),
    ],
)
def test_flags_of_another_task(flags, message, capsys, place):
    assert cli.main(["distill", "dmd", *flags, "--out", "run"]) == 2
    assert message in capsys.readouterr().err and not (place / "run").exists()
