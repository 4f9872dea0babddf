"""Each process against its definition, its own derivatives, diffusers' tables and its configuration."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.noise import (
    DDPM,
    PROCESSES,
    VP,
    CosineVP,
    Process,
    RectifiedFlow,
    ResShift,
    TrigFlow,
    build_process,
    process_config,
    shift_times,
)

fast = settings(max_examples=20, deadline=None)
inner = st.lists(st.floats(1e-3, 0.9999), min_size=1, max_size=8)


def f64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@fast
@given(where=inner)
def test_derivatives_are_those_of_the_coefficients(process, where):
    t = (process.t_max * f64(where)).requires_grad_()
    for value, derivative in ((process.a, process.da), (process.s, process.ds), (process.d, process.dd)):
        at = value(t)
        gradient = torch.autograd.grad(at.sum(), t)[0] if at.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(derivative(t).detach(), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.93])
def test_derivatives_are_the_limits_of_differences(process, place):
    t = f64([math.floor(place * process.t_max) + 0.5 if isinstance(process, DDPM) else place * process.t_max])
    h = 1e-5 * t
    for value, derivative in ((process.a, process.da), (process.s, process.ds), (process.d, process.dd)):
        difference = (value(t + h) - value(t - h)) / (2 * h)
        torch.testing.assert_close(derivative(t), difference, rtol=1e-6, atol=1e-9)


def test_tables_turn_at_indices_with_the_slope_to_the_right():
    process = DDPM(alphas_cumprod=(0.9, 0.5, 0.1, 0.01))
    t, h = f64([0.0, 1.0, 2.0]), 1e-7
    for value, derivative in ((process.a, process.da), (process.s, process.ds)):
        torch.testing.assert_close(derivative(t), (value(t + h) - value(t)) / h, rtol=1e-5, atol=0)


@fast
@given(where=inner)
def test_time_of_inverts_sigma(process, where):
    t = process.t_max * f64([*where, 1.0])
    found = process.time_of(process.sigma(t))
    torch.testing.assert_close(found, t, rtol=0, atol=1e-10 * process.t_max)


def test_noise_grows_signal_falls_and_sigma_is_their_ratio(process):
    t = torch.linspace(process.t_min, process.t_max, 301, dtype=torch.float64)
    assert bool((process.s(t).diff() > 0).all())
    assert bool((process.a(t).diff() <= 0).all())
    assert bool((process.sigma(t).diff() > 0).all())
    torch.testing.assert_close(process.sigma(t[:-1]) * process.a(t[:-1]), process.s(t[:-1]), rtol=1e-14, atol=0)
    drift = process.d(t) if isinstance(process, ResShift) else torch.zeros(301, dtype=torch.float64)
    assert torch.equal(process.d(t), drift)


@pytest.mark.parametrize("process", [VP(), CosineVP(), DDPM(), DDPM("cosine"), TrigFlow()], ids=repr)
def test_variance_preserving_processes_preserve_variance(process):
    t = torch.linspace(0.0, process.t_max, 77, dtype=torch.float64)
    torch.testing.assert_close(process.a(t) ** 2 + process.s(t) ** 2, torch.ones(77, dtype=torch.float64), rtol=1e-14, atol=0)


def test_small_noise_keeps_its_digits():
    t = f64([1e-9])  # where 1 - a^2 would lose half of them
    torch.testing.assert_close(VP().s(t), torch.sqrt(0.1 * t), rtol=1e-7, atol=0)
    theta0 = CosineVP()._theta0
    slope = 2 * math.tan(theta0) * math.pi / 2 / 1.008
    torch.testing.assert_close(CosineVP().s(t), torch.sqrt(slope * t), rtol=1e-6, atol=0)


def test_vp_solves_its_stochastic_equation():
    process, t = VP(), torch.linspace(0.01, 1.0, 50, dtype=torch.float64)
    beta = 0.1 + 19.9 * t  # dx = -beta x / 2 dt + sqrt(beta) dw: the moments' equations
    torch.testing.assert_close(process.da(t), -beta / 2 * process.a(t), rtol=1e-12, atol=0)
    variance = process.s(t) ** 2
    torch.testing.assert_close(2 * process.s(t) * process.ds(t), beta * (1 - variance), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(process.a(f64([1.0])), f64([math.exp(-(0.1 + 20) / 4)]), rtol=1e-14, atol=0)


def test_flow_and_trigflow_velocities_are_the_papers():
    t = f64([[0.2], [0.7]])
    x0, eps = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow, trig = RectifiedFlow(), TrigFlow(0.5)
    velocity = flow.convert(eps, flow.add_noise(x0, eps, t[:, 0]), t[:, 0], "eps", "velocity")
    torch.testing.assert_close(velocity, eps - x0)
    velocity = trig.convert(eps, trig.add_noise(x0, eps, t[:, 0]), t[:, 0], "eps", "velocity")
    torch.testing.assert_close(velocity, torch.cos(t) * 0.5 * eps - torch.sin(t) * x0)  # sCM: dx/dt with z = sigma_data eps


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_the_shifted_flow_is_diffusers_flow(shift):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 0.05, 20).tolist())
    t = torch.linspace(1.0, 0.05, 20, dtype=torch.float64)
    process = RectifiedFlow(shift)
    torch.testing.assert_close(process.s(t), scheduler.sigmas[:-1].double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(process.s(t), shift_times(t, shift), rtol=1e-14, atol=0)
    torch.testing.assert_close(process.a(t), 1 - process.s(t), rtol=0, atol=1e-15)
    x0, eps = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    peer = scheduler.scale_noise(x0, scheduler.timesteps, eps)
    torch.testing.assert_close(process.add_noise(x0, eps, t), peer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "process, options",
    [
        (DDPM(), {"beta_schedule": "linear"}),
        (
            DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012),
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (DDPM("cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
        (DDPM("linear", steps=40, beta_end=0.3), {"beta_schedule": "linear", "num_train_timesteps": 40, "beta_end": 0.3}),
    ],
    ids=["linear", "scaled_linear", "cosine", "short"],
)
def test_ddpm_tables_are_those_of_diffusers(process, options):
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(**options)
    torch.testing.assert_close(process.table, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)  # float32 products
    i = torch.arange(process.steps)
    torch.testing.assert_close(process.a(i) ** 2, process.table, rtol=1e-12, atol=0)
    torch.testing.assert_close(process.s(i) ** 2, 1 - process.table, rtol=1e-12, atol=0)
    x0, eps = torch.randn(2, process.steps, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(process.add_noise(x0, eps, i), scheduler.add_noise(x0, eps, i), rtol=1e-4, atol=1e-5)
    given_table = DDPM(alphas_cumprod=tuple(scheduler.alphas_cumprod.tolist()))
    torch.testing.assert_close(given_table.a(i) ** 2, scheduler.alphas_cumprod.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("table", [(0.9, 0.5, 0.1), [0.9, 0.5, 0.1], f64([0.9, 0.5, 0.1])], ids=["tuple", "list", "tensor"])
def test_a_given_table_sets_the_number_of_steps(table):
    process = DDPM(alphas_cumprod=table)
    assert process == DDPM(alphas_cumprod=(0.9, 0.5, 0.1))
    assert (process.steps, process.t_min, process.t_max) == (3, 0.0, 2.0)
    torch.testing.assert_close(process.table, f64([0.9, 0.5, 0.1]))


def test_tables_go_on_in_log_sigma_between_and_beyond_indices():
    process = DDPM(alphas_cumprod=(0.9, 0.5, 0.1))
    log_sigma = torch.log((1 - process.table) / process.table) / 2
    expected = [(log_sigma[0] + log_sigma[1]) / 2, 2 * log_sigma[0] - log_sigma[1], 2 * log_sigma[2] - log_sigma[1]]
    torch.testing.assert_close(torch.log(process.sigma(f64([0.5, -1.0, 3.0]))), torch.stack(expected))


def test_a_table_may_end_without_signal():
    process = DDPM(alphas_cumprod=(0.9, 0.5, 0.0))
    t = f64([0.0, 1.0, 2.0])
    torch.testing.assert_close(process.a(t), torch.sqrt(process.table))
    torch.testing.assert_close(process.s(t), torch.sqrt(1 - process.table))
    torch.testing.assert_close(process.time_of(process.sigma(t)), t)
    v = torch.randn(3, 4, dtype=torch.float64)
    x_t = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(process.convert(v, x_t, t, "v", "x0")[2], -v[2])


def test_resshift_has_the_papers_table():
    process = ResShift()
    t = torch.arange(15.0, dtype=torch.float64)
    root_eta = torch.sqrt(process.d(t))
    torch.testing.assert_close(root_eta[[0, 14]], f64([0.02, 0.99]), rtol=1e-14, atol=0)
    assert bool((root_eta.diff() > 0).all())
    expected = 0.02 * 49.5 ** ((t / 14) ** 0.3)
    torch.testing.assert_close(root_eta, expected)
    torch.testing.assert_close(process.s(t), 2 * expected)
    torch.testing.assert_close(process.a(t), 1 - expected**2)


@pytest.mark.parametrize("kappa, min_noise, end, power, steps", [(2.0, 0.04, 0.99, 0.3, 15), (1.0, 0.2, 0.9, 1.0, 4)])
def test_resshifts_deterministic_steps_are_sinsrs(kappa, min_noise, end, power, steps):
    process = ResShift(steps, kappa, min_noise, end, power)
    for i in range(1, steps):
        t, before = f64([i]), f64([i - 1])
        eta, eta_before = process.d(t), process.d(before)
        m, j = torch.sqrt(eta_before / eta), eta_before - torch.sqrt(eta_before * eta)
        k = 1 - eta_before + torch.sqrt(eta_before * eta) - torch.sqrt(eta_before / eta)
        torch.testing.assert_close(k + m + j, f64([1.0]), rtol=1e-10, atol=0)
        found = []
        for x0, x_t, y in torch.eye(3, dtype=torch.float64).reshape(3, 3, 1, 1):
            eps = process.convert(x0, x_t, t, "x0", "eps", y)
            found.append(process.add_noise(x0, eps, before, y).item())
        torch.testing.assert_close(f64(found), torch.cat([k, m, j]), rtol=1e-10, atol=1e-12)


def test_resshift_ends_at_its_first_time_below_its_least_noise():
    assert ResShift().time_of(f64([1e-3])).item() == 0


def test_configurations_rebuild_the_process_also_through_json(process):
    config = process_config(process)
    assert build_process(config) == process
    rebuilt = build_process(json.loads(json.dumps(config)))
    assert rebuilt == process
    assert hash(rebuilt) == hash(process)
    t = f64([0.3]) * process.t_max
    assert torch.equal(rebuilt.sigma(t), process.sigma(t))


def test_every_kind_has_defaults_and_options():
    assert {kind: type(build_process({"kind": kind})) for kind in PROCESSES} == PROCESSES
    assert build_process({"kind": "flow", "shift": 5.0}) == RectifiedFlow(shift=5.0)
    config = {"kind": "ve", "t_max": 10.0}
    assert build_process(config).t_max == 10
    assert config == {"kind": "ve", "t_max": 10.0}


def test_a_process_of_ones_own_has_no_configuration():
    class Own(Process):
        pass

    with pytest.raises(LimbeckError, match=r"unknown process 'Own'.*RectifiedFlow"):
        process_config(Own())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: build_process({"kind": "trigflw"}), "unknown process 'trigflw': did you mean 'trigflow'"),
        (lambda: build_process({"shift": 3.0}), "unknown process 'None'.*Allowed: cosine, ddpm, flow"),
        (lambda: build_process({"kind": "flow", "shfit": 3.0}), "option of the process 'flow' 'shfit': did you mean 'shift'"),
        (lambda: DDPM("linaer"), "unknown beta schedule 'linaer': did you mean 'linear'"),
        (lambda: DDPM(alphas_cumprod=(0.1, 0.5, 0.9)), "must decrease strictly"),
        (lambda: DDPM(alphas_cumprod=(1.0, 0.5)), "within"),
        (lambda: DDPM(alphas_cumprod=(0.9,)), "must decrease strictly"),
        (lambda: DDPM(alphas_cumprod=(0.9, math.nan)), "must decrease strictly"),
        (lambda: RectifiedFlow(shift=0.0), "shift must be positive, not 0"),
        (lambda: ResShift(steps=1), "at least 2 steps, not 1"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()
