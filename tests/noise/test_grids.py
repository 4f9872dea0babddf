"""Grids against diffusers' and the papers' formulas; curricula at their landmarks."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.noise import (
    check_decreasing,
    ddpm_grid,
    doubling_points,
    growing_points,
    karras_grid,
    linear_grid,
    log_grid,
    lognormal_cells,
    ramp,
    shift_times,
)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm_grids_are_diffusers_timesteps(spacing):
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(timestep_spacing=spacing, steps_offset=0)
    for n in (*range(2 if spacing == "linspace" else 1, 130), *range(130, 1000, 31), 256, 500, 512, 999, 1000):
        scheduler.set_timesteps(n)
        found, peer = ddpm_grid(n, 1000, spacing), scheduler.timesteps.double()
        assert torch.equal(found, peer[:n]), n
        assert bool((found.diff() < 0).all())


def test_ddpm_grids_of_one_step_start_at_the_noisiest_index_but_for_leading():
    assert [ddpm_grid(1, 1000, spacing).item() for spacing in ("trailing", "linspace", "leading")] == [999, 999, 0]


@given(steps=st.integers(1, 1000), share=st.floats(0.0, 1.0), spacing=st.sampled_from(["leading", "trailing", "linspace"]))
@settings(max_examples=60, deadline=None)
def test_ddpm_grids_are_decreasing_indices(steps, share, spacing):
    n = 1 + round(share * (steps - 1))
    grid = check_decreasing(ddpm_grid(n, steps, spacing))
    assert (len(grid), grid.dtype) == (n, torch.float64)
    assert torch.equal(grid, grid.round())
    assert 0 <= grid.min() <= grid.max() <= steps - 1


@pytest.mark.parametrize("n", [1, 2, 7, 18, 40])
def test_the_karras_grid_is_diffusers(n):
    from diffusers import EDMEulerScheduler, EulerDiscreteScheduler

    peer: Any = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, num_train_timesteps=1000)
    peer.set_timesteps(n)
    torch.testing.assert_close(karras_grid(n), peer.sigmas[:-1].double(), rtol=1e-5, atol=0)
    peer = EulerDiscreteScheduler(use_karras_sigmas=True)
    low, high = 0.03, 14.5
    sigmas = peer._convert_to_karras(in_sigmas=f64([high, low]), num_inference_steps=n)
    torch.testing.assert_close(karras_grid(n, low, high), torch.as_tensor(sigmas), rtol=1e-12, atol=0)


@given(n=st.integers(2, 60), rho=st.floats(1.0, 12.0), high=st.floats(0.1, 200.0))
@settings(max_examples=40, deadline=None)
def test_grids_of_noise_levels_are_even_in_their_own_scale_and_end_exactly(n, rho, high):
    low = 0.002
    for grid, scale in ((karras_grid(n, low, high, rho), lambda t: t ** (1 / rho)), (log_grid(n, low, high), torch.log)):
        assert (grid[0].item(), grid[-1].item(), len(grid)) == (high, low, n)
        gaps = scale(check_decreasing(grid)).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(n - 1), rtol=1e-9, atol=1e-12)


def test_a_grid_of_one_level_is_the_highest():
    assert [karras_grid(1).tolist(), log_grid(1, 0.1, 3.0).tolist(), linear_grid(1).tolist()] == [[80.0], [3.0], [1.0]]


def test_linear_grids_leave_the_end_out():
    torch.testing.assert_close(linear_grid(4), f64([1.0, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(linear_grid(4, 0.9, 0.1), f64([0.9, 0.7, 0.5, 0.3]))
    # four steps of a shifted flow, as raw times in thousandths
    torch.testing.assert_close(1000 * linear_grid(4, shift=5.0), f64([1000.0, 937.5, 2500 / 3, 625.0]))
    torch.testing.assert_close(1000 * linear_grid(4, shift=3.0), f64([1000.0, 900.0, 750.0, 500.0]))


@given(t=st.floats(0.0, 1.0), first=st.floats(0.1, 10.0), second=st.floats(0.1, 10.0))
@settings(deadline=None)
def test_shifts_keep_the_ends_and_compose_by_multiplication(t, first, second):
    torch.testing.assert_close(shift_times(f64([0.0, 1.0]), first), f64([0.0, 1.0]), rtol=1e-15, atol=0)
    twice = shift_times(shift_times(f64(t), first), second)
    torch.testing.assert_close(twice, shift_times(f64(t), first * second), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(shift_times(shift_times(f64(t), first), 1 / first), f64(t), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("shape, middle", [("linear", 0.25), ("sqrt", 0.5), ("cosine", (1 - math.cos(math.pi / 4)) / 2)])
def test_a_ramp_starts_bends_and_stays(shape, middle):
    values = [ramp(step, 10, 2.0, 6.0, 50, shape) for step in (0, 10, 20, 50, 99)]
    assert values == pytest.approx([2, 2, 2 + 4 * middle, 6, 6], rel=1e-14)
    assert ramp(20, 10, 6.0, 2.0, 50, shape) == pytest.approx(6 - 4 * middle, rel=1e-14)
    assert [ramp(step, 10, 2.0, 6.0, 10, shape) for step in (9, 10, 11)] == [2, 2, 6]


# Curricula


def test_doubling_points_double_every_twelve_steps_of_a_hundred():
    points = [doubling_points(step, 100) for step in range(100)]
    assert [points[k] for k in (0, 11, 12, 23, 24, 36, 48, 60, 72, 83, 84, 99)] == [
        *(11, 11, 21, 21, 41, 81, 161, 321, 641, 641, 1281, 1281)
    ]
    lengths = [len(list(group)) for _, group in itertools.groupby(points)]
    assert lengths == [12] * 7 + [16]


@given(total=st.integers(20, 5000), s0=st.integers(1, 40), factor=st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_doubling_points_never_fall_and_end_at_s1_plus_one(total, s0, factor):
    s1 = s0 * factor
    points = [doubling_points(step, total, s0, s1) for step in range(0, total, max(total // 50, 1))]
    assert points == sorted(points)
    assert points[0] == s0 + 1
    assert max(points) <= s1 + 1
    if total > 40 * math.log2(2 * factor):  # long enough that the last stage is not lost to rounding
        assert doubling_points(total - 1, total, s0, s1) == s1 + 1


def test_doubling_points_that_are_no_power_of_two_use_the_real_logarithm():
    # K' = floor(1000 / (log2(10) + 1)) = 231, so that the cut-off stage is reached
    assert [doubling_points(k, 1000, 10, 100) for k in (230, 231, 923, 924, 999)] == [11, 21, 81, 101, 101]


def test_growing_points_follow_the_square_root_and_end_near_s1():
    total = 1000
    points = [growing_points(step, total) for step in range(total)]
    assert points == sorted(points)
    assert (points[0], points[-1]) == (2, 151)
    assert growing_points(total - 1, total, s1=200) == 201
    for step in (1, 250, 640):
        assert points[step] == math.ceil(math.sqrt(step / 1000 * (151**2 - 4) + 4) - 1) + 1
    assert points[250] == 76  # a quarter of the steps gives half the points


@given(n=st.integers(2, 200))
@settings(max_examples=25, deadline=None)
def test_lognormal_cells_sum_to_one_and_refine(n):
    coarse, fine = (lognormal_cells(karras_grid(k).flip(0)) for k in (n + 1, 2 * n + 1))
    assert coarse.shape == (n,)
    assert bool((coarse > 0).all())
    torch.testing.assert_close(coarse.sum(), f64(1.0), rtol=1e-12, atol=0)
    torch.testing.assert_close(fine[::2] + fine[1::2], coarse, rtol=1e-9, atol=1e-13)  # the normalisers agree: same ends


def test_lognormal_cells_are_masses_of_the_normal_law_of_ln_sigma():
    from scipy.stats import norm

    grid = karras_grid(11).flip(0)
    cdf = torch.as_tensor(norm.cdf(torch.log(grid).numpy(), -1.1, 2.0))
    torch.testing.assert_close(lognormal_cells(grid), cdf.diff() / (cdf[-1] - cdf[0]), rtol=1e-10, atol=0)
    torch.testing.assert_close(lognormal_cells(grid.flip(0)), lognormal_cells(grid).flip(0))


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=6))
@settings(deadline=None)
def test_decreasing_times_pass_and_others_are_named(values):
    if all(second < first for first, second in itertools.pairwise(values)):
        assert torch.equal(check_decreasing(values), f64(values))
    else:
        with pytest.raises(LimbeckError, match=r"boundaries must decrease strictly, not \["):
            check_decreasing(values, "boundaries")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: check_decreasing([]), "must decrease strictly"),
        (lambda: check_decreasing([1.0, math.nan, 0.0]), r"must decrease strictly, not \[1.0, nan, 0.0\]"),
        (lambda: check_decreasing(f64([[1.0, 0.5]])), "must decrease strictly"),
        (lambda: karras_grid(0), "n >= 1 .* not n=0"),
        (lambda: karras_grid(5, 1.0, 0.5), "low=1, high=0.5"),
        (lambda: log_grid(5, 0.0, 1.0), "0 < low < high, not n=5, low=0"),
        (lambda: linear_grid(0), "n >= 1"),
        (lambda: linear_grid(4, 0.0, 1.0), "low < high"),
        (lambda: ddpm_grid(0), "cannot take n=0 of 1000 steps; choose 1 <= n <= 1000"),
        (lambda: ddpm_grid(41, 40), "n=41 of 40"),
        (lambda: ddpm_grid(4, 40, "trailling"), "unknown spacing 'trailling': did you mean 'trailing'"),
        (lambda: ramp(1, 0, 0.0, 1.0, 5, "cosin"), "unknown ramp shape 'cosin': did you mean 'cosine'"),
        (lambda: doubling_points(0, 100, 20, 10), "1 <= s0 <= s1, not s0=20, s1=10"),
        (lambda: doubling_points(0, 100, 0, 10), "1 <= s0"),
        (lambda: doubling_points(0, 7), "needs at least 8 steps, not 7"),
        (lambda: doubling_points(0, 4, 10, 100), "needs at least 5 steps, not 4"),
        (lambda: doubling_points(100, 100), "step 100 lies outside the planned 100 steps; raise the number of iterations"),
        (lambda: doubling_points(-1, 100), "step -1"),
        (lambda: growing_points(0, 100, 5, 4), "1 <= s0 <= s1, not s0=5, s1=4"),
        (lambda: growing_points(200, 100), "step 200 lies outside"),
        (lambda: lognormal_cells(f64([1.0, 3.0, 2.0])), "rise or fall strictly"),
        (lambda: lognormal_cells(f64([1.0])), "at least two noise levels"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_the_least_number_of_steps_that_is_named_is_enough():
    assert [doubling_points(0, 8), doubling_points(7, 8)] == [11, 1281]
    assert doubling_points(0, 5, 10, 100) == 11
