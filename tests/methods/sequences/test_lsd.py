"""LSD: gradients, minimisers in closed form, what each part sees, the guard, resume, and bad input."""

import dataclasses

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.methods import METHODS, find
from limbeck.methods.sequences.lsd import PRESETS, LSDOptions
from limbeck.training import Keyed
from limbeck.training.checkpoints import load

F64 = torch.float64
quiet = pytest.mark.filterwarnings("ignore:objective=", "ignore:step too large", "ignore:perturb=")
KINDS = [
    ("uniform", {"objective": "trajectory"}),
    ("uniform", {"objective": "trajectory", "agreeing": True}),
    ("uniform", {"objective": "mean"}),
    ("uniform", {"objective": "same_state"}),
    ("absorbing", {"objective": "mean"}),
    ("absorbing", {"objective": "same_state", "kernel": "tweedie"}),
    ("absorbing", {"objective": "trajectory", "param": "score"}),
    ("uniform", {"objective": "paper"}),
]
IDS = [f"{on}-{'-'.join(map(str, options.values()))}" for on, options in KINDS]


@pytest.fixture(params=KINDS, ids=IDS)
def kind(request):
    return request.param


def pairs(method, at):
    """The student's steps and the teacher's intervals of a batch, as ``step`` has them."""
    x, jumps = method.start(at.noise), method.uniforms(at.noise, "jumps")
    student = [*method.learned.walk(method.parts.score, x, jumps)][:-1]
    return student, method.teacher(x, jumps)


@quiet
def test_gradients_are_those_of_finite_differences(kind, tiny):
    """Phi_k moves later states too, which are held fixed: only the last Phi has a derivative that a difference can see."""
    on, options = kind
    method = tiny.make(on, **options, perturb=0.5)
    at, phi = tiny.batch(method), method.learned.phi
    (gradient,) = torch.autograd.grad(tiny.loss_of(method, at), phi)
    values = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            phi[-1] = 1 + h
        values.append(float(tiny.loss_of(method, at).detach()))
    assert float(gradient[-1]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)
    assert float(gradient.abs().min()) > 1e-8


@quiet
@pytest.mark.parametrize("objective", ["mean", "paper"])
def test_gradients_of_step_lengths_are_those_of_finite_differences(objective, tiny):
    """theta moves the times, which are held fixed: the difference is of (6) alone."""
    method = tiny.make("uniform", objective=objective, learn_times=True)
    (s, _), (t, _) = pairs(method, tiny.batch(method))
    theta = method.learned.theta
    (gradient,) = torch.autograd.grad(method.length(0, s, t), theta)
    values = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            theta[0] += h
            values.append(float(method.length(0, s, t)))
            theta[0] -= h
    assert float(gradient[0]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6)


@quiet
def test_the_trajectory_has_its_minimum_where_least_squares_puts_it(tiny):
    method = tiny.make("uniform", objective="trajectory")
    at = tiny.batch(method, size=200)
    student, teacher = pairs(method, at)
    possible = 1 - torch.nn.functional.one_hot(student[1].x, 3)
    other = 1 - torch.nn.functional.one_hot(teacher[1].x, 3)
    s = method.parts.score(student[1].x, student[1].t.expand(200)).exp() * possible
    s_star = method.parts.score(teacher[1].x, student[1].t.expand(200)).exp() * other
    best = (s * s_star).sum() / s.square().sum()
    best.requires_grad_()
    (slope,) = torch.autograd.grad(method.trajectory(student[1]._replace(coefficient=best), teacher[1]), best)
    assert float(slope.abs()) < 1e-14 and abs(float(best.detach()) - 1) > 0.05


@pytest.mark.parametrize("on", ["uniform", "absorbing"])
def test_a_student_as_slow_as_its_teacher_has_nothing_to_learn(on, tiny):
    for objective in ("trajectory", "mean"):
        method = tiny.make(on, objective=objective, steps=8, teacher_steps=8)
        loss = tiny.loss_of(method, tiny.batch(method))
        (gradient,) = torch.autograd.grad(loss, method.learned.phi)
        assert float(loss.detach()) < 1e-25 and gradient.abs().max() < 1e-12


def test_what_a_student_is_matched_with_in_its_own_state_is_the_exact_law_ahead(tiny):
    """The mean over draws of m_k is the law of each place after the teacher's steps."""
    method = tiny.make("uniform", teacher_steps=8)
    world, count = method.parts.score, 4000
    times = torch.cat([method.inner(*method.learned.times()[k : k + 2])[k > 0 :] for k in range(2)])
    ahead = world.ahead(method.learned, times, 0, 4)
    at = 5
    x = world.states[at].expand(count, -1)
    step = next(method.learned.walk(world, x, method.uniforms(Keyed(0, 0, torch.arange(count)), "any")))
    loss = method.same_state(step._replace(coefficient=method.learned.phi[0]), 0, Keyed(1, 0, torch.arange(count)))
    p = method.learned.probabilities(step)[0]
    exact = -(ahead[at] * p.log()).sum(-1).mean()
    assert float(loss.detach()) == pytest.approx(float(exact), rel=0.01)
    entropy = -(ahead[at] * ahead[at].log()).sum(-1).mean()
    assert float(exact) > float(entropy) + 0.01  # so a wrong law would be seen


@quiet
def test_printed_step_lengths_tend_to_the_teachers_ours_to_the_students(tiny):
    """At the start both samplers are in one state: the minimum over kappa_0 is 1/N as printed, and about 1/M as a sum."""
    best = {}
    for objective in ("paper", "trajectory"):
        method = tiny.make("uniform", objective=objective, teacher_steps=16)
        (step, *_), (interval, *_) = pairs(method, tiny.batch(method, size=300))
        s = method.scaled(step)
        best[objective] = float((s * interval.sum).sum() / s.square().sum())
    assert best["paper"] == pytest.approx(0.999 / 16, rel=1e-12)
    assert 0.6 * 0.999 / 2 < best["trajectory"] < 1.1 * 0.999 / 2


@quiet
def test_the_network_is_never_asked_for_gradients(kind, tiny, monkeypatch):
    on, options = kind
    method = tiny.make(on, **options, learn_times=True, iterations=3)
    weight = torch.nn.Parameter(torch.zeros(()))
    forward, modes = type(method.parts.score).forward, []

    def counted(self, x, t):
        modes.append(torch.is_grad_enabled())
        return forward(self, x, t) + weight

    monkeypatch.setattr(type(method.parts.score), "forward", counted)
    loop = tiny.loop(method)
    for _ in range(3):
        loop.iterate()
    assert modes and not any(modes) and weight.grad is None


def test_training_starts_from_a_perturbed_state_sampling_does_not(tiny, monkeypatch):
    with pytest.warns(UserWarning, match="perturb=0.5 is far from the start"):
        method = tiny.make("absorbing", perturb=0.5, objective="mean")
    starts = []
    walk = type(method.learned).walk
    monkeypatch.setattr(
        type(method.learned), "walk", lambda self, score, x, noise: starts.append(x) or walk(self, score, x, noise)
    )
    at = tiny.batch(method)
    tiny.loss_of(method, at)
    assert ((starts[0] != 3).sum(1) == 1).all()  # one of two places, and never MASK
    clean = method.start(at.noise)
    method.sampler()(clean, None, method.uniforms(at.noise, "jumps"))
    assert torch.equal(starts[1], clean) and (clean == 3).all()


def test_only_places_that_agree_are_compared(tiny):
    method = tiny.make("uniform", objective="trajectory", agreeing=True)
    student, teacher = pairs(method, tiny.batch(method))
    step, interval = student[1], teacher[1]
    differ = step.x != interval.x
    assert differ.any() and not differ.all()
    spoilt = interval._replace(first=torch.where(differ[..., None], 99.0, interval.first))
    assert torch.equal(method.trajectory(step, spoilt), method.trajectory(step, interval))
    all_places = tiny.make("uniform", objective="trajectory")
    assert float(all_places.trajectory(step, spoilt)) > 10 * float(all_places.trajectory(step, interval))


def test_lsd_plus_trains_phi_then_kappa_then_phi(tiny):
    method = tiny.make("uniform", objective="mean", learn_times=True)
    loop, moved = tiny.loop(method), []
    for _ in range(6):
        before = {n: p.detach().clone() for n, p in method.learned.named_parameters()}
        loop.iterate()
        moved.append({n for n, p in method.learned.named_parameters() if not torch.equal(p, before[n])})
    assert moved == [{"phi"}] * 2 + [{"theta"}] * 2 + [{"phi"}] * 2
    assert float(method.learned.times()[-1]) == pytest.approx(1e-3, abs=1e-12)


@quiet
def test_micro_batches_have_the_gradient_of_the_whole(kind, tiny):
    on, options = kind
    plus = {"learn_times": True, "iterations": 3, "guard": False, "perturb": 0.5, "teacher_steps": 4}
    whole, parts = (tiny.make(on, **options, **plus) for _ in range(2))
    one, three = tiny.loop(whole), tiny.loop(parts, micro_batches=3)
    for _ in range(3):
        one.iterate()
        three.iterate()
    assert torch.allclose(whole.learned.phi, parts.learned.phi, atol=1e-10)
    assert torch.allclose(whole.learned.theta, parts.learned.theta, atol=1e-10)
    assert not torch.equal(whole.learned.phi, torch.ones(2, dtype=F64))


@quiet
@pytest.mark.parametrize("at", [1, 2, 4])
def test_resuming_is_bitwise(at, tiny, tmp_path):
    """In each third of LSD+, and the guard at the end."""
    whole, first = (tiny.loop(tiny.make("uniform", objective="mean", learn_times=True), f) for f in (None, tmp_path))
    for _ in range(6):
        whole.iterate()
    for _ in range(at):
        first.iterate()
    first.save()
    torch.manual_seed(123)
    second = tiny.loop(tiny.make("uniform", objective="mean", learn_times=True), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(6 - at):
        second.iterate()
    (a, _), (b, _) = whole.state(), second.state()
    assert a.keys() == b.keys()
    for group in a.keys() - {"rng"}:
        assert a[group].keys() == b[group].keys()
        assert all(torch.equal(a[group][n], b[group][n]) for n in a[group]), group
    assert torch.equal(whole.method.gains, second.method.gains)


@quiet
def test_the_guard_undoes_what_explains_the_teacher_worse_and_keeps_what_explains_it_better(tiny):
    method = tiny.make("uniform", steps=2, teacher_steps=32)
    noise = Keyed(0, 0, torch.arange(2000))
    with torch.no_grad():
        method.learned.phi.copy_(torch.tensor([0.9, 0.02], dtype=F64))
    gains = method.guarded(noise)
    assert float(gains[1, 0]) < 0 and float(method.learned.phi[1].detach()) == 1
    assert float(gains[0, 0]) > 2 * float(gains[0, 1]) > 0 and float(method.learned.phi[0].detach()) == 0.9


def test_the_guard_runs_once_after_the_last_iteration(tiny):
    method = tiny.make("uniform", iterations=2)
    loop = tiny.loop(method)
    loop.iterate()
    assert method.gains is None
    loop.iterate()
    assert method.gains.shape == (2, 2)
    without = tiny.make("uniform", iterations=1, guard=False)
    tiny.loop(without).iterate()
    assert without.gains is None


def test_the_score_never_moves(tiny):
    network = torch.nn.Linear(2, 2)
    method = tiny.make("uniform")
    method.parts.score.extra = network
    try:
        again = type(method)(method.parts, method.options)
        assert not any(p.requires_grad for p in network.parameters()) and not again.roles["score"].trained
        assert [n for n, r in again.roles.items() if r.trained] == ["student"]
    finally:
        del method.parts.score.extra


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 3}, "teacher steps must be a multiple of student steps, not 256 and 3; take e.g. 255"),
        ({"perturb": 1.5}, r"perturb=1.5 is no share of the places: give a number in \[0, 1\]"),
        ({"objective": "same"}, "unknown objective 'same': did you mean 'same_state'"),
        ({"held_out": 1}, "held_out=1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(LimbeckError, match=message):
        LSDOptions(**options)


def test_the_literal_objective_is_warned_of(tiny):
    with pytest.warns(UserWarning, match='objective="paper" is literal: .* stops early'):
        tiny.make("uniform", objective="paper")


def test_it_is_listed_with_the_task_that_it_fits():
    assert find("lsd+") is METHODS["lsd"] and METHODS["lsd"].wing == "sequences" and METHODS["lsd"].fits == ("symbols",)


def test_presets():
    assert PRESETS["recommended"].objective == "same_state" and PRESETS["recommended"].guard
    paper = PRESETS["paper-openwebtext-plus"]
    assert (paper.iterations, paper.batch, paper.teacher_steps, paper.perturb, paper.student.lr) == (16, 1, 256, 0.05, 1e-2)
    assert dataclasses.replace(paper, learn_times=False) == PRESETS["paper-openwebtext"]
