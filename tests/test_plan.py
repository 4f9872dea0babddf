"""Planned memory: the peak of the run itself, measured, and what each switch saves of it."""

import copy
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
from limbeck.runs import Choice, Execution, RunConfig, distill, enough, plan_run, prepare, savings
from limbeck.runs.plan import AWAY, Rehearsal, Still
from limbeck.runs.saving import SWITCHES
from limbeck.tasks import build_task
from limbeck.tasks.digit_prompts import prompts
from limbeck.tasks.digits import digits
from limbeck.tasks.photos import photos
from limbeck.tasks.teacher import TeacherOptions
from limbeck.training import Loop, LoopOptions, OptimizerOptions, Role, checkpoint_roles
from limbeck.training.live import LiveBytes, held
from limbeck.training.offload import Offload
from limbeck.training.optimizers import Trained
from limbeck.training.options import merged_options, options_to_dict

QUICK = TeacherOptions(iterations=1, batch=8)  # memory does not ask how good a teacher is


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task by name, with a teacher that was hardly trained."""
    makers, made = {"digits": digits, "prompts": prompts, "photos": photos}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("teachers")))

        def of(name):
            if name not in made:
                made[name] = makers[name](teacher=QUICK, quiet=True)
            return made[name]

        yield of


def configuration(method, task="digits", over=(), **more):
    _, _, presets = find(method).load()
    return RunConfig(method, task, options=options_to_dict(merged_options(presets["recommended"], dict(over))), **more)


def measured(config, task, how):
    """The peak of a run's own iterations: its first, middle and last, once the optimizers have their states."""
    method, options = prepare(config, replace(task, teacher=copy.deepcopy(task.teacher)))
    if how.gradient_checkpointing:
        checkpoint_roles(method.roles)
    loop = Loop(method, task.source, LoopOptions(options.iterations, options.batch, config.micro_batches), quiet=True)
    loop.iterate()
    away = 0

    def move(tensor, device):
        nonlocal away
        away += tensor.nbytes * (1 if device == AWAY else -1)
        return tensor

    if how.offload:
        loop.residence = Offload(method.roles, loop.trained, "cpu", move, AWAY)
    peak = 0

    def seen(now):
        nonlocal peak
        peak = max(peak, now - away)

    for step in (1, options.iterations // 2, options.iterations - 1):
        loop.step = step
        with LiveBytes(held(method.roles, loop.trained), seen):
            loop.iterate()
    return peak


LOW = {"student_rank": 4, "critic_rank": 4}
CHECKPOINTED, OFFLOADED = Execution(gradient_checkpointing=True), Execution(offload=True)
CASES = {
    "digits, dmd": ("digits", "dmd", {}, {}, Execution()),
    "digits, dmd, adapters": ("digits", "dmd", LOW, {}, Execution()),
    "digits, dmd, offload": ("digits", "dmd", {}, {}, OFFLOADED),
    "prompts, sid": ("prompts", "sid", {"batch": 24}, {}, Execution()),
}
SLOW = {
    "digits, dmd, discriminator": ("digits", "dmd", {"gan_weight": 0.1}, {}, Execution()),
    "digits, ict": ("digits", "ict", {}, {}, Execution()),
    "digits, tdm": ("digits", "tdm", {"iterations": 30}, {}, Execution()),
    "prompts, sid": ("prompts", "sid", {}, {}, Execution()),
    "prompts, sid, checkpointing": ("prompts", "sid", {}, {}, CHECKPOINTED),
    "prompts, sid, checkpointed adapters": ("prompts", "sid", LOW, {}, CHECKPOINTED),
    "prompts, sid, micro-batches": ("prompts", "sid", {"batch": 96}, {"micro_batches": 2}, Execution()),
    "prompts, sid, bfloat16": ("prompts", "sid", {}, {"precision": "bfloat16"}, Execution()),
    "photos, dmd": ("photos", "dmd", {"batch": 16}, {}, Execution()),
    "photos, dmd, large batch": ("photos", "dmd", {"batch": 64}, {}, Execution()),
    "photos, dmd, checkpointing": ("photos", "dmd", {"batch": 32}, {}, CHECKPOINTED),
    "photos, dmd, adapters": ("photos", "dmd", {"batch": 32, **LOW}, {}, Execution()),
    "photos, dmd, checkpointed adapters": ("photos", "dmd", {"batch": 32, **LOW}, {}, CHECKPOINTED),
    "photos, dmd, all": (
        "photos", "dmd", {"batch": 32, **LOW}, {"micro_batches": 2, "precision": "bfloat16"},
        Execution(gradient_checkpointing=True, offload=True),
    ),
}  # fmt: skip


def check(case, task):
    name, method, over, more, how = case
    config = configuration(method, name, over, **more)
    planned, real = plan_run(config, task(name), how), measured(config, task(name), how)
    print(f"planned {planned.peak / 1e6:.2f} MB, measured {real / 1e6:.2f} MB, ratio {planned.peak / real:.4f}")
    assert 0.95 < planned.peak / real < 1.05
    assert planned.working + planned.resident == planned.peak and planned.working > 0


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_planned_peak_is_the_measured_one(case, task):
    check(case, task)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW.values(), ids=SLOW.keys())
def test_the_planned_peak_is_the_measured_one_of_a_unet(case, task):
    check(case, task)


@pytest.mark.slow
def test_where_sixteen_samples_would_not_fit_four_are_enough(task, monkeypatch):
    monkeypatch.setattr("limbeck.runs.plan.ROOM", 0)
    config = configuration("sid", "prompts")
    assert 0.85 < plan_run(config, task("prompts")).peak / measured(config, task("prompts"), Execution()) < 1.15


@pytest.mark.parametrize("kind", ["adam", "adamw", "radam", "sgd", "adam8bit", "adamw8bit"])
def test_optimizer_states_are_as_large_as_planned(kind):
    if kind.endswith("8bit"):
        pytest.importorskip("bitsandbytes")
    net = nn.Sequential(nn.Linear(100, 50), nn.Linear(50, 3))
    trained = Trained.of("net", Role(net, OptimizerOptions(kind=kind)))
    planned = sum(v.nbytes for s in Still(trained, kind).state.values() for v in s.values())
    net(torch.ones(2, 100)).sum().backward()
    trained.optimizer.step()
    state = [{k: v for k, v in s.items() if not k.startswith("qmap")} for s in trained.optimizer.state.values()]
    real = sum(torch.as_tensor(v, dtype=None if isinstance(v, torch.Tensor) else torch.float32).nbytes for s in state
               for v in s.values() if v is not None)  # fmt: skip
    assert planned == real and (real > 0 or kind == "sgd")


def test_the_roles_are_counted_exactly_and_a_shared_base_once(task):
    teacher = task("digits").teacher
    weights = sum(t.nbytes for t in [*teacher.parameters(), *teacher.buffers()])
    full = {r.name: r for r in plan_run(configuration("dmd"), task("digits")).roles}
    trained = sum(p.nbytes for p in teacher.parameters())
    steps = 4 * len(list(teacher.parameters()))
    assert full["teacher"] == type(full["teacher"])("teacher", weights, 0, 0, 0)
    assert full["student"] == type(full["student"])("student", weights, trained, 2 * trained + steps, weights)
    assert full["critic"] == type(full["critic"])("critic", weights, trained, 2 * trained + steps, 0)
    low = {r.name: r for r in plan_run(configuration("dmd", over=LOW), task("digits")).roles}
    assert low["teacher"].weights == weights and low["student"].weights == low["student"].gradients < weights / 10


def test_a_rehearsal_copies_no_weights_and_leaves_the_teacher_alone(task):
    teacher = task("digits").teacher
    before = {n: (p.clone(), p.requires_grad) for n, p in teacher.named_parameters()}
    rehearsal = Rehearsal(configuration("dmd"), task("digits"), Execution(), 8)
    rehearsal.at(0)
    trees = [m for role in rehearsal.method.roles.values() for m in (role.module, role.best)]
    assert all(torch._C._is_cow_tensor(p) for tree in trees for p in tree.parameters())
    for n, p in teacher.named_parameters():
        assert torch.equal(p, before[n][0]) and p.requires_grad == before[n][1]


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
        on.choice.plan(task) == plan_run(choice.config, task, OFFLOADED) and on.choice.plan(task).peak < choice.plan(task).peak
    )


@pytest.mark.slow
def test_what_checkpointing_and_bytes_for_moments_save(task):
    choice, of = Choice(configuration("sid", "prompts"), Execution()), task("prompts")
    planned = choice.plan(of)
    single = {s.flags.split()[0]: s.peak for s in savings(choice, of, lambda text: None)}
    assert single["--gradient-checkpointing"] < 0.5 * planned.peak > single["--micro-batches"]
    states = sum(r.optimizer for r in planned.roles)
    assert 0.5 * states < planned.peak - single["--student.kind"] < 0.75 * states  # small tensors stay in float32


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
