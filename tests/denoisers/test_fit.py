"""Explained variance against its closed form, and fitted mixtures against the mixtures behind the data."""

import pytest
import torch
from sklearn.datasets import load_digits

from limbeck.denoisers import (
    FiniteSetDenoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    explained_variance,
    fit_mixture,
)
from limbeck.errors import LimbeckError
from limbeck.noise import VE, RectifiedFlow


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.as_tensor(images / 8 - 1).reshape(-1, 1, 8, 8), torch.as_tensor(labels)


def isotropic(variance, d=4, process=VE()):  # noqa: B008
    return GaussianDenoiser(torch.zeros(d), torch.zeros(d, 0), torch.zeros(0), variance, process)


@pytest.mark.parametrize("target", ["score", "x0"])
def test_explained_variance_of_one_isotropic_gaussian_by_another(target):
    # S = -x / (kappa + t^2) and D = kappa x / (kappa + t^2): the ratio of models does not depend on the sample
    data = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    found = explained_variance(isotropic(2.0), isotropic(1.0), data, times, target=target)
    ratio = (1 + times**2) / (2 + times**2) * (2 if target == "x0" else 1)
    torch.testing.assert_close(found, 1 - (1 - ratio) ** 2)


def test_explained_variance_ends():
    data = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    one, flow = isotropic(1.0), isotropic(1.0, process=RectifiedFlow())
    torch.testing.assert_close(explained_variance(one, one, data, [0.5, 2.0]), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(explained_variance(flow, one, data, [0.5, 2.0]), torch.ones(2, dtype=torch.float64))
    g = torch.Generator().manual_seed
    wide = isotropic(3.0)
    parts = explained_variance(wide, one, data, [0.5], g(0))
    assert torch.equal(parts, explained_variance(wide, one, data, [0.5], g(0)))
    with pytest.raises(LimbeckError, match=r"at least one sample"):
        explained_variance(one, one, data[:0], [0.5])
    with pytest.raises(LimbeckError, match=r"list of times"):
        explained_variance(one, one, data, torch.ones(2, 2))


def test_explained_variance_takes_the_condition_of_each_sample():
    ring = MixtureDenoiser.ring(4, 2.0, 0.1, VE(), labels=torch.arange(4))
    label = torch.arange(1100) % 4
    data = ring.sample(1100, {"label": label}, torch.Generator().manual_seed(0))
    own = FiniteSetDenoiser(ring.means, VE(), bandwidth=0.1, labels=torch.arange(4))
    same = explained_variance(own, ring, data, [0.5, 2.0], cond={"label": label})
    torch.testing.assert_close(same, torch.ones(2, dtype=torch.float64))


def test_a_gaussian_explains_digits_at_high_noise_alone(digits):
    # the reference is the digits' own optimal denoiser; 1 - EV as measured in numpy for all 1,797 of them
    x, _ = digits
    gaussian, reference = GaussianDenoiser.from_data(x, VE()), FiniteSetDenoiser(x, VE())
    assert gaussian.data_range == (-1.0, 1.0)
    missing = 1 - explained_variance(gaussian, reference, x[::4], [0.5, 1, 2, 5, 10, 20], torch.Generator().manual_seed(0))
    expected = torch.tensor([0.28, 8e-2, 5e-3, 4e-5, 6e-7, 1e-8], dtype=torch.float64)
    assert bool(((missing / expected).log().abs() < 0.5).all()), missing


@pytest.mark.parametrize("rank", [None, 1])
def test_one_cluster_is_the_gaussian_of_the_data_with_jitter(rank):
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixture = fit_mixture(x, 1, VE(), rank)
    gaussian = GaussianDenoiser.from_covariance(x.mean(0), x.T.cov() + 1e-5 * torch.eye(3), VE(), rank)
    t = torch.full((300,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(mixture(x, t), gaussian(x, t))
    assert mixture.data_range == (float(x.min()), float(x.max()))


def test_clusters_find_separated_modes():
    ring = MixtureDenoiser.ring(5, 4.0, 0.2, VE(), torch.tensor([0.1, 0.2, 0.4, 0.1, 0.2]))
    x = ring.sample(4000, generator=torch.Generator().manual_seed(0))
    fitted = fit_mixture(x, 5, VE())
    order = torch.cdist(ring.means, fitted.means).argmin(1)
    assert order.unique().numel() == 5
    torch.testing.assert_close(fitted.means[order], ring.means, rtol=0, atol=0.05)
    torch.testing.assert_close(fitted.weights[order], ring.weights, rtol=0, atol=0.03)
    torch.testing.assert_close(fitted.normals.eigenvalues, torch.full((5, 2), 0.04, dtype=torch.float64), rtol=0.2, atol=0)


def test_lonely_clusters_are_points_with_jitter():
    x = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    fitted = fit_mixture(x, 3, VE())
    torch.testing.assert_close(fitted.means[fitted.means.sum(1).argsort()][0], torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(fitted.normals.eigenvalues, torch.full((3, 2), 1e-5, dtype=torch.float64))


def test_classes_get_their_own_clusters(digits):
    x, labels = digits
    fitted = fit_mixture(x, 2, VE(), rank=10, labels=labels)
    assert fitted.classes == 10 and len(fitted.weights) == 20 and fitted.shape == (1, 8, 8)
    torch.testing.assert_close(fitted.class_weights, labels.bincount() / len(labels), check_dtype=False)
    t = torch.full((len(x),), 0.3, dtype=torch.float64)
    log_p = torch.stack([fitted.log_prob(x, t, {"label": torch.full_like(labels, k)}) for k in range(10)], 1)
    assert float((log_p.argmax(1) == labels).double().mean()) > 0.95
    better = explained_variance(fitted, FiniteSetDenoiser(x, VE()), x[::8], [1.0], torch.Generator().manual_seed(0))
    gaussian = GaussianDenoiser.from_data(x, VE())
    assert better > explained_variance(gaussian, FiniteSetDenoiser(x, VE()), x[::8], [1.0], torch.Generator().manual_seed(0))


def test_impossible_fits_are_named():
    x = torch.randn(5, 2)
    with pytest.raises(LimbeckError, match=r"cannot make 6 clusters of 5 samples; choose 1..5"):
        fit_mixture(x, 6, VE())
    with pytest.raises(LimbeckError, match=r"cannot make 2 clusters of 1 samples of class 1"):
        fit_mixture(x, 2, VE(), labels=torch.tensor([0, 0, 0, 0, 1]))
    with pytest.raises(LimbeckError, match=r"labels must be 5 integers, not torch.float32"):
        fit_mixture(x, 2, VE(), labels=torch.zeros(5))
