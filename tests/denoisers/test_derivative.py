"""The derivative along a path: forward mode and differences against central differences, and what it refuses."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.denoisers import Preconditioned, derivative
from limbeck.errors import LimbeckError
from limbeck.networks import DiT, ResidualMLP, RngCapture, UNet
from limbeck.noise import VE

F64 = torch.float64
NETS = {
    "mlp": lambda **o: ResidualMLP((1, 4, 4), width=8, blocks=2, **o),
    "unet": lambda **o: UNet((1, 4, 4), channels=4, multipliers=(1, 2), attention=(2,), **o),
    "dit": lambda **o: DiT((1, 4, 4), width=8, blocks=2, heads=2, **o),
}


def denoiser(kind="mlp", seed=0, **options):
    torch.manual_seed(seed)
    made = Preconditioned(NETS[kind](**options), VE(), "edm", 0.5).double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.2)
    return made


def points(dtype=F64):
    g = torch.Generator().manual_seed(1)
    x, velocity = (torch.randn(3, 1, 4, 4, generator=g, dtype=F64).to(dtype) for _ in range(2))
    return x, torch.tensor([0.2, 0.7, 1.4], dtype=F64), velocity


def path_of(net):
    """A function of time through coefficients and network, differentiable in both."""
    return lambda x, t: t.cos()[:, None, None, None].to(x) * net(x, t) + x


def central(function, x, t, velocity, scale, e=1e-5):
    c = scale[:, None, None, None]
    with torch.no_grad():
        return (function(x + e * c * velocity, t + e * scale) - function(x - e * c * velocity, t - e * scale)) / (2 * e)


@pytest.mark.parametrize("attention", ["tiled", "math"])
@pytest.mark.parametrize("kind", NETS)
def test_forward_mode_is_the_derivative(kind, attention):
    net = denoiser(kind)
    x, t, velocity = points()
    scale = t.cos() * t.sin()
    value, found = derivative(path_of(net), x, t, velocity, scale, network=net, attention=attention)
    assert torch.equal(value, path_of(net)(x, t).detach()) or torch.allclose(value, path_of(net)(x, t), rtol=1e-12)
    expected = central(path_of(net), x, t, velocity, scale)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    assert float(expected.abs().max()) > 1e-2
    assert not value.requires_grad and not found.requires_grad and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("form", ["semi", "discrete"])
def test_differences_come_closer_in_proportion_to_h(form):
    net = denoiser()
    x, t, velocity = points()
    exact = derivative(path_of(net), x, t, velocity, 0.5, network=net)[1]
    gaps = []
    for h in (1e-2, 1e-3, 1e-4):
        value, found = derivative(path_of(net), x, t, velocity, 0.5, network=net, form=form, h=h)
        torch.testing.assert_close(value, path_of(net)(x, t).detach(), rtol=1e-13, atol=1e-13)
        gaps.append(float((found - exact).abs().max()))
    assert 8 < gaps[0] / gaps[1] < 12 and 8 < gaps[1] / gaps[2] < 12 and gaps[2] < 1e-3


def test_semi_continuous_is_exact_in_x():
    net = denoiser()
    x, t, velocity = points()
    still = lambda x, t: net(x, torch.full_like(t, 0.5))  # noqa: E731
    exact = derivative(still, x, t, velocity, 0.5, network=net)[1]
    value, found = derivative(still, x, t, velocity, 0.5, network=net, form="semi")
    # (cos h F - F) / sin h = -tan(h / 2) F is left of the difference in time
    torch.testing.assert_close(found, exact - 0.5 * math.tan(0.5e-4) * value, rtol=1e-9, atol=1e-10)


def test_discrete_differences_make_the_discrete_tangent_exact():
    """(f(x, t) - f(x', t - h)) / sin h, x' = cos h x - sin h F_T, is its formula in F for every h, not only a small one."""
    net, h = denoiser(), 0.1
    x, t, velocity = points()
    s = lambda y: y[:, None, None, None]  # noqa: E731
    f = lambda x, t: s(t.cos()) * x - s(t.sin()) * path_of(net)(x, t)  # noqa: E731
    value, dF = derivative(path_of(net), x, t, velocity, network=net, form="discrete", h=h)
    low = t - h
    expected = -s(low.sin()) * (x + dF) - s(low.cos()) * (value - velocity)
    with torch.no_grad():
        found = (f(x, t) - f(math.cos(h) * x - math.sin(h) * velocity, low)) / math.sin(h)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_the_step_never_passes_zero():
    net = denoiser()
    x, t, velocity = points()
    seen = []
    function = lambda x, t: (seen.append(t.clone()), path_of(net)(x, t))[1]  # noqa: E731
    derivative(function, x, torch.full_like(t, 1e-4), velocity, network=net, form="discrete", h=1e-2)
    torch.testing.assert_close(seen[1], torch.full_like(t, 0.5e-4))


@pytest.mark.parametrize("form", ["full", "semi", "discrete"])
def test_every_call_sees_the_dropout_of_the_random_state(form):
    net = denoiser(dropout=0.5).train()
    x, t, velocity = points()
    torch.manual_seed(4)
    rng = RngCapture()
    value, found = derivative(path_of(net), x, t, velocity, 0.5, network=net, form=form, rng=rng)
    torch.testing.assert_close(value, path_of(net)(x, t), rtol=1e-12, atol=1e-12)  # the next call has the same masks
    other = path_of(net)(x, t)
    assert float((value - other).abs().max()) > 1e-3
    with rng.replay():
        masked = [m.clone() for m in (path_of(net)(x, t),)]
    torch.testing.assert_close(masked[0], value, rtol=1e-12, atol=1e-12)

    def under_one_mask(x, t):
        with rng.replay():
            return path_of(net)(x, t)

    expected = central(under_one_mask, x, t, velocity, torch.full_like(t, 0.5))
    tolerance = 1e-7 if form == "full" else 3e-3
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["own", "torch's"])
def test_dropout_without_a_random_state(kind):
    net = denoiser(dropout=0.5 if kind == "own" else 0.0).train()
    if kind != "own":
        net.network.output = nn.Sequential(nn.Dropout(0.1), net.network.output)
    x, t, velocity = points()
    with pytest.raises(LimbeckError, match=r"dropout is active .*rng=RngCapture\(\).*or put the network in eval mode"):
        derivative(path_of(net), x, t, velocity, network=net)
    derivative(path_of(net), x, t, velocity, network=net.eval())


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Old(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Layer(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def attention_with_dropout(x):
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.0)[:, 0]


@pytest.mark.parametrize("function", [Cube.apply, Old.apply])
def test_the_layer_without_forward_mode_is_named(function):
    net = denoiser()
    net.network.blocks[1].outer = nn.Sequential(net.network.blocks[1].outer, Layer(function))
    x, t, velocity = points()
    message = r"the module 'network\.blocks\.1\.outer\.1' \(Layer\) has no forward-mode derivative .*jvp='discrete'"
    with pytest.raises(LimbeckError, match=message):
        derivative(path_of(net), x, t, velocity, network=net)
    hooks = [h for m in net.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks
    derivative(path_of(net), x, t, velocity, network=net, form="discrete")  # as the message says


def test_other_errors_pass_through():
    net = denoiser()
    x, t, velocity = points()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        derivative(lambda x, t: x.flatten(1) @ x.flatten(1), x, t, velocity, network=net)


def test_compiled_networks():
    x, t, velocity = points()
    net = denoiser()
    inner = nn.Sequential()
    inner.add_module("compiled", torch.compile(nn.Linear(2, 2)))
    whole = denoiser()
    whole.compile()
    for bad in (inner, whole):
        with pytest.raises(LimbeckError, match=r"forward mode does not go through torch.compile: .*jvp='discrete'"):
            derivative(path_of(net), x, t, velocity, network=bad)
    derivative(path_of(net), x, t, velocity, network=inner, form="discrete")


def test_a_time_embedding_in_half_precision():
    x, t, velocity = points(torch.float32)
    net = denoiser().float()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        derivative(path_of(net), x, t, velocity, network=net)
        net.compute_dtype = torch.bfloat16  # the library's own embedding stays in float32
        derivative(path_of(net), x, t, velocity, network=net)
    foreign = Preconditioned(nn.Identity(), VE(), "edm", 0.5, compute_dtype=torch.bfloat16)
    net.network.conditioning.bfloat16()
    for bad in (foreign, net):
        with pytest.warns(UserWarning, match="the time embedding runs in half precision"):
            derivative(lambda x, t: x, x, t, velocity, network=bad)


def test_a_difference_in_half_precision():
    x, t, velocity = points(torch.float32)
    net = denoiser().float()
    net.compute_dtype = torch.bfloat16
    with pytest.warns(UserWarning, match=r"a difference over h=0.0001 is smaller than what half precision rounds"):
        derivative(path_of(net), x, t, velocity, network=net, form="discrete")


def test_half_precision_keeps_the_embedding():
    net = denoiser("dit").float()
    x, t, velocity = points(torch.float32)
    expected = derivative(path_of(net), x, t, velocity, network=net)[1]
    net.compute_dtype = torch.bfloat16
    found = derivative(path_of(net), x, t, velocity, network=net)[1]
    assert float((found - expected).norm() / expected.norm()) < 0.03


def test_unknown_names():
    net = denoiser()
    x, t, velocity = points()
    with pytest.raises(LimbeckError, match="unknown form of the derivative 'ful': did you mean 'full'"):
        derivative(path_of(net), x, t, velocity, network=net, form="ful")
    with pytest.raises(LimbeckError, match="unknown attention 'tile': did you mean 'tiled'"):
        derivative(path_of(net), x, t, velocity, network=net, attention="tile")
