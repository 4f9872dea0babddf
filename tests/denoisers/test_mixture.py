"""The mixture's denoiser against scipy's densities, one Gaussian, dense covariances and restricted mixtures."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from limbeck.denoisers import ClassifierFree, GaussianDenoiser, MixtureDenoiser
from limbeck.errors import LimbeckError
from limbeck.noise import VE, VP, RectifiedFlow

D = 3
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def components(process, ranks=(0, 1, 3)):
    """Gaussians of different ranks in three dimensions."""
    g = torch.Generator().manual_seed(0)
    out = []
    for rank in ranks:
        U = torch.linalg.qr(torch.randn(D, D, generator=g, dtype=torch.float64)).Q[:, :rank]
        mean = 2 * torch.randn(D, generator=g, dtype=torch.float64)
        out.append(GaussianDenoiser(mean, U, torch.rand(rank, generator=g, dtype=torch.float64), 0.1, process))
    return out


def dense(c):
    rest = torch.eye(D, dtype=torch.float64) - c.U @ c.U.T
    return c.U * c.eigenvalues @ c.U.T + c.kappa * rest


def points(process, sigmas=(0.1, 0.5, 1.0, 4.0)):
    t = process.time_of(torch.tensor(sigmas, dtype=torch.float64))
    return 2 * torch.randn(len(t), D, generator=torch.Generator().manual_seed(1), dtype=torch.float64), t


@pytest.mark.parametrize("process", [VE(), VP(), RectifiedFlow()])
def test_components_of_any_rank_against_scipy(process):
    parts = components(process)
    mixture = MixtureDenoiser.from_components(WEIGHTS, parts)
    x, t = points(process)
    joint = torch.empty(len(t), 3, dtype=torch.float64)
    for i in range(len(t)):
        a, s = float(process.a(t[i])), float(process.s(t[i]))
        for k, part in enumerate(parts):
            normal = multivariate_normal(a * part.mean.numpy(), a**2 * dense(part).numpy() + s**2 * np.eye(D))
            joint[i, k] = math.log(WEIGHTS[k]) + normal.logpdf(x[i].numpy())
    torch.testing.assert_close(mixture.log_prob(x, t), joint.logsumexp(1))
    r = joint.softmax(1)
    torch.testing.assert_close(mixture.responsibilities(x, t), r)
    answers = torch.stack([part(x, t) for part in parts], 1)
    torch.testing.assert_close(mixture(x, t), (r[..., None] * answers).sum(1))
    torch.testing.assert_close(mixture.score(x, t), (r[..., None] * torch.stack([p.score(x, t) for p in parts], 1)).sum(1))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_one_component_is_the_gaussian(rank):
    (part,) = components(VP(), (rank,))
    mixture = MixtureDenoiser.from_components(torch.ones(1), [part])
    x, t = points(VP())
    v = torch.ones_like(x)
    for name in ("forward", "score", "eps", "v", "velocity", "log_prob", "posterior_covariance", "divergence"):
        torch.testing.assert_close(getattr(mixture, name)(x, t), getattr(part, name)(x, t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixture.jvp(x, t, v), part.jvp(x, t, v), rtol=1e-12, atol=1e-12)


def test_low_rank_components_equal_dense_ones():
    parts = components(VE())
    full = [GaussianDenoiser.from_covariance(p.mean, dense(p), VE()) for p in parts]
    x, t = points(VE(), (0.01, 0.5, 1.0, 4.0))
    low, high = (MixtureDenoiser.from_components(WEIGHTS, some) for some in (parts, full))
    for name in ("forward", "score", "log_prob", "posterior_covariance", "divergence"):
        torch.testing.assert_close(getattr(low, name)(x, t), getattr(high, name)(x, t), rtol=1e-9, atol=1e-9)


def test_labels_restrict_to_their_components_and_the_null_label_does_not():
    parts = components(VP())
    mixture = MixtureDenoiser.from_components(WEIGHTS, parts, torch.tensor([1, 0, 1]))
    assert mixture.classes == 2 and mixture.null["label"].item() == 2
    torch.testing.assert_close(mixture.class_weights, torch.tensor([0.5, 0.5], dtype=torch.float64))
    alone = MixtureDenoiser.from_components(torch.tensor([0.4, 0.6], dtype=torch.float64), [parts[0], parts[2]])
    x, t = points(VP())
    for name in ("forward", "score", "log_prob", "posterior_covariance"):
        one, zero, null = (getattr(mixture, name)(x, t, {"label": torch.full((4,), k)}) for k in (1, 0, 2))
        torch.testing.assert_close(one, getattr(alone, name)(x, t))
        torch.testing.assert_close(zero, getattr(parts[1], name)(x, t))
        torch.testing.assert_close(null, getattr(mixture, name)(x, t))
    r = mixture.responsibilities(x, t, {"label": torch.full((4,), 1)})
    assert bool((r[:, 1] == 0).all())
    cond = {"label": torch.tensor([0, 1, 2, 0])}
    guided = ClassifierFree(mixture, 3.0)(x, t, cond)
    torch.testing.assert_close(guided, mixture(x, t) + 3 * (mixture(x, t, cond) - mixture(x, t)))


def test_samples_have_the_moments_of_the_mixture_and_of_each_class():
    parts = components(VE())
    mixture = MixtureDenoiser.from_components(WEIGHTS, parts, torch.tensor([1, 0, 1]))
    n, g = 20000, torch.Generator().manual_seed(0)
    label = torch.arange(n) % 2
    x = mixture.sample(n, {"label": label}, g, torch.float64)
    everything = mixture.sample(n, None, g, torch.float64)
    for some, weights, own in (
        (x[label == 0], [1.0], [parts[1]]),
        (x[label == 1], [0.4, 0.6], [parts[0], parts[2]]),
        (everything, WEIGHTS.tolist(), parts),
    ):
        mean = sum(w * p.mean for w, p in zip(weights, own, strict=True))
        cov = sum(w * (dense(p) + torch.outer(p.mean - mean, p.mean - mean)) for w, p in zip(weights, own, strict=True))
        assert bool(((some.mean(0) - mean).abs() < 4 * (cov.diagonal() / len(some)).sqrt()).all())
        torch.testing.assert_close(some.T.cov(), cov, rtol=0.05, atol=0.1)
    assert mixture.sample(2).dtype == torch.get_default_dtype()


def test_ring_and_grid_place_their_modes():
    ring = MixtureDenoiser.ring(8, 2.0, 0.1, VE())
    torch.testing.assert_close(ring.means.norm(dim=1), torch.full((8,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(ring.means[2], torch.tensor([0.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(ring.weights, torch.full((8,), 0.125, dtype=torch.float64))
    assert float(ring.sample(4000, generator=torch.Generator().manual_seed(0)).norm(dim=1).std()) == pytest.approx(0.1, rel=0.1)
    grid = MixtureDenoiser.grid(3, 1.5, 0.0, VE(), labels=torch.arange(9))
    expected = [[x, y] for x in (-1.5, 0, 1.5) for y in (-1.5, 0, 1.5)]
    torch.testing.assert_close(grid.means, torch.tensor(expected, dtype=torch.float64))
    assert grid.classes == 9
    picked = grid.sample(9, {"label": torch.arange(9)}, dtype=torch.float64)
    torch.testing.assert_close(picked, grid.means)
    uneven = MixtureDenoiser.ring(2, 1.0, 0.0, VE(), torch.tensor([0.9, 0.1]))
    far = torch.full((1,), 80.0, dtype=torch.float64)
    assert float(uneven(torch.zeros(1, 2), far)[0, 0]) == pytest.approx(0.8, abs=1e-3)


def test_bad_mixtures_are_named():
    means = torch.zeros(3, D)
    with pytest.raises(LimbeckError, match=r"weights must sum to 1, not 1.5"):
        MixtureDenoiser(torch.full((3,), 0.5), means, 1.0, VE())
    with pytest.raises(LimbeckError, match=r"2 weights do not fit 3 components"):
        MixtureDenoiser(torch.full((2,), 0.5), means, 1.0, VE())
    with pytest.raises(LimbeckError, match=r"cannot be negative: -1"):
        MixtureDenoiser(WEIGHTS, means, -1.0, VE())
    with pytest.raises(LimbeckError, match=r"both U and eigenvalues"):
        MixtureDenoiser(WEIGHTS, means, 1.0, VE(), U=torch.zeros(3, D, 1))
    with pytest.raises(LimbeckError, match=r"class 0 has no component"):
        MixtureDenoiser(WEIGHTS, means, 1.0, VE(), labels=torch.tensor([1, 1, 2]))
    with pytest.raises(LimbeckError, match=r"labels must be 3 integers"):
        MixtureDenoiser(WEIGHTS, means, 1.0, VE(), labels=torch.zeros(3))
    with pytest.raises(LimbeckError, match=r"smallest eigenvalue is -0.2"):
        MixtureDenoiser(WEIGHTS, means, 1.0, VE(), torch.eye(D)[:, :1].expand(3, D, 1), torch.tensor([[1.0], [-0.2], [1.0]]))
    with pytest.raises(LimbeckError, match=r"different processes"):
        MixtureDenoiser.from_components(WEIGHTS[:2] / 0.7, [*components(VE(), (1,)), *components(VP(), (1,))])
    flat = GaussianDenoiser(torch.zeros(2), torch.zeros(2, 0), torch.zeros(0), 1.0, VE())
    with pytest.raises(LimbeckError, match=r"components of one shape, not \[\(2,\), \(3,\)\]"):
        MixtureDenoiser.from_components(WEIGHTS[:2] / 0.7, [flat, *components(VE(), (1,))])
    with pytest.raises(LimbeckError, match=r"at least one mode and std >= 0, not 0 modes"):
        MixtureDenoiser.ring(0, 1.0, 0.1, VE())
    labelled = MixtureDenoiser.ring(2, 1.0, 0.1, VE(), labels=torch.tensor([0, 1]))
    with pytest.raises(LimbeckError, match=r"unknown label 7"):
        labelled(torch.zeros(1, 2), torch.ones(1), {"label": torch.tensor([7])})
    with pytest.raises(LimbeckError, match=r"unknown label torch.float32"):
        labelled(torch.zeros(1, 2), torch.ones(1), {"label": torch.zeros(1)})
