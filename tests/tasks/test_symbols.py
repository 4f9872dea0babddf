"""The task symbols: exact figures, learned steps from the command line to a file and back, and every bad input."""

import json
from types import SimpleNamespace

import pytest
import torch

import limbeck
from limbeck import cli
from limbeck.errors import LimbeckError
from limbeck.methods.sequences.lsd import LSD, LSDOptions
from limbeck.runs import open_run
from limbeck.samplers.discrete import LearnedSteps, generator_uniforms
from limbeck.tasks import AnyTask
from limbeck.tasks.symbols import load_steps, symbols

SHORT = {
    "method": "lsd", "iterations": 6, "batch": 16, "teacher_steps": 8, "held_out": 32, "quiet": True, "track": ("none",),
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:step too large")


def test_plain_steps_are_judged_by_enumeration():
    task = symbols()
    assert isinstance(task, AnyTask)
    plain = LearnedSteps(task.graph, task.schedule, 4)
    assert task.kl(plain) == pytest.approx(1.758, abs=5e-4)  # as the claim has it
    drawn = plain.sample(task.score, task.graph.start(torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))),
                         generator_uniforms((4000, 3, 5), torch.Generator().manual_seed(1)))  # fmt: skip
    law = task.score.laws(plain)[-1]
    seen = torch.bincount(task.score.index(drawn), minlength=len(law)) / len(drawn)
    assert float((seen - law).abs().sum()) / 2 < 0.06  # sampling error alone: 64 states, 4,000 draws


def test_independent_symbols_leave_nothing_to_learn():
    task = symbols("absorbing", 2, stick=0.25)
    assert task.kl(LearnedSteps(task.graph, task.schedule, 2)) == pytest.approx(0.0, abs=1e-9)


def test_the_command_line_learns_steps_and_keeps_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    run = tmp_path / "run"
    flags = [
        "--iterations",
        "15",
        "--batch",
        "32",
        "--teacher-steps",
        "8",
        "--held-out",
        "128",
        "--out",
        str(run),
        "--quiet",
        "--track",
        "none",
    ]
    assert cli.main(["distill", "lsd", *flags]) == 0
    assert "nats with 4 learned steps, 1.758 with as many plain ones" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    rows = summary["table"]["rows"]
    assert list(rows) == ["8 steps", "4 steps", "student"] and rows["8 steps"]["calls"] == 8
    assert rows["8 steps"]["kl"] < rows["student"]["kl"] < 0.9 * rows["4 steps"]["kl"]
    done, task = open_run(run, quiet=True)
    left = load_steps(run / "steps.json")
    assert task.kl(left) == task.kl(done.method.learned) == rows["student"]["kl"]
    assert torch.equal(left.phi, done.method.learned.phi) and torch.equal(left.times(), done.method.learned.times())
    assert cli.main(["evaluate", str(run)]) == 0 and "KL" in capsys.readouterr().out
    assert cli.main(["export", str(run), "--to", "json", str(tmp_path / "steps.json")]) == 0
    assert torch.equal(load_steps(tmp_path / "steps.json").phi, left.phi)
    assert cli.main(["report", str(run)]) == 0 and capsys.readouterr() and "learned steps" in (run / "report.html").read_text()


def test_the_memory_of_a_run_is_planned(capsys, monkeypatch):
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    assert cli.main(["plan", "lsd", "--json", "--steps", "4", "--teacher-steps", "8"]) == 0
    roles = {role["name"]: role for role in json.loads(capsys.readouterr().out)["roles"]}
    assert roles["student"]["weights"] == 2 * 4 * 8


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = limbeck.distill(out=tmp_path / "whole", learn_times=True, **SHORT)
    step = LSD.step

    def dies(self, batch):
        if batch.step == 5:
            raise KeyboardInterrupt
        yield from step(self, batch)

    monkeypatch.setattr(LSD, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        limbeck.distill(out=tmp_path / "stopped", learn_times=True, checkpoint_every=3, **SHORT)
    monkeypatch.setattr(LSD, "step", step)
    again = limbeck.distill(out=tmp_path / "stopped", learn_times=True, checkpoint_every=3, resume=True, **SHORT)
    assert torch.equal(whole.student.phi, again.student.phi) and torch.equal(whole.student.theta, again.student.theta)
    assert whole.summary["table"] == again.summary["table"] and float(whole.student.theta.detach().abs().sum()) > 0


@pytest.mark.parametrize("objective", ["same_state", "mean"])
def test_micro_batches_are_the_large_batch(objective, tmp_path):
    sgd = {"lr": 0.1, "kind": "sgd", "betas": (0.0, 0.0), "decay": "constant"}
    one, two = (
        limbeck.distill(
            out=tmp_path / str(n),
            micro_batches=n,
            student=sgd,
            objective=objective,
            guard=False,
            task_options={"length": 2},
            **SHORT,
        )
        for n in (1, 2)
    )
    torch.testing.assert_close(one.student.phi, two.student.phi, rtol=0, atol=1e-12)
    assert float((one.student.phi - 1).detach().abs().max()) > 1e-4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--graph", "cyclic"], "unknown graph 'cyclic'"),
        (["--length", "6"], "length=6: all 4^6 sequences are enumerated; give 1 to 5"),
        (["--graph", "absorbing", "--length", "5"], "length=5: all 5^5 sequences are enumerated; give 1 to 4"),
        (["--stick", "1"], "stick=1 is a probability in (0, 1)"),
        (["--steps", "5"], "teacher steps must be a multiple of student steps"),
        (["--device", "meta"], "meta"),
        (["--from-run", "run"], "students of the task symbols do not start from another run's"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "one_thread", lambda: None)
    assert cli.main(["distill", "lsd", *arguments, "--quiet", "--track", "none"]) == 2
    assert message in capsys.readouterr().err


def test_other_tasks_devices_and_files_are_refused(tmp_path):
    with pytest.raises(LimbeckError, match="lsd distils samplers of symbols, and ring is no such task"):
        LSD.on(SimpleNamespace(name="ring"), LSDOptions(), 0)
    with pytest.raises(LimbeckError, match="the task symbols is worked out on the CPU, not on cuda"):
        symbols(device="cuda")
    (tmp_path / "steps.json").write_text('{"graph": {"kind": "ring"}}')
    with pytest.raises(LimbeckError, match=r"steps.json holds no learned steps: "):
        load_steps(tmp_path / "steps.json")
