"""SIM: its student's update by the formula, its reduction to SiD, memory, and bad input."""

import sys
import types

import pytest
import torch

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.methods.generators.levels import level_laws
from limbeck.methods.generators.sim import PRESETS, SIMOptions
from limbeck.noise import DDPM, VE, InSigma, Karras, LogitNormal, LogNormal, RectifiedFlow
from limbeck.training import Loop, LoopOptions, TensorSource
from limbeck.training.checkpoints import load
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64
U = torch.linspace(0, 1, 101, dtype=F64)[:-1]


def moved(tiny, name="sim", parts=None, **options):
    """A method whose critic is no longer the teacher."""
    method = tiny.make(name, parts, **options)
    torch.manual_seed(11)
    for p in method.critic.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return method


def student_gradient(method, at):
    found = method.step(at)
    next(found)
    update = next(found)
    params = [p for p in method.student.parameters() if p.requires_grad]
    return update, torch.autograd.grad(update.loss, params, allow_unused=True)


def test_the_students_gradient_is_that_of_the_loss(tiny):
    parts = tiny.ingredients()
    method = moved(tiny, parts=parts, c=0.3)
    at = tiny.batch(method)
    update, got = student_gradient(method, at)
    fresh = at.draw(1)
    x = method.produce(fresh, 0).x
    t, eps = method.score_times(fresh.noise.uniform("score time")), method.normal(fresh, "score noise")
    x_t = x + t[:, None] * eps
    fake = method.critic(x_t, t, fresh.cond)
    y = fake - parts.teacher(x_t, t, fresh.cond)
    slope = y / torch.sqrt(y.square().sum(1, keepdim=True) + 0.3**2)
    params = [p for p in method.student.parameters() if p.requires_grad]
    expected = torch.autograd.grad((-slope * (fake - x)).sum() / x.numel(), params, allow_unused=True)
    assert max(float(g.abs().max()) for g in got if g is not None) > 1e-3
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert set(update.logs) == {"gap", "critic_lag", "diversity"}


def test_the_squared_distance_trains_as_sid_does(tiny):
    sim, sid = moved(tiny, distance="l2", weight="sid"), moved(tiny, "sid", alpha=1.0)
    at = tiny.batch(sim)
    (one, gradient), (other, expected) = student_gradient(sim, at), student_gradient(sid, at)
    torch.testing.assert_close(one.loss, 2 * other.loss, rtol=1e-12, atol=1e-14)
    for a, b in zip(gradient, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, 2 * b, rtol=1e-11, atol=1e-14)
    critic, same = next(sim.step(at)).loss, next(sid.step(at)).loss
    assert torch.equal(critic, same)


def test_no_gradient_is_left_on_teacher_or_critic(tiny):
    parts = tiny.ingredients()
    method = moved(tiny, parts=parts)
    student = tiny.yields(method, tiny.batch(method))[1]
    student.loss.backward()
    assert all(p.grad is None for m in (parts.teacher, method.critic) for p in m.parameters())
    assert any(p.grad is not None for p in method.student.parameters())


@pytest.mark.parametrize("distance", ["pseudo_huber", "unit", "l2"])
def test_nothing_pulls_where_the_critic_is_the_teacher(distance, tiny):
    method = tiny.make("sim", distance=distance)
    update, gradient = student_gradient(method, tiny.batch(method))
    assert abs(float(update.loss.detach())) < 1e-14 and float(update.logs["gap"]) == 0.0
    assert all(g is None or float(g.abs().max()) < 1e-13 for g in gradient)


def test_one_critic_update_then_one_of_the_student_on_other_draws(tiny, monkeypatch):
    method = moved(tiny)
    calls = tiny.spy(method.critic, monkeypatch)
    assert [y.roles for y in tiny.yields(method, tiny.batch(method))] == ["critic", "student"] and method.draws == 2
    (x, t, cond), (y, u, other) = calls
    assert not torch.isclose(x, y).any() and not torch.isclose(t, u).any()
    assert cond["label"].tolist() != other["label"].tolist()


def test_it_needs_no_images(tiny):
    tiny.loop(tiny.make("sim", tiny.ingredients(images=False))).iterate()


def test_images_are_not_looked_at(tiny):
    found = []
    for x in (tiny.data()[0], None):
        loop = Loop(tiny.make("sim"), TensorSource(x, tiny.data()[1]), LoopOptions(3, 6), quiet=True)
        for _ in range(3):
            loop.iterate()
        found.append(tiny.weights(loop))
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())


def test_resuming_is_bitwise(tiny, tmp_path):
    options = {"sigmas": (5.0, 1.0), "distance": "huber"}
    whole, first = tiny.loop(tiny.make("sim", **options)), tiny.loop(tiny.make("sim", **options), tmp_path)
    for _ in range(4):
        whole.iterate()
    for _ in range(2):
        first.iterate()
    first.save()
    second = tiny.loop(tiny.make("sim", **options), tmp_path)
    second.restore(load(tmp_path / "checkpoints"))
    for _ in range(2):
        second.iterate()
    a, b = tiny.weights(whole), tiny.weights(second)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_students_dropout_rests_in_teacher_and_critic(tiny):
    parts = tiny.ingredients(dropout=0.5)
    parts.teacher.train()  # as a person may hand it over
    method = moved(tiny, parts=parts)
    assert not any(m.training for m in parts.teacher.modules())
    method.critic.train()
    at = tiny.batch(method).draw(1)
    sample = method.produce(at, 0).detach()
    t, eps = method.score_time(at, sample), method.normal(at, "score noise")
    assert torch.equal(method.rule(sample, t, eps).gradient, method.rule(sample, t, eps).gradient)


def test_a_distance_of_your_own_by_name(tiny, monkeypatch):
    module = types.ModuleType("mine")
    module.slope = lambda y: 2 * y
    monkeypatch.setitem(sys.modules, "mine", module)
    own, l2 = moved(tiny, distance="mine:slope"), moved(tiny, distance="l2")
    at = tiny.batch(own)
    assert torch.equal(student_gradient(own, at)[0].loss, student_gradient(l2, at)[0].loss)
    with pytest.raises(LimbeckError, match="unknown name in mine"):
        tiny.make("sim", distance="mine:slop")


def test_a_teacher_that_lets_no_gradient_through(tiny):
    class Closed(Preconditioned):
        @torch.no_grad()
        def forward(self, x_t, t, cond=None):
            return super().forward(x_t, t, cond)

    inner = tiny.teacher()
    with pytest.raises(LimbeckError, match="no gradient reaches the teacher's input .* back-propagates through the teacher"):
        tiny.make("sim", tiny.ingredients(Closed(inner.network, inner.process)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": (100.0,)}, r"noise levels \(100.0,\) leave the schedule .* 0.002 to 80; choose levels inside"),
        ({"distance": "l3"}, "unknown score distance 'l3'"),
        ({"c": 0.0}, "pseudo_huber with c = 0 is not differentiable at 0"),
        ({"c": -0.1}, "cannot be negative: -0.1"),
        ({"weight": "snrr"}, "unknown SIM weight 'snrr': did you mean 'snr'"),
        ({"score_law": "critic", "critic_law": "score"}, "name each other; give one of them a law of its own"),
    ],
)
def test_bad_options(options, message, tiny):
    with pytest.raises(LimbeckError, match=message):
        tiny.make("sim", **options)


def test_guidance_without_a_null_condition(tiny):
    with pytest.raises(LimbeckError, match="guidance 4.5 needs a null condition, which the teacher does not have"):
        tiny.make("sim", tiny.ingredients(classes=0), guidance=4.5)


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(SIMOptions, options_to_dict(preset)) == preset
    assert PRESETS["recommended"].distance == "pseudo_huber" and PRESETS["recommended"].sigmas == (2.5,)


def test_the_laws_of_noise_levels():
    ve, flow, table = VE(), RectifiedFlow(), DDPM("scaled_linear")
    score, critic = level_laws(ve, "karras", "lognormal", 0.1, 5.0, -1.2, 1.2)
    assert torch.equal(score(U), InSigma(Karras(0.1, 5.0), ve)(U)) and torch.equal(critic(U), InSigma(LogNormal(), ve)(U))
    assert torch.equal(level_laws(ve, "critic", "lognormal", 0.1, 5.0, -1.2, 1.2)[0](U), critic(U))
    assert torch.equal(level_laws(ve, "karras", "score", 0.1, 5.0, -1.2, 1.2)[1](U), score(U))
    # of a flow, ln sigma = logit(t): the log-normal law of sigma is SiD-DiT's law of t
    flows = level_laws(flow, "critic", "lognormal", 0.1, 5.0, 0.693147, 1.6)[0](U[1:])
    torch.testing.assert_close(flows, LogitNormal(0.693147, 1.6)(U[1:]), rtol=1e-9, atol=1e-9)
    edges = [float(table.sigma(torch.tensor(i, dtype=F64))) for i in (20, 979)]
    indices = level_laws(table, "uniform", "score", *edges, 0.0, 1.0)[1](torch.rand(20_000, dtype=F64))
    assert torch.equal(indices, indices.round()) and indices.unique().tolist() == list(range(20, 980))
    times = level_laws(flow, "uniform", "score", 1.0, 9.0, 0.0, 1.0)[0](U)
    assert float(times.min()) == pytest.approx(0.5) and float(times.max()) < 0.9
