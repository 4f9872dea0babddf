"""Steps between noise levels: transitions, posteriors, and targets between two levels."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from limbeck.errors import ConversionError
from limbeck.noise import DDPM, VE, VP, CosineVP, Process, RectifiedFlow, TrigFlow

# a place in the range of times: anywhere, or within 1e-9 .. 1 of either end
places = st.one_of(
    st.floats(0.0, 1.0), st.floats(0.0, 9.0).map(lambda k: 10**-k), st.floats(0.0, 9.0).map(lambda k: 1 - 10**-k)
)
seeds = st.integers(0, 2**31)
fast = settings(max_examples=20, deadline=None)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def some(count: int):
    return st.lists(places, min_size=count, max_size=count, unique=True)


def normals(seed: int, *shapes) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def ordered(t) -> list[torch.Tensor]:
    found = t.unique()
    assume(len(found) == len(t))
    return list(found[:, None])


@fast
@given(where=some(2), seed=seeds)
def test_noising_in_two_steps_is_noising_in_one(process, times, where, seed):
    level, t = ordered(times(process, where))
    a, s = process.transition(level, t)
    torch.testing.assert_close(a * process.a(level), process.a(t), rtol=1e-12, atol=0)
    torch.testing.assert_close((a * process.s(level)) ** 2 + s**2, process.s(t) ** 2, rtol=1e-10, atol=0)
    x0, e1, e2, y = normals(seed, *[(1, 4)] * 4)
    twice = process.diffuse(process.add_noise(x0, e1, level, y), e2, t, level, y)
    signal_and_drift = process.a(t) * x0 + process.d(t) * y  # the mean; the noise is e1's share and e2's
    torch.testing.assert_close(twice, signal_and_drift + a * process.s(level) * e1 + s * e2, rtol=1e-10, atol=1e-10)
    assert torch.equal(process.diffuse(x0, e1, t, None, y), process.add_noise(x0, e1, t, y))


@fast
@given(where=some(3))
def test_transitions_compose(process, times, where):
    r, s, t = ordered(times(process, where))
    (a1, s1), (a2, s2), (a, noise) = process.transition(r, s), process.transition(s, t), process.transition(r, t)
    torch.testing.assert_close(a1 * a2, a, rtol=1e-12, atol=0)
    scale = process.s(t).item() ** 2  # steps may be tiny beside the level at which they happen
    torch.testing.assert_close((a2 * s1) ** 2 + s2**2, noise**2, rtol=1e-10, atol=1e-12 * scale)


@pytest.mark.parametrize("process", [VE(), VP(), CosineVP(), RectifiedFlow(), RectifiedFlow(3.0), TrigFlow(0.5)], ids=repr)
def test_a_transition_from_clean_data_is_add_noise(process):
    clean = f64([0.0])
    t = f64([0.5 * process.t_max])
    torch.testing.assert_close(torch.stack(process.transition(clean, t)), torch.stack([process.a(t), process.s(t)]))
    assert torch.stack(process.transition(clean, clean)).tolist() == [[1.0], [0.0]]


def test_a_transition_to_the_same_level_changes_nothing(process):
    t = f64([0.2, 0.7]) * process.t_max
    assert torch.stack(process.transition(t, t)).tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_a_transition_to_less_noise_is_refused(process):
    low, high = f64([0.3]) * process.t_max, f64([0.6]) * process.t_max
    with pytest.raises(ConversionError, match=r"towards more noise.*less noisy.*posterior\(\)"):
        process.transition(high, low)
    with pytest.raises(ConversionError, match="less noisy"):
        process.transition(torch.cat([low, high]), torch.cat([high, low]))  # one bad sample is enough
    with pytest.raises(ConversionError, match="less noisy"):
        process.posterior(high, high, low, high)


def test_a_transition_from_pure_noise_is_refused_and_one_to_it_forgets():
    process = RectifiedFlow()
    with pytest.raises(ConversionError, match=r"cannot divide by a = 0"):
        process.transition(f64([1.0]), f64([1.0]))
    assert torch.stack(process.transition(f64([0.4]), f64([1.0]))).tolist() == [[0.0], [1.0]]


@fast
@given(where=some(2), seed=seeds)
def test_the_posterior_is_bayes_rule(process, times, where, seed):
    t_to, t = ordered(times(process, where))
    x0, e1, y = normals(seed, *[(1, 4)] * 3)
    # joint Gaussian of (x_to, x_t) given x0 and y: x_to = m + s_to e1, x_t = A x_to + drift + S e2
    gain = process.a(t) / process.a(t_to)
    m_to = process.a(t_to) * x0 + process.d(t_to) * y
    m_t = process.a(t) * x0 + process.d(t) * y
    var_to, var_t = process.s(t_to) ** 2, process.s(t) ** 2
    x_t = m_t + process.s(t) * e1
    covariance = gain * var_to
    mean, std = process.posterior(x_t, x0, t, t_to, y)
    size = process.s(t).item() + 1
    torch.testing.assert_close(mean, m_to + covariance / var_t * (x_t - m_t), rtol=1e-10, atol=1e-10 * size)
    torch.testing.assert_close(std**2, var_to - covariance**2 / var_t, rtol=0, atol=1e-10 * var_to.item())


def test_the_posterior_at_clean_data_is_that_data_and_noiseless_times_have_none():
    process = RectifiedFlow()
    x_t, x0 = normals(0, (1, 4), (1, 4))
    mean, std = process.posterior(x_t, x0, f64([0.3]), f64([0.0]))
    torch.testing.assert_close(mean, x0)
    assert std.item() == 0
    with pytest.raises(ConversionError, match="cannot divide by s = 0"):
        process.posterior(x_t, x0, f64([0.0]), f64([0.0]))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1000, 50])
def test_the_ddpm_posterior_is_that_of_diffusers(schedule, steps):
    from diffusers import DDPMScheduler

    process = DDPM({"squaredcos_cap_v2": "cosine"}.get(schedule, schedule))
    scheduler: Any = DDPMScheduler(beta_schedule=schedule, prediction_type="sample", clip_sample=False)
    scheduler.alphas_cumprod, scheduler.one = process.table, f64(1.0)  # the tables are compared elsewhere; here in float64
    scheduler.set_timesteps(steps)
    x_t, x0 = normals(3, (1, 2, 3), (1, 2, 3))
    for t in scheduler.timesteps[:: steps // 10]:
        before = int(scheduler.previous_timestep(t))
        if before < 0:
            continue
        sample = scheduler.step(x0, int(t), x_t, generator=torch.Generator().manual_seed(5)).prev_sample
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        mean, std = process.posterior(x_t, x0, f64([float(t)]), f64([float(before)]))
        torch.testing.assert_close(mean + std * noise, sample, rtol=1e-10, atol=1e-10)


# Matching inside (s, 1]: the target for e - x0 that is made from x_s and a fresh e (arXiv 2510.27684, Eq. 11)


def subinterval_target(process, x_s, e, level, t):
    a_s, s_s, a_t, s_t = process.a(level), process.s(level), process.a(t), process.s(t)
    _, s_ts = process.transition(level, t)
    return (a_s**2 * s_t + a_t * s_s**2) / (a_s**2 * s_ts) * e - x_s / a_s


SUBINTERVALS: list[tuple[Process, float, float]] = [
    (RectifiedFlow(), 0.5, 0.8),
    (RectifiedFlow(), 0.3, 0.35),
    (RectifiedFlow(shift=3.0), 0.2, 0.9),
]
SUBINTERVALS += [(VP(), 0.3, 0.5), (TrigFlow(), 0.7, 1.2), (TrigFlow(0.5), 0.7, 1.4), (VE(), 0.5, 2.0)]


@pytest.mark.parametrize("process, level, t", SUBINTERVALS, ids=repr)
def test_the_subinterval_target_is_the_transitions_score_converted(process, level, t):
    level, t = f64([level]), f64([t])
    x_s, e = normals(0, (1, 6), (1, 6))
    _, s_ts = process.transition(level, t)
    x_t, score = process.diffuse(x_s, e, t, level), -e / s_ts
    eps, x0 = (process.convert(score, x_t, t, "score", target) for target in ("eps", "x0"))
    torch.testing.assert_close(eps - x0, subinterval_target(process, x_s, e, level, t), rtol=1e-10, atol=1e-10)
    if process == RectifiedFlow():
        velocity = process.convert(score, x_t, t, "score", "velocity")
        torch.testing.assert_close(velocity, eps - x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process, level, t", SUBINTERVALS, ids=repr)
def test_the_subinterval_target_is_unbiased_and_the_naive_one_is_not(process, level, t):
    level, t = f64(level), f64(t)
    weights, means, sd = f64([0.2, 0.5, 0.3]), f64([-1.0, 0.2, 2.0]), 0.05
    x_t = torch.linspace(-1.5, 2.5, 9, dtype=torch.float64)[:, None] * process.a(t).clamp(min=0.5)

    def responsibilities(x, a, s):  # of the three components for x (..., 1) noised to (a, s)
        var = (a * sd) ** 2 + s**2
        logits = torch.log(weights) - (x - a * means) ** 2 / (2 * var)
        return torch.softmax(logits, -1), torch.exp(torch.logsumexp(logits, -1)), var

    a, s = process.a(t), process.s(t)
    share, _, var = responsibilities(x_t, a, s)
    x0 = (share * (means + a * sd**2 / var * (x_t - a * means))).sum(-1)
    exact = (x_t[:, 0] - a * x0) / s - x0
    # quadrature over x_s ~ p(x_s) N(x_t; a_ts x_s, s_ts^2): the trapezoid rule converges exponentially on analytic integrands
    a_ts, s_ts = process.transition(level, t)
    x_s = torch.linspace(-12.0, 12.0, 24001, dtype=torch.float64)
    _, density, _ = responsibilities(x_s[:, None], process.a(level), process.s(level))
    e = (x_t - a_ts * x_s) / s_ts
    mass = density * torch.exp(-(e**2) / 2)
    mass = mass / mass.sum(-1, keepdim=True)
    found = (mass * subinterval_target(process, x_s, e, level, t)).sum(-1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    naive = (mass * (e - x_s)).sum(-1)
    assert (naive - exact).abs().max() > 0.1
