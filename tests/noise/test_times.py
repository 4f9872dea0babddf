"""Every law against the quantile function of its distribution."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from limbeck.errors import LimbeckError
from limbeck.noise import (
    VE,
    VP,
    Choice,
    Clamped,
    InSigma,
    Karras,
    LogitNormal,
    LogNormal,
    LogUniform,
    Mapped,
    Mixture,
    Power,
    RectifiedFlow,
    Shifted,
    Snapped,
    TimeLaw,
    TrigFlow,
    Uniform,
    UniformInteger,
    between,
    karras_grid,
    shift_times,
)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _logit_normal_cdf(mean, std):
    return lambda t: stats.norm.cdf(torch.logit(torch.as_tensor(t)), mean, std)


CONTINUOUS: dict[str, tuple[TimeLaw, Callable]] = {
    "uniform": (Uniform(-1.0, 3.0), stats.uniform(-1, 4).cdf),
    "log-uniform": (LogUniform(0.01, 50.0), stats.loguniform(0.01, 50.0).cdf),
    "log-normal": (LogNormal(-1.2, 1.2), stats.lognorm(s=1.2, scale=math.exp(-1.2)).cdf),
    "log-normal-ict": (LogNormal(-1.1, 2.0), stats.lognorm(s=2.0, scale=math.exp(-1.1)).cdf),
    "logit-normal": (LogitNormal(), _logit_normal_cdf(0.0, 1.0)),
    "logit-normal-shifted": (LogitNormal(math.log(2.0), 1.6), _logit_normal_cdf(math.log(2.0), 1.6)),
    "power": (Power(3.0), stats.beta(3.0, 1.0).cdf),
    "power-early": (Power(0.5), stats.beta(0.5, 1.0).cdf),
    "karras": (Karras(), stats.uniform(0.002 ** (1 / 7), 80 ** (1 / 7) - 0.002 ** (1 / 7)).cdf),
}
OTHERS: dict[str, TimeLaw] = {
    "integers": UniformInteger(3, 9),
    "choice": Choice((1.0, 2.0, 5.0), (0.2, 0.5, 0.3)),
    "mixture": Mixture((Uniform(0.0, 1.0), Uniform(1.0, 4.0)), (1.0, 2.0)),
    "clamped": Clamped(LogNormal(), 0.1, 1.0),
    "shifted": Shifted(LogitNormal(), 3.0),
    "mapped": Mapped(LogNormal(), torch.atan),
    "snapped": Snapped(LogNormal(), (0.1, 0.3, 0.9, 2.0)),
    "in-sigma": InSigma(LogNormal(), TrigFlow()),
}
EVERY = {**{name: law for name, (law, _) in CONTINUOUS.items()}, **OTHERS}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_law_is_the_quantile_function_of_its_distribution(name):
    law, cdf = CONTINUOUS[name]
    u = torch.cat([torch.linspace(0.0, 1.0, 401, dtype=torch.float64)[1:-1], f64([1e-9, 1e-6, 1 - 1e-6])])
    t = law(u)
    found = torch.as_tensor(cdf((t ** (1 / 7) if name.startswith("karras") else t).numpy()))
    torch.testing.assert_close(found, u, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_random_draws_follow_the_distribution(name):
    law, cdf = CONTINUOUS[name]
    t = law(torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert stats.kstest((t ** (1 / 7) if name.startswith("karras") else t).numpy(), cdf).pvalue > 0.01


@settings(max_examples=30, deadline=None)
@given(u=st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=2, max_size=20))
@pytest.mark.parametrize("law", EVERY.values(), ids=EVERY)
def test_larger_numbers_give_later_times_finite_and_float64(law, u):
    t = law(f64(sorted(u)))
    assert t.dtype == torch.float64
    assert bool(torch.isfinite(t).all())
    assert bool((t.diff() >= 0).all())


@pytest.mark.parametrize("law", EVERY.values(), ids=EVERY)
def test_numbers_of_any_shape_dtype_and_order_give_times_of_that_shape(law):
    u = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).T  # float32, not contiguous
    t = law(u)
    assert (t.shape, t.dtype) == (u.shape, torch.float64)
    for i in range(4):
        for j in range(3):
            torch.testing.assert_close(t[i, j], law(u[i, j].double()[None])[0], rtol=1e-15, atol=0)


@pytest.mark.parametrize("law", EVERY.values(), ids=EVERY)
def test_the_ends_of_the_unit_interval_are_harmless(law):
    assert bool(torch.isfinite(law(f64([0.0, 1 - 2.0**-53, 1.0]))).all())


def counts(law, n: int) -> dict[float, int]:
    """How often each value appears among the n middles of equal cells of [0, 1]."""
    values, number = law((torch.arange(n, dtype=torch.float64) + 0.5) / n).unique(return_counts=True)
    return dict(zip(values.tolist(), number.tolist(), strict=True))


def test_integers_hit_both_ends_as_often_as_the_rest():
    assert counts(UniformInteger(3, 9), 700) == dict.fromkeys([3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 100)
    assert UniformInteger(0, 999)(f64([0.0, 1 - 2.0**-53, 1.0])).tolist() == [0, 999, 999]
    assert counts(UniformInteger(-2, -2), 10) == {-2.0: 10}


def test_choices_have_exact_frequencies_and_exact_edges():
    assert counts(Choice((4.0, 1.0, 2.0), (0.5, 0.2, 0.3)), 100) == {1.0: 20, 2.0: 30, 4.0: 50}
    assert counts(Choice((1.0, 2.0, 3.0, 4.0)), 100) == dict.fromkeys([1.0, 2.0, 3.0, 4.0], 25)
    ten = Choice(tuple(float(i) for i in range(10)))
    edges = torch.arange(10, dtype=torch.float64) / 10
    assert ten(edges).tolist() == list(range(10))  # an edge belongs to what follows it
    assert ten(torch.nextafter(edges[1:], f64(0.0))).tolist() == list(range(9))
    assert counts(Choice((1.0, 2.0, 3.0), (0.0, 1.0, 0.0)), 50) == {2.0: 50}


def test_a_mixture_uses_each_law_in_its_share():
    law = Mixture((Uniform(0.0, 1.0), LogUniform(10.0, 100.0), UniformInteger(-5, -4)), (1.0, 2.0, 1.0))
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = law(u)
    torch.testing.assert_close(t[:1000], 4 * u[:1000])
    torch.testing.assert_close(t[1000:3000], 10 * 10 ** (2 * (u[1000:3000] - 0.25)))
    assert counts(law, 4000) | {-5.0: 500, -4.0: 500} == counts(law, 4000)


def test_a_mixture_covers_the_unit_interval_whatever_the_rounding():
    law = Mixture(tuple(Uniform(1.0, 2.0) for _ in range(10)), (0.1,) * 10)  # ten times 0.1 falls short of 1
    assert law(f64([1 - 2.0**-53, 1.0])).min() > 1.99
    law = Mixture((Uniform(1.0, 2.0), Uniform(3.0, 4.0), Uniform(5.0, 6.0)), (0.0, 1.0, 0.0))
    t = law(torch.linspace(0.0, 1.0, 11, dtype=torch.float64))
    assert (t.min().item(), round(t.max().item(), 12)) == (3, 4)


def test_a_clamped_law_sits_on_its_borders():
    law, u = Clamped(LogNormal(0.0, 1.0), 0.5, 2.0), torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    assert torch.equal(law(u), LogNormal(0.0, 1.0)(u).clamp(0.5, 2.0))
    share = (law(u) == 2.0).double().mean().item()
    assert abs(share - stats.norm.sf(math.log(2.0))) < 0.02


def test_shifted_and_mapped_laws_are_functions_of_the_law():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(Shifted(Uniform(0.0, 1.0), 5.0)(u), shift_times(u, 5.0))
    shifted = Shifted(LogitNormal(0.0, 1.0), 3.0)(u)  # a shift moves the logit by ln(shift)
    torch.testing.assert_close(shifted, LogitNormal(math.log(3.0), 1.0)(u))
    angle = Mapped(LogNormal(-1.0, 1.4), lambda sigma: torch.atan(sigma / 0.5))(u)
    torch.testing.assert_close(angle, InSigma(LogNormal(-1.0, 1.4), TrigFlow(0.5))(u))


@pytest.mark.parametrize("grid", [(0.1, 0.3, 0.9, 2.0), (2.0, 0.1, 0.9, 0.3), (0.7,), tuple(karras_grid(18).tolist())])
def test_a_snapped_law_moves_to_the_nearest_point(grid):
    u = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    t, points = LogNormal()(u), f64(grid)
    nearest = points[(t[:, None] - points).abs().argmin(1)]
    assert torch.equal(Snapped(LogNormal(), grid)(u), nearest)


def test_a_law_of_sigma_holds_in_every_process(process):
    u, law = torch.linspace(0.0, 1.0, 102, dtype=torch.float64)[1:-1], LogNormal()
    t = InSigma(law, process)(u)
    assert process.t_min <= t.min().item()
    assert t.max().item() <= process.t_max
    low, high = (process.sigma(f64(end)) for end in (process.t_min, process.t_max))
    torch.testing.assert_close(process.sigma(t), law(u).clamp(low, high), rtol=1e-9, atol=0)


def test_the_karras_law_is_the_grid_in_the_limit():
    u = torch.linspace(0.0, 1.0, 33, dtype=torch.float64)
    torch.testing.assert_close(Karras()(u).flip(0), karras_grid(33), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: UniformInteger(5, 4), "no integer between low=5 and high=4"),
        (lambda: Choice((1.0, 2.0, 3.0), (1.0, 1.0)), "3 items need 3 weights"),
        (lambda: Choice(()), "0 items"),
        (lambda: Choice((1.0, 2.0), (0.0, 0.0)), "positive sum"),
        (lambda: Choice((1.0, 2.0), (2.0, -1.0)), r"weights >= 0 .* not \(2.0, -1.0\)"),
        (lambda: Mixture((Uniform(0.0, 1.0),), (1.0, 1.0)), "1 items need 1 weights"),
        (lambda: Mixture((Uniform(0.0, 1.0),), (math.nan,)), "positive sum"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_between_with_a_shift_is_uniform_before_it():
    """U(0.5, 1) -> shift 5 -> (0.833, 1); without one the times themselves are uniform."""
    u = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    low, high = torch.full((3,), 5 / 6, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(between(RectifiedFlow(), u, low, high, None, 5.0), shift_times(0.5 + 0.5 * u, 5.0))
    torch.testing.assert_close(between(RectifiedFlow(), u, low, high, None), low + (high - low) * u)


@pytest.mark.parametrize("process", [VE(), VP(), RectifiedFlow(shift=3.0), TrigFlow()], ids=lambda p: type(p).__name__)
def test_between_keeps_every_sample_in_its_own_interval(process):
    u = torch.linspace(0, 1, 7, dtype=torch.float64)
    low, high = process.time_of(torch.linspace(0.1, 0.4, 7)), process.time_of(torch.linspace(0.5, 3.0, 7))
    for rho in (7.0, None):
        t = between(process, u, low, high, rho)
        assert bool(((t >= low - 1e-12) & (t <= high + 1e-12)).all())
    one = torch.ones_like(u)
    whole = between(process, u, process.time_of(0.1 * one), process.time_of(5.0 * one))
    torch.testing.assert_close(whole, InSigma(Karras(0.1, 5.0), process)(u), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(between(process, u, low, high, None), low + (high - low) * u, rtol=1e-14, atol=0)
