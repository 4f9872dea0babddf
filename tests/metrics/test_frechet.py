import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel

from limbeck.errors import LimbeckError
from limbeck.metrics import (
    Moments,
    frechet_distance,
    frechet_distance_of_moments,
    kernel_distance,
    kernel_distance_of_blocks,
    moments,
)
from limbeck.metrics import samples as samples_module

seeds = st.integers(0, 2**31 - 1)
properties = settings(deadline=None, max_examples=25, derandomize=True)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


def test_moments_are_numpys():
    x = 3 + normal(20, 2, 3)
    mean, covariance = moments(x)
    rows = x.flatten(1).numpy()
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(rows, rowvar=False), rtol=1e-12, atol=1e-14)


def test_frechet_distance_is_the_textbook_formula_with_scipys_root():
    x, y = normal(60, 8, seed=1) @ normal(8, 8, seed=3), 0.5 + normal(45, 8, seed=2)
    a, b = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(x.reshape(60, 2, 2, 2), y.reshape(45, 2, 2, 2)) == frechet_distance(x, y)


def test_frechet_distance_of_commuting_covariances_is_closed():
    turn, a, b = orthogonal(6, 0), 0.1 + normal(6, seed=2).abs(), 0.1 + normal(6, seed=3).abs()
    shift = normal(6, seed=1)
    first = torch.zeros(6, dtype=torch.float64), turn @ a.diag() @ turn.T
    second = shift, turn @ b.diag() @ turn.T
    expected = (shift.square() + (a.sqrt() - b.sqrt()).square()).sum().item()
    assert frechet_distance_of_moments(first, second) == pytest.approx(expected, rel=1e-11)


def test_frechet_distance_of_rank_one_covariances_is_closed():
    a, b, zero = normal(30, seed=1), normal(30, seed=2), torch.zeros(30, dtype=torch.float64)
    expected = (a @ a + b @ b - 2 * (a @ b).abs()).item()
    measured = frechet_distance_of_moments((zero, a.outer(a)), (zero, b.outer(b)))
    assert measured == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_with_fewer_samples_than_dimensions():
    # Tr (C_x C_y)^(1/2) is the nuclear norm of A B^T for the centred samples A, B over root N - 1.
    x, y = normal(5, 40, seed=1), normal(7, 40, seed=2)
    a, b = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    overlap = torch.linalg.matrix_norm(a @ b.T, "nuc")
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * overlap
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-11)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_points():
    point, other = torch.zeros(4, 3), torch.ones(9, 3)
    assert frechet_distance(point, other) == pytest.approx(3, rel=1e-15)


@properties
@given(seeds, st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.floats(0.1, 10))
def test_frechet_distance_is_a_rigid_symmetric_square(seed, n, m, size, scale):
    x, y = normal(n, size, seed=seed), normal(m, size, seed=seed + 1)
    turn, shift = orthogonal(size, seed), normal(size, seed=seed + 2)
    distance = frechet_distance(x, y)
    assert distance >= 0
    assert frechet_distance(y, x) == pytest.approx(distance, rel=1e-9, abs=1e-11)
    moved = frechet_distance(scale * x @ turn + shift, scale * y @ turn + shift)
    assert moved == pytest.approx(scale**2 * distance, rel=1e-8, abs=1e-9)
    z = normal(n, size, seed=seed + 3)
    assert distance**0.5 <= frechet_distance(x, z) ** 0.5 + frechet_distance(z, y) ** 0.5 + 1e-9


def test_kernel_distance_is_its_double_loop():
    x, y = normal(6, 3, seed=1), 0.5 + normal(4, 3, seed=2)

    def k(a, b):
        return ((a @ b).item() / 3 + 1) ** 3

    within_x = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    within_y = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between, rel=1e-11)


def test_kernel_distance_uses_sklearns_default_cubic_kernel_and_blocks_are_exact(monkeypatch):
    x, y = normal(40, 5, seed=1), 1 + normal(30, 5, seed=2)
    xx, yy, xy = (polynomial_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
    expected = (xx.sum() - xx.trace()) / (40 * 39) + (yy.sum() - yy.trace()) / (30 * 29) - 2 * xy.mean()
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-11)
    monkeypatch.setattr(samples_module, "BLOCK_ENTRIES", 90)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-11)


def test_kernel_distance_is_unbiased():
    values = np.array([kernel_distance(*normal(2, 8, 2, seed=seed)) for seed in range(500)])
    assert abs(values.mean()) < 4 * values.std() / 500**0.5
    assert values.min() < 0


def test_blocks_average_to_the_whole_and_depend_on_the_seed_alone():
    x, y = normal(60, 3, seed=1), 1 + normal(50, 3, seed=2)
    mean, std = kernel_distance_of_blocks(x, y, size=25, blocks=100, seed=0)
    assert abs(mean - kernel_distance(x, y)) < 4 * std / 10
    assert kernel_distance_of_blocks(x, y, size=25, blocks=100, seed=0) == (mean, std)
    assert kernel_distance_of_blocks(x, y, size=25, blocks=100, seed=1) != (mean, std)
    # The spread of two blocks is half their difference.
    first = kernel_distance_of_blocks(x, y, size=25, blocks=1, seed=0)
    both = kernel_distance_of_blocks(x, y, size=25, blocks=2, seed=0)
    assert first.std == 0 and both.std == pytest.approx(abs(first.mean - both.mean), rel=1e-12)
    # Subsets are drawn without replacement: one as large as the data is the data.
    whole = kernel_distance_of_blocks(x, x + 1, size=60, blocks=3, seed=0)
    assert whole == pytest.approx((kernel_distance(x, x + 1), 0), abs=1e-9)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_bad_features_are_named(distance):
    x = normal(4, 3)
    with pytest.raises(LimbeckError, match="features_x has 1 samples, at least 2"):
        distance(x[:1], x)
    with pytest.raises(LimbeckError, match=r"features_x has .* \(3,\) and features_y of \(2,\)"):
        distance(x, x[:, :2])
    with pytest.raises(LimbeckError, match="features_y has NaN or infinite values in 4 of 4"):
        distance(x, x / 0)


def test_bad_blocks_are_named():
    x = normal(10, 3)
    with pytest.raises(LimbeckError, match="features_y has 5 samples, at least 8"):
        kernel_distance_of_blocks(x, x[:5], size=8, blocks=2, seed=0)
    with pytest.raises(LimbeckError, match="size is 1"):
        kernel_distance_of_blocks(x, x, size=1, blocks=2, seed=0)
    with pytest.raises(LimbeckError, match="blocks is 0"):
        kernel_distance_of_blocks(x, x, size=2, blocks=0, seed=0)


def test_bad_moments_are_named():
    good = Moments(torch.zeros(2), torch.eye(2))
    bad = [
        ((torch.zeros(2), torch.eye(3)), r"mean of shape \(2,\) and a covariance of \(3, 3\)"),
        ((torch.zeros(2, 1), torch.eye(2)), r"mean of shape \(2, 1\)"),
        ((torch.zeros(0), torch.eye(0)), r"mean of shape \(0,\)"),
        ((torch.zeros(2), torch.eye(2) / 0), "NaN or infinite"),
        ((torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
        ((torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])), "eigenvalue -1"),
        ((torch.zeros(2), -torch.eye(2)), "eigenvalue -1"),
        ((torch.zeros(3), torch.eye(3)), "3 dimensions and b 2"),
    ]
    for pair, message in bad:
        with pytest.raises(LimbeckError, match=message):
            frechet_distance_of_moments(pair, good)
    assert frechet_distance_of_moments(good, good) == 0
