"""DMD: who is trained on what and how often, the GAN's gradient, the exact minimiser of its pull, and bad input."""

import math

import pytest
import torch
from torch import nn

from limbeck.denoisers import MixtureDenoiser, guided
from limbeck.errors import LimbeckError
from limbeck.losses import discriminator_loss, generator_loss
from limbeck.methods.generators.dmd import PRESETS, DMDOptions
from limbeck.noise import VE, spread
from limbeck.rules import DistributionMatching, Sample, surrogate
from limbeck.training import Loop, LoopOptions, TensorSource
from limbeck.training.options import options_from_dict, options_to_dict

F64 = torch.float64


def roles(found):
    return [y.roles for y in found]


def test_one_iteration_is_one_student_and_several_critic_updates_on_fresh_noise(tiny, monkeypatch):
    method = tiny.make("dmd", critic_steps=3, sigmas=(5.0, 1.0))
    calls = tiny.spy(method.critic, monkeypatch)
    seen = []
    found = tiny.yields(method, tiny.batch(method, 2), lambda y: seen.append(len(calls)))
    assert roles(found) == ["student", "critic", "critic", "critic"] and method.draws == 3
    inputs = [calls[n - 1] for n in seen]  # the last call of the critic before each update
    for i in range(4):
        for j in range(i):
            assert not torch.isclose(inputs[i][0], inputs[j][0]).any()
            assert not torch.isclose(inputs[i][1], inputs[j][1]).any()
    labels = [cond["label"].tolist() for _, _, cond in inputs]
    assert labels[0] == labels[1] and len({tuple(part) for part in labels}) == 3  # each draw has conditions of its own


def test_the_first_critic_update_learns_the_students_own_samples(tiny, monkeypatch):
    method = tiny.make("dmd")
    at = tiny.batch(method)
    sample = method.produce(at, 0).x.detach()
    calls = tiny.spy(method.critic, monkeypatch)
    found = tiny.yields(method, at)
    x_t, t, _ = calls[-1]
    assert torch.equal(x_t, sample + t[:, None] * method.normal(at, "critic noise"))
    weight = (t**2 + 0.25) / (0.5 * t) ** 2
    error = (method.critic(x_t, t, at.cond) - sample).square().mean(1)
    torch.testing.assert_close(found[-1].loss, (weight * error).mean(), rtol=1e-12, atol=0)


def test_the_students_loss_moves_the_student_alone_along_the_pull(tiny):
    parts = tiny.ingredients()
    method = tiny.make("dmd", parts, guidance=2.0)
    nn.init.normal_(method.critic.network.output.weight)
    at = tiny.batch(method)
    first = next(method.step(at))
    first.loss.backward()
    assert all(p.grad is None for m in (parts.teacher, method.critic) for p in m.parameters())
    got = [p.grad.clone() for p in method.student.parameters() if p.grad is not None]
    x = method.produce(at, 0).x
    t, eps = method.score_times(at.noise.uniform("score time")), method.normal(at, "score noise")
    x_t = (x + t[:, None] * eps).detach()
    teacher = guided(parts.teacher, x_t, t, at.cond, 2.0)
    delta = (method.critic(x_t, t, at.cond) - teacher).detach()
    pull = delta / ((x.detach() - teacher).abs().mean(1, keepdim=True) + 1e-6)
    student = [p for p in method.student.parameters() if p.requires_grad]
    expected = torch.autograd.grad((x * pull).sum() / x.numel(), student, allow_unused=True)
    for one, other in zip(got, [g for g in expected if g is not None], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    assert max(float(g.abs().max()) for g in got) > 1e-3
    assert set(first.logs) == {"gap", "critic_lag", "diversity"}


def test_at_the_start_nothing_pulls(tiny):
    first = next(tiny.make("dmd").step(tiny.batch(tiny.make("dmd"))))
    assert float(first.loss.detach()) == 0.0 and float(first.logs["gap"]) == 0.0


@pytest.mark.parametrize("gan_on", ["teacher", "critic"])
def test_the_gan_trains_the_roles_that_it_says(gan_on, tiny):
    parts = tiny.ingredients()
    method = tiny.make("dmd", parts, gan_weight=0.5, gan_on=gan_on, gan_r1=1.0, critic_steps=2)
    touched = []

    def apply(update):
        update.loss.backward()
        modules = {
            "student": method.student,
            "critic": method.critic,
            "discriminator": method.adversary.heads,
            "teacher": parts.teacher,
        }
        touched.append({n for n, m in modules.items() if any(p.grad is not None for p in m.parameters())})
        for m in modules.values():
            m.zero_grad(set_to_none=True)

    found = tiny.yields(method, tiny.batch(method), apply)
    assert method.adversary.watched is (method.critic if gan_on == "critic" else parts.teacher)
    if gan_on == "critic":
        both = ("critic", "discriminator")
        assert roles(found) == ["student", both, both] and touched == [{"student"}, set(both), set(both)]
    else:
        assert roles(found) == ["student"] + 2 * ["critic", "discriminator"]
        assert touched == [{"student"}, {"critic"}, {"discriminator"}, {"critic"}, {"discriminator"}]
    assert all("logit_accuracy" in y.logs for y in found if "discriminator" in y.roles)


def test_the_gan_reaches_the_critics_weights_only_where_it_watches_the_critic(tiny):
    for weight in (0.0, 2.0):
        method = tiny.make("dmd", gan_weight=0.5, gan_on="critic", gan_critic_weight=weight)
        at = tiny.batch(method)
        _, update = tiny.yields(method, at)
        alone = tiny.make("dmd")
        _, plain = tiny.yields(alone, at)
        gan = method.adversary.loss(at, method.produce(at, 0).detach())[0]
        torch.testing.assert_close(update.loss, plain.loss + weight * gan, rtol=1e-12, atol=0)


@pytest.mark.parametrize("time", ["shared", "own"])
def test_shared_gan_logits_see_the_very_points_of_the_score_difference(time, tiny, monkeypatch):
    parts = tiny.ingredients()
    method = tiny.make("dmd", parts, gan_weight=0.5, gan_time=time)
    calls = tiny.spy(parts.teacher, monkeypatch)
    next(method.step(tiny.batch(method)))
    (score, gan) = calls
    same = torch.equal(score[0], gan[0]) and torch.equal(score[1], gan[1])
    assert same == (time == "shared")
    assert torch.equal(score[2]["label"], gan[2]["label"])


@pytest.mark.parametrize("gan_on", ["teacher", "critic"])
def test_the_gans_gradient_is_that_of_its_loss(gan_on, tiny):
    method = tiny.make("dmd", gan_weight=0.5, gan_on=gan_on)
    at = tiny.batch(method, size=3)
    x, eps = method.produce(at, 0).x.detach(), method.normal(at, "gan noise")
    t = torch.tensor([0.3, 1.0, 2.0], dtype=F64)
    got = method.adversary.gradient(Sample(x, at.cond), t, eps)

    def loss(y):
        return float(generator_loss(method.adversary.logits(y + t[:, None] * eps, t, at.cond)).detach()) * y.numel()

    numeric, h = torch.zeros_like(x), 1e-5
    for i in range(x.numel()):
        move = torch.zeros(x.numel(), dtype=F64)
        move[i] = h
        numeric.view(-1)[i] = (loss(x + move.view_as(x)) - loss(x - move.view_as(x))) / (2 * h)
    torch.testing.assert_close(got, numeric, rtol=1e-6, atol=1e-8)
    assert float(got.abs().max()) > 1e-4
    trained = [*method.adversary.heads.parameters(), *method.critic.parameters()]
    assert all(p.grad is None and p.requires_grad for p in trained)  # taken at once, and nothing stays frozen


def test_the_students_pull_has_the_gans_share(tiny):
    at = tiny.batch(tiny.make("dmd"))
    losses = {}
    for weight in (1e-3, 1e-1):
        method = tiny.make("dmd", gan_weight=weight)
        update = next(method.step(at))
        losses[weight] = float(update.loss.detach())
    assert losses[1e-1] == pytest.approx(100 * losses[1e-3], rel=1e-9) != 0.0  # at the start it is the only pull


def test_real_and_fake_have_times_and_noises_of_their_own(tiny):
    method = tiny.make("dmd", gan_weight=0.5)
    at = tiny.batch(method)
    seen = []
    logits = method.adversary.logits
    method.adversary.logits = lambda x_t, t, cond: (seen.append((x_t, t)), logits(x_t, t, cond))[1]
    fake = torch.zeros(6, 2, dtype=F64)
    loss, logs = method.adversary.loss(at, Sample(fake, at.cond))
    (x_fake, t_fake), (x_real, t_real) = seen
    assert not torch.isclose(t_fake, t_real).any()
    noises = x_fake / t_fake[:, None], (x_real - at.x) / t_real[:, None]
    assert not torch.isclose(*noises).any()
    both = [logits(x, t, at.cond) for x, t in seen]
    torch.testing.assert_close(loss, discriminator_loss(both[1], both[0]))
    assert 0 <= float(logs["logit_accuracy"]) <= 1


def test_a_discriminator_needs_images(tiny):
    with pytest.raises(LimbeckError, match="gan_weight > 0 needs real images"):
        tiny.make("dmd", tiny.ingredients(images=False), gan_weight=0.1)
    assert "discriminator" not in tiny.make("dmd", tiny.ingredients(images=False)).roles


def test_without_the_gan_no_data_are_looked_at(tiny):
    parts = tiny.ingredients(images=False)
    _, cond = tiny.data()
    method = tiny.make("dmd", parts)
    loop = Loop(method, TensorSource(None, cond), LoopOptions(8, 6), quiet=True)
    with_data = tiny.loop(tiny.make("dmd"))
    for one in (loop, with_data):
        one.iterate()
    a, b = tiny.weights(loop), tiny.weights(with_data)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_layer_that_is_not_there(tiny):
    with pytest.raises(LimbeckError, match=r"no layer 'network.block.0': there are network.blocks.0"):
        tiny.make("dmd", gan_weight=0.1, gan_features=("network.block.0",))
    method = tiny.make("dmd", gan_weight=0.1, gan_features=("network.blocks.1",))
    assert list(method.adversary.heads.shapes) == ["network.blocks.1"]

    class Foreign(nn.Module):  # a network that says nothing of its layers
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2).double()

        def forward(self, x, c_noise, cond=None):
            return self.inner(x)

    teacher = tiny.teacher()
    teacher.network = Foreign()
    with pytest.raises(LimbeckError, match=r"name the layers .*gan_features.*candidates: .*network.inner"):
        tiny.make("dmd", tiny.ingredients(teacher, classes=0), gan_weight=0.1)


def test_a_critic_that_is_never_trained(tiny):
    with pytest.raises(LimbeckError, match="critic_steps=0: the critic needs at least 1 update"):
        DMDOptions(critic_steps=0)


def test_guidance_without_a_null_condition(tiny):
    with pytest.raises(LimbeckError, match=r"guidance 2 needs a null condition, which the teacher does not have; use 1"):
        tiny.make("dmd", tiny.ingredients(classes=0), guidance=2.0)


def test_an_unknown_normaliser(tiny):
    with pytest.raises(LimbeckError, match="unknown normaliser 'mean_abz': did you mean 'mean_abs'"):
        tiny.make("dmd", normaliser="mean_abz")


def test_presets_survive_being_written_down():
    for preset in PRESETS.values():
        assert options_from_dict(DMDOptions, options_to_dict(preset)) == preset
    paper = PRESETS["paper-imagenet64"]
    assert (paper.critic_steps, paper.gan_weight, paper.gan_critic_weight, paper.student.lr) == (5, 3e-3, 1e-2, 2e-6)


class Normal(nn.Module):
    """The exact denoiser of N(mean, std^2) in one dimension: the critic that DMD would learn."""

    process, null = VE(), None

    def __init__(self):
        super().__init__()
        self.mean, self.log_std = (nn.Parameter(torch.tensor(v, dtype=F64)) for v in (-1.5, math.log(0.6)))

    def forward(self, x_t, t, cond=None):
        variance = self.log_std.exp() ** 2
        return self.mean + spread(variance / (variance + t**2), x_t) * (x_t - self.mean)


def fitted(forward_kl):
    """A normal generator after DMD's pulls towards 0.7 N(-2, 1/4) + 0.3 N(2, 1/4), with h = r for the forward KL."""
    weights, means, std = torch.tensor([0.7, 0.3], dtype=F64), torch.tensor([[-2.0], [2.0]], dtype=F64), 0.5
    student = Normal()
    teacher = MixtureDenoiser(weights, means, std**2, VE())

    def density(x, mean, std):
        return torch.exp(-0.5 * ((x - mean) / std) ** 2) / std

    def ratio(x_t, t, cond):
        x = x_t[:, 0]
        p = sum(w * density(x, m, torch.sqrt(std**2 + t**2)) for w, m in zip(weights, means[:, 0], strict=True))
        return p / density(x, student.mean, torch.sqrt((2 * student.log_std).exp() + t**2)).clamp(min=1e-12)

    rule = DistributionMatching(teacher, student, normaliser="none", ratio_weight=ratio if forward_kl else None)
    z = torch.special.ndtri((torch.arange(500, dtype=F64) + 0.5) / 500)[:, None]
    optimizer, steps = torch.optim.Adam(student.parameters()), 250
    generator = torch.Generator().manual_seed(0)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 0.06 * (1 - k / steps)
        x = student.mean + student.log_std.exp() * z
        t = 0.05 + 0.95 * torch.rand(500, generator=generator, dtype=F64)
        pull = rule(Sample(x), t, torch.randn(500, 1, generator=generator, dtype=F64))
        optimizer.zero_grad()
        surrogate(x, pull.gradient).backward()
        optimizer.step()
    return float(student.mean.detach()), float(student.log_std.detach().exp())


def test_reverse_kl_collapses_on_the_big_mode():
    mean, std = fitted(forward_kl=False)
    assert mean == pytest.approx(-1.914, abs=0.05) and std < 0.8


def test_forward_kl_matches_the_moments():
    mean, std = fitted(forward_kl=True)
    assert mean == pytest.approx(-0.8, abs=0.1) and std == pytest.approx(1.9, abs=0.1)
