"""Hyper-SD: segments of a schedule, exact reductions of its loss, stages and their ends, feedback, score distillation."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned, guided
from limbeck.errors import LimbeckError
from limbeck.losses import consistency_loss, pseudo_huber, squared
from limbeck.methods.generators.hyper_sd.segments import Jump, draw, positions, segment, trailing
from limbeck.noise import DDPM, VE, CosineVP, RectifiedFlow, ddpm_grid
from limbeck.samplers import ddim_step
from limbeck.training import Keyed

F64 = torch.float64
PLAIN = {"w_mse": (1.0,), "w_adv": (0.0,), "grid": (16,), "then": ()}
ADVERSARY = {"grid": (16,), "segments": (4, 1), "w_mse": (1.0, 0.1), "w_adv": (0.1, 1.0), "then": ()}


def distance_of(method, at, stage=0):
    """The consistency pair of a batch in a stage: (fake, real)."""
    return method.pair(at, method.options.stages[stage], at.cond)[:2]


# -- segments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_every_grid_point_belongs_to_exactly_one_half_open_segment(k):
    n = torch.arange(1, 17)
    m, u = segment(n, k, 16), n.double() / 16
    members = torch.stack([(u > i / k) & (u <= (i + 1) / k) for i in range(k)])
    assert bool((members.sum(0) == 1).all()) and torch.equal(members.long().argmax(0), m)
    assert torch.equal(m.unique(), torch.arange(k))


@pytest.mark.parametrize("target", ["uniform", "border"])
@pytest.mark.parametrize("k", [1, 4, 16])
def test_the_target_never_lies_above_the_teachers_jump(k, target):
    noise = Keyed(0, 0, torch.arange(4000))
    u, u_n, u_e = draw(noise, k, 16, target)
    border = torch.floor((u - 1e-9) * k) / k
    assert bool((u_e <= u_n).all() and (u_n < u).all() and (border <= u_e).all())
    torch.testing.assert_close(u - u_n, torch.full_like(u, 1 / 16), rtol=0, atol=1e-15)
    shares = torch.stack([(u == i / 16).double().mean() for i in range(1, 17)])
    assert float((shares - 1 / 16).abs().max()) < 0.02
    if target == "border":
        assert torch.equal(u_e, border)
    elif k < 16:  # uniform between border and jump
        inside = u_n > border
        share = ((u_e - border) / (u_n - border))[inside]
        assert abs(float(share.mean()) - 0.5) < 0.02 and abs(float(share.std()) - 12**-0.5) < 0.01


def test_positions_are_trailing_times():
    ddpm = positions("time", DDPM(), 0.0, 0.0)
    for steps in (1, 2, 4, 8):
        torch.testing.assert_close(ddpm(trailing(steps)), ddpm_grid(steps), rtol=0, atol=1e-9)
    assert float(ddpm(torch.zeros(1))) == 0.0
    flow = positions("time", RectifiedFlow(), 0.0, 0.0)
    torch.testing.assert_close(flow(trailing(4)), torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=F64))
    assert float(flow(torch.zeros(1))) == 1e-3
    angle = positions("angle", VE(), 0.002, 50.0)
    u = torch.linspace(0, 1, 11, dtype=F64)
    torch.testing.assert_close(torch.atan(angle(u))[1:], u[1:] * torch.atan(torch.tensor(50.0, dtype=F64)))
    assert float(angle(u)[0]) == 0.002
    karras = positions("karras", CosineVP(), 0.01, 50.0)
    torch.testing.assert_close(CosineVP().sigma(karras(u[[0, -1]])), torch.tensor([0.01, 50.0], dtype=F64))
    with pytest.raises(LimbeckError, match="unknown schedule 'linear'"):
        positions("linear", VE(), 0.002, 80.0)


# -- exact reductions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VE(), RectifiedFlow(), CosineVP(), DDPM()], ids=lambda p: type(p).__name__)
def test_the_function_is_the_identity_where_it_does_not_move(process, tiny):
    student = tiny.teacher(process=process)
    x, cond = tiny.data()
    t = positions("time", process, 0.0, 0.0)(torch.linspace(0.0, 0.9, len(x), dtype=F64))
    assert torch.equal(Jump(student, t)(x, t, cond), x)
    assert not torch.equal(Jump(student, 0.5 * t + 0.1)(x, t, cond), x)


class Constant(nn.Module):
    """The exact denoiser of one data point, with a parameter."""

    null = {}
    feature_layers = ()

    def __init__(self):
        super().__init__()
        self.point = nn.Parameter(torch.tensor([0.3, -0.7], dtype=F64))

    def forward(self, x, c_noise, cond=None):
        return self.point.expand_as(x)


@pytest.mark.parametrize("target", ["uniform", "border"])
@pytest.mark.parametrize("k", [1, 2, 4, 16])
def test_the_exact_denoiser_of_one_point_has_no_loss(k, target, tiny):
    teacher = Preconditioned(Constant(), VE(), "x0")
    method = tiny.make("hyper-sd", tiny.ingredients(teacher, classes=0), **PLAIN, segments=(k,), target=target, sigma_high=5.0)
    at = tiny.batch(method, size=64, classes=0)
    at.x = teacher.network.point.detach().expand(64, 2)
    fake, real = distance_of(method, at)
    torch.testing.assert_close(fake, real, rtol=1e-12, atol=1e-13)  # f does not depend on the start of the path
    method.student.network.point.data += 0.1
    fake, real = distance_of(method, at)
    assert float((fake - real).detach().abs().max()) > 1e-2


@pytest.mark.parametrize("target", ["uniform", "border"])
def test_as_many_segments_as_intervals_match_single_steps_of_the_teacher(target, tiny):
    parts = tiny.ingredients()
    method = tiny.make("hyper-sd", parts, **PLAIN, segments=(16,), target=target)
    at = tiny.batch(method)
    fake, real = distance_of(method, at)
    assert torch.equal(fake, real)  # the student is the teacher
    u, u_n, u_e = draw(at.noise, 16, 16, target)
    assert torch.equal(u_n, u_e)
    t, t_n = method.path(u), method.path(u_n)
    x_t = at.x + t[:, None] * method.normal(at, "noise")
    assert torch.equal(real, ddim_step(method.process, x_t, parts.teacher(x_t, t, at.cond), t, t_n))
    fewer = tiny.make("hyper-sd", parts, **PLAIN, segments=(4,), target=target)
    fake, real = distance_of(fewer, at)
    assert float((fake - real).detach().abs().max()) > 1e-3  # it is no consistency function of longer jumps


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_one_segment_is_consistency_distillation(distance, tiny):
    parts = tiny.ingredients()
    method = tiny.make("hyper-sd", parts, **PLAIN, segments=(1,), target="border", distance=distance)
    nn.init.normal_(method.student.network.output.weight)
    at = tiny.batch(method, size=9)
    (update,) = tiny.yields(method, at)
    n = at.noise.randint("time", 1, 17)
    t, t_n, end = method.path(n / 16), method.path((n - 1) / 16), method.path(torch.zeros(9, dtype=F64))
    x_t = method.process.add_noise(at.x, method.normal(at, "noise"), t)
    with torch.no_grad():
        x_n = ddim_step(method.process, x_t, parts.teacher(x_t, t, at.cond), t, t_n)
    f, average = (Jump(m, end) for m in (method.student, method.roles["student"].ema))
    d = squared if distance == "l2" else pseudo_huber
    assert torch.equal(update.loss, consistency_loss(f, average, x_t, t, x_n, t_n, at.cond, distance=d))
    assert float(update.loss.detach()) > 1e-3


def test_guidance_is_drawn_per_sample_and_folded_into_the_target(tiny):
    parts = tiny.ingredients()
    method = tiny.make("hyper-sd", parts, **PLAIN, segments=(16,), guidance_low=2.0, guidance_high=5.0)
    at = tiny.batch(method, size=8)
    _, real = distance_of(method, at)
    u, u_n, _ = draw(at.noise, 16, 16, "uniform")
    t, w = method.path(u), 2 + 3 * at.noise.uniform("guidance")
    x_t = at.x + t[:, None] * method.normal(at, "noise")
    expected = ddim_step(method.process, x_t, guided(parts.teacher, x_t, t, at.cond, w), t, method.path(u_n))
    torch.testing.assert_close(real, expected, rtol=1e-12, atol=1e-13)
    assert len(set(w.tolist())) == 8


def test_dropped_conditions_are_the_teachers_null(tiny, monkeypatch):
    parts = tiny.ingredients()
    method = tiny.make("hyper-sd", parts, **PLAIN, segments=(1,), drop=0.5, keep_guidance=True)
    calls = tiny.spy(parts.teacher, monkeypatch)
    at = tiny.batch(method, size=40)
    tiny.yields(method, at)
    dropped = at.noise.uniform("drop") < 0.5
    assert torch.equal(calls[0][2]["label"], torch.where(dropped, 3, at.cond["label"])) and 5 < int(dropped.sum()) < 35


def test_offset_noise_is_one_number_per_sample_and_channel(tiny):
    method = tiny.make("hyper-sd", **PLAIN, segments=(1,), offset_noise=0.1)
    at = tiny.batch(method, size=500)
    offset = method.perturbed(at) - method.normal(at, "noise")
    assert tuple(offset.shape) == (500, 2) and abs(float(offset.std()) - 0.1) < 0.01
    method.shape = (3, 2, 2)
    offset = method.perturbed(at) - method.normal(at, "noise")
    assert torch.allclose(offset, offset[:, :, :1, :1].expand_as(offset)) and abs(float(offset.std()) - 0.1) < 0.01


# -- the adversary --------------------------------------------------------------------------------------------------------


def test_the_students_loss_is_the_weighted_mix(tiny):
    parts = tiny.ingredients()
    options = {"segments": (2,), "grid": (16,), "then": ()}
    both = tiny.make("hyper-sd", parts, **options, w_mse=(0.5,), w_adv=(2.0,))
    at = tiny.batch(both)
    at.step = 3

    def gradient(w_mse, w_adv):
        both.options = replace(both.options, w_mse=(w_mse,), w_adv=(w_adv,))
        update = next(both.step(at))
        learned = [p for p in both.student.parameters() if p.requires_grad]
        return torch.autograd.grad(update.loss, learned, allow_unused=True)

    for p in both.student.parameters():
        p.data.add_(0.05)  # not the average any more: there is a distance
    parts_of = zip(gradient(0.5, 2.0), gradient(1.0, 0.0), gradient(0.0, 1.0), strict=True)
    seen = [float(a.abs().max()) for _, _, a in parts_of if a is not None]
    assert max(seen) > 1e-4
    for mixed, mse, adversarial in zip(gradient(0.5, 2.0), gradient(1.0, 0.0), gradient(0.0, 1.0), strict=True):
        if mixed is not None:
            torch.testing.assert_close(mixed, 0.5 * mse + 2.0 * adversarial, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("renoise", [True, False])
def test_the_discriminator_compares_the_two_points_at_one_noise(renoise, tiny, monkeypatch):
    parts = tiny.ingredients()
    method = tiny.make("hyper-sd", parts, **ADVERSARY, gan_renoise=renoise)
    at = tiny.batch(method, step=6)  # the stage of k = 1
    for p in method.student.parameters():
        p.data.add_(0.05)
    fake, real, u_e = method.pair(at, method.options.at(6), at.cond)
    calls = tiny.spy(parts.teacher, monkeypatch)
    student, discriminator = tiny.yields(method, at)
    assert (student.roles, discriminator.roles) == ("student", "discriminator") and "logit_accuracy" in discriminator.logs
    (_, _, _), (seen, t, _), (of_real, u, _), (of_fake, v, _) = calls  # the first call is the teacher's step
    assert torch.equal(t, u) and torch.equal(u, v) and bool((t >= method.path(u_e) * (1 - 1e-12)).all())
    torch.testing.assert_close(seen, of_fake, rtol=0, atol=0)
    torch.testing.assert_close(of_fake - of_real, (fake - real).detach(), rtol=1e-9, atol=1e-9)  # VE: a = 1
    assert torch.equal(seen, fake.detach()) == (not renoise)
