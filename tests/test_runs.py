"""Runs: what a folder holds, resuming and replaying to the same weights, and every way a folder can be wrong."""

import errno
import functools
import json
import os
import shutil
import signal

import pytest
import torch
import yaml

import limbeck
from limbeck import runs
from limbeck.denoisers import load_denoiser
from limbeck.errors import LimbeckError
from limbeck.report.record import read_record
from limbeck.runs import RunConfig, distill, open_folder, open_run, parse_config, read_config
from limbeck.samplers import Rollout, load_experts
from limbeck.tasks import build_task
from limbeck.training import Interrupted, Loop, NonFiniteError, OptimizerOptions, checkpoints, read_metrics
from limbeck.training.durable import write_synced

SMALL = {"iterations": 3, "batch": 8}


def small(out, method="dmd", **options):
    given = {"quiet": True, **{k: options.pop(k) for k in ("resume", "overwrite", "seed", "dtype", "from_run") if k in options}}
    return distill(method=method, task="tiny", out=out, options={**SMALL, **options}, **given)


@pytest.fixture(scope="module")
def finished(tiny_task, tmp_path_factory):
    """A finished run that no test changes."""
    return small(tmp_path_factory.mktemp("runs") / "finished", sigmas=(5.0, 1.0))


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished.path, tmp_path / "copied")


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(step, action): do something after an iteration of the next loop."""

    def set_up(step, action):
        iterate = Loop.iterate

        def until(self):
            figures = iterate(self)
            if self.step == step:
                action(self)
            return figures

        monkeypatch.setattr(Loop, "iterate", until)

    return set_up


def weights(folder):
    return (folder / "student.safetensors").read_bytes()


def test_a_folder_holds_everything(finished):
    names = {path.name for path in finished.path.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "checkpoints", "samples", "student.safetensors", "student.json", "summary.json",
        "report.html",
    }  # fmt: skip
    pictures = {path.name for path in (finished.path / "samples").iterdir()}
    assert pictures == {"real.png", "teacher.png", "teacher_at_student_nfe.png", "student.png"}
    assert (finished.path / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    metrics = read_metrics(finished.path / "metrics.jsonl")
    assert metrics["loss/student"][0][-1] == 3 and metrics["frechet"][0][-1] == 3
    assert checkpoints.load(finished.path / "checkpoints").step == 3
    assert isinstance(checkpoints.load(finished.path / "checkpoints", "best").step, int)


def test_the_summary_has_the_figures_of_teacher_and_student(finished):
    stored = json.loads((finished.path / "summary.json").read_text())
    for name, nfe in (("teacher", 5), ("teacher_at_student_nfe", 1), ("student", 2)):
        assert set(stored[name]) == {"nfe", "frechet", "accuracy", "images_per_second"}
        assert stored[name]["nfe"] == nfe and stored[name]["frechet"] > 0 and 0 <= stored[name]["accuracy"] <= 1
        assert stored[name]["images_per_second"] > 0
    assert stored["noise_floor"] > 0 and stored["seconds"] > 0 and stored["iterations"] == 3
    assert (stored["method"], stored["task"], stored["arxiv"], stored["seed"]) == ("dmd", "tiny", "2311.18828", 0)
    assert [step for step, _ in stored["history"]] == [1, 2, 3]
    assert stored["history"][-1][1] == {"frechet": stored["student"]["frechet"], "accuracy": stored["student"]["accuracy"]}
    assert stored["versions"]["torch"] == torch.__version__ and stored["teacher_origin"] == "made"
    record = read_record(finished.path)
    assert record.student.frechet == stored["student"]["frechet"] and record.seconds == stored["seconds"]


def test_the_student_on_disk_gives_the_samplers_images(finished):
    student, info = load_denoiser(finished.path / "student.safetensors")
    assert info["times"] == finished.method.times.tolist() == [5.0, 1.0] and info["method"] == "dmd"
    torch.manual_seed(0)
    z, noise = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4)
    cond = {"label": torch.tensor([0, 1, 0, 1])}
    images = finished.sampler()(z, cond, lambda i: noise)
    with torch.no_grad():
        again = Rollout(student.process, info["times"])(student, z, cond, noise=lambda i: noise).x
    assert torch.equal(images, again) and float(images.std()) > 0.01
    t = torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(finished.student(z, t, cond), student(z, t, cond))


def test_the_summary_is_of_the_student_that_was_written(finished):
    task = build_task("tiny")
    figures = task.evaluator(finished.sampler(), 2)
    assert figures["frechet"] == finished.summary["student"]["frechet"]


def test_a_run_opened_again_has_the_same_student(finished):
    run, task = open_run(finished.path, quiet=True)
    for a, b in zip(run.student.parameters(), finished.student.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run.summary["student"]["frechet"] == finished.summary["student"]["frechet"] and task.name == "tiny"
    assert isinstance(run, limbeck.Run) and limbeck.distill is distill


def test_the_config_replays_to_identical_weights(finished, tmp_path):
    config = parse_config(finished.path / "config.yaml")
    assert (config.method, config.task, config.options["sigmas"]) == ("dmd", "tiny", [5.0, 1.0])
    again = distill(method="dmd", task=config.task, options=config.options, seed=config.seed, out=tmp_path / "b", quiet=True)
    assert weights(again.path) == weights(finished.path)
    assert weights(small(tmp_path / "c", sigmas=(5.0, 1.0), seed=1).path) != weights(finished.path)


@pytest.mark.parametrize("method, options", [("dmd", {"critic_steps": 2}), ("sid", {}), ("ict", {"s1": 8})])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(method, options, tiny_task, tmp_path, stop_at, monkeypatch):
    options = {**options, "iterations": 5}
    whole = small(tmp_path / "whole", method, **options)
    with monkeypatch.context():
        stop_at(2, lambda loop: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=r"stopped by SIGTERM after step 2; continue with `limbeck distill --resume"):
            small(tmp_path / "cut", method, **options)
        monkeypatch.undo()
    assert not (tmp_path / "cut" / "summary.json").exists()
    torch.manual_seed(77)
    resumed = small(tmp_path / "cut", method, resume=True, **options)
    assert weights(resumed.path) == weights(whole.path)
    assert (resumed.path / "metrics.jsonl").read_text() == (whole.path / "metrics.jsonl").read_text()
    assert resumed.summary["history"] == whole.summary["history"]
    for folder in (whole.path, resumed.path):
        (folder / "checkpoints" / "best.json").read_text()
    assert (whole.path / "checkpoints/best.json").read_bytes() == (resumed.path / "checkpoints/best.json").read_bytes()


def test_a_student_of_experts_and_one_that_is_told_k_are_written_down(tiny_task, tmp_path):
    run = small(tmp_path / "experts", "phased-dmd")
    experts, info = load_experts(run.path / "student")
    assert [e[:2] for e in experts.experts] == [(0.0, 0.5), (0.5, 5.0)] and info["times"] == run.method.times.tolist()
    assert (run.path / "report.html").is_file() and open_run(run.path, quiet=True)[0].method.times.tolist() == info["times"]
    run = small(tmp_path / "told", "tdm", counts=(1, 2))
    student, _ = load_denoiser(run.path / "student")
    assert student.network.config["counted"] == {"steps": [1, 2]}


def test_a_finished_run_resumed_is_judged_and_written_again(copied, finished):
    (copied / "report.html").unlink()
    again = small(copied, sigmas=(5.0, 1.0), resume=True)
    assert weights(again.path) == weights(finished.path) and (copied / "report.html").is_file()
    assert again.summary["history"] == finished.summary["history"]


def test_a_run_that_crashed_before_its_first_checkpoint_goes_on(tiny_task, tmp_path, stop_at, monkeypatch):
    def crash(loop):
        raise RuntimeError("the power failed")

    stop_at(12, crash)  # after the first line of metrics, before the first evaluation
    with pytest.raises(RuntimeError, match="the power failed"):
        small(tmp_path / "run", iterations=100)
    monkeypatch.undo()
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")["gap"][0] == [10]
    assert checkpoints.load(tmp_path / "run" / "checkpoints").step == 0
    stop_at(14, lambda loop: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="after step 14"):
        small(tmp_path / "run", iterations=100, resume=True)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")["gap"][0] == [10]


def test_a_failure_says_what_and_can_be_replayed(tiny_task, tmp_path):
    broken = {"iterations": 30, "student": {"lr": 1e30, "clip": None, "warmup": 0}}
    messages = []
    for resume in (False, True):
        with pytest.raises(NonFiniteError, match=r"is (nan|-?inf) at step \d+.*--resume .* replays the failure") as caught:
            small(tmp_path / "run", resume=resume, **broken)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    facts = json.loads((tmp_path / "run" / "failure.json").read_text())
    assert facts["role"] in ("student", "critic") and str(facts["step"]) in messages[0]


def test_a_folder_in_the_way(copied, finished, tmp_path):
    with pytest.raises(LimbeckError, match=r"already exists; --resume .* goes on with it, --overwrite replaces it"):
        small(copied)
    assert weights(copied) == weights(finished.path)
    replaced = small(copied, overwrite=True)
    assert weights(copied) != weights(finished.path) and replaced.summary["student"]["nfe"] == 1
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(LimbeckError, match="is not a run"):
            small(stranger, overwrite=overwrite)
    assert (stranger / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match="is a file, not a folder; choose another --out"):
        small(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert small(tmp_path / "empty").path == tmp_path / "empty"


def test_overwrite_and_resume_contradict_each_other(copied):
    with pytest.raises(LimbeckError, match="--overwrite and --resume contradict each other"):
        small(copied, overwrite=True, resume=True)


def test_what_cannot_start_costs_no_run(copied, finished, tmp_path):
    wrong = ({"sigmas": (500.0,)}, {"nonsense": 1}, {"critic_steps": 0}, {"gan_weight": 1.0, "gan_features": ("no",)})
    for options in wrong:
        with pytest.raises(LimbeckError):
            small(copied, overwrite=True, **options)
        assert weights(copied) == weights(finished.path)
        with pytest.raises(LimbeckError):
            small(tmp_path / "new", **options)
        assert not (tmp_path / "new" / "config.yaml").exists()
    with pytest.raises(LimbeckError, match="unknown task 'tinny': did you mean 'tiny'"):
        distill(task="tinny", out=tmp_path / "new", quiet=True)
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_a_half_written_folder(tmp_path, tiny_task):
    (tmp_path / "half" / "checkpoints").mkdir(parents=True)
    for call in (lambda: small(tmp_path / "half", resume=True), lambda: open_run(tmp_path / "half")):
        with pytest.raises(LimbeckError, match=r"half is not a run: it has no config.yaml .*start a new run"):
            call()
    with pytest.raises(LimbeckError, match="nowhere is not a run: it has no config.yaml"):
        small(tmp_path / "nowhere", resume=True)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must be a mapping of names to values, not None"),
        ("method: [", "is not readable YAML"),
        ("method: dmd\ntaks: tiny", "unknown name in .*'taks': did you mean 'task'"),
        ("method: dmd\nseed: two", "config.yaml.seed must be of type int, not 'two'"),
        ("method: dmd\nformat: 99\nversion: '7.1'", "has format 99, this version reads 1; use limbeck 7.1"),
        ("task: tiny", "method"),
        ("method: dmd\noptions: 3", "must be a mapping"),
        (b"\xff\xfe\x00", "is not readable YAML"),
    ],
)
def test_a_config_that_is_none(text, message, tmp_path):
    (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LimbeckError, match=message):
        read_config(tmp_path)


def test_a_run_of_another_method(copied, tmp_path):
    with pytest.raises(LimbeckError, match=r"was started with other options \(method: 'dmd' -> 'sid'"):
        small(copied, "sid", resume=True)
    other = small(tmp_path / "sid", "sid", sigmas=(5.0, 1.0))
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(other.path / "checkpoints", copied / "checkpoints")
    with pytest.raises(LimbeckError, match="holds a run of 'sid', not of 'dmd'"):
        small(copied, resume=True, sigmas=(5.0, 1.0))


def test_resuming_with_other_options_says_which(copied):
    with pytest.raises(LimbeckError) as caught:
        small(copied, resume=True, sigmas=(5.0, 1.0), guidance=2.0, student={"lr": 0.01}, seed=4)
    message = str(caught.value)
    assert "options.guidance: 1.0 -> 2.0; " in message and "options.student.lr: 0.001 -> 0.01" in message
    assert "seed: 0 -> 4" in message and "resume without changing them" in message and "critic" not in message


def damage(folder, step, how):
    path = folder / "checkpoints" / f"step-{step:08d}" / "student.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-20] if how == "truncated" else data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_last_checkpoint_is_passed_over_and_said(how, copied, finished, capsys):
    steps = sorted(int(path.name[5:]) for path in (copied / "checkpoints").glob("step-*"))
    assert len(steps) >= 2 and steps[-1] == 3
    damage(copied, 3, how)
    run, _ = open_run(copied)
    assert "skipped a damaged checkpoint: step-00000003: student.safetensors" in capsys.readouterr().err
    assert any(not torch.equal(a, b) for a, b in zip(run.student.parameters(), finished.student.parameters(), strict=True))
    resumed = small(copied, sigmas=(5.0, 1.0), resume=True)
    said = capsys.readouterr().err
    assert "skipped a damaged checkpoint: step-00000003: student.safetensors" in said
    assert f"resumed {copied} at step {steps[-2]} of 3" in said
    assert weights(resumed.path) == weights(finished.path)


def test_no_checkpoint_is_whole(copied):
    for path in (copied / "checkpoints").glob("step-*"):
        damage(copied, int(path.name[5:]), "flipped")
    with pytest.raises(LimbeckError, match=r"(?s)no usable checkpoint in .*step-00000003: student.safetensors does not agree"):
        small(copied, sigmas=(5.0, 1.0), resume=True)


def test_a_full_disk_keeps_the_last_checkpoint(tiny_task, tmp_path, monkeypatch):
    real, written = checkpoints.save, []

    def full(path, data):
        write_synced(path, data)
        if len(written) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    def save(*args, **options):
        written.append(args[1])
        return real(*args, **options, writer=full)

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(LimbeckError, match=r"could not be written to .*: No space left on device. .*intact \(steps: 0"):
        small(tmp_path / "run", sigmas=(5.0, 1.0))
    monkeypatch.undo()
    assert checkpoints.load(tmp_path / "run" / "checkpoints").step == 0 == written[0]
    assert not list((tmp_path / "run" / "checkpoints").glob(".partial*"))
    assert small(tmp_path / "run", sigmas=(5.0, 1.0), resume=True).summary["iterations"] == 3


def test_no_folder_given_takes_the_first_free_name(tiny_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(small(None).path) for _ in range(2)] == ["runs/dmd-tiny-1", "runs/dmd-tiny-2"]


def test_options_as_a_mapping_a_dataclass_keywords_and_a_preset(tiny_task, tmp_path):
    from limbeck.methods.generators.sid import SiDOptions

    def options(name, **given):
        run = distill(method="sid", task="tiny", out=tmp_path / name, quiet=True, iterations=1, **given)
        return run.config.options

    mapping = options("a", options={"batch": 8, "student": {"lr": 0.25}}, weight="snr")
    assert (mapping["batch"], mapping["student"]["lr"], mapping["weight"], mapping["iterations"]) == (8, 0.25, "snr", 1)
    assert mapping["alpha"] == 1.1 and mapping["student"]["warmup"] == 20  # the task prefers 1.1; the rest stays
    assert options("b", options=SiDOptions(batch=8))["alpha"] == 1.2  # a whole dataclass is taken as it is
    paper = options("c", preset="paper-afhq64", batch=8)
    assert (paper["alpha"], paper["batch"], paper["student"]["lr"]) == (1.0, 8, 1e-5)
    with pytest.raises(LimbeckError, match="unknown preset 'paper-cifar': did you mean 'paper-cifar10'"):
        options("d", preset="paper-cifar")
    with pytest.raises(LimbeckError, match="unknown name in options 'alfa': did you mean 'alpha'"):
        options("e", alfa=1.0)
    with pytest.raises(LimbeckError, match="unknown method 'sidd': did you mean 'sid'"):
        distill(method="sidd", task="tiny")
    with pytest.raises(LimbeckError, match="gaussian-score is a sampler and distils nothing"):
        distill(method="teleport", task="tiny")


@pytest.mark.parametrize("method, options", [("dmd", {"gan_weight": 0.1}), ("sid", {}), ("ict", {"s1": 8, "iterations": 5})])
def test_other_precisions_run(method, options, tiny_task, tmp_path):
    run = small(tmp_path / "run", method, dtype="float64", **options)
    assert {p.dtype for p in run.student.parameters()} == {torch.float64}


def test_devices_and_dtypes_that_are_not_there(tiny_task, tmp_path):
    with pytest.raises(LimbeckError, match="unknown dtype 'float31': did you mean 'float32'"):
        small(tmp_path / "run", dtype="float31")
    for device in ("gpu", "cuda:77"):
        with pytest.raises(LimbeckError, match=f"the device '{device}' "):
            distill(task="tiny", out=tmp_path / "run", device=device, quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_same_run_from_anywhere_has_the_same_weights(finished, tmp_path):
    torch.manual_seed(1234)  # nothing of this process's random state may matter
    again = small(tmp_path / "again", sigmas=(5.0, 1.0))
    assert weights(again.path) == weights(finished.path)


def test_config_and_folder_agree(finished):
    stored = yaml.safe_load((finished.path / "config.yaml").read_text())
    assert RunConfig(**stored) == finished.config == read_config(finished.path)
    assert open_folder(finished.path, finished.config, False, resume=True) == finished.path
    assert functools.reduce(getattr, ["config", "format"], finished) == runs.FORMAT


def test_a_run_begins_with_the_student_of_another(finished, tiny_task, tmp_path):
    nothing = {"student": OptimizerOptions(lr=0.0), "critic": OptimizerOptions(lr=0.0)}
    run = small(tmp_path / "second", sigmas=(5.0, 1.0), from_run=finished, **nothing)
    begun, before = run.method.student.state_dict(), finished.student.state_dict()
    assert all(torch.equal(begun[name], before[name]) for name in before)
    assert run.method.critic.state_dict().keys() == before.keys() and run.config.from_run == str(finished.path)
    assert read_config(run.path).from_run == str(finished.path)
    with pytest.raises(LimbeckError, match="nowhere is not a run"):
        small(tmp_path / "third", from_run="nowhere")


def test_a_run_compiles_its_networks_where_that_is_asked(tiny_task, tmp_path, monkeypatch):
    asked = []

    def compile_roles(method, batches):
        asked.append((method, next(iter(batches)).step))
        raise LimbeckError("the network of the role 'student' is not compiled")

    monkeypatch.setattr("limbeck.runs.distillation.compile_roles", compile_roles)
    small(tmp_path / "plain")
    assert not asked
    with pytest.raises(LimbeckError, match="the role 'student' is not compiled"):
        distill(task="tiny", out=tmp_path / "run", options=SMALL, quiet=True, compile=True)
    assert [step for _, step in asked] == [0]
