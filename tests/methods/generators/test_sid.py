"""SiD: both updates by their formulas, zero pull at equality, guidance, and bad input."""

import warnings

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned, guided
from limbeck.errors import LimbeckError
from limbeck.methods.generators.sid import PRESETS, SiDOptions, guidance_of
from limbeck.networks import FeatureTap
from limbeck.noise import RectifiedFlow
from limbeck.training import Batch
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


def test_the_step_is_one_for_the_whole_batch_wherever_its_pieces_are_trained(tiny, monkeypatch):
    method = moved(tiny, sigmas=(5.0, 1.0, 0.2))
    drawn = []
    produce = method.produce
    monkeypatch.setattr(method, "produce", lambda batch, grad_step: (drawn.append(grad_step), produce(batch, grad_step))[1])
    for step in range(12):
        whole = tiny.batch(method, step)
        pieces = [Batch(whole.source, 0, step, whole.index[part], whole.device, 6) for part in (slice(0, 2), slice(2, 6))]
        for one in (whole, *pieces):  # as two processes would hold them: each knows seed and iteration alone
            method.producer(method, one, 0)
    assert drawn[0::3] == drawn[1::3] == drawn[2::3] and len(set(drawn)) == 3


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


@pytest.mark.parametrize(
    ("strategy", "scales"),
    [
        (("none",), (1, 1, 1)),
        (("teacher", 3.0), (1, 1, 3)),
        (("long_short", 1.5), (1.5, 1.5, 1.5)),
        (("long_short",), (4.5, 4.5, 4.5)),
        (("zero",), (0, 0, 1)),
        (("anti",), (-1, -1, 1)),
        (("anti", -0.5), (-0.5, -0.5, 1)),
    ],
)
def test_the_guidance_strategies(strategy, scales, tiny):
    assert guidance_of(*strategy) == scales
    name, scale = (*strategy, None)[:2]
    method = tiny.make("sid", strategy=name, strategy_scale=scale)
    o, guided_critic = method.options, scales[:2] != (1, 1)
    assert (o.critic_training_guidance, o.critic_guidance, o.guidance) == scales
    assert (method.rule.critic_guidance, method.rule.guidance) == scales[1:]
    assert o.critic_drop == (0.1 if guided_critic else 0.0)


def test_prompts_are_dropped_in_the_critics_training_alone(tiny, monkeypatch):
    method = moved(tiny, strategy="long_short", strategy_scale=1.5, strategy_drop=0.5)
    critic, student = tiny.spy(method.critic, monkeypatch), tiny.spy(method.student, monkeypatch)
    at = tiny.batch(method, size=40)
    tiny.yields(method, at)
    null = [(cond["label"] == 3) for _, _, cond in critic]  # guided: the null condition, then the condition
    dropped = at.noise.uniform("critic drop") < 0.5
    assert null[0].all() and torch.equal(null[1], dropped) and null[2].all() and not null[3].any()
    assert 8 < int(dropped.sum()) < 32 and not any((cond["label"] == 3).any() for _, _, cond in student)


def test_guidance_of_one_and_of_zero_cost_one_call_each(tiny, monkeypatch):
    for strategy, calls in (("none", (1, 2)), ("zero", (1, 2)), ("long_short", (2, 4)), ("teacher", (2, 2))):
        parts = tiny.ingredients()
        method = moved(tiny, parts, strategy=strategy)
        teacher, critic = tiny.spy(parts.teacher, monkeypatch), tiny.spy(method.critic, monkeypatch)
        tiny.yields(method, tiny.batch(method))
        assert (len(teacher), len(critic)) == calls
        if strategy == "zero":
            assert all((cond["label"] == 3).all() for _, _, cond in critic)
            assert not any((cond["label"] == 3).any() for _, _, cond in teacher)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "anti", "strategy_scale": 0.5}, "give a negative scale, not 0.5"),
        ({"strategy": "zero", "guidance": 2.0}, r"sets the guidance scales; leave \(1.0, 1.0, 2.0\) at 1, or use 'none'"),
        ({"gan_weight": 0.1, "gan_head": "mean"}, "has no weights of its own: it needs gan_on='critic'"),
    ],
)
def test_bad_strategies_and_heads(options, message, tiny):
    with pytest.raises(LimbeckError, match=message):
        tiny.make("sid", **options)
    with pytest.raises(LimbeckError, match="unknown guidance strategy 'anty'"):
        guidance_of("anty")


GAN = {"gan_weight": 0.3, "gan_on": "critic", "gan_head": "mean", "gan_time": "shared", "gan_paired": True}


def test_a_gan_without_images(tiny):
    with pytest.raises(LimbeckError, match="gan_weight > 0 needs real images"):
        tiny.make("sid", tiny.ingredients(images=False), **GAN)


def test_the_encoder_is_the_discriminator(tiny, monkeypatch):
    method = moved(tiny, gan_critic_weight=0.5, **GAN)
    assert set(method.roles) == {"teacher", "student", "critic"} and not method.adversary.trained
    at = tiny.batch(method)
    calls = tiny.spy(method.critic, monkeypatch)
    critic, _ = tiny.yields(method, at)
    assert critic.roles == "critic" and "logit_accuracy" in critic.logs
    _, (x_fake, t_fake, _), (x_real, t_real, _) = calls[:3]
    noise = method.normal(at, "fake noise")
    assert torch.equal(t_fake, t_real)  # one time, one noise
    torch.testing.assert_close(x_real - at.x, t_real[:, None] * noise)
    with FeatureTap(method.critic, ["network.blocks.0"]) as tap:
        method.critic(x_fake, t_fake, at.cond)
        fake = tap["network.blocks.0"].mean(1)
        method.critic(x_real, t_real, at.cond)
        real = tap["network.blocks.0"].mean(1)
    gan = torch.nn.functional.softplus(fake).mean() + torch.nn.functional.softplus(-real).mean()
    plain = moved(tiny)
    torch.testing.assert_close(critic.loss, next(plain.step(at)).loss + 0.5 * gan, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", ["none", "sample", "batch"])
def test_what_the_adversarial_term_is_weighed_with(scale, tiny, monkeypatch):
    parts = tiny.ingredients()
    method = moved(tiny, parts, gan_scale=scale, **GAN)
    at = tiny.batch(method)
    student = tiny.yields(method, at)[-1]
    params = [p for p in method.student.parameters() if p.requires_grad]
    got = torch.autograd.grad(student.loss, params, allow_unused=True)
    fresh = at.draw(1)
    x = method.produce(fresh, 0).x
    t, eps = method.score_times(fresh.noise.uniform("score time")), method.normal(fresh, "score noise")
    x_t = x + t[:, None] * eps
    teacher, critic = parts.teacher(x_t, t, fresh.cond), method.critic(x_t, t, fresh.cond)
    w = 1 / (x - teacher).detach().abs().mean(1)
    score = (w[:, None] * (teacher - critic) * ((teacher - x) - 1.2 * (teacher - critic))).sum(1)
    with FeatureTap(method.critic, ["network.blocks.0"]) as tap:
        method.critic(x_t, t, fresh.cond)
    bce = torch.nn.functional.softplus(-tap["network.blocks.0"].mean(1)) * x[0].numel()
    loss = {
        "none": score + 0.3 * bce, "sample": (score + 0.3 * w * bce) / 2, "batch": (score + 0.3 * w.mean() * bce) / 2
    }[scale]  # fmt: skip
    expected = torch.autograd.grad(loss.sum() / x.numel(), params, allow_unused=True)
    for one, other in zip(got, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_logits_stay_within_the_clamp(tiny):
    method = moved(tiny, gan_clamp=1e-3, **GAN)
    at = tiny.batch(method)
    logits = method.adversary.logits(at.x, torch.ones(6, dtype=F64), at.cond)
    assert float(logits.detach().abs().max()) == 1e-3


def test_both_wait_for_their_turn(tiny):
    method = moved(tiny, student_after=2, gan_after=3, **GAN)
    plain = moved(tiny)
    assert [y.roles for y in tiny.yields(method, tiny.batch(method, 1))] == ["critic"]
    for step, same in ((2, True), (3, False)):
        at = tiny.batch(method, step)
        one, other = (tiny.yields(m, at)[-1].loss for m in (method, plain))
        assert bool(one == other) == same


def test_an_unknown_weight(tiny):
    with pytest.raises(LimbeckError, match="unknown SiD weight 'snrr': did you mean 'snr'"):
        tiny.make("sid", weight="snrr")


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(SiDOptions, options_to_dict(preset)) == preset
    assert (PRESETS["paper-cifar10"].alpha, PRESETS["paper-afhq64"].alpha) == (1.2, 1.0)
    assert PRESETS["paper-sd15-lsg"].student.clip_value == PRESETS["paper-sd15-lsg"].critic.clip_value == 1 / 16384
    flow = RectifiedFlow().time_of(torch.tensor(PRESETS["paper-sid-dit"].sigmas, dtype=F64))
    torch.testing.assert_close(flow, 0.999 * (1 - torch.arange(4, dtype=F64) / 4), rtol=1e-3, atol=1e-4)
