"""Continuous-time consistency: the tangent against differences, exact solutions, normalisations, and any teacher in TrigFlow."""

import math

import pytest
import torch
from torch import nn

from limbeck.denoisers import MixtureDenoiser, Preconditioned, derivative, in_process
from limbeck.errors import LimbeckError
from limbeck.losses import angle, consistency_tangent, continuous_loss, normalise_tangent, trig_velocity
from limbeck.networks import ResidualMLP
from limbeck.noise import DDPM, VE, VP, CosineVP, RectifiedFlow, TrigFlow

F64 = torch.float64
PROCESSES = {
    "ve": VE(1e-6, 1e6), "vp": VP(), "flow": RectifiedFlow(), "shifted": RectifiedFlow(shift=3.0), "cosine": CosineVP(),
    "ddpm": DDPM(), "trigflow": TrigFlow(2.0),
}  # fmt: skip
T = torch.tensor([0.05, 0.3, 0.8, 1.3, 1.5], dtype=F64)


def s(y):
    return y[:, None]


def normal(seed=0, n=5):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def student(sigma_data=1.0, process=None):
    torch.manual_seed(0)
    net = Preconditioned(ResidualMLP((2,), width=8, blocks=2), VE() if process is None else process, "edm", sigma_data).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


def velocity_of(net, sigma_data=1.0):
    f = in_process(net, TrigFlow(sigma_data))
    return lambda x, t: trig_velocity(f, x, t, sigma_data=sigma_data)


def f_of(F):
    return lambda x, t: s(t.cos()) * x - s(t.sin()) * F(x, t)


def tangent(F, F_T, x, t, net, r=1.0, warmup="rcm"):
    with torch.no_grad():
        v = F_T(x, t)
    value, dF = derivative(F, x, t, v, t.cos() * t.sin(), network=net)
    return consistency_tangent(value, v, x, t, dF, r, warmup)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_a_teacher_of_any_process_is_the_same_consistency_function(process, sigma_data):
    """The law of x_0 is one: its exact denoiser in any process gives one F_T at one t."""
    trig = TrigFlow(sigma_data)
    make = lambda p: MixtureDenoiser.ring(3, 0.7, 0.2, p)  # noqa: E731
    x = normal()
    expected = make(trig)(sigma_data * x, T)
    seen = in_process(make(PROCESSES[process]), trig)
    torch.testing.assert_close(seen(sigma_data * x, T), expected, rtol=1e-9, atol=1e-10)
    found = trig_velocity(seen, x, T, sigma_data=sigma_data)
    exact = make(trig).velocity(sigma_data * x, T) / sigma_data
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sigma_data * f_of(lambda x, t: found)(x, T), expected, rtol=1e-8, atol=1e-9)


def test_a_flow_network_in_trigflow_has_the_papers_coefficients():
    torch.manual_seed(0)
    net = ResidualMLP((2,), width=8, blocks=1).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    flow = Preconditioned(net, RectifiedFlow(), "velocity", noise_input="thousand")
    x, size = normal(), 1 / (T.cos() + T.sin())
    answer = net(s(size) * x, 1000 * T.sin() * size)
    expected = s(size) * x - s(T.sin() * size) * answer  # c_skip x + c_out F(c_in x, c_noise)
    torch.testing.assert_close(in_process(flow, TrigFlow())(x, T), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("warmup", ["rcm", "scm"])
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_the_tangent_is_the_derivative_of_f_along_the_teachers_path(sigma_data, warmup):
    net, teacher = student(sigma_data), in_process(ring(), TrigFlow(sigma_data))
    F = velocity_of(net, sigma_data)
    F_T = lambda x, t: trig_velocity(teacher, x, t, sigma_data=sigma_data)  # noqa: E731
    x, e = normal(), 2e-6
    g = tangent(F, F_T, x, T, net, warmup=warmup)
    with torch.no_grad():
        v = F_T(x, T)
        f = f_of(F)
        df = (f(x + e * v, T + e) - f(x - e * v, T - e)) / (2 * e)
    torch.testing.assert_close(g, s(T.cos()) * df, rtol=1e-5, atol=1e-6)
    assert float(g.abs().max()) > 0.05


def ring():
    return MixtureDenoiser.ring(3, 0.7, 0.2, VE())


def test_warm_ups_meet_where_r_is_one_and_leave_the_teacher_where_it_is_zero():
    F, F_T, x, dF = (normal(i) for i in range(4))
    both = [consistency_tangent(F, F_T, x, T, dF, 1.0, w) for w in ("rcm", "scm")]
    torch.testing.assert_close(*both, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(both[0], -s(T.cos() ** 2) * (F - F_T) - s(T.cos() * T.sin()) * x - dF, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(consistency_tangent(F, F_T, x, T, dF, 0.0), -s(T.cos()) * (F - F_T) - dF, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(consistency_tangent(F, F_T, x, T, dF, 0.0, "scm"), -s(T.cos() ** 2) * (F - F_T))
    half = consistency_tangent(F, F_T, x, T, dF, 0.5)
    expected = -s(T.cos() * (1 - 0.25 * T.sin() ** 2).sqrt()) * (F - F_T) - 0.5 * s(T.cos() * T.sin()) * x - dF
    torch.testing.assert_close(half, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sd", [0.3, 1.0, 2.0])
def test_nothing_moves_at_the_exact_consistency_function_of_a_gaussian(sd):
    """f*(x, t) = x sd / sqrt(cos^2 sd^2 + sin^2): df*/dt = 0 along the exact path."""

    class Exact(nn.Module):
        def forward(self, x, t):
            f = x * s(sd / torch.sqrt(t.cos() ** 2 * sd**2 + t.sin() ** 2))
            return (s(t.cos()) * x - f) / s(t.sin())

    size = T.cos() ** 2 * sd**2 + T.sin() ** 2
    F_T = lambda x, t: x * s(T.cos() * T.sin() * (1 - sd**2) / size)  # noqa: E731
    x, exact = normal(), Exact()
    g = tangent(exact, F_T, x, T, exact)
    torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-12)
    if sd != 1.0:
        wrong = tangent(lambda x, t: 1.1 * exact(x, t), F_T, x, T, exact)
        assert float(wrong.abs().max()) > 1e-2


def test_the_gradient_of_the_loss():
    net = student()
    F = velocity_of(net)
    x = normal()
    g = tangent(F, velocity_of(ring()), x, T, net)
    parameters = [p for p in net.parameters() if p.requires_grad]
    still = F(x, T).detach()
    loss = continuous_loss(F(x, T), still, g)
    torch.testing.assert_close(loss.detach(), g.square().mean(), rtol=1e-12, atol=0)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    expected = torch.autograd.grad((-2 * g * F(x, T)).mean(), parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert max(float(y.abs().max()) for y in found) > 1e-4


def test_normalisations():
    g = normal() * torch.tensor([[0.0], [0.01], [1.0], [10.0], [1e4]], dtype=F64)
    length = g.norm(dim=1)
    torch.testing.assert_close(normalise_tangent(g, "norm").norm(dim=1), length / (length + 0.1), rtol=1e-12, atol=1e-15)
    root = normalise_tangent(g, "root", 0.1).norm(dim=1)
    torch.testing.assert_close(root**2, length**2 / (length**2 + 0.1), rtol=1e-12, atol=1e-15)  # the paper's remark
    assert torch.equal(normalise_tangent(g, "clamp"), g.clamp(-1, 1)) and torch.equal(normalise_tangent(g, "none"), g)
    long = length > 3
    assert bool(((normalise_tangent(g).norm(dim=1) / root)[long] > 0.97).all())
    images = g.reshape(5, 1, 2, 1)
    torch.testing.assert_close(normalise_tangent(images).reshape(5, 2), normalise_tangent(g))  # one norm per sample
    big = torch.full((1, 100_000), 1e17, dtype=torch.float32)
    assert float(normalise_tangent(1e3 * big).norm()) == pytest.approx(1.0, rel=1e-4)  # its square overflows float32


def test_times_stay_away_from_both_ends():
    t = angle(torch.tensor([0.0, -1.0, 1e-5, 1.0, math.pi / 2, 2.0]))
    torch.testing.assert_close(t, torch.tensor([1e-4, 1e-4, 1e-4, 1.0, math.pi / 2 - 1e-4, math.pi / 2 - 1e-4], dtype=F64))
    x = normal(n=6)
    F = velocity_of(student())
    value, dF = derivative(F, x, t, x, t.cos() * t.sin(), network=student())
    g = consistency_tangent(value, x, x, t, dF)
    assert bool(value.isfinite().all() and g.isfinite().all())
    with pytest.raises(LimbeckError, match="t=0: the velocity divides by sin t; keep times within"):
        F(x, torch.zeros(6, dtype=F64))


def test_bad_input():
    F, x = normal(1), normal(2)
    with pytest.raises(LimbeckError, match="unknown warm-up 'rcn'"):
        consistency_tangent(F, F, x, T, F, 1.0, "rcn")
    with pytest.raises(LimbeckError, match="the warm-up r is 1.5: it goes from 0 to 1"):
        consistency_tangent(F, F, x, T, F, 1.5)
    with pytest.raises(LimbeckError, match="unknown normalisation of the tangent 'nrm'"):
        normalise_tangent(F, "nrm")
    with pytest.raises(LimbeckError, match="c=0: the constant beside the tangent's length must be positive"):
        normalise_tangent(F, "norm", 0.0)
    with pytest.raises(LimbeckError, match=r"a denoiser in TrigFlow\(0.5\) is expected, not in VE"):
        trig_velocity(ring(), x, T, sigma_data=0.5)
    with pytest.raises(LimbeckError, match=r"a denoiser in TrigFlow\(0.5\) is expected"):
        trig_velocity(in_process(ring(), TrigFlow(1.0)), x, T, sigma_data=0.5)
