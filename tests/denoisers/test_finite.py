"""The finite set's denoiser against sums over all points, down to the smallest noise and in every precision path."""

import pytest
import torch

from limbeck.denoisers import FiniteSetDenoiser, MixtureDenoiser
from limbeck.errors import LimbeckError
from limbeck.noise import VE, VP, RectifiedFlow, TrigFlow

SIGMAS = [0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 80.0]


def brute(denoiser, x, t, log_prior=None):
    """(r, D) in float64 by differences, without any expansion of squares."""
    bank = denoiser.bank.flatten(1)
    a, s = denoiser.process.a(t)[:, None], denoiser.process.s(t)[:, None]
    V = (a * denoiser.bandwidth) ** 2 + s**2
    flat = x.double().flatten(1)
    square = torch.stack([(row - scale * bank).square().sum(1) for row, scale in zip(flat, a, strict=True)])
    r = torch.softmax((denoiser.prior.log_weight if log_prior is None else log_prior) - square / (2 * V), 1)
    M = r @ bank
    return r, (M + a * denoiser.bandwidth**2 / V * (flat - a * M)).reshape(x.shape)


def images(families, members, spread, d=192):
    """Families of near-copies: points of norm about sqrt(d / 3) whose neighbours are ``spread`` away."""
    g = torch.Generator().manual_seed(0)
    heads = 2 * torch.rand(families, 1, d, generator=g) - 1
    return (heads + spread * torch.randn(families, members, d, generator=g) / (2 * d) ** 0.5).flatten(0, 1)


def noisy(denoiser, sigmas, n=4, seed=1):
    g = torch.Generator().manual_seed(seed)
    t = denoiser.process.time_of(torch.tensor(sigmas, dtype=torch.float64).repeat_interleave(n))
    x0 = denoiser.sample(len(t), generator=g)
    return denoiser.process.add_noise(x0, torch.randn(x0.shape, generator=g), t), t


@pytest.mark.parametrize(("families", "members"), [(150, 2), (10, 30), (1, 7)], ids=["pairs", "crowds", "few"])
@pytest.mark.parametrize("process", [VE(), RectifiedFlow(), VP()], ids=["ve", "flow", "vp"])
def test_float32_is_as_good_as_float64_down_to_the_smallest_noise(families, members, process):
    neighbour = 0.02
    denoiser = FiniteSetDenoiser(images(families, members, neighbour), process)
    sigmas = [s for s in SIGMAS if s >= float(process.sigma(torch.tensor(process.t_min)))]
    x, t = noisy(denoiser, sigmas, 2)
    _, expected = brute(denoiser, x, t)
    error = (denoiser(x, t).double() - expected).norm(dim=1)
    assert float(error.max()) < 1e-3 * neighbour
    torch.testing.assert_close(denoiser(x.double(), t), expected, rtol=1e-6, atol=1e-9)


def test_plain_float32_would_pick_wrong_images():
    # the same expansion in float32 fails where this denoiser holds: it is the precision rule that saves it
    neighbour = 0.005
    denoiser = FiniteSetDenoiser(images(30, 2, neighbour, d=768), VE())
    x, t = noisy(denoiser, [0.002], 200)
    right, expected = brute(denoiser, x, t)
    bank = denoiser.bank.float()
    plain = torch.softmax((x @ bank.T - (bank * bank).sum(1) / 2) / t[:, None].float() ** 2, 1)
    assert int((plain.argmax(1) != right.argmax(1)).sum()) >= 5
    assert float((plain @ bank - expected).norm(dim=1).max()) > 0.3 * neighbour
    assert float((denoiser(x, t) - expected).norm(dim=1).max()) < 1e-3 * neighbour


def test_every_precision_path_is_taken_and_the_rows_keep_their_order():
    denoiser = FiniteSetDenoiser(torch.cat([images(150, 2, 0.02), -images(10, 30, 0.02)]), VE())
    x, t = noisy(denoiser, SIGMAS)
    order = torch.randperm(len(t), generator=torch.Generator().manual_seed(0))
    x, t = x[order], t[order]
    one = torch.ones(len(t), 1, dtype=torch.float64)
    q, V = denoiser._residual(x, one, t[:, None])
    groups = denoiser._groups(denoiser.prior.log_weight.expand(len(t), -1), x, q, one, V)
    kinds = ["few" if g.m.ndim == 3 else "single" if g.r.dtype == torch.float32 else "all" for g in groups]
    assert sorted(kinds) == ["all", "few", "single"]
    assert torch.equal(torch.cat([g.rows for g in groups]).sort().values, torch.arange(len(t)))
    torch.testing.assert_close(denoiser(x, t).double(), brute(denoiser, x, t)[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("members", [2, 30])
@pytest.mark.parametrize("bandwidth", [0.0, 0.01])
def test_gradients_are_right_in_every_precision_path(members, bandwidth):
    denoiser = FiniteSetDenoiser(images(300 // members, members, 0.02), VE(), bandwidth=bandwidth)
    x, t = noisy(denoiser, SIGMAS)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    (found,) = torch.autograd.grad(denoiser(x, t), x, v)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(brute(denoiser, exact, t)[1], exact, v.double())
    # relative to how much a direction can be stretched: (a / V) Cov has norm <= (distance of points)^2 / (4 V)
    error = (found.double() - expected).norm(dim=1) / (expected.norm(dim=1) + 1)
    assert float(error.max()) < 2e-3
    for product in (denoiser.jvp(x.detach(), t, v), torch.func.jvp(lambda z: denoiser(z, t), (x.detach(),), (v,))[1]):
        torch.testing.assert_close(product, found, rtol=1e-3, atol=1e-3)


def test_covariance_and_divergence_in_every_precision_path():
    denoiser = FiniteSetDenoiser(images(20, 30, 0.02, d=24), VE())
    x, t = noisy(denoiser, SIGMAS, 2)
    exact = denoiser.posterior_covariance(x.double(), t)
    found = denoiser.posterior_covariance(x, t).double()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=2e-6)
    slope = exact.diagonal(dim1=1, dim2=2).sum(1) / t**2
    torch.testing.assert_close(denoiser.divergence(x, t, target="x0").double(), slope, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("process", [VE(), VP(), RectifiedFlow(), TrigFlow(0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_one_point_are_that_point(process, dtype):
    point = torch.tensor([0.3, -0.7, 0.1])
    denoiser = FiniteSetDenoiser(point.expand(50, 3), process)
    x, t = noisy(denoiser, [0.01, 0.5, 3.0])
    assert torch.equal(denoiser(x.to(dtype), t), point.to(dtype).expand(12, 3))
    torch.testing.assert_close(denoiser.posterior_covariance(x, t), torch.zeros(12, 3, 3))


@pytest.mark.parametrize("bandwidth", [0.1, 0.5])
def test_bandwidth_makes_it_a_mixture_of_isotropic_gaussians(bandwidth):
    g = torch.Generator().manual_seed(0)
    bank, prior = torch.randn(30, 2, 3, generator=g, dtype=torch.float64), torch.rand(30, generator=g, dtype=torch.float64)
    labels, prior = torch.arange(30) % 3, prior / prior.sum()
    finite = FiniteSetDenoiser(bank, VP(), prior, bandwidth, labels)
    mixture = MixtureDenoiser(prior, bank, bandwidth**2, VP(), labels=labels)
    t = VP().time_of(torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=torch.float64))
    x, v = torch.randn(2, 4, 2, 3, generator=g, dtype=torch.float64)
    for cond in (None, {"label": torch.tensor([0, 1, 2, 3])}, {"prior": torch.randn(4, 30, generator=g)}):
        for name in ("forward", "score", "eps", "v", "velocity", "log_prob", "responsibilities", "posterior_covariance"):
            torch.testing.assert_close(getattr(finite, name)(x, t, cond), getattr(mixture, name)(x, t, cond))
        torch.testing.assert_close(finite.jvp(x, t, v, cond), mixture.jvp(x, t, v, cond))
        torch.testing.assert_close(finite.divergence(x, t, cond), mixture.divergence(x, t, cond))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_priors_and_their_product(dtype):
    g = torch.Generator().manual_seed(0)
    bank, labels = torch.randn(40, 5, generator=g), torch.arange(40) % 4
    prior = torch.rand(40, generator=g, dtype=torch.float64)
    denoiser = FiniteSetDenoiser(bank, VE(), prior / prior.sum(), labels=labels)
    x, t = noisy(denoiser, [0.01, 0.5, 3.0, 20.0], 1)
    x = x.to(dtype)
    classes, weights = torch.tensor([2, 0, 4, 3]), torch.randn(4, 40, generator=g, dtype=torch.float64)
    mask = torch.where((labels == classes[:, None]) | (classes[:, None] == 4), 0.0, -torch.inf)
    for cond, log_prior in (
        ({"label": classes}, prior.log() + mask),
        ({"prior": weights}, weights),
        ({"label": classes, "prior": weights}, weights + mask),
    ):
        r, expected = brute(denoiser, x, t, log_prior)
        torch.testing.assert_close(denoiser(x, t, cond).double(), expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(denoiser.responsibilities(x, t, cond).double(), r, rtol=1e-5, atol=1e-7)
    alone = FiniteSetDenoiser(bank[labels == 2], VE(), prior[labels == 2] / prior[labels == 2].sum())
    cond = {"label": torch.full((4,), 2)}
    torch.testing.assert_close(denoiser.log_prob(x, t, cond), alone.log_prob(x, t))


def test_samples_are_the_points_of_the_class_with_their_frequencies():
    bank = torch.arange(6.0)[:, None]
    prior = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)
    denoiser = FiniteSetDenoiser(bank, VE(), prior, labels=torch.tensor([0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(denoiser.class_weights, torch.tensor([0.6, 0.4], dtype=torch.float64))
    n, g = 6000, torch.Generator().manual_seed(0)
    label = torch.arange(n) % 3
    x = denoiser.sample(n, {"label": label}, g)[:, 0]
    for kind, points in ((0, [0, 1, 2]), (1, [3, 4, 5]), (2, [0, 1, 2, 3, 4, 5])):
        share = prior[points] / prior[points].sum()
        found = torch.stack([(x[label == kind] == i).double().mean() for i in points])
        assert found.sum() == 1 and bool(((found - share).abs() < 4 * (share / 2000).sqrt()).all())
    smooth = FiniteSetDenoiser(torch.zeros(2, 3), VE(), bandwidth=0.5).sample(5000, generator=g)
    assert float(smooth.std()) == pytest.approx(0.5, rel=0.05)


def test_weights_underflow_to_zero_not_to_denormals():
    bank = torch.linspace(0, 1, 4000)[:, None]
    denoiser = FiniteSetDenoiser(bank, VE())
    x, t = torch.zeros(1, 1), torch.tensor([0.07], dtype=torch.float64)
    q, V = denoiser._residual(x, torch.ones(1, 1), t[:, None])
    for values in (x, x.double()):
        (group,) = denoiser._groups(denoiser.prior.log_weight.expand(1, -1), values, q, torch.ones(1, 1).double(), V)
        assert bool((group.r == 0).any()) and float(group.r[group.r > 0].min()) >= 9e-27


def test_bad_banks_priors_and_labels_are_named():
    bank = torch.randn(4, 3)
    x, t = torch.zeros(2, 3), torch.ones(2, dtype=torch.float64)
    with pytest.raises(LimbeckError, match=r"bandwidth is a standard deviation and cannot be -0.1"):
        FiniteSetDenoiser(bank, VE(), bandwidth=-0.1)
    with pytest.raises(LimbeckError, match=r"at least one finite sample"):
        FiniteSetDenoiser(bank[:0], VE())
    with pytest.raises(LimbeckError, match=r"at least one finite sample"):
        FiniteSetDenoiser(bank / 0, VE())
    with pytest.raises(LimbeckError, match=r"weights must sum to 1, not 2; divide them by their sum"):
        FiniteSetDenoiser(bank, VE(), torch.full((4,), 0.5))
    with pytest.raises(LimbeckError, match=r"not negative, one per component: .*smallest -0.5"):
        FiniteSetDenoiser(bank, VE(), torch.tensor([-0.5, 0.5, 0.5, 0.5]))
    with pytest.raises(LimbeckError, match=r"a prior of 2 weights does not fit a bank of 4 samples"):
        FiniteSetDenoiser(bank, VE(), torch.full((2,), 0.5))
    with pytest.raises(LimbeckError, match=r"class 1 has no component of positive weight"):
        FiniteSetDenoiser(bank, VE(), labels=torch.tensor([0, 2, 2, 0]))
    with pytest.raises(LimbeckError, match=r"labels must be 4 integers >= 0, not torch.int64 of shape \(3,\)"):
        FiniteSetDenoiser(bank, VE(), labels=torch.tensor([0, 1, 2]))
    labelled = FiniteSetDenoiser(bank, VE(), labels=torch.tensor([0, 1, 1, 0]))
    with pytest.raises(LimbeckError, match=r"unknown label 3: labels are integers 0..1, and 2 stands for no label"):
        labelled(x, t, {"label": torch.tensor([0, 3])})
    with pytest.raises(LimbeckError, match=r"unknown label -1"):
        labelled(x, t, {"label": torch.tensor([0, -1])})
    with pytest.raises(LimbeckError, match=r"condition 'label' must have shape \(2,\), not \(1,\)"):
        labelled(x, t, {"label": torch.tensor([0])})
    with pytest.raises(LimbeckError, match=r"unknown condition 'label'"):
        FiniteSetDenoiser(bank, VE())(x, t, {"label": torch.tensor([0, 1])})
    with pytest.raises(LimbeckError, match=r"condition 'prior' must have shape \(2, 4\), not \(2, 3\)"):
        labelled(x, t, {"prior": torch.zeros(2, 3)})
    with pytest.raises(LimbeckError, match=r"leaves a sample without any component"):
        labelled(x, t, {"prior": torch.full((2, 4), -torch.inf)})
    with pytest.raises(LimbeckError, match=r"without noise and bandwidth a finite set has no density"):
        labelled(x, 0 * t)
