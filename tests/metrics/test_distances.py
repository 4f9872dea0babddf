import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from scipy.stats import energy_distance as scipy_energy_distance
from scipy.stats import wasserstein_distance

from limbeck.errors import LimbeckError
from limbeck.metrics import energy_distance, mean_pairwise_distance, sliced_wasserstein, total_variation
from limbeck.metrics import samples as samples_module

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 12)
properties = settings(deadline=None, max_examples=25, derandomize=True)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


@pytest.mark.parametrize(("n", "m"), [(7, 7), (40, 25), (1, 9)])
def test_energy_distance_is_the_square_of_scipys_in_one_dimension(n, m):
    x, y = normal(n, seed=1), 0.3 + 2 * normal(m, seed=2)
    assert energy_distance(x, y) == pytest.approx(scipy_energy_distance(x, y) ** 2, rel=1e-12)


def test_energy_distance_in_many_dimensions_is_its_three_means():
    x, y = normal(30, 2, 3, seed=1), 1 + normal(20, 2, 3, seed=2)
    a, b = x.flatten(1).numpy(), y.flatten(1).numpy()
    between, within = cdist(a, b).mean(), (cdist(a, a).mean(), cdist(b, b).mean())
    assert energy_distance(x, y) == pytest.approx(2 * between - sum(within), rel=1e-12)
    unbiased = 2 * between - pdist(a).mean() - pdist(b).mean()
    assert energy_distance(x, y, unbiased=True) == pytest.approx(unbiased, rel=1e-12)


def test_unbiased_energy_distance_averages_to_zero_where_the_default_averages_to_its_bias():
    # One-dimensional uniform on [0, 1]: E|X - X'| = 1/3, so the default exceeds the truth by 2/3 / n.
    n, repeats = 10, 600
    draws = torch.rand(repeats, 2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    default = np.array([energy_distance(x, y) for x, y in draws])
    unbiased = np.array([energy_distance(x, y, unbiased=True) for x, y in draws])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / repeats**0.5
    assert abs(default.mean() - 2 / 3 / n) < 4 * default.std() / repeats**0.5


def test_blocks_do_not_change_the_result_and_bound_the_memory(monkeypatch):
    x, y = normal(50, 3, seed=1), normal(33, 3, seed=2)
    whole = energy_distance(x, y), mean_pairwise_distance(x)
    monkeypatch.setattr(samples_module, "BLOCK_ENTRIES", 100)
    assert max(block.numel() for block in samples_module.distance_blocks(x, y)) <= 100
    assert (energy_distance(x, y), mean_pairwise_distance(x)) == pytest.approx(whole, rel=1e-13)


@pytest.mark.parametrize(("n", "m"), [(8, 8), (12, 5), (6, 4), (1, 3)])
def test_sliced_wasserstein_in_one_dimension_is_scipys(n, m):
    x, y = normal(n, seed=1), 0.5 + normal(m, seed=2)
    # Every direction of the line is +1 or -1.
    assert sliced_wasserstein(x, y, 3, seed=0, p=1) == pytest.approx(wasserstein_distance(x, y), rel=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_wasserstein_of_unequal_sizes_is_that_of_repeated_samples(p):
    x, y = normal(6, seed=1), normal(4, seed=2)
    gap = x.repeat_interleave(2).sort().values - y.repeat_interleave(3).sort().values
    expected = gap.abs().pow(p).mean().item() ** (1 / p)
    assert sliced_wasserstein(x, y, 2, seed=0, p=p) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection():
    x, shift = normal(20, 3, seed=1), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    squares = [sliced_wasserstein(x, x + shift, 1, seed=seed) ** 2 for seed in range(400)]
    # E (theta . delta)^2 = |delta|^2 / D for uniform unit vectors.
    error = np.mean(squares) - shift.square().sum().item() / 3
    assert abs(error) < 4 * np.std(squares) / 20
    assert len(set(squares)) == 400


def test_sliced_wasserstein_depends_on_the_seed_alone():
    x, y = normal(9, 4, seed=1), normal(9, 4, seed=2)
    torch.manual_seed(1)
    first = sliced_wasserstein(x, y, 50, seed=3)
    torch.manual_seed(2)
    assert sliced_wasserstein(x, y, 50, seed=3) == first != sliced_wasserstein(x, y, 50, seed=4)


@properties
@given(seeds, sizes, sizes, st.integers(1, 5))
def test_distances_of_sets_are_symmetric_and_vanish_on_equal_sets(seed, n, m, size):
    x, y = normal(n, size, seed=seed), normal(m, size, seed=seed + 1)
    for distance in (energy_distance, lambda a, b: sliced_wasserstein(a, b, 8, seed=0)):
        assert distance(x, y) == pytest.approx(distance(y, x), rel=1e-10)
        assert distance(x, y) > 0
        shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        assert distance(x, shuffled) == pytest.approx(0, abs=1e-12)
        assert distance(shuffled, y) == pytest.approx(distance(x, y), rel=1e-10)


@properties
@given(seeds, sizes, sizes, st.integers(1, 5), st.floats(0.1, 10))
def test_energy_distance_is_rigid_and_homogeneous(seed, n, m, size, scale):
    x, y = normal(n, size, seed=seed), normal(m, size, seed=seed + 1)
    turn, shift = orthogonal(size, seed), normal(size, seed=seed + 2)
    expected = scale * energy_distance(x, y)
    assert energy_distance(scale * x @ turn + shift, scale * y @ turn + shift) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@properties
@given(seeds, sizes, sizes, st.integers(1, 5), st.floats(0.1, 10))
def test_sliced_wasserstein_is_homogeneous_and_grows_with_p(seed, n, m, size, scale):
    x, y = normal(n, size, seed=seed), normal(m, size, seed=seed + 1)
    shift = normal(size, seed=seed + 2)
    w1, w2 = (sliced_wasserstein(x, y, 8, seed=0, p=p) for p in (1, 2))
    assert w1 <= w2 * (1 + 1e-12)
    moved = sliced_wasserstein(scale * x + shift, scale * y + shift, 8, seed=0)
    assert moved == pytest.approx(scale * w2, rel=1e-9)


def test_mean_pairwise_distance_is_scipys():
    x = normal(25, 2, 2)
    assert mean_pairwise_distance(x) == pytest.approx(pdist(x.flatten(1).numpy()).mean(), rel=1e-13)
    assert mean_pairwise_distance(torch.ones(5, 3)) == 0


def test_total_variation_is_the_largest_difference_over_all_events():
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.25, 0.25, 0.1])
    events = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    assert total_variation(p, q) == pytest.approx((events @ (p - q)).max().item(), abs=1e-7)
    assert total_variation(p.reshape(2, 2), q.reshape(2, 2)) == total_variation(p, q) == total_variation(q, p)
    assert total_variation(torch.tensor([1, 0]), torch.tensor([0, 1])) == 1


def test_half_precision_and_integers_are_read_exactly():
    x, y = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 2], [5, 1]])
    assert energy_distance(x, y) == energy_distance(x.half(), y.bfloat16()) == energy_distance(x.double(), y)


pairwise = [energy_distance, lambda x, y: sliced_wasserstein(x, y, 4, seed=0)]


@pytest.mark.parametrize("distance", pairwise)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(0, 2), torch.zeros(3, 2), "x has 0 samples, at least 1 are needed"),
        (torch.zeros(3, 2), torch.zeros(3, 3), r"samples of shape \(2,\) and y of \(3,\)"),
        (torch.zeros(3, 4), torch.zeros(3, 2, 2), r"samples of shape \(4,\) and y of \(2, 2\)"),
        (torch.zeros(3, 2), torch.tensor([[0.0, torch.nan], [torch.inf, 0]]), "y has NaN or .* in 2 of 2"),
        (torch.tensor(1.0), torch.zeros(3), r"x has shape \(\)"),
        (torch.zeros(3, 0), torch.zeros(3, 0), "holds no values"),
        (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(3, 2), "complex64"),
    ],
)
def test_bad_samples_are_named(distance, x, y, message):
    with pytest.raises(LimbeckError, match=message):
        distance(x, y)


def test_bad_options_are_named():
    x = normal(3, 2)
    with pytest.raises(LimbeckError, match="x has 1 samples, at least 2"):
        energy_distance(x[:1], x, unbiased=True)
    with pytest.raises(LimbeckError, match="projections is 0"):
        sliced_wasserstein(x, x, 0, seed=0)
    for p in (0.5, float("nan"), float("inf")):
        with pytest.raises(LimbeckError, match=f"p is {p}"):
            sliced_wasserstein(x, x, 2, seed=0, p=p)
    with pytest.raises(LimbeckError, match="x has 1 samples, at least 2"):
        mean_pairwise_distance(x[:1])


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ([0.5, 0.5], [0.5, 0.3, 0.2], "same cells"),
        ([0.5, 0.5], [3.0, 4.0], "q has smallest value 3 and sum 7"),
        ([1.5, -0.5], [0.5, 0.5], "p has smallest value -0.5"),
        ([float("nan"), 1.0], [0.5, 0.5], "p has NaN"),
    ],
)
def test_bad_laws_are_named(p, q, message):
    with pytest.raises(LimbeckError, match=message):
        total_variation(torch.tensor(p), torch.tensor(q))
