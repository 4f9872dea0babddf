"""SiD: both updates by their formulas, zero pull at equality, guidance, and bad input."""

import warnings

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned, guided
from limbeck.errors import LimbeckError
from limbeck.methods.generators.sid import PRESETS, SiDOptions
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64


def moved(tiny, parts=None, **options):
    """A SiD whose critic is no longer the teacher."""
    method = tiny.make("sid", parts, **options)
    torch.manual_seed(11)
    for p in method.critic.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return method


def student_gradient(method, at):
    critic, student = method.step(at)
    params = [p for p in method.student.parameters() if p.requires_grad]
    return critic, student, torch.autograd.grad(student.loss, params, allow_unused=True)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_the_students_gradient_is_that_of_the_loss(alpha, tiny):
    parts = tiny.ingredients()
    method = moved(tiny, parts, alpha=alpha, weight="sid")
    at = tiny.batch(method)
    _, update, got = student_gradient(method, at)
    fresh = at.draw(1)
    x = method.produce(fresh, 0).x
    t, eps = method.score_times(fresh.noise.uniform("score time")), method.normal(fresh, "score noise")
    x_t = x + t[:, None] * eps
    teacher, critic = parts.teacher(x_t, t, fresh.cond), method.critic(x_t, t, fresh.cond)
    w = 1 / (x - teacher).detach().abs().mean(1, keepdim=True)
    if alpha == 1.0:
        loss = w * (teacher - critic) * (critic - x)
    else:
        loss = w * (teacher - critic) * ((teacher - x) - alpha * (teacher - critic))
    params = [p for p in method.student.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss.sum() / x.numel(), params, allow_unused=True)
    assert max(float(g.abs().max()) for g in got if g is not None) > 1e-3
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert set(update.logs) == {"gap", "critic_lag", "diversity"}


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_nothing_pulls_where_the_critic_is_the_teacher(alpha, tiny):
    method = tiny.make("sid", alpha=alpha)
    _, update, gradient = student_gradient(method, tiny.batch(method))
    assert abs(float(update.loss.detach())) < 1e-15
    assert all(g is None or float(g.abs().max()) < 1e-14 for g in gradient)
    assert float(update.logs["gap"]) == 0.0


def test_the_updates_touch_their_role_alone(tiny):
    parts = tiny.ingredients()
    method = moved(tiny, parts)
    modules = {"student": method.student, "critic": method.critic, "teacher": parts.teacher}
    touched = []

    def apply(update):
        update.loss.backward()  # all gradients that there are, not those of the named role alone
        touched.append([n for n, m in modules.items() if any(p.grad is not None for p in m.parameters())])
        for m in modules.values():
            m.zero_grad(set_to_none=True)

    found = tiny.yields(method, tiny.batch(method), apply)
    assert [y.roles for y in found] == ["critic", "student"] and touched == [["critic"], ["student"]]
    assert not any(p.requires_grad for p in parts.teacher.parameters())
    assert all(p.requires_grad for p in method.critic.parameters())  # frozen for the student's update alone


def test_both_updates_have_conditions_noise_and_samples_of_their_own_at_one_step(tiny, monkeypatch):
    method = moved(tiny, sigmas=(5.0, 1.0, 0.2))
    critic, student = tiny.spy(method.critic, monkeypatch), tiny.spy(method.student, monkeypatch)
    for step in range(4):
        critic.clear(), student.clear()
        tiny.yields(method, tiny.batch(method, step))
        (x, t, cond), (y, u, other) = critic
        assert not torch.isclose(x, y).any() and not torch.isclose(t, u).any()
        assert cond["label"].tolist() != other["label"].tolist()
        assert len(student) % 2 == 0  # as many calls of the rollout for one update as for the other
        half = len(student) // 2
        assert [float(c[1][0]) for c in student[:half]] == [float(c[1][0]) for c in student[half:]]
    assert method.draws == 2


def test_the_critic_denoises_the_students_samples(tiny):
    method = moved(tiny, critic_weight="eps")
    at = tiny.batch(method)
    update = next(method.step(at))
    x = method.produce(at, 0).x.detach()
    t, eps = method.critic_times(at.noise.uniform("critic time")), method.normal(at, "critic noise")
    x_t = x + t[:, None] * eps
    implied = (x_t - method.critic(x_t, t, at.cond)) / t[:, None]
    torch.testing.assert_close(update.loss, (implied - eps).square().mean(), rtol=1e-10, atol=0)


def test_the_three_guidances(tiny):
    parts = tiny.ingredients()
    method = moved(tiny, parts, guidance=3.0, critic_guidance=2.0, critic_training_guidance=1.5, weight="none")
    at = tiny.batch(method)
    critic_update, student_update = tiny.yields(method, at)
    x = method.produce(at, 0).x.detach()
    t, eps = method.critic_times(at.noise.uniform("critic time")), method.normal(at, "critic noise")
    x_t = x + t[:, None] * eps
    error = (guided(method.critic, x_t, t, at.cond, 1.5) - x).square().mean(1)
    torch.testing.assert_close(critic_update.loss, ((t**2 + 0.25) / (0.5 * t) ** 2 * error).mean(), rtol=1e-10, atol=0)
    fresh = at.draw(1)
    x = method.produce(fresh, 0).x.detach()
    t, eps = method.score_times(fresh.noise.uniform("score time")), method.normal(fresh, "score noise")
    x_t = x + t[:, None] * eps
    gap = guided(parts.teacher, x_t, t, fresh.cond, 3.0) - guided(method.critic, x_t, t, fresh.cond, 2.0)
    torch.testing.assert_close(student_update.logs["gap"], gap.square().mean().sqrt().detach(), rtol=1e-10, atol=0)


def test_an_alpha_where_sid_was_never_found_to_work(tiny):
    with pytest.warns(UserWarning, match=r"alpha=2 lies outside \[0.5, 1.5\]"):
        tiny.make("sid", alpha=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.make("sid", alpha=1.5)


def test_zero_guidance_of_the_critic_with_a_guided_teacher(tiny):
    with pytest.raises(LimbeckError, match=r"Zero-CFG \(critic_guidance 0\) wants an unguided teacher, not guidance 2"):
        tiny.make("sid", guidance=2.0, critic_guidance=0.0)
    tiny.make("sid", critic_guidance=0.0, critic_training_guidance=0.0)


@pytest.mark.parametrize("name", ["guidance", "critic_guidance", "critic_training_guidance"])
def test_guidance_without_a_null_condition(name, tiny):
    with pytest.raises(LimbeckError, match="guidance 1.5 needs a null condition, which the teacher does not have"):
        tiny.make("sid", tiny.ingredients(classes=0), **{name: 1.5})


class Closed(Preconditioned):
    @torch.no_grad()
    def forward(self, x_t, t, cond=None):
        return super().forward(x_t, t, cond)


class Detached(Preconditioned):
    def forward(self, x_t, t, cond=None):
        return super().forward(x_t.detach(), t, cond)


@pytest.mark.parametrize("cls", [Closed, Detached])
def test_a_teacher_that_lets_no_gradient_through(cls, tiny):
    inner = tiny.teacher()
    parts = tiny.ingredients(cls(inner.network, inner.process))
    with pytest.raises(LimbeckError, match=r"no gradient reaches the teacher's input .*no_grad.*e.g. dmd"):
        tiny.make("sid", parts)
    other = tiny.loop(tiny.make("dmd", parts))
    if cls is Detached:  # as the message says
        other.iterate()
        return
    with pytest.raises(LimbeckError, match="does not depend on its parameters; does its network run under no_grad?"):
        other.iterate()


def test_a_teacher_of_another_shape(tiny):
    class Flat(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return x.sum(1)

    teacher = tiny.teacher()
    teacher.network = Flat()
    teacher.weight = nn.Parameter(torch.zeros(1))
    teacher.prediction = "x0"
    with pytest.raises(LimbeckError, match=r"the teacher answered \(2,\) for an input of shape \(2, 2\)"):
        tiny.make("sid", tiny.ingredients(teacher, classes=0))


def test_an_unknown_weight(tiny):
    with pytest.raises(LimbeckError, match="unknown SiD weight 'snrr': did you mean 'snr'"):
        tiny.make("sid", weight="snrr")


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(SiDOptions, options_to_dict(preset)) == preset
    assert (PRESETS["paper-cifar10"].alpha, PRESETS["paper-afhq64"].alpha) == (1.2, 1.0)
