"""Entropic score distillation: with lam = 0 it is VSD, with one camera lam says nothing, and its gradient is what it states."""

import warnings
from dataclasses import replace

import pytest
import torch

from limbeck.denoisers import FiniteSetDenoiser
from limbeck.errors import LimbeckError
from limbeck.methods import find
from limbeck.methods.scenes.esd import PRESETS, ESDOptions, fixes_the_view
from limbeck.networks import ResidualMLP
from limbeck.noise import CosineVP, spread

F64 = torch.float64


@pytest.mark.parametrize("kind", ["exact", "network"])
@pytest.mark.parametrize("lam", [0.0, 0.25, 1.0])
def test_lam_is_one_minus_the_critics_guidance(tiny, kind, lam):
    of = tiny.task(network=lambda: ResidualMLP(tiny.SHAPE, width=16, blocks=1, embedding=16).double())
    same = {"critic_kind": kind, "batch": 4, "early": (0.1, 0.9), "late_from": 1.0}
    entropic = tiny.make(of, method="esd", lam=lam, **same)
    variational = tiny.make(of, critic_guidance=1 - lam, **same)
    if kind == "network":  # a new one does not see the camera
        for method in (entropic, variational):
            generator = torch.Generator().manual_seed(3)
            for p in method.critic.parameters():
                torch.nn.init.normal_(p, std=0.3, generator=generator)
    found, expected = (tiny.gradients(m, tiny.batch(m, 3)) for m in (entropic, variational))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    variational.options = replace(variational.options, critic_guidance=1.0)
    plain = tiny.gradients(variational, tiny.batch(variational, 3))
    change = max(float((a - b).abs().max()) for a, b in zip(found, plain, strict=True))
    assert change > 1e-4 if lam else change == 0


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_one_stated(tiny, lam):
    """(3) written out: s^2 (eps_T - lam eps_F(all cameras) - (1 - lam) e), back through the renderer."""
    method = tiny.make(method="esd", batch=5, lam=lam, guidance=1.0)
    at = tiny.batch(method, 2)
    sample, _ = method.produce(at, method.views(at))
    x, t, eps = sample.x.detach(), method.time(at), at.noise.normal("score noise", tiny.SHAPE, F64)
    process = method.teacher.process
    x_t, a, s = process.add_noise(x, eps, t), process.a(t), process.s(t)
    teacher = (x_t - spread(a, x) * method.teacher(x_t, t)) / spread(s, x)
    far = (x_t[:, None] - spread(a, x_t)[:, None] * x).square().flatten(2).sum(2)
    mean = torch.einsum("bk,k...->b...", torch.softmax(-far / (2 * s[:, None] ** 2), 1), x)
    free = (x_t - spread(a, x) * mean) / spread(s, x)
    pull = spread(s**2, x) * (teacher - lam * free - (1 - lam) * eps)
    expected = torch.autograd.grad(sample.x, list(method.particles.parameters()), pull / len(x))
    for found, b in zip(tiny.gradients(method, at), expected, strict=True):
        torch.testing.assert_close(found, b, rtol=1e-6, atol=1e-10)


def test_before_one_camera_lam_says_nothing(tiny):
    """The camera-free law of one camera's renders is that camera's."""
    there = tiny.task(cameras=lambda u, step: tiny.LAW(u[:1].expand_as(u).contiguous(), 4, 4, torch.zeros(len(u)), 1))
    zero, one = (tiny.make(there, method="esd", batch=4, lam=lam) for lam in (0.0, 1.0))
    cameras, _, _ = one.views(tiny.batch(one))
    assert len(cameras.c2w.unique(dim=0)) == 1
    for a, b in zip(tiny.gradients(zero, tiny.batch(zero)), tiny.gradients(one, tiny.batch(one)), strict=True):
        assert float(a.abs().max()) > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_renders_that_are_the_teachers_pictures_stay_only_with_lam_one(tiny):
    """The law of all cameras fits already; SDS still drives every view to the likeliest."""
    method = tiny.make(method="esd", batch=4, lam=1.0, guidance=1.0)
    renders = method.produce(at := tiny.batch(method), method.views(at))[0].x.detach()
    there = tiny.task(teacher=FiniteSetDenoiser(renders, CosineVP()))
    made = [tiny.make(there, method="esd", batch=4, lam=lam, guidance=1.0, early=(0.6, 0.98)) for lam in (1.0, 0.0)]
    still, moved = (max(float(g.abs().max()) for g in tiny.gradients(m, at)) for m in made)
    assert still < 1e-12 < 1e-3 < moved


def test_a_resumed_run_goes_on_bit_for_bit(tiny, tmp_path):
    tiny.check_resumes(lambda: tiny.make(method="esd", particles=2, batch=6), tmp_path)


def test_presets_and_names():
    assert find("entropic").id == find("janus").id == "esd"
    assert PRESETS["recommended"].lam == 1 and PRESETS["vsd"].lam == 0
    paper = PRESETS["paper-nerf"]
    assert paper.lam == 0.5 and paper.early == (0.02, 0.98) and paper.critic_drop == 0.1 and paper.critic_kind == "adapters"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -0.5}, r"lam=-0.5 must lie in \[0, 1\]; below 0, g = 1 - lam exceeds 1 .* rewards mode collapse"),
        ({"lam": 1.5}, "above 1, views would be driven away"),
        ({"critic_guidance": 0.25}, "here it is 1 - lam; set lam=0.75 instead"),
        ({"critic_kind": "dirac"}, "the noise itself has no version without the camera"),
        ({"critic_kind": "network", "critic_drop": 0.0}, "the camera-free score was never trained"),
    ],
)
def test_bad_options_say_what_is_wrong(options, message):
    with pytest.raises(LimbeckError, match=message):
        ESDOptions(**options)


def test_what_lam_zero_may(tiny):
    assert ESDOptions(lam=0.0, critic_kind="dirac").lam == ESDOptions(lam=0.0, critic_kind="network", critic_drop=0.0).lam == 0


def test_one_camera_per_iteration_is_warned_of():
    with pytest.warns(UserWarning, match="has no effect: the exact critic sees one camera per iteration"):
        ESDOptions(batch=2, particles=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ESDOptions(batch=1, critic_kind="network")
        ESDOptions(batch=4, particles=2)


def test_a_teacher_that_is_told_the_view_is_warned_of(tiny):
    def told(width):
        prior = torch.full((6,), -torch.inf, dtype=F64)
        prior[:width] = 0
        return tiny.task(goal=lambda cameras: {"prior": prior.expand(len(cameras), 6)})

    method = tiny.make(told(1), method="esd", batch=4)
    with pytest.warns(UserWarning, match="nothing to diversify"):
        tiny.gradients(method, tiny.batch(method))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet, step in ((tiny.make(told(2), method="esd", batch=4), 0), (method, 1)):
            tiny.gradients(quiet, tiny.batch(quiet, step))
    assert not fixes_the_view(None) and not fixes_the_view({"label": torch.zeros(2)})
