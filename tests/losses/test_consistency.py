"""Consistency losses: values by hand, one dropout mask, and three closed forms of what they learn."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.errors import LimbeckError
from limbeck.losses import consistency_loss, pseudo_huber, squared
from limbeck.networks import ResidualMLP
from limbeck.noise import VE, karras_grid, lognormal_cells, spread

F64 = torch.float64
EPS, SD = 0.002, 0.5


def test_distances_by_hand():
    x = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]], dtype=F64)  # norms 5 and 0
    y = torch.zeros_like(x)
    torch.testing.assert_close(pseudo_huber(x, y, c=12.0), torch.tensor([1.0, 0.0], dtype=F64))
    each = [math.sqrt(9 + 16) - 4, 0.0, 0.0, math.sqrt(32) - 4]
    torch.testing.assert_close(pseudo_huber(x, y, 4.0, "element"), torch.tensor([sum(each) / 4, 0.0], dtype=F64))
    torch.testing.assert_close(squared(x, y), torch.tensor([25 / 4, 0.0], dtype=F64))
    c = 0.00054 * 2  # four elements
    torch.testing.assert_close(pseudo_huber(x, y)[0], torch.tensor(math.sqrt(25 + c**2) - c, dtype=F64), rtol=1e-14, atol=0)
    with pytest.raises(LimbeckError, match="unknown reduction 'samples': did you mean 'sample'"):
        pseudo_huber(x, y, reduce="samples")


class Net(nn.Module):
    """A consistency function whose network has dropout."""

    null = None

    def __init__(self, p=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Dropout(p), nn.Linear(64, 2))

    def forward(self, x, c_noise, cond=None):
        return self.net(torch.cat([x, c_noise[:, None].to(x)], 1))


def pair(gap, count=8):
    torch.manual_seed(1)
    x, e = torch.randn(count, 2, dtype=F64), torch.randn(count, 2, dtype=F64)
    high = torch.linspace(0.5, 3.0, count, dtype=F64)
    low = high - gap
    return x + high[:, None] * e, high, x + low[:, None] * e, low


def test_both_points_see_one_dropout_mask():
    f = Preconditioned(Net(0.9), VE(), "consistency", SD).double().train()
    losses = [float(consistency_loss(f, f, *pair(gap)).detach()) for gap in (1e-2, 1e-4, 1e-6)]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 1e-5
    x_high, high, x_low, low = pair(1e-6)
    independent = float(pseudo_huber(f(x_high, high), f(x_low, low)).mean().detach())
    assert independent > 0.1


def test_only_the_larger_noise_is_differentiated():
    f = Preconditioned(Net(), VE(), "consistency", SD).double()
    x_high, high, x_low, low = pair(0.3)
    weight = torch.linspace(1, 2, len(high), dtype=F64)
    consistency_loss(f, f, x_high, high, x_low, low, weight=weight).backward()
    got = [p.grad.clone() for p in f.parameters()]
    target = f(x_low, low).detach()
    distance = (torch.sqrt((f(x_high, high) - target).square().sum(1) + (0.00054**2 * 2)) * weight).mean()
    for one, other in zip(got, torch.autograd.grad(distance, list(f.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    both = pseudo_huber(f(x_high, high), f(x_low, low))
    through_both = torch.autograd.grad((both * weight).mean(), list(f.parameters()))
    assert max(float((a - b).abs().max()) for a, b in zip(got, through_both, strict=True)) > 1e-2


def test_conditions_reach_both_calls():
    seen = []

    class Spy(ResidualMLP):
        def forward(self, x, c_noise, cond=None):
            seen.append(cond["label"].tolist())
            return super().forward(x, c_noise, cond)

    f = Preconditioned(Spy((2,), width=4, blocks=1, classes=3), VE(), "consistency", SD).double()
    consistency_loss(f, f, *pair(0.1, 3), {"label": torch.tensor([2, 0, 1])})
    assert seen == [[2, 0, 1], [2, 0, 1]]


def test_half_precision_is_compared_in_float32():
    f = Preconditioned(Net(), VE(), "consistency", SD).bfloat16()
    x_high, high, x_low, low = pair(0.3)
    seen = []

    def distance(x, y):
        seen.append((x.dtype, y.dtype))
        return squared(x, y)

    consistency_loss(f, f, x_high.bfloat16(), high, x_low.bfloat16(), low, distance=distance).backward()
    assert seen == [(torch.float32, torch.float32)]


@pytest.mark.parametrize("gap", [0.0, -0.1])
def test_points_in_the_wrong_order(gap):
    f = Preconditioned(Net(), VE(), "consistency", SD).double()
    with pytest.raises(LimbeckError, match="t_low below t_high in noise"):
        consistency_loss(f, f, *pair(gap))


class PointMass(nn.Module):
    """f(x, t) = (eps/t) x + (1 - eps/t) theta: iCT's counter-example, data = one point xi (arXiv 2310.14189, Section 3.2)."""

    null = None
    process = VE()

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=F64))

    def forward(self, x, t, cond=None):
        share = (EPS / t)[:, None]
        return share * x + (1 - share) * self.theta


def scaled_gradient(points, shift, xi=1.0, theta=0.3):
    """The mean over the grid's cells of d/dtheta of the consistency loss over its cell's width."""
    grid = karras_grid(points).flip(0)
    low, high = grid[:-1], grid[1:]
    e = torch.linspace(-2, 2, points - 1, dtype=F64)[:, None]  # its share cancels, whatever it is
    f, target = PointMass(theta), PointMass(theta + shift)
    x_high, x_low = xi + high[:, None] * e, xi + low[:, None] * e
    consistency_loss(f, target, x_high, high, x_low, low, distance=squared, weight=1 / (high - low)).backward()
    return float(f.theta.grad)


def test_the_gradient_of_a_point_mass_converges_and_points_to_it():
    sizes = {64: -7.09, 128: -6.23, 256: -5.77, 512: -5.55, 1024: -5.43, 4096: -5.35}
    found = {n: scaled_gradient(n, 0.0) for n in sizes}
    for n, known in sizes.items():
        assert found[n] == pytest.approx(known, abs=0.005)
    assert abs(found[256] / found[128] - 1) < 0.08
    assert abs(found[512] / found[256] - 1) < 0.05 and abs(found[1024] / found[512] - 1) < 0.05
    assert scaled_gradient(256, 0.0, xi=-1.0) > 0  # to the other side where the data are there


def test_with_an_average_as_its_target_the_gradient_of_a_point_mass_diverges():
    known = {64: -13.0, 128: -18.5, 256: -30.6, 512: -55.4, 1024: -105.3, 4096: -405.3}
    for n, value in known.items():
        assert scaled_gradient(n, 0.1) == pytest.approx(value, abs=0.05)
    near, far = scaled_gradient(4096, 0.1, xi=1.0), scaled_gradient(4096, 0.1, xi=3.0)
    assert near / far > 0.9  # it hardly depends on the data, which differ by 2 / 0.7 of the error


class Linear(nn.Module):
    """f(x, t) = x (1 + e^u (t^2 - eps^2))^-p; exact for N(0, sd^2) data at e^-u = sd^2 + eps^2, p = 1/2."""

    null = None
    process = VE()

    def __init__(self, u=0.0, p=0.3):
        super().__init__()
        self.u, self.p = nn.Parameter(torch.tensor(u, dtype=F64)), nn.Parameter(torch.tensor(p, dtype=F64))

    def forward(self, x, t, cond=None):
        return spread((1 + self.u.exp() * (t**2 - EPS**2)) ** -self.p, x) * x


def all_pairs(points):
    """Every cell of the grid with 16 points of (x_0, e) that stand for two normal numbers; weights p(i) / width."""
    grid = karras_grid(points).flip(0)
    weight = lognormal_cells(grid) * (points - 1) / (grid[1:] - grid[:-1])
    radius = torch.sqrt(-2 * torch.log(torch.tensor([0.75, 0.25], dtype=F64)))[:, None]
    angle = torch.arange(8, dtype=F64) * math.pi / 4 + 0.1
    x, e = (SD * radius * angle.cos()).flatten(), (radius * angle.sin()).flatten()
    i = torch.arange(points - 1).repeat_interleave(16)
    x, e = x.repeat(points - 1)[:, None], e.repeat(points - 1)[:, None]
    low, high = grid[i], grid[i + 1]
    return (x + high[:, None] * e, high, x + low[:, None] * e, low), weight[i]


def exact_gain(t):
    return torch.sqrt((SD**2 + EPS**2) / (SD**2 + t**2))


def test_a_linear_student_learns_the_exact_gain_of_gaussian_data():
    f, (points, weight), steps = Linear(), all_pairs(321), 120
    optimizer = torch.optim.Adam(f.parameters())
    t = karras_grid(60)
    gain = lambda: f(torch.ones(60, 1, dtype=F64), t).detach()[:, 0]  # noqa: E731
    assert float((gain() / exact_gain(t) - 1).abs().max()) > 0.5
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 0.12 * (1 - k / steps)
        optimizer.zero_grad()
        consistency_loss(f, f, *points, weight=weight).backward()
        optimizer.step()
    torch.testing.assert_close(gain(), exact_gain(t), rtol=0.02, atol=0)


def test_the_loss_of_the_exact_consistency_function_vanishes_with_the_grid():
    f = Linear(-math.log(SD**2 + EPS**2), 0.5)
    t = karras_grid(9)
    torch.testing.assert_close(f(torch.ones(9, 1, dtype=F64), t).detach()[:, 0], exact_gain(t), rtol=1e-12, atol=0)
    losses = [float(consistency_loss(f, f, *all_pairs(n)[0], distance=squared).detach()) for n in (65, 129, 257)]
    # the squared gap of neighbouring points shrinks with the square of the cells' width
    assert 3.5 < losses[0] / losses[1] < 4.5 and 3.5 < losses[1] / losses[2] < 4.5


def gain_gradient(u, u_target, pairs):
    f = Linear(u, 0.5)
    consistency_loss(f, Linear(u_target, 0.5), *pairs, distance=squared).backward()
    return float(f.u.grad)


def rest(lag, points):
    """How far from the exact gain the gradient vanishes, for a target that trails the student's parameter by ``lag``."""
    pairs, low, high = all_pairs(points)[0], -4.0, 6.0
    for _ in range(30):
        u = (low + high) / 2
        low, high = (low, u) if gain_gradient(u, u - lag, pairs) > 0 else (u, high)
    return u + math.log(SD**2 + EPS**2)


def test_a_target_that_trails_the_student_moves_where_the_gradient_vanishes():
    """An average lags while the student moves; the finer the grid, the further from the exact gain that pulls it."""
    free, trailing = [[rest(lag, n) for n in (17, 33, 65)] for lag in (0.0, 0.02)]
    for coarse, fine in pairwise(free):
        assert coarse / fine == pytest.approx(2, abs=0.15)  # what the grid's width leaves, without a lag
    lagging = [b - a for a, b in zip(free, trailing, strict=True)]
    assert -0.2 > lagging[0] > 2 * lagging[1] > 4 * lagging[2]


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_where_training_comes_to_rest_an_average_has_caught_up(mu):
    """With the gradient of all pairs the fixed point itself is the same for every mu: the lag is the bias."""
    pairs, u, average = all_pairs(17)[0], 0.0, 0.0
    for _ in range(350):
        u -= 8 * gain_gradient(u, average, pairs)
        average = mu * average + (1 - mu) * u
    assert u + math.log(SD**2 + EPS**2) == pytest.approx(rest(0.0, 17), abs=4e-3)


def test_the_norm_itself_has_a_gradient_where_both_points_agree():
    x = torch.tensor([[3.0, 4.0], [1.0, 1.0]], dtype=F64, requires_grad=True)
    y = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64)
    for reduce, values, slope in (("sample", [5.0, 0.0], 0.6), ("element", [3.5, 0.0], 0.5)):
        found = pseudo_huber(x, y, 0.0, reduce)
        torch.testing.assert_close(found.detach(), torch.tensor(values, dtype=F64))
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert float(gradient[0, 0]) == pytest.approx(slope) and gradient[1].tolist() == [0.0, 0.0]
    with pytest.raises(LimbeckError, match="unknown reduction"):
        pseudo_huber(x, y, 0.0, "mean")
