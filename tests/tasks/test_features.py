import numpy as np
import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import LimbeckError
from limbeck.metrics import bootstrap_floor, frechet_distance, moments
from limbeck.tasks import image_features, load_digits, whitened
from limbeck.tasks.features import haar
from limbeck.tasks.photos import load_crops


@pytest.fixture(scope="module")
def crops():
    return load_crops(1024)


@pytest.fixture(scope="module")
def measure(crops):
    """Frechet distance of images to the crops, in the whitened features."""
    features = whitened(image_features, crops[0])
    reference = features(crops[0])
    return lambda x: frechet_distance(features(x), reference)


@pytest.fixture(scope="module")
def floor(crops):
    return bootstrap_floor(whitened(image_features, crops[0])(crops[0]), frechet_distance, 5, 0)


def blurred(x, sigma):
    kernel = torch.exp(-torch.arange(-4.0, 5).square() / (2 * sigma**2))
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).expand(x.shape[1], 1, 9, 9)
    return F.conv2d(F.pad(x, (4, 4, 4, 4), mode="reflect"), kernel, groups=x.shape[1])


def test_haar_is_orthonormal_and_exact():
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, details = haar(x)
    assert low.shape == (2, 3, 4, 3) and details.shape == (2, 3, 3, 4, 3)
    torch.testing.assert_close(low.square().sum() + details.square().sum(), x.square().sum())
    block = torch.tensor([[1.0, 2.0], [3.0, 5.0]])[None, None]
    low, details = haar(block)
    assert low.item() == 5.5 and details.flatten().tolist() == [-1.5, -2.5, 0.5]
    odd = haar(x[..., :7, :5])
    assert torch.equal(odd[0], haar(x)[0][..., :3, :2]) and odd[1].shape[-2:] == (3, 2)


@pytest.mark.parametrize(
    "shape, count",
    [((1, 4, 4), 20), ((1, 8, 8), 24), ((1, 28, 28), 28), ((3, 16, 16), 84), ((3, 33, 50), 84), ((8, 16, 16), 128)],
)
def test_features_of_every_size(shape, count):
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = image_features(x)
    assert found.shape == (5, count) and found.dtype == torch.float64 and found.isfinite().all()
    assert torch.equal(found[1:2], image_features(x[1:2]))


def test_features_are_differentiable_and_finite_on_flat_pictures():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(image_features, x)
    flat = image_features(torch.full((1, 1, 8, 8), 0.25))
    np.testing.assert_allclose(flat[0, :16], 0.25)
    np.testing.assert_allclose(flat[0, 19], 0, atol=1e-12)  # as sparse as grain


@pytest.mark.parametrize("x", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)])
def test_what_is_no_image_is_refused(x):
    with pytest.raises(LimbeckError, match="features need"):
        image_features(x)


def test_whitening_gives_mean_zero_and_unit_covariance(crops):
    found = whitened(image_features, crops[0], floor=1e-9)(crops[0])
    mean, covariance = moments(found)
    assert mean.abs().max() < 1e-9 and (covariance - torch.eye(84)).abs().max() < 1e-6
    floored = moments(whitened(image_features, crops[0])(crops[0])).covariance.diagonal()
    assert floored.max() < 1 + 1e-6 and floored.min() > 0.01
    few = whitened(image_features, crops[0][:20])  # fewer pictures than features
    assert few(crops[0][20:40]).isfinite().all()


def test_distance_grows_with_blur_and_noise_and_is_far_above_the_floor(crops, measure, floor):
    x = crops[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    noisy = [measure(x + s * noise) for s in (0.05, 0.1, 0.2, 0.4)]
    blurry = [measure(blurred(x, s)) for s in (0.5, 0.7, 1.0, 2.0)]
    assert noisy == sorted(noisy) and blurry == sorted(blurry)
    assert noisy[0] > 3 * floor and noisy[1] > 8 * floor
    assert blurry[0] > 2 * floor and blurry[1] > 8 * floor


def test_distance_sees_missing_modes_and_wrong_layout(crops, measure, floor):
    x, labels = crops
    for label in (0, 1):
        assert measure(x[labels == label].repeat(2, 1, 1, 1)) > 4 * floor
    assert measure(x[:16].repeat(64, 1, 1, 1)) > 10 * floor  # sixteen pictures again and again
    assert measure(x.flip(2)) > 2 * floor  # upside down
    assert measure(x.flip(3)) < 2 * floor  # mirrored: as the crops are by halves
    assert measure(x.flip(1)) > 4 * floor  # red and blue exchanged


def test_distance_sees_a_missing_digit():
    images, labels = load_digits()
    features = whitened(image_features, images)
    reference = features(images)
    floor = bootstrap_floor(reference, frechet_distance, 5, 0)
    for digit in (0, 1, 7):
        assert frechet_distance(reference[labels != digit], reference) > 1.1 * floor
    assert (
        frechet_distance(
            features(load_digits()[0][:, :, :, torch.randperm(8, generator=torch.Generator().manual_seed(0))]), reference
        )
        > 20 * floor
    )
