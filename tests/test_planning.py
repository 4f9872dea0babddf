"""The switches that `limbeck plan` proposes, what they save, and the command."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck import cli
from limbeck.cli.planning import bytes_of, size
from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.methods import find
from limbeck.networks.checkpointing import Checkpointed
from limbeck.noise import VE
from limbeck.runs import Choice, Execution, RunConfig, distill, enough, plan_run, savings
from limbeck.runs.saving import SWITCHES
from limbeck.tasks import build_task
from limbeck.training.options import merged_options, options_to_dict


def configuration(method, task, over=(), **more):
    _, _, presets = find(method).load()
    return RunConfig(method, task, options=options_to_dict(merged_options(presets["recommended"], dict(over))), **more)


def factor(choice):
    """A peak that each switch lowers by a factor of its own; adapters of the student make it larger."""
    o, peak = choice.config.options, 1000
    peak *= 0.9 if choice.how.gradient_checkpointing else 1
    peak *= 1 / choice.config.micro_batches**0.5
    peak *= 0.8 if choice.how.offload else 1
    peak *= 0.7 if choice.config.precision == "bfloat16" else 1
    peak *= 0.6 if choice.eight_bit else 1
    return round(peak * (0.5 if o["critic_rank"] else 1) * (1.5 if o["student_rank"] else 1))


@pytest.fixture
def factors(monkeypatch):
    plan = plan_run(configuration("dmd", "tiny", {"batch": 2}), build_task("tiny"))
    monkeypatch.setattr(Choice, "plan", lambda self, task: replace(plan, peak=factor(self)))


def test_each_switch_is_looked_at_alone_and_then_as_many_as_it_takes(tiny_task, factors):
    choice, said = Choice(configuration("sid", tiny_task), Execution()), []
    single = savings(choice, build_task(tiny_task), said.append)
    assert [(s.flags, s.peak) for s in single] == [
        ("--gradient-checkpointing", 900), ("--micro-batches 4", 500), ("--offload", 800), ("--precision bfloat16", 700),
        ("--student.kind adam8bit --critic.kind adam8bit --discriminator.kind adam8bit", 600), ("--critic-rank 16", 500),
        ("--student-rank 16", 1500),
    ]  # fmt: skip
    assert said[:2] == ["rehearsing with --gradient-checkpointing", "rehearsing with --micro-batches 4"]

    task = build_task(tiny_task)

    def found(memory):
        return enough(choice, task, single, memory, said.append)

    assert found(850) == ("--micro-batches 4", 500)  # the first that is enough alone
    assert found(400) == ("--gradient-checkpointing --micro-batches 4 --offload", 360)
    flags, peak = found(80)
    assert flags.endswith("adam8bit --critic-rank 16") and peak == 76
    assert found(75) is None  # the student's adapters would not help


def test_a_switch_saves_what_a_plan_with_it_says(tiny_task):
    choice, task = Choice(configuration("sid", tiny_task, {"batch": 2}), Execution()), build_task(tiny_task)
    on = next(s for switch in SWITCHES if (s := switch(choice)) and s.flags == "--offload")
    assert (
        on.choice.plan(task) == plan_run(choice.config, task, Execution(offload=True))
        and on.choice.plan(task).peak < choice.plan(task).peak
    )


class Blockless(nn.Module):
    """A network without blocks."""

    null = None

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x, c_noise, cond=None):
        return self.layer(x.flatten(1)).view_as(x)


def test_switches_that_are_on_or_do_not_apply_are_not_proposed(tiny_task):
    tiny = build_task(tiny_task)
    config = configuration("ict", tiny_task, {"batch": 1, "student": {"kind": "sgd"}}, precision="bfloat16")
    how = Execution(gradient_checkpointing=True)
    assert [s.flags for s in savings(Choice(config, how), tiny, lambda text: None)] == ["--offload"]
    blockless = replace(tiny, teacher=Preconditioned(Blockless(), VE()))
    config = configuration("dmd", tiny_task, {"batch": 2, "student_rank": 1, "critic_rank": 1}, micro_batches=2)
    found = [s.flags.split()[0] for s in savings(Choice(config, Execution()), blockless, lambda text: None)]
    assert found == ["--offload", "--precision", "--student.kind"]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr(cli, "one_thread", lambda: None)


def test_the_command_takes_the_options_of_distill_and_begins_nothing(tiny_task, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "dmd", "--task", tiny_task, "--batch", "8", "--student.lr", "0.1", "--memory", "1GB"]) == 0
    out = capsys.readouterr().out
    assert "teacher" in out and "optimizer" in out and "memory: 1.00 GB   fits" in out and "(batch 8)" in out
    assert cli.main(["plan", "--task", tiny_task, "--micro-batches", "2", "--quiet"]) == 0
    assert "(batch 128 in 2 micro-batches)" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_1_and_says_what_to_switch_on(tiny_task, factors, capsys):
    arguments = ["plan", "dmd", "--task", tiny_task, "--batch", "4", "--json"]
    assert cli.main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["fits"] is None and facts["peak"] == facts["working"] + facts["resident"]
    assert cli.main([*arguments, "--memory=700B"]) == 1
    found = capsys.readouterr()
    facts = json.loads(found.out)
    assert facts["enough"] == {"flags": "--micro-batches 4", "peak": 500} and not facts["fits"] and len(facts["savings"]) == 7
    assert "limbeck: rehearsing with --gradient-checkpointing" in found.err
    assert cli.main(["plan", "dmd", "--task", tiny_task, "--memory", "0.4kB", "--quiet"]) == 1
    found = capsys.readouterr()
    said = " ".join(found.out.split())
    assert "does not fit: " in said and "500 B 500 B --critic-rank 16: the critic is adapters on one frozen base" in said
    assert "enough: --gradient-checkpointing --micro-batches 4 --offload (peak 360 B)" in said and not found.err
    assert cli.main(["plan", "dmd", "--task", tiny_task, "--memory", "1B", "--quiet"]) == 1
    assert "not even all of them are enough" in capsys.readouterr().out


def test_bad_input(capsys, tiny_task):
    assert cli.main(["plan", "dmd", "--task", tiny_task, "--memory", "24"]) == 2
    assert "--memory 24 is no amount of memory; write a number and a unit, as in 24GB" in capsys.readouterr().err
    assert cli.main(["plan", "dmdd"]) == 2
    assert "did you mean 'dmd'" in capsys.readouterr().err
    with pytest.raises(LimbeckError, match="is no amount"):
        bytes_of("GB 24")


def test_amounts():
    assert (bytes_of("24GB"), bytes_of("1.5 GiB"), bytes_of("7b")) == (24 * 10**9, 3 * 2**29, 7)
    assert (size(1.234e9), size(56.7e6), size(999), size(80e9), size(123456)) == (
        "1.23 GB",
        "56.7 MB",
        "999 B",
        "80.0 GB",
        "123 kB",
    )


def test_a_run_carried_out_with_less_memory_is_the_same_run(tiny_task, tmp_path):
    common = {"task": tiny_task, "options": {"iterations": 6, "batch": 8}, "quiet": True}
    plain = distill(method="sid", out=tmp_path / "plain", **common)
    lean = distill(method="sid", out=tmp_path / "lean", gradient_checkpointing=True, offload=True, **common)
    roles = lean.method.roles
    assert all(
        isinstance(b, Checkpointed) for name in ("teacher", "student", "critic") for b in roles[name].module.network.blocks
    )
    for (name, p), (_, q) in zip(plain.student.named_parameters(), lean.student.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert (plain.path / "config.yaml").read_text() == (lean.path / "config.yaml").read_text()  # how, not what
    assert cli.main(["distill", "--resume", str(lean.path), "--quiet", "--offload"]) == 0
