"""Score rules against closed forms, quadrature and finite differences."""

import math

import pytest
import torch
from torch import nn

from limbeck.denoisers import InProcess
from limbeck.errors import LimbeckError
from limbeck.noise import VE, RectifiedFlow
from limbeck.rules import (
    DIVERGENCES,
    DistributionMatching,
    Sample,
    ScoreIdentity,
    density_ratio,
    divergence,
    frozen,
    huber_surrogate,
    input_gradient,
    surrogate,
)

F64 = torch.float64


class Gaussian(nn.Module):
    """The exact denoiser of N(mean, std^2) in any process, its two numbers as parameters."""

    def __init__(self, mean=0.0, std=1.0, process=None, null=None):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean, dtype=F64)), nn.Parameter(torch.tensor(std, dtype=F64))
        self.process, self.null, self.calls = process or VE(), null, 0

    def forward(self, x, t, cond=None):
        self.calls += 1
        a, s = self.process.a(t)[:, None], self.process.s(t)[:, None]
        mean = self.mean if cond is None else self.mean + cond["label"][:, None]
        return mean + a * self.std**2 / (a**2 * self.std**2 + s**2) * (x - a * mean)


def test_surrogate_has_the_pull_as_its_gradient():
    x = torch.randn(4, 3, 2, dtype=F64, requires_grad=True)
    g = torch.randn(4, 3, 2, dtype=F64, requires_grad=True)
    surrogate(x, g).backward()
    torch.testing.assert_close(x.grad, g.detach() / x.numel(), rtol=1e-15, atol=0)
    assert g.grad is None and float(x.grad.abs().min()) > 0


def test_score_identity_matches_its_closed_form():
    # data N(0,1), VE, x = theta z, exact critic: dL/dtheta = -2 theta A s^2/(theta^2+s^2) + 2 (1-alpha) theta A^2
    theta, s, alpha = 0.6, 0.7, 1.2
    z = math.sqrt(2) * torch.erfinv(torch.linspace(-1, 1, 2003, dtype=F64)[1:-1])
    z, e = [v.reshape(-1, 1) for v in torch.meshgrid(z[::4], z[::4], indexing="ij")]
    z, e = z / z.square().mean().sqrt(), e / e.square().mean().sqrt()  # a quadrature of the normal, exact to second order
    x = theta * z
    rule = ScoreIdentity(Gaussian(), Gaussian(std=theta), alpha=alpha, weight="none")
    pull = rule(Sample(x), torch.full((len(x),), s, dtype=F64), e)
    measured = float((pull.gradient * z).mean())
    a_f, a_t = theta**2 / (theta**2 + s**2), 1 / (1 + s**2)
    gap = a_t - a_f
    exact = -2 * theta * gap * s**2 / (theta**2 + s**2) + 2 * (1 - alpha) * theta * gap**2
    assert exact == pytest.approx(-0.1860, abs=1e-4)
    assert measured == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_score_identity_of_a_sample_that_is_still_noisy(alpha):
    # x_s = phi z at the level s has the law of theta z + s e, phi^2 = theta^2 + s^2: dL/dtheta = dL/dphi theta / phi
    theta, level, s = 0.6, 0.5, 0.9
    phi = math.hypot(theta, level)
    z = math.sqrt(2) * torch.erfinv(torch.linspace(-1, 1, 2003, dtype=F64)[1:-1])
    z, e = [v.reshape(-1, 1) for v in torch.meshgrid(z[::4], z[::4], indexing="ij")]
    z, e = z / z.square().mean().sqrt(), e / e.square().mean().sqrt()
    rule = ScoreIdentity(Gaussian(), Gaussian(std=theta), alpha=alpha, weight="none")
    t = torch.full((len(z),), s, dtype=F64)
    pull = rule(Sample(phi * z, level=torch.full_like(t, level)), t, e)
    gap = 1 / (1 + s**2) - theta**2 / (theta**2 + s**2)
    exact = -2 * theta * gap * s**2 / (theta**2 + s**2) + 2 * (1 - alpha) * theta * gap**2
    assert float((pull.gradient * z).mean()) * theta / phi == pytest.approx(exact, abs=1e-10)
    assert float(pull.logs["critic_lag"]) < 1e-8  # the exact critic's error is uncorrelated with functions of x_t
    naive = rule(Sample(phi * z), t, e)  # the sample taken for a clean one
    assert float(naive.logs["critic_lag"]) > 0.1


def test_what_a_sample_is():
    x, x0 = (torch.randn(3, 2, dtype=F64, requires_grad=True) for _ in range(2))
    assert Sample(x).clean is x and Sample(x, x0=x0).clean is x0
    held = Sample(x, {"label": torch.zeros(3)}, torch.ones(3), x0, torch.ones(3), torch.ones(3)).detach()
    assert not held.x.requires_grad and not held.x0.requires_grad and torch.equal(held.x, x) and held.low is not None


def test_projection_identity_of_the_exact_critic():
    torch.manual_seed(0)
    x = 0.6 * torch.randn(200_000, 1, dtype=F64)
    t, e = torch.full((len(x),), 0.7, dtype=F64), torch.randn_like(x)
    exact = DistributionMatching(Gaussian(), Gaussian(std=0.6))(Sample(x), t, e).logs["critic_lag"]
    behind = DistributionMatching(Gaussian(), Gaussian(std=0.9))(Sample(x), t, e).logs["critic_lag"]
    assert float(exact) < 0.01 < 0.1 < float(behind)


def test_score_identity_is_the_gradient_of_its_loss():
    torch.manual_seed(1)
    teacher, critic = Gaussian(0.3, 1.0), Gaussian(-0.2, 0.7)
    x, e, t = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64), torch.rand(5, dtype=F64) + 0.3
    for alpha in (1.0, 1.2):
        pull = ScoreIdentity(teacher, critic, alpha=alpha)(Sample(x), t, e)

        def loss(y, alpha=alpha):
            y_t = y + t[:, None] * e
            d_t, d_f = teacher(y_t, t), critic(y_t, t)
            x_t = x + t[:, None] * e
            w = 1 / (x - teacher(x_t, t)).abs().mean(1)  # no gradient through the weight
            delta = d_t - d_f
            short = delta * (d_f - y)
            return float((w[:, None] * (short if alpha == 1.0 else delta * ((d_t - y) - alpha * delta))).sum())

        numeric = torch.zeros_like(x)
        for i in range(x.numel()):
            h = torch.zeros_like(x).flatten()
            h[i] = 1e-6
            h = h.reshape(x.shape)
            numeric.view(-1)[i] = (loss(x + h) - loss(x - h)) / 2e-6
        torch.testing.assert_close(pull.gradient, numeric, rtol=1e-7, atol=1e-8)
    assert all(p.grad is None for p in [*teacher.parameters(), *critic.parameters()])
    assert all(p.requires_grad for p in [*teacher.parameters(), *critic.parameters()])


def test_equal_networks_pull_nowhere():
    x, e, t = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64), torch.rand(5, dtype=F64) + 0.3
    for rule in (ScoreIdentity, DistributionMatching):
        same = Gaussian(0.2, 0.8)
        assert float(rule(same, same)(Sample(x), t, e).gradient.abs().max()) == 0.0


def test_distribution_matching_is_its_formula_and_detached():
    torch.manual_seed(2)
    teacher, critic = Gaussian(0.3, 1.0), Gaussian(-0.2, 0.7)
    x = torch.randn(5, 3, dtype=F64, requires_grad=True)
    e, t = torch.randn(5, 3, dtype=F64), torch.rand(5, dtype=F64) + 0.3
    x_t = (x + t[:, None] * e).detach()
    d_t, d_f = teacher(x_t, t).detach(), critic(x_t, t).detach()
    n = (x.detach() - d_t).abs().mean(1, keepdim=True) + 1e-6
    pull = DistributionMatching(teacher, critic)(Sample(x), t, e)
    torch.testing.assert_close(pull.gradient, (d_f - d_t) / n, rtol=1e-12, atol=0)
    assert not pull.gradient.requires_grad
    weighted = DistributionMatching(teacher, critic, ratio_weight=lambda x_t, t, c: torch.arange(5.0))(Sample(x), t, e)
    torch.testing.assert_close(weighted.gradient, torch.arange(5.0, dtype=F64)[:, None] * (d_f - d_t) / n)
    eps = DistributionMatching(teacher, critic, normaliser="eps")(Sample(x), t, e)
    e_t, e_f = (x_t - d_t) / t[:, None], (x_t - d_f) / t[:, None]
    torch.testing.assert_close(eps.gradient, e_t - e_f, rtol=1e-10, atol=1e-12)
    vsd = DistributionMatching(teacher, critic, normaliser="vsd")(Sample(x), t, e)
    torch.testing.assert_close(vsd.gradient, t[:, None] ** 2 * (e_t - e_f), rtol=1e-10, atol=1e-12)


def test_guidance_is_on_the_teacher_alone_and_costs_its_calls():
    null = {"label": torch.tensor(0)}
    teacher, critic = Gaussian(null=null), Gaussian(null=null)
    x, e, t = torch.zeros(4, 1, dtype=F64), torch.zeros(4, 1, dtype=F64), torch.ones(4, dtype=F64)
    cond = {"label": torch.ones(4, dtype=torch.long)}
    pull = DistributionMatching(teacher, critic, guidance=3.0, normaliser="none")(Sample(x, cond), t, e)
    assert (teacher.calls, critic.calls) == (2, 1)
    # D(c) = (1 + x)/2 at sigma = 1: guided teacher 0 + 3 (0.5 - 0), critic 0.5
    torch.testing.assert_close(pull.gradient, torch.full_like(x, 0.5 - 1.5))
    with pytest.raises(LimbeckError, match="declares no null condition"):
        DistributionMatching(Gaussian(), critic, guidance=2.0)(Sample(x, cond), t, e)


def test_negative_conditions_take_the_nulls_place_on_their_own_side():
    null = {"label": torch.tensor(0.0, dtype=F64)}
    teacher, critic = Gaussian(0.3, 1.0, null=null), Gaussian(-0.2, 0.7, null=null)
    x, e, t = torch.randn(5, 1, dtype=F64), torch.randn(5, 1, dtype=F64), torch.rand(5, dtype=F64) + 0.3
    cond, minus = {"label": torch.ones(5, dtype=F64)}, {"label": torch.full((5,), -2.0, dtype=F64)}
    x_t = x + t[:, None] * e
    for sides in ((minus, None), (None, minus), (minus, minus)):
        rule = DistributionMatching(
            teacher, critic, guidance=2.0, critic_guidance=3.0, normaliser="none", negative=sides[0], critic_negative=sides[1]
        )
        expected = []
        for denoiser, negative, w in ((teacher, sides[0], 2.0), (critic, sides[1], 3.0)):
            base = denoiser(x_t, t, negative or {"label": torch.zeros(5, dtype=F64)})
            expected.append((base + w * (denoiser(x_t, t, cond) - base)).detach())
        torch.testing.assert_close(rule(Sample(x, cond), t, e).gradient, expected[1] - expected[0], rtol=1e-12, atol=1e-14)


def test_without_a_critic_the_noise_answers():
    teacher, process = Gaussian(0.3, 1.0, RectifiedFlow()), RectifiedFlow()
    x, e, t = torch.randn(5, 1, dtype=F64), torch.randn(5, 1, dtype=F64), 0.9 * torch.rand(5, dtype=F64) + 0.05
    pull = DistributionMatching(teacher, None, normaliser="vsd")(Sample(x), t, e)
    x_t = process.add_noise(x, e, t)
    eps = process.convert(teacher(x_t, t), x_t, t, "x0", "eps").detach()
    torch.testing.assert_close(pull.gradient, process.s(t)[:, None] ** 2 * (eps - e), rtol=1e-9, atol=1e-12)
    assert float(pull.logs["critic_lag"]) == 0.0


def test_a_teacher_in_another_process_pulls_the_same():
    torch.manual_seed(3)
    flow = RectifiedFlow()
    x, e = torch.randn(6, 2, dtype=F64), torch.randn(6, 2, dtype=F64)
    t = torch.linspace(0.1, 3.0, 6, dtype=F64)
    own = DistributionMatching(Gaussian(0.5, 0.8), Gaussian(0.1, 1.1))(Sample(x), t, e)
    other = DistributionMatching(Gaussian(0.5, 0.8, flow), Gaussian(0.1, 1.1))(Sample(x), t, e)
    torch.testing.assert_close(own.gradient, other.gradient, rtol=1e-10, atol=1e-12)
    assert isinstance(InProcess(Gaussian(process=flow), VE()), InProcess)


def test_a_sample_at_a_level_is_diffused_from_there():
    x, e = torch.randn(4, 2, dtype=F64), torch.randn(4, 2, dtype=F64)
    level, t = torch.full((4,), 0.5, dtype=F64), torch.full((4,), 1.3, dtype=F64)
    seen = {}

    class Spy(Gaussian):
        def forward(self, x, t, cond=None):
            seen["x_t"] = x.detach().clone()
            return super().forward(x, t, cond)

    DistributionMatching(Spy(), Spy())(Sample(x, None, level), t, e)
    torch.testing.assert_close(seen["x_t"], x + math.sqrt(1.3**2 - 0.5**2) * e)


def test_target_may_change_with_the_step():
    x, e, t = torch.randn(4, 1, dtype=F64), torch.randn(4, 1, dtype=F64), torch.ones(4, dtype=F64)
    teachers = [Gaussian(0.0), Gaussian(5.0)]
    rule = DistributionMatching(lambda step: teachers[min(step, 1)], Gaussian(0.0), normaliser="none")
    assert float(rule(Sample(x), t, e, 0).gradient.abs().max()) == 0.0
    torch.testing.assert_close(rule(Sample(x), t, e, 7).gradient, torch.full_like(x, -2.5))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_gives_the_gradient_of_the_divergence(name):
    # p = N(0,1), q = N(mu, s^2) on a fine grid: d D_f / d(mu, s) against -E_q[h (S_p - S_q) dx/d(mu, s)]
    f, h = divergence(name).f, divergence(name).h
    x = torch.linspace(-14, 14, 200_001, dtype=F64)
    dx = float(x[1] - x[0])
    log_normal = lambda m, s: -0.5 * ((x - m) / s) ** 2 - math.log(s * math.sqrt(2 * math.pi))  # noqa: E731
    mu, s = 0.6, 1.1 if name not in ("neyman",) else 0.9  # Neyman's integral needs q's tails inside p's

    def value(mu, s):
        log_q = log_normal(mu, s)
        return float((log_q.exp() * f((log_normal(0.0, 1.0) - log_q).exp())).nan_to_num().sum() * dx)

    log_q = log_normal(mu, s)
    q, r = log_q.exp(), (log_normal(0.0, 1.0) - log_q).exp()
    pull = -(h(r) * (-x - -(x - mu) / s**2) * q).nan_to_num()
    step = 1e-5
    for got, exact in (
        (float(pull.sum() * dx), (value(mu + step, s) - value(mu - step, s)) / (2 * step)),
        (float((pull * (x - mu) / s).sum() * dx), (value(mu, s + step) - value(mu, s - step)) / (2 * step)),
    ):
        assert got == pytest.approx(exact, abs=2e-6)
    if name == "js":
        assert float(pull.sum() * dx) == pytest.approx(0.248703, abs=2e-6)
        assert float((pull * (x - mu) / s).sum() * dx) == pytest.approx(-0.004671, abs=2e-6)
    if name != "rkl":  # a wrong h must not pass
        wrong = -(r * h(r) * (-x + (x - mu) / s**2) * q).nan_to_num()
        assert abs(float(wrong.sum() * dx) - float(pull.sum() * dx)) > 1e-3


def test_density_ratio_is_clamped_and_heads_are_averaged():
    assert density_ratio(torch.tensor([0.0, 100.0, -100.0])).tolist() == [1.0, 20.0, 0.1]
    assert float(density_ratio(torch.tensor([[1.0, 2.0]]))) == pytest.approx(math.exp(1.5))
    with pytest.raises(LimbeckError, match="did you mean 'js'"):
        divergence("jss")


def test_frozen_and_input_gradient_leave_no_trace():
    net = nn.Linear(2, 1).double()
    net.bias.requires_grad_(False)
    x = torch.randn(3, 2, dtype=F64)
    g, value = input_gradient(lambda y: net(y).square().sum(), x, net)
    torch.testing.assert_close(g, (2 * net(x) * net.weight).detach())
    assert net.weight.requires_grad and not net.bias.requires_grad and net.weight.grad is None
    assert not value.requires_grad
    with pytest.raises(ZeroDivisionError), frozen(net):
        assert not net.weight.requires_grad
        raise ZeroDivisionError
    assert net.weight.requires_grad


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda g: DistributionMatching(g, g, normaliser="mean"), "unknown normaliser 'mean': did you mean 'mean_abs'"),
        (lambda g: ScoreIdentity(g, g, weight="sidd"), "unknown SiD weight 'sidd': did you mean 'sid'"),
    ],
)
def test_unknown_names(make, message):
    with pytest.raises(LimbeckError, match=message):
        make(Gaussian())


@pytest.mark.parametrize("reduce", ["element", "sample"])
def test_the_huber_surrogate_lies_between_the_plain_one_and_a_sign(reduce):
    """c -> inf: the plain surrogate's gradient over c; c -> 0: scale times the sign (or the direction) of the pull."""
    torch.manual_seed(3)
    x, g = torch.randn(4, 5, dtype=F64, requires_grad=True), torch.randn(4, 5, dtype=F64)
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)

    def gradient(c, w=scale):
        return torch.autograd.grad(huber_surrogate(x, g, w, c=c, reduce=reduce), x)[0]

    parts = x.numel() if reduce == "element" else len(x)
    torch.testing.assert_close(1e6 * gradient(1e6), g / parts, rtol=1e-9, atol=0)
    unit = g.sign() if reduce == "element" else g / g.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient(1e-9), scale[:, None] * unit / parts, rtol=1e-6, atol=1e-12)
    size = (g / scale[:, None]).square()
    size = size if reduce == "element" else size.sum(1, keepdim=True)
    torch.testing.assert_close(gradient(0.3), g / torch.sqrt(size + 0.09) / parts, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(0.3, None), gradient(0.3, torch.ones(4, dtype=F64)), rtol=0, atol=0)
    assert float((gradient(0.3) - gradient(0.3, None)).abs().max()) > 0.01


def test_a_pulls_scale_is_the_factor_that_it_holds():
    torch.manual_seed(1)
    teacher, critic = Gaussian(0.3, 1.0), Gaussian(-0.2, 0.7)
    x, e, t = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64), torch.rand(5, dtype=F64) + 0.3
    for weighed, plain in (
        (DistributionMatching(teacher, critic), DistributionMatching(teacher, critic, normaliser="none")),
        (ScoreIdentity(teacher, critic), ScoreIdentity(teacher, critic, weight="none")),
    ):
        one, other = weighed(Sample(x), t, e), plain(Sample(x), t, e)
        assert one.scale is not None and float((one.scale - 1).abs().max()) > 0.1
        torch.testing.assert_close(one.gradient, one.scale[:, None] * other.gradient, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(other.scale, torch.ones(5, dtype=F64))
