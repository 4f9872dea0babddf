import math

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.noise import DDPM, VE, VP, RectifiedFlow, ResShift, TrigFlow, karras_grid, linear_grid
from limbeck.samplers import SOLVERS, check_nodes, ddim, ddim_step, dpm_solver_pp_2m, euler, generator_noise, heun, unipc

ORDERS = [(euler, 1), (ddim, 1), (heun, 2), (dpm_solver_pp_2m, 2), (unipc, 3)]
FROM_NOISE = {
    "flow": (RectifiedFlow(), lambda n: linear_grid(n, 1.0, 0.05)),
    "shifted": (RectifiedFlow(shift=3.0), lambda n: linear_grid(n, 1.0, 0.05)),
    "trigflow": (TrigFlow(0.5), lambda n: linear_grid(n, math.pi / 2, 0.05)),
}


def order_of(solver, gaussian, nodes, z, **options):
    """log2 of the ratio of the errors against the exact flow map with 128 and 256 steps."""
    errors = []
    for n in (129, 257):
        times = nodes(n)
        t, t_to = times[:1].expand(len(z)), times[-1:].expand(len(z))
        x = gaussian.process.s(t)[:, None] * z
        errors.append((solver(gaussian, x, times, final=False, **options) - gaussian.flow_map(x, t, t_to)).norm().item())
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=lambda v: getattr(v, "__name__", v))
def test_order_of_convergence_to_the_exact_flow_map(solver, order, process, exact_gaussian, normal):
    found = order_of(solver, exact_gaussian(process), lambda n: process.time_of(karras_grid(n, 0.05, 20.0)), normal(16, 4))
    assert found == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", list(FROM_NOISE))
@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=lambda v: getattr(v, "__name__", v))
def test_order_where_no_signal_is_left_at_the_start(solver, order, name, exact_gaussian, normal):
    """Multistep methods lose part of an order: their first steps of lambda = ln(a / s) never become small."""
    process, nodes = FROM_NOISE[name]
    found = order_of(solver, exact_gaussian(process), nodes, normal(16, 4))
    if solver is unipc:
        assert 2.2 < found < order
    else:
        assert found == pytest.approx(order, abs=0.3 if solver is dpm_solver_pp_2m else 0.1)


@pytest.mark.parametrize("path", ["sigma", "flow"])
def test_heun_is_of_second_order_on_both_paths(path, exact_gaussian, normal):
    def nodes(n):
        return VP().time_of(karras_grid(n, 0.05, 20.0))

    assert order_of(heun, exact_gaussian(VP()), nodes, normal(16, 4), path=path) == pytest.approx(2, abs=0.1)


def test_ddim_step_is_exact_for_a_single_point(process, normal):
    """Where x0 is known, the step lands on a_to x0 + s_to eps with the same eps, from any time to any other."""
    x0, eps = normal(5, 3), normal(5, 3, seed=1)
    t = torch.linspace(0.9, 0.99, 5, dtype=torch.float64) * process.t_max
    t_to = torch.linspace(0.1, 0.5, 5, dtype=torch.float64) * process.t_max
    moved = ddim_step(process, process.add_noise(x0, eps, t), x0, t, t_to)
    torch.testing.assert_close(moved, process.add_noise(x0, eps, t_to), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("solver", "calls", "calls_to_the_end"),
    [(euler, 5, 4), (ddim, 5, 4), (heun, 9, 8), (dpm_solver_pp_2m, 5, 4), (unipc, 5, 4)],
)
def test_number_of_calls_and_final_step(solver, calls, calls_to_the_end, process, wobbly, normal):
    times = process.time_of(karras_grid(5, 0.02, 50.0)).clamp(max=process.t_max)
    denoiser, x = wobbly(process), normal(3, 6)
    clean = solver(denoiser, x, times)
    assert denoiser.calls == calls
    denoiser.calls = 0
    end = solver(denoiser, x, times, final=False)
    assert denoiser.calls == calls_to_the_end
    assert torch.equal(clean, denoiser(end, times[-1:].expand(3)))


@pytest.mark.parametrize("name", list(SOLVERS))
def test_dtype_shape_and_condition(name, process, wobbly, normal):
    times = process.time_of(karras_grid(4, 0.05, 20.0))
    denoiser, x, shift = wobbly(process), normal(3, 2, 5, 6), {"shift": normal(3, 1, 1, 1)}
    options = {"noise": lambda step: normal(3, 2, 5, 6, seed=step)} if name in ("ancestral", "stochastic_edm", "tcd") else {}
    full = SOLVERS[name](denoiser, x, times, shift, **options)
    for dtype, tolerance in [(torch.float32, 2e-6), (torch.bfloat16, 0.08)]:
        low = SOLVERS[name](denoiser, x.to(dtype), times.tolist(), shift, **options)
        assert low.dtype == dtype and low.shape == x.shape
        assert (low.double() - full).square().mean().sqrt() < tolerance
    assert not torch.allclose(full, SOLVERS[name](denoiser, x, times, **options))


def test_low_precision_does_not_round_the_coefficients(wobbly):
    """(s_to / s) x for x0 = 0 over a thousand tiny steps: bfloat16 coefficients would drift by percents."""
    process = VE()
    x = torch.ones(1, 6, dtype=torch.bfloat16)
    step = ddim_step(process, x, 0 * x, torch.tensor(1.0).double(), torch.tensor(0.9985).double())
    assert step[0, 0] == torch.tensor(0.9985).bfloat16()
    noisy = [ddim_step(process, 3 * x, x, torch.tensor(1.0).double(), torch.tensor(t).double())[0, 0] for t in (0.5, 0.25)]
    assert noisy == [2.0, 1.5]


@pytest.mark.parametrize("name", list(SOLVERS))
def test_solvers_never_wait_for_the_device_of_x(name, process, wobbly):
    """On the meta device nothing can be read back, and coefficients may not live elsewhere as full tensors."""
    x = torch.zeros(2, 6, device="meta")
    options = {"noise": generator_noise(x)} if name in ("ancestral", "stochastic_edm", "tcd") else {}
    assert SOLVERS[name](wobbly(process), x, process.time_of(karras_grid(4, 0.05, 20.0)), **options).is_meta


def test_gradients_reach_the_start(wobbly, normal):
    times, z = VP().time_of(karras_grid(3, 0.1, 10.0)), normal(2, 6)
    for solver in (ddim, heun, dpm_solver_pp_2m, unipc):
        assert torch.autograd.gradcheck(lambda x, f=solver: f(wobbly(VP()), x, times), z.requires_grad_())


def test_the_multistep_solver_may_end_at_first_order(wobbly, normal):
    times, x, denoiser = karras_grid(4, 0.1, 10.0), normal(2, 6), wobbly(VE())
    before = dpm_solver_pp_2m(denoiser, x, times[:3], final=False)
    expected = ddim(denoiser, before, times[2:], final=False)
    torch.testing.assert_close(dpm_solver_pp_2m(denoiser, x, times, lower_order_final=True, final=False), expected)
    assert not torch.allclose(dpm_solver_pp_2m(denoiser, x, times, final=False), expected)


def test_unipc_without_its_corrector_is_a_predictor_of_second_order(exact_gaussian, normal):
    def nodes(n):
        return VP().time_of(karras_grid(n, 0.05, 20.0))

    assert order_of(unipc, exact_gaussian(VP()), nodes, normal(16, 4), corrector=False) == pytest.approx(2, abs=0.1)
    assert order_of(unipc, exact_gaussian(VP()), nodes, normal(16, 4), variant="bh1") == pytest.approx(3, abs=0.1)


def test_generator_noise_is_the_generators_own_sequence():
    x = torch.zeros(2, 3, dtype=torch.float32)
    noise, g = generator_noise(x, torch.Generator().manual_seed(5)), torch.Generator().manual_seed(5)
    for step in range(3):
        assert torch.equal(noise(step), torch.randn(2, 3, generator=g))


@pytest.mark.parametrize(
    ("process", "times", "words"),
    [
        (VE(), [1.0, 2.0], "decrease"),
        (VE(), [90.0, 1.0], r"range \[0.002, 80\] of VE"),
        (VE(), [80.0, 0.0], "final=True"),
        (RectifiedFlow(t_min=0.0), [1.0, 0.0], "noise level 0"),
        (DDPM(), [1000.0, 1.0], "range"),
        (ResShift(), [14.0, 1.0], "Undrifted"),
    ],
)
def test_nodes_are_checked(process, times, words):
    with pytest.raises(LimbeckError, match=words):
        check_nodes(process, times)


def test_errors(wobbly, normal):
    x = normal(2, 6)
    with pytest.raises(LimbeckError, match="unknown variant 'bh3': did you mean 'bh2'|unknown variant 'bh3'.*bh1"):
        unipc(wobbly(VE()), x, [1.0, 0.5], variant="bh3")
    with pytest.raises(LimbeckError, match="eta must lie in"):
        ddim(wobbly(VE()), x, [1.0, 0.5], eta=1.5)
    with pytest.raises(LimbeckError, match=r"eta = 0.5 needs noise.*generator_noise"):
        ddim(wobbly(VE()), x, [1.0, 0.5], eta=0.5)
    with pytest.raises(LimbeckError, match=r"unknown path 'flwo'.*'flow'"):
        heun(wobbly(VE()), x, [1.0, 0.5], path="flwo")
    with pytest.raises(LimbeckError, match=r"no signal is left at time 1 .*path='flow'"):
        heun(wobbly(RectifiedFlow()), x, [1.0, 0.5], path="sigma")
