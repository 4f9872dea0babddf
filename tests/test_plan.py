"""Planned memory: the peak of the run itself, measured, and what each switch saves of it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.methods import find
from limbeck.noise import VE
from limbeck.runs import Execution, RunConfig, plan_run, prepare
from limbeck.runs.plan import AWAY, Rehearsal, Still
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


def test_weights_that_a_file_holds_are_planned_like_others(task, tmp_path):
    from safetensors.torch import load_file, save_file

    config, expected = configuration("dmd"), None
    for from_file in (False, True):
        teacher = copy.deepcopy(task("digits").teacher)
        if from_file:
            save_file(teacher.network.state_dict(), tmp_path / "w.safetensors")
            teacher.network.load_state_dict(load_file(tmp_path / "w.safetensors"), assign=True)
        made = plan_run(config, replace(task("digits"), teacher=teacher))
        expected = expected or made
        assert made == expected


def test_a_rehearsal_copies_no_weights_and_leaves_the_teacher_alone(task):
    teacher = task("digits").teacher
    before = {n: (p.clone(), p.requires_grad) for n, p in teacher.named_parameters()}
    rehearsal = Rehearsal(configuration("dmd"), task("digits"), Execution(), 8)
    rehearsal.at(0)
    trees = [m for role in rehearsal.method.roles.values() for m in (role.module, role.best)]
    assert all(torch._C._is_cow_tensor(p) for tree in trees for p in tree.parameters())
    for n, p in teacher.named_parameters():
        assert torch.equal(p, before[n][0]) and p.requires_grad == before[n][1]


@pytest.mark.slow
def test_what_checkpointing_and_bytes_for_moments_save(task):
    config, of = configuration("sid", "prompts"), task("prompts")
    plain = plan_run(config, of)
    assert plan_run(config, of, CHECKPOINTED).peak < 0.5 * plain.peak
    states = sum(r.optimizer for r in plain.roles)
    saved = plain.peak - plan_run(config, of, eight_bit=True).peak
    assert 0.5 * states < saved < 0.75 * states  # small tensors stay in float32


@pytest.mark.slow
@pytest.mark.parametrize("how", [Execution(), CHECKPOINTED], ids=["plain", "checkpointed"])
def test_the_planned_peak_is_the_measured_one_of_a_model_of_diffusers(task, how):
    diffusers = pytest.importorskip("diffusers")
    from limbeck.interop import DiffusersNetwork

    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=2, block_out_channels=(32, 64), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, num_class_embeds=11,
    )  # fmt: skip
    of = replace(task("digits"), teacher=Preconditioned(DiffusersNetwork(model), VE()))
    config = configuration("sid", over={"batch": 32, "critic_rank": 4})
    planned, real = plan_run(config, of, how), measured(config, of, how)
    print(f"planned {planned.peak / 1e6:.2f} MB, measured {real / 1e6:.2f} MB, ratio {planned.peak / real:.4f}")
    assert 0.95 < planned.peak / real < 1.05
