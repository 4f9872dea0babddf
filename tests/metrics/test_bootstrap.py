import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.metrics import bootstrap_floor, frechet_distance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_floor_is_the_median_over_resamples():
    x, seen = normal(30, 2), []

    def statistic(resample, real):
        assert torch.equal(real, x)
        seen.append((resample.mean(0) - real.mean(0)).norm().item())
        return seen[-1]

    floor = bootstrap_floor(x, statistic, repeats=51, seed=0)
    assert floor == sorted(seen)[25] and len(set(seen)) == 51
    assert bootstrap_floor(x, statistic, repeats=51, seed=0) == floor
    assert bootstrap_floor(x, statistic, repeats=51, seed=1) != floor


def test_the_floor_of_a_mean_is_its_standard_error():
    # The squared error of a resampled mean is var / n times chi-square(1), of median 0.4549.
    x = normal(200)
    square = bootstrap_floor(x, lambda a, b: (a.mean() - b.mean()).square().item(), repeats=2000, seed=0)
    assert square == pytest.approx(0.4549 * x.var(correction=0).item() / 200, rel=0.1)
    quarter = bootstrap_floor(x, lambda a, b: (a.mean() - b.mean()).square().item(), repeats=2000, seed=0, copies=4)
    assert quarter == pytest.approx(square / 4, rel=0.15)


def test_resamples_have_exact_class_counts_and_draw_within_the_class():
    labels = torch.tensor([2, 0, 2, 2, 5, 0])
    features = torch.stack([labels, torch.arange(6)], 1)

    def statistic(resample, real):
        assert resample[:, 0].unique(return_counts=True)[1].tolist() == [6, 9, 3]
        assert all((row == real).all(1).any() for row in resample)
        return float(len(resample))

    assert bootstrap_floor(features, statistic, 5, seed=0, labels=labels, copies=3) == 18


def test_the_floor_of_the_frechet_distance_falls_with_the_sample_size():
    x = normal(300, 5)
    floors = [bootstrap_floor(x, frechet_distance, 15, seed=0, copies=copies) for copies in (1, 4, 16)]
    assert 3 < floors[0] / floors[1] < 5.5 and 3 < floors[1] / floors[2] < 5.5


def test_bad_input_is_named():
    x = normal(5, 2)
    with pytest.raises(LimbeckError, match="features has 0 samples"):
        bootstrap_floor(x[:0], frechet_distance, 3, seed=0)
    with pytest.raises(LimbeckError, match="repeats is 0"):
        bootstrap_floor(x, frechet_distance, 0, seed=0)
    with pytest.raises(LimbeckError, match="copies is 0"):
        bootstrap_floor(x, frechet_distance, 3, seed=0, copies=0)
    with pytest.raises(LimbeckError, match="labels has shape"):
        bootstrap_floor(x, frechet_distance, 3, seed=0, labels=torch.zeros(4, dtype=torch.long))
    with pytest.raises(LimbeckError, match="NaN or infinite on 3 of 3"):
        bootstrap_floor(x, lambda a, b: float("inf"), 3, seed=0)
