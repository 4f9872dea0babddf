"""Score implicit matching: the gradient theorem by quadrature, its mutation, and its reductions."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.denoisers import MixtureDenoiser, Reconditioned
from limbeck.errors import LimbeckError
from limbeck.noise import VE, RectifiedFlow
from limbeck.rules import Sample, ScoreIdentity, ScoreImplicit, evaluating, fixed_target
from limbeck.rules.implicit import DISTANCES, distance_slope

F64 = torch.float64
MU, S, SIGMA = 0.4, 0.9, 0.7


class Normal(nn.Module):
    """The exact denoiser of N(mean, std^2) in one dimension, its two numbers as parameters."""

    def __init__(self, mean, std, process=None):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean, dtype=F64)), nn.Parameter(torch.tensor(std, dtype=F64))
        self.process, self.null = process or VE(), None

    def forward(self, x, t, cond=None):
        a, s = self.process.a(t)[:, None], self.process.s(t)[:, None]
        return self.mean + a * self.std**2 / (a**2 * self.std**2 + s**2) * (x - a * self.mean)


def mixture():
    return MixtureDenoiser(torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([[-2.0], [1.0]], dtype=F64), 0.5, VE())


def by_sampling(slope, points=80):
    """The gradient with respect to (mean, std) that the rule's pull has over z and e on Gauss-Hermite nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    nodes, weights = torch.tensor(nodes, dtype=F64), torch.tensor(weights, dtype=F64) / math.sqrt(2 * math.pi)
    z, e = [v.reshape(-1, 1) for v in torch.meshgrid(nodes, nodes, indexing="ij")]
    mass = torch.outer(weights, weights).reshape(-1, 1) / SIGMA**2  # and the factor a / s^2 that the rule leaves to w
    rule = ScoreImplicit(mixture(), Normal(MU, S), distance=slope, space="score")
    pull = rule(Sample(MU + S * z), torch.full((len(z),), SIGMA, dtype=F64), e).gradient
    return float((mass * pull).sum()), float((mass * pull * z).sum())


@cache
def by_quadrature(name, power=2.0):
    """d/d(mean, std) of the integral of pi d(S_p - S_q), pi the noised N(MU, S^2) held fixed, on a fine grid."""
    x = torch.linspace(-9, 9, 20_001, dtype=F64)
    total = math.sqrt(S**2 + SIGMA**2)
    pi = torch.exp(-0.5 * ((x - MU) / total) ** 2) / (total * math.sqrt(2 * math.pi))
    var = 0.5 + SIGMA**2
    log_q = torch.logsumexp(torch.stack([math.log(w) - 0.5 * (x - m) ** 2 / var for w, m in ((0.3, -2.0), (0.7, 1.0))]), 0)
    (r0, r1) = (torch.exp(math.log(w) - 0.5 * (x - m) ** 2 / var - log_q) for w, m in ((0.3, -2.0), (0.7, 1.0)))
    score_q = (r0 * (-2.0 - x) + r1 * (1.0 - x)) / var
    mu, s = torch.tensor(MU, dtype=F64, requires_grad=True), torch.tensor(S, dtype=F64, requires_grad=True)
    y = -(x - mu) / (s**2 + SIGMA**2) - score_q
    d = {"l2": y**2, "power": y.abs() ** power, "pseudo_huber": torch.sqrt(y**2 + 1) - 1}[name]
    value = (pi * d).sum() * (x[1] - x[0])
    return tuple(float(g) for g in torch.autograd.grad(value, (mu, s)))


@pytest.mark.parametrize(
    ("name", "options", "measured", "detached"),
    [
        ("l2", {}, (-0.099117, -1.037747), -0.518873),
        ("power", {"power": 4.0}, (1.203220, -3.912425), -1.956213),
        ("pseudo_huber", {"c": 1.0}, (-0.097554, -0.333467), -0.166731),
    ],
)
def test_the_gradient_theorem_and_the_mutation_that_breaks_it(name, options, measured, detached):
    slope = distance_slope(name, **options)
    exact, got = by_quadrature(name, options.get("power", 2.0)), by_sampling(slope)
    assert exact == pytest.approx(measured, abs=1e-5)
    assert got == pytest.approx(exact, abs=1e-4)
    # with d' held constant the gradient of the mean survives, that of the width is half of what it is
    broken = by_sampling(lambda y: slope(y).detach() + 0 * y)
    assert broken[0] == pytest.approx(exact[0], abs=1e-4)
    assert broken[1] == pytest.approx(detached, abs=1e-5)
    assert broken[1] != pytest.approx(exact[1], abs=1e-4)


def points(rows=5, dim=3):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    t = 0.3 + torch.rand(rows, generator=generator, dtype=F64)
    return Sample(draw(rows, dim)), t, draw(rows, dim)


@pytest.mark.parametrize("weight", ["none", "sid"])
def test_the_squared_distance_is_sid_with_alpha_one(weight):
    at, teacher, critic = points(), Normal(0.3, 1.0), Normal(-0.2, 0.7)
    sim = ScoreImplicit(teacher, critic, distance="l2", weight=weight)(*at)
    sid = ScoreIdentity(teacher, critic, alpha=1.0, weight=weight)(*at)
    torch.testing.assert_close(sim.gradient, 2 * sid.gradient, rtol=1e-12, atol=1e-13)
    assert float(sid.gradient.abs().max()) > 0.1
    assert all(torch.equal(sim.logs[name], sid.logs[name]) for name in ("gap", "critic_lag"))


def test_pseudo_huber_between_its_limits():
    at, teacher, critic = points(), Normal(0.3, 1.0), Normal(-0.2, 0.7)
    pull = lambda **options: ScoreImplicit(teacher, critic, **options)(*at).gradient  # noqa: E731
    torch.testing.assert_close(2e6 * pull(c=1e6), pull(distance="l2"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pull(c=1e-7), pull(distance="unit"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pull(), pull(c=0.00054 * math.sqrt(3)), rtol=1e-14, atol=0)
    assert float((pull(c=0.1) - pull(distance="unit")).abs().max()) > 1e-3


def test_powers_meet_the_other_distances():
    y = torch.randn(4, 2, 3, dtype=F64)
    of = lambda name, **options: distance_slope(name, **options)(y)  # noqa: E731
    torch.testing.assert_close(of("power", power=2.0), of("l2"))
    torch.testing.assert_close(of("power", power=1.0), of("unit"))
    torch.testing.assert_close(of("power_each", power=2.0), of("l2"))
    torch.testing.assert_close(of("power_each", power=1.0), y.sign())
    torch.testing.assert_close(of("huber", c=1e3), y)
    torch.testing.assert_close(of("log_cosh", c=1e5), y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(of("unit").flatten(1).norm(dim=1), torch.ones(4, dtype=F64))


@pytest.mark.parametrize("name", DISTANCES)
def test_every_slope_is_the_gradient_of_its_distance(name):
    c, k = 0.7, 3.0
    y = torch.randn(6, 4, dtype=F64, requires_grad=True)
    norm = y.square().sum(1).sqrt()
    inside = y.abs() <= c
    d = {
        "l2": norm**2,
        "pseudo_huber": torch.sqrt(norm**2 + c**2) - c,
        "unit": norm,
        "power": norm**k,
        "power_each": (y.abs() ** k).sum(1),
        "huber": torch.where(inside, y**2 / 2, c * y.abs() - c**2 / 2).sum(1),
        "log_cosh": (c**2 * torch.cosh(y / c).log()).sum(1),
    }[name]
    (expected,) = torch.autograd.grad(d.sum(), y)
    torch.testing.assert_close(distance_slope(name, c, k)(y.detach()), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("power", [1.0, 1.5])
def test_equal_networks_pull_nowhere_and_nothing_is_nan(name, power):
    same = Normal(0.2, 0.8)
    for space in ("x0", "score"):
        pull = ScoreImplicit(same, same, distance=name, power=power, space=space)(*points())
        assert float(pull.gradient.abs().max()) == 0.0  # not nan either


@pytest.mark.parametrize("process", [VE(), RectifiedFlow()])
def test_c_in_score_space_is_c_s_squared_over_a_in_x0_space(process):
    sample, t, eps = points()
    t = t / 2
    teacher, critic = Normal(0.3, 1.0, process), Normal(-0.2, 0.7, process)
    together = ScoreImplicit(teacher, critic, c=0.5, space="score")(sample, t, eps).gradient
    for i in range(len(t)):
        one = Sample(sample.x[i : i + 1]), t[i : i + 1], eps[i : i + 1]
        c = 0.5 * float(process.s(t[i]) ** 2 / process.a(t[i]))
        torch.testing.assert_close(together[i : i + 1], ScoreImplicit(teacher, critic, c=c)(*one).gradient)


def test_a_sample_at_a_level_takes_its_exact_target():
    # N(0, 0.5^2) made clean, or made at sigma 0.3 with its own width and noised from there: one law, one mean gradient
    teacher, level = Normal(0.0, 1.0), 0.3
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    nodes, weights = torch.tensor(nodes, dtype=F64), torch.tensor(weights, dtype=F64) / math.sqrt(2 * math.pi)
    z, e = [v.reshape(-1, 1) for v in torch.meshgrid(nodes, nodes, indexing="ij")]
    mass, t = torch.outer(weights, weights).reshape(-1, 1), torch.full((1600,), SIGMA, dtype=F64)
    rule = ScoreImplicit(teacher, Normal(0.0, 0.5), distance="power", power=4.0)
    clean = rule(Sample(0.5 * z), t, e).gradient
    width = math.sqrt(0.5**2 + level**2)
    noisy = rule(Sample(width * z, level=torch.full((1600,), level, dtype=F64)), t, e).gradient
    # both are gradients with respect to a factor on z: d/d(std of the clean part) = std / width of the whole
    assert float((mass * noisy * z).sum()) * 0.5 / width == pytest.approx(float((mass * clean * z).sum()), rel=1e-9)


def test_no_parameter_gets_a_gradient_and_dropout_is_off():
    class Dropping(Normal):
        def __init__(self, *args):
            super().__init__(*args)
            self.drop = nn.Dropout(0.5)

        def forward(self, x, t, cond=None):
            return self.drop(super().forward(x, t, cond))

    teacher, critic = Normal(0.3, 1.0), Dropping(-0.2, 0.7)
    pull = ScoreImplicit(teacher, critic)(*points())
    assert torch.equal(pull.gradient, ScoreImplicit(teacher, Normal(-0.2, 0.7))(*points()).gradient)
    assert critic.training and critic.drop.training and not pull.gradient.requires_grad
    assert all(p.grad is None and p.requires_grad for p in [*teacher.parameters(), *critic.parameters()])
    critic.drop.eval()
    with pytest.raises(ZeroDivisionError), evaluating(critic):
        raise ZeroDivisionError
    assert critic.training and not critic.drop.training


def test_a_goal_is_what_the_teacher_alone_is_asked_for():
    class Shifted(Normal):
        def forward(self, x, t, cond=None):
            return super().forward(x, t, cond) + cond["label"][:, None]

    sample, t, eps = points()
    label, goal = torch.arange(5), torch.arange(5).flip(0)
    teacher, critic = Shifted(0.3, 1.0), Shifted(-0.2, 0.7)
    for rule in (ScoreImplicit(teacher, critic), ScoreIdentity(teacher, critic)):
        got = rule(Sample(sample.x, {"label": label}, goal={"label": goal}), t, eps).gradient
        told = Reconditioned(teacher, lambda cond: {"label": goal})
        rule.target = fixed_target(told)
        assert torch.equal(got, rule(Sample(sample.x, {"label": label}), t, eps).gradient)


def test_a_distance_of_your_own():
    at, teacher, critic = points(), Normal(0.3, 1.0), Normal(-0.2, 0.7)
    own = ScoreImplicit(teacher, critic, distance=lambda y: y / torch.sqrt(1 + y.square().sum(1, keepdim=True)))(*at)
    torch.testing.assert_close(own.gradient, ScoreImplicit(teacher, critic, c=1.0)(*at).gradient)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "l3"}, "unknown score distance 'l3'"),
        ({"weight": "sidd"}, "unknown SIM weight 'sidd': did you mean 'sid'"),
        ({"space": "eps"}, "unknown space of the distance 'eps'"),
        ({"c": -1.0}, "scale c of a distance cannot be negative: -1"),
        ({"c": 0.0}, "pseudo_huber with c = 0 is not differentiable at 0; give c > 0, or ask for the distance 'unit'"),
        ({"distance": "power", "power": 0.5}, "k = 0.5 is no distance to descend; give a power of at least 1"),
        ({"distance": lambda y: y.square().sum()}, r"by its gradient d'\(y\), of the shape of y; yours answered \(\)"),
        ({"distance": lambda y: y.detach()}, "carries no gradient with respect to y"),
    ],
)
def test_bad_distances(options, message):
    with pytest.raises(LimbeckError, match=message):
        ScoreImplicit(Normal(0.0, 1.0), Normal(0.0, 1.0), **options)
