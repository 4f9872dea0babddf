"""Stages of one run: the plan, what each leaves, resume, adapters, feedback and score distillation."""

import sys
import types

import pytest
import torch
from torch import nn

from limbeck.denoisers import guided
from limbeck.errors import LimbeckError
from limbeck.methods.generators.hyper_sd import HyperSDOptions
from limbeck.networks import adapters, merged
from limbeck.noise import DDPM, VE, CosineVP, RectifiedFlow
from limbeck.samplers import ddim
from limbeck.training import EmaOptions
from limbeck.training.checkpoints import load

F64 = torch.float64
PLAIN = {"w_mse": (1.0,), "w_adv": (0.0,), "grid": (16,), "then": ()}
FEEDBACK = types.ModuleType("feedback_for_tests")
FEEDBACK.near = lambda x, cond=None: -(x - 1).square().mean(1)
FEEDBACK.shape = lambda x, image, cond=None: (x - image).square().mean(1)
sys.modules[FEEDBACK.__name__] = FEEDBACK
NEAR, SHAPE = "feedback_for_tests:near", "feedback_for_tests:shape"
VARIANTS = {
    "plain": {**PLAIN, "segments": (4, 2, 1)},
    "adversary": {"grid": (16,), "segments": (4, 1), "w_mse": (1.0, 0.1), "w_adv": (0.1, 1.0), "then": ()},
    "previous": {**PLAIN, "segments": (4, 2, 1), "solver": "previous_stage", "reset_target": False, "reset_optimizer": False},
    "adapters": {**PLAIN, "segments": (2, 1), "rank": 2, "then": ("score",), "critic_rank": 2, "anchor": 0.5},
    "guided": {**PLAIN, "segments": (2,), "guidance_low": 1.0, "guidance_high": 3.0, "drop": 0.3, "offset_noise": 0.1},
    "all": {
        "grid": (16,), "segments": (2, 1), "w_mse": (1.0,), "w_adv": (0.1,), "then": ("reward", "score"), "rewards": (NEAR,),
        "hinges": (1.0,), "structure": SHAPE, "anchor": 0.5, "critic_steps": 2, "real_score": "tscd", "lengths": (1, 1, 1, 2),
    },
}  # fmt: skip


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def test_the_plan_is_a_function_of_the_step():
    o = HyperSDOptions(
        iterations=100, segments=(8, 4), then=("reward", "score"), lengths=(1, 1, 1, 2), w_mse=(1.0, 0.5), w_adv=(0.1,)
    )
    assert [(s.name, s.kind, s.start, s.end) for s in o.stages] == [
        ("8", "consistency", 0, 20), ("4", "consistency", 20, 40), ("reward", "reward", 40, 60), ("score", "score", 60, 100),
    ]  # fmt: skip
    assert [o.at(s).name for s in (0, 19, 20, 39, 40, 99, 100)] == ["8", "8", "4", "4", "reward", "score", "score"]
    assert [(s.segments, s.grid, s.w_mse, s.w_adv) for s in o.stages] == [(8, 64, 1.0, 0.1)] + 3 * [(4, 64, 0.5, 0.1)]


@pytest.mark.parametrize(
    ("then", "stay"),
    [(("score",), True), (("reward", "score"), True), (("score", "reward"), False), (("reward",), False), ((), False)],
)
def test_rewards_stay_on_in_the_score_stage_unless_their_own_comes_after_it(then, stay):
    assert HyperSDOptions(then=then, rewards=("class",), hinges=(0.0,)).rewards_stay == stay
    assert not HyperSDOptions(then=then).rewards_stay


def test_every_stage_draws_its_own_segments(tiny):
    method = tiny.make("hyper-sd", iterations=6, **PLAIN, segments=(4, 2, 1))
    names = [next(iter(tiny.yields(method, tiny.batch(method, s))[0].logs)) for s in range(6)]
    assert names == ["distance k=4"] * 2 + ["distance k=2"] * 2 + ["distance k=1"] * 2


@pytest.mark.parametrize("reset", [True, False])
def test_a_stage_leaves_its_average_and_the_next_begins_with_the_weights(reset, tiny):
    method = tiny.make("hyper-sd", iterations=6, **PLAIN, segments=(2, 1), ema=EmaOptions("constant", 0.9), reset_target=reset)
    loop = tiny.loop(method)
    expected = [p.clone() for p in method.average.parameters()]
    for _ in range(3):
        loop.iterate()
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, method.student.parameters(), strict=True)]
    for kept, e in zip(method.stage(2).parameters(), expected, strict=True):
        torch.testing.assert_close(kept, e, rtol=1e-12, atol=1e-14)
    after = list(method.student.parameters()) if reset else expected
    for average, w in zip(method.average.parameters(), after, strict=True):
        torch.testing.assert_close(average, w.detach(), rtol=1e-12, atol=1e-14)
    kept = [p.clone() for p in method.stage(2).parameters()]
    loop.iterate()
    assert all(torch.equal(a, b) for a, b in zip(method.stage(2).parameters(), kept, strict=True))
    assert method.stage("1") is method.average and not any(p.requires_grad for p in method.stage(2).parameters())
    with pytest.raises(LimbeckError, match="there is no stage '8'; this run's stages are 2, 1"):
        method.stage(8)


def test_the_optimizer_begins_anew_only_where_it_is_told_to(tiny):
    new = tiny.make("hyper-sd", iterations=6, **PLAIN, segments=(4, 2, 1)).roles["student"].optimizer
    old = tiny.make("hyper-sd", iterations=6, **PLAIN, segments=(4, 2, 1), reset_optimizer=False).roles["student"].optimizer
    assert (new.anew, old.anew) == ((2, 4), ())


def test_the_stage_before_is_the_teacher_where_it_is_asked_for(tiny, monkeypatch):
    parts = tiny.ingredients()
    for teacher in ("base", "previous_stage"):
        method = tiny.make(
            "hyper-sd", parts, iterations=6, **PLAIN, segments=(4, 2, 1), solver=teacher, guidance_low=2.0, guidance_high=2.0
        )
        base, before = tiny.spy(parts.teacher, monkeypatch), [tiny.spy(end, monkeypatch) for end in method.ends]
        tiny.yields(method, tiny.batch(method, 0))
        assert len(base) == 2  # guided
        for step in (2, 4):
            tiny.yields(method, tiny.batch(method, step))
        follows = teacher == "previous_stage"
        assert len(base) == (2 if follows else 6) and [len(b) for b in before] == ([1, 1] if follows else [0, 0])
        monkeypatch.undo()


def test_two_pieces_of_a_batch_train_like_the_whole_and_the_teacher_never_moves(variant, tiny):
    parts = tiny.ingredients()
    teacher = {n: p.clone() for n, p in parts.teacher.named_parameters()}
    whole, split = (tiny.loop(tiny.make("hyper-sd", parts, **variant), micro_batches=m) for m in (1, 2))
    before = tiny.weights(whole)
    for _ in range(8):
        whole.iterate(), split.iterate()
    a, b = tiny.weights(whole), tiny.weights(split)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-7, atol=1e-8, msg=key)
    for role in whole.trained:
        moved = [
            float((a[k] - before[k]).abs().max())
            for k in before
            if k.startswith(f"{role}.") and k.rpartition(".")[2] in "weightAB"
        ]
        assert max(moved) > 1e-4, role
    assert all(torch.equal(p, teacher[n]) and p.grad is None for n, p in parts.teacher.named_parameters())


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP(), DDPM()], ids=lambda p: type(p).__name__)
def test_all_stages_in_a_processs_own_time(process, tiny):
    parts = tiny.ingredients(tiny.teacher(process=process))
    loop = tiny.loop(tiny.make("hyper-sd", parts, **VARIANTS["all"], schedule="time"))
    for _ in range(8):
        figures = loop.iterate()
    assert all(v == v for v in figures.values()) and loop.method.options.at(loop.step - 1).kind == "score"


@pytest.mark.parametrize(("name", "at"), [*((n, 3) for n in VARIANTS), ("all", 4), ("all", 7)])
def test_resuming_is_bitwise_in_the_middle_of_a_stage_and_at_its_border(name, at, tiny, tmp_path):
    variant = VARIANTS[name]
    whole, first = tiny.loop(tiny.make("hyper-sd", **variant)), tiny.loop(tiny.make("hyper-sd", **variant), tmp_path)
    for _ in range(8):
        whole.iterate()
    for _ in range(at):
        first.iterate()
    first.save()
    torch.manual_seed(123)
    second = tiny.loop(tiny.make("hyper-sd", **variant), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(8 - at):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_adapters_share_the_base_and_merging_leaves_it_as_it_was(tiny):
    parts = tiny.ingredients()
    before = {n: p.clone() for n, p in parts.teacher.named_parameters()}
    method = tiny.make("hyper-sd", parts, **VARIANTS["adapters"], adapt=("inner", "outer"))
    loop = tiny.loop(method)
    for _ in range(8):
        loop.iterate()
    assert {n.rpartition(".")[2] for n, _ in adapters(method.student)} == {"inner", "outer"}
    assert set(method.state()) == {
        f"{i}.{n}" for i in range(2) for n, p in method.student.named_parameters() if p.requires_grad
    }
    x, cond = tiny.data()
    t = torch.full((len(x),), 2.0, dtype=F64)
    for tree in (method.average, method.stage(2)):
        torch.testing.assert_close(merged(tree)(x, t, cond), tree(x, t, cond), rtol=1e-12, atol=1e-13)
        assert not torch.equal(tree(x, t, cond), parts.teacher(x, t, cond))
    assert all(torch.equal(p, before[n]) for n, p in parts.teacher.named_parameters())
    shared = {id(p) for p in parts.teacher.parameters()}
    for tree in (method.student, method.average, *method.ends, method.critic):
        assert all(id(p) in shared or n.rpartition(".")[2] in ("A", "B") for n, p in tree.named_parameters())


# -- feedback and score ---------------------------------------------------------------------------------------------------


def test_the_hinge_stops_a_reward(tiny):
    options = {**PLAIN, "segments": (1,), "then": ("reward",), "rewards": (NEAR,), "lengths": (1, 7)}
    below, beyond = (tiny.make("hyper-sd", **options, hinges=(alpha,)) for alpha in (10.0, -1e6))
    at = tiny.batch(below, 5)
    (update,) = tiny.yields(below, at)
    x = below.predicted(below.begin(below.normal(at, "z"), 1.0), 1.0, 1.0, 1, at.cond)
    torch.testing.assert_close(update.loss, (10 + (x - 1).square().mean(1)).mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(update.logs[f"reward {NEAR}"], -(x - 1).square().mean().detach(), rtol=1e-12, atol=0)
    (stopped,) = tiny.yields(beyond, at)
    gradient = torch.autograd.grad(stopped.loss, list(beyond.student.parameters()), allow_unused=True)
    assert float(stopped.loss.detach()) == 0 and all(g is None or not g.any() for g in gradient)


def test_feedback_is_on_a_late_prediction(tiny, monkeypatch):
    late = {"reward_steps": 3, "reward_low": 0.2, "reward_high": 0.4, "structure": SHAPE, "structure_steps": 2}
    method = tiny.make(
        "hyper-sd", **{**PLAIN, "then": ("reward",)}, segments=(1,), rewards=(NEAR,), hinges=(9.0,), lengths=(1, 7), **late
    )
    at = tiny.batch(method, 5)
    calls = tiny.spy(method.student, monkeypatch)
    (update,) = tiny.yields(method, at)
    end = 0.2 + 0.2 * at.noise.shared_uniform("reward time")
    times = [float(t[0]) for _, t, _ in calls]
    expected = [float(method.path(torch.tensor(u, dtype=F64))) for u in (1.0, (1 + end) / 2, end, 0.75, 0.25)]
    assert times == pytest.approx(expected, rel=1e-12)
    assert torch.equal(calls[0][0], method.process.s(method.times[:1]) * method.normal(at, "z"))
    x_t = at.x + expected[3] * method.normal(at, "structure noise")
    torch.testing.assert_close(calls[3][0], x_t, rtol=1e-12, atol=1e-13)
    x, y = (method.student(calls[i][0], calls[i][1], at.cond) for i in (2, 4))
    loss = (9 + (x - 1).square().mean(1)).mean() + (y - at.x).square().mean()
    torch.testing.assert_close(update.loss, loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("real", ["base", "tscd"])
@pytest.mark.parametrize("better", ["own", "teacher"])
def test_the_score_stage_by_hand(real, better, tiny):
    parts = tiny.ingredients()
    method = tiny.make(
        "hyper-sd", parts, iterations=4, **{**PLAIN, "then": ("score",)}, segments=(1,), first=0.8, real_score=real,
        score_guidance=2.0, mse_target=better, mse_weight=0.7, dmd_weight=0.3, mse_steps=3,
    )  # fmt: skip
    for m in (method.critic, method.average, method.ends[0]):
        nn.init.normal_(m.network.output.weight)
    at = tiny.batch(method, 3)
    student, critic = tiny.yields(method, at)
    z, t = method.normal(at, "z"), method.path(torch.full((6,), 0.8, dtype=F64))
    first = t[:, None] * z
    x = method.student(first, t, at.cond)
    tau, eps = method.path(0.02 + 0.96 * at.noise.uniform("score time")), method.normal(at, "score noise")
    x_tau = (x + tau[:, None] * eps).detach()
    score = guided(parts.teacher, x_tau, tau, at.cond, 2.0) if real == "base" else method.ends[0](x_tau, tau, at.cond)
    g = (method.critic(x_tau, tau, at.cond) - score) / ((x - score).abs().mean(1, keepdim=True) + 1e-6)
    times = method.path(0.8 * torch.tensor([1.0, 2 / 3, 1 / 3], dtype=F64))
    teacher = types.SimpleNamespace(process=VE(), null=parts.teacher.null)
    sharp = lambda *a: guided(parts.teacher, *a, 2.0)  # noqa: E731
    teacher = (
        method.average
        if better == "own"
        else type("Guided", (), {"process": VE(), "null": None, "__call__": lambda s, *a: sharp(*a)})()
    )
    goal = ddim(teacher, first, times, at.cond)
    loss = 0.3 * (x * g.detach()).mean() + 0.7 * (x - goal.detach()).square().mean()
    torch.testing.assert_close(student.loss, loss, rtol=1e-9, atol=1e-12)
    assert critic.roles == "critic" and set(student.logs) == {"gap", "critic_lag", "diversity"}
