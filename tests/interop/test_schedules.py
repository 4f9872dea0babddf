"""Every known scheduler against its own add_noise, scale_model_input, precondition_*, step and timesteps."""

import copy
import math

import pytest
import torch

from limbeck.denoisers import FiniteSetDenoiser, InProcess, Preconditioned
from limbeck.errors import ConversionError
from limbeck.interop import (
    SCHEDULERS,
    diffusers_denoiser,
    kind_of,
    nodes,
    read_schedule,
)
from limbeck.noise import DDPM, VE, RectifiedFlow
from limbeck.samplers import ddim, euler, heun

diffusers = pytest.importorskip("diffusers")
import_now = diffusers.EulerDiscreteScheduler  # diffusers loads its schedulers on first use, which takes seconds

TABLES = [name for name, kind in SCHEDULERS.items() if kind.levels == "table"]
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO = [n for n in TABLES if n not in ("PNDMScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
                                       "DEISMultistepScheduler", "DPMSolverSinglestepScheduler")]  # fmt: skip
KEEP_ZERO = [n for n in ZERO if n.startswith(("DD", "LCM", "TCD", "CogVideoX"))]
SINGLE = {"rtol": 2e-5, "atol": 2e-5}


def build(name, **options):
    if name in ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler", "CogVideoXDDIMScheduler"):
        options = {"clip_sample": False, **options}
    return getattr(diffusers, name)(**options)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def a_of(schedule, t):
    return schedule.process.a(t).float()[:, None]


def check_noise(scheduler, schedule, n=10):
    """At each of its timesteps, noise as the scheduler adds it: in its own variables, and as the network sees it."""
    scheduler.set_timesteps(n)
    for t, stated in zip(nodes(scheduler, n), torch.unique_consecutive(scheduler.timesteps), strict=True):
        at, x0, eps, times = copy.deepcopy(scheduler), draw(2, 3), draw(2, 3, seed=1), t.expand(2)
        at.timesteps = at.timesteps.float() if at.order == 2 else at.timesteps  # Heun's own add_noise takes floats
        theirs = at.add_noise(x0, eps, stated[None].expand(2))
        ours = schedule.process.add_noise(x0, eps, times)
        exploding = kind_of(scheduler).latents == "exploding"
        torch.testing.assert_close(ours / a_of(schedule, times) if exploding else ours, theirs, **SINGLE)
        if exploding:
            torch.testing.assert_close(at.scale_model_input(theirs, stated), ours, **SINGLE)


def their_x0(scheduler, answer, t, sample):
    """x0 of a fresh copy of the scheduler at one of its timesteps; None where it keeps that to itself."""
    if type(scheduler).__name__ in ("PNDMScheduler", "TCDScheduler", "CogVideoXDPMScheduler", "DEISMultistepScheduler"):
        return None
    at = copy.deepcopy(scheduler)
    index = int((at.timesteps == t).nonzero()[0])
    if hasattr(at, "set_begin_index"):
        at.set_begin_index(index)
    if hasattr(at, "scale_model_input"):
        at.scale_model_input(sample, t)
    if hasattr(at, "convert_model_output"):
        at._init_step_index(t)
        return at.convert_model_output(answer, sample=sample)
    out = at.step(answer, t, sample)
    if type(at).__name__ == "LCMScheduler":  # undo the boundary condition on top of x0
        c_skip, c_out = at.get_scalings_for_boundary_condition_discrete(t)
        return (out.denoised - c_skip * sample) / c_out
    return out.pred_original_sample


def check_x0(scheduler, schedule, n=10):
    scheduler.set_timesteps(n)
    times, stated = nodes(scheduler, n), torch.unique_consecutive(scheduler.timesteps)
    for i in (0, 1, n // 2, n - 1):
        t, x, answer = times[i].expand(2), draw(2, 3, seed=2), draw(2, 3, seed=3)
        exploding = kind_of(scheduler).latents == "exploding"
        theirs = their_x0(scheduler, answer, stated[i], x / a_of(schedule, t) if exploding else x)
        if theirs is None:
            return
        ours = schedule.process.convert(answer.double(), x.double(), t, schedule.prediction, "x0")
        size = float(ours.abs().max())  # noise predicted at high noise: x0 is as large as 1 / a
        torch.testing.assert_close(theirs.double() / size, ours / size, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("betas", "prediction"),
    [
        (STABLE, "epsilon"),
        (STABLE, "v_prediction"),
        (STABLE, "sample"),
        ({"beta_schedule": "linear"}, "epsilon"),
        ({"trained_betas": torch.linspace(1e-4, 0.025, 1000).tolist()}, "v_prediction"),
    ],
)
def test_tables(name, betas, prediction):
    if prediction == "sample" and name in ("PNDMScheduler", "EulerAncestralDiscreteScheduler"):
        pytest.skip("the scheduler itself has no such prediction type")
    scheduler = build(name, **betas, prediction_type=prediction)
    schedule = read_schedule(scheduler)
    assert (schedule.prediction, schedule.noise_input) == (
        {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[prediction],
        "time",
    )
    torch.testing.assert_close(schedule.process.table, scheduler.alphas_cumprod.double(), rtol=0, atol=0)
    if name == "PNDMScheduler":
        scheduler = build(name, **betas, prediction_type=prediction, skip_prk_steps=True)
    check_noise(scheduler, schedule)
    check_x0(scheduler, schedule)


@pytest.mark.parametrize("name", [n for n in TABLES if not n.startswith("CogVideoX")])
def test_the_cosine_table(name):
    scheduler = build(name, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    schedule = read_schedule(scheduler)
    torch.testing.assert_close(schedule.process.table, DDPM("cosine").table, rtol=2e-4, atol=1e-9)
    if name != "PNDMScheduler":
        check_x0(scheduler, schedule)


@pytest.mark.parametrize("name", ZERO)
def test_a_terminal_signal_of_zero(name):
    spacing = {} if name in ("LCMScheduler", "TCDScheduler") else {"timestep_spacing": "trailing"}
    scheduler = build(name, **STABLE, **spacing, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    schedule, last = read_schedule(scheduler), torch.tensor([999.0], dtype=torch.float64)
    assert schedule.process.a(last).item() ** 2 == pytest.approx(0 if name in KEEP_ZERO else 2**-24, abs=1e-15)
    check_noise(scheduler, schedule)
    check_x0(scheduler, schedule)
    x, noise = draw(1, 3), draw(1, 3, seed=1)
    if name in KEEP_ZERO:
        with pytest.raises(ConversionError, match="cannot divide by a = 0 at times"):
            schedule.process.convert(noise, x, last, "eps", "x0")
    else:
        x0 = schedule.process.convert(noise.double(), x.double(), last, "eps", "x0")
        torch.testing.assert_close(x0, (x.double() - math.sqrt(1 - 2**-24) * noise) * 2**12)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_cogvideox_shifts_its_signal_to_noise_ratio(scale):
    shifted = read_schedule(build("CogVideoXDDIMScheduler", snr_shift_scale=scale)).process
    plain = read_schedule(build("CogVideoXDDIMScheduler", snr_shift_scale=1.0)).process
    t = torch.linspace(0, 998, 7, dtype=torch.float64)
    torch.testing.assert_close(shifted.sigma(t), plain.sigma(t) * math.sqrt(scale), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("karras", [False, True])
def test_networks_are_told_the_schedulers_timesteps(name, spacing, karras):
    scheduler = build(name, **STABLE, timestep_spacing=spacing, use_karras_sigmas=karras)
    scheduler.set_timesteps(20)
    stated = torch.unique_consecutive(scheduler.timesteps).double()
    rounded = karras and name.startswith("DPM")  # to whole timesteps
    between = spacing == "linspace" and not karras  # sigma is interpolated, the table ln sigma
    tolerance = 0.5 + 1e-3 if rounded else 0.05 if between else 2e-3
    torch.testing.assert_close(nodes(scheduler, 20), stated, rtol=0, atol=tolerance)
    exact = read_schedule(scheduler).process.sigma(nodes(scheduler, 20))
    torch.testing.assert_close(exact, scheduler.sigmas[:-1].double().unique_consecutive(), rtol=2e-5, atol=0)


class Recorder(torch.nn.Module):
    """A raw network that keeps what it was given."""

    null = None

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, timestep, cond=None):
        self.x, self.timestep = x, timestep
        return self.answer.to(x)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm(name, prediction):
    scheduler = build(name, prediction_type=prediction, sigma_min=0.01, sigma_max=50.0, sigma_data=0.7)
    denoiser = diffusers_denoiser(network := Recorder(answer := draw(2, 3)), scheduler)
    assert denoiser.process == VE(0.01, 50.0)
    scheduler.set_timesteps(20)
    for t, stated in zip(nodes(scheduler, 20), scheduler.timesteps, strict=True):
        x0, eps = draw(2, 3, seed=1), draw(2, 3, seed=2)
        x = copy.deepcopy(scheduler).add_noise(x0, eps, stated[None].expand(2))
        torch.testing.assert_close(denoiser.process.add_noise(x0, eps, t.expand(2)), x, **SINGLE)
        got = denoiser(x, t.expand(2))
        torch.testing.assert_close(got, scheduler.precondition_outputs(x, answer, t.float()), **SINGLE)
        torch.testing.assert_close(network.x, copy.deepcopy(scheduler).scale_model_input(x, stated), **SINGLE)
        torch.testing.assert_close(network.timestep, stated.expand(2), **SINGLE)
        torch.testing.assert_close(got, their_x0(scheduler, answer, stated, x), **SINGLE)


def test_stable_video_diffusion_is_edm_on_levels_of_its_own():
    scheduler = build("EulerDiscreteScheduler", **STABLE, prediction_type="v_prediction", timestep_type="continuous",
                      use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0)  # fmt: skip
    denoiser = diffusers_denoiser(network := Recorder(answer := draw(2, 3)), scheduler)
    scheduler.set_timesteps(25)
    for t, stated in zip(nodes(scheduler, 25), scheduler.timesteps, strict=True):
        x = copy.deepcopy(scheduler).add_noise(draw(2, 3, seed=1), draw(2, 3, seed=2), stated[None].expand(2))
        torch.testing.assert_close(denoiser(x, t.expand(2)), their_x0(scheduler, answer, stated, x), **SINGLE)
        torch.testing.assert_close(network.x, copy.deepcopy(scheduler).scale_model_input(x, stated), **SINGLE)
        torch.testing.assert_close(network.timestep, stated.expand(2), **SINGLE)


def test_consistency_models():
    scheduler = build("CMStochasticIterativeScheduler", clip_denoised=False)
    denoiser = diffusers_denoiser(network := Recorder(answer := draw(2, 3)), scheduler)
    scheduler.set_timesteps(18)
    for t, stated in zip(nodes(scheduler, 18), scheduler.timesteps, strict=True):
        x0, eps, at = draw(2, 3, seed=1), draw(2, 3, seed=2), copy.deepcopy(scheduler)
        x = at.add_noise(x0, eps, stated[None].expand(2))
        torch.testing.assert_close(denoiser.process.add_noise(x0, eps, t.expand(2)), x, **SINGLE)
        c_skip, c_out = at.get_scalings_for_boundary_condition(t)
        torch.testing.assert_close(denoiser(x, t.expand(2)), (c_skip * x + c_out * answer).float(), **SINGLE)
        torch.testing.assert_close(network.x, at.scale_model_input(x, stated), **SINGLE)
        torch.testing.assert_close(network.timestep, stated.expand(2).float(), rtol=1e-5, atol=1e-4)
    least = torch.full((2,), 0.002, dtype=torch.float64)
    torch.testing.assert_close(denoiser(x, least), x, rtol=0, atol=0)  # the boundary condition
    scheduler.set_timesteps(1)
    one = copy.deepcopy(scheduler)
    x, t = 80 * draw(2, 3), one.timesteps[0]
    one.scale_model_input(x, t)
    torch.testing.assert_close(one.step(answer, t, x).prev_sample, denoiser(x, nodes(scheduler, 1).expand(2)), **SINGLE)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"])
@pytest.mark.parametrize(("shift", "mu"), [(1.0, None), (3.0, None), (1.0, 1.15)])
def test_flow_matching(name, shift, mu):
    if mu is not None and name == "FlowMatchHeunDiscreteScheduler":
        pytest.skip("the scheduler itself has no dynamic shift")
    dynamic = {} if mu is None else {"use_dynamic_shifting": True}
    scheduler, given = build(name, shift=shift, **dynamic), {} if mu is None else {"mu": mu}
    denoiser = diffusers_denoiser(network := Recorder(answer := draw(2, 3)), scheduler)
    assert denoiser.process == RectifiedFlow()  # a shift moves the nodes alone
    scheduler.set_timesteps(8, **given)
    for t, stated in zip(nodes(scheduler, 8, **given), scheduler.timesteps[:: scheduler.order], strict=True):
        x0, eps, at = draw(2, 3, seed=1), draw(2, 3, seed=2), copy.deepcopy(scheduler)
        x = at.scale_noise(x0, stated if at.order == 2 else stated[None].expand(2), eps)
        torch.testing.assert_close(denoiser.process.add_noise(x0, eps, t.expand(2)), x, **SINGLE)
        got = denoiser(x, t.expand(2))
        torch.testing.assert_close(network.timestep, stated.expand(2), **SINGLE)
        torch.testing.assert_close(network.x, x, rtol=0, atol=0)
    end = copy.deepcopy(scheduler)  # the last step goes to clean data
    end.set_begin_index(len(end.timesteps) - 1)
    torch.testing.assert_close(end.step(answer, end.timesteps[-1], x).prev_sample, got, **SINGLE)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("prediction", ["flow_prediction", "epsilon", "sample"])
def test_multistep_schedulers_on_flows(name, prediction):
    scheduler = build(name, use_flow_sigmas=True, flow_shift=5.0, prediction_type=prediction)
    schedule = read_schedule(scheduler)
    assert schedule.process == RectifiedFlow() and schedule.noise_input == "thousand"
    assert schedule.prediction == {"flow_prediction": "velocity", "epsilon": "eps", "sample": "x0"}[prediction]
    scheduler.set_timesteps(12)
    times = nodes(scheduler, 12)
    assert float((1000 * times - scheduler.timesteps).abs().max()) < 1  # they tell the network whole timesteps
    for t, stated in list(zip(times, scheduler.timesteps, strict=True))[1:]:
        x0, eps = draw(2, 3, seed=1), draw(2, 3, seed=2)
        x, answer = copy.deepcopy(scheduler).add_noise(x0, eps, stated[None].expand(2)), draw(2, 3)
        torch.testing.assert_close(schedule.process.add_noise(x0, eps, t.expand(2)), x, **SINGLE)
        ours = schedule.process.convert(answer, x, t.expand(2), schedule.prediction, "x0")
        torch.testing.assert_close(their_x0(scheduler, answer, stated, x), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_sana_sprint_is_a_flow_network_under_trigflow(sigma_data):
    """The pipeline's own arithmetic around the network, then SCMScheduler.step, against rectified flow on plain latents."""
    scheduler = build("SCMScheduler", sigma_data=sigma_data)
    denoiser = diffusers_denoiser(network := Recorder(answer := draw(2, 3, 4, 4)), scheduler)
    scheduler.set_timesteps(2)
    for t, u in zip(scheduler.timesteps[:-1], nodes(scheduler, 2), strict=True):
        latents = draw(2, 3, 4, 4, seed=1) * sigma_data
        scm = torch.sin(t) / (torch.cos(t) + torch.sin(t))
        size = torch.sqrt(scm**2 + (1 - scm) ** 2)
        seen = latents / sigma_data * size
        noise_pred = ((1 - 2 * scm) * seen + (1 - 2 * scm + 2 * scm**2) * answer) / size * sigma_data
        theirs = copy.deepcopy(scheduler).step(noise_pred, t, latents).pred_original_sample / sigma_data
        torch.testing.assert_close(denoiser(seen, u.expand(2)), theirs, **SINGLE)
        torch.testing.assert_close(network.timestep, scm.expand(2), **SINGLE)


POINTS = draw(12, 6, seed=5).double()


class Exact(torch.nn.Module):
    """The exact answer of a small data set in the parametrisation of a schedule, told the noise by the stated timestep."""

    null = None

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.teacher = schedule, FiniteSetDenoiser(POINTS, schedule.process, bandwidth=0.3)

    def forward(self, x, timestep, cond=None):
        s, process = self.schedule, self.schedule.process
        t = {"time": lambda: timestep, "thousand": lambda: timestep / 1000, "log_sigma": lambda: torch.exp(4 * timestep)}
        t = t[s.noise_input]().double()
        if s.prediction != "edm":
            return process.convert(self.teacher(x.double(), t), x.double(), t, "x0", s.prediction).to(x)
        sd, sigma = s.sigma_data, t[:, None]
        x_t = x * torch.sqrt(sigma**2 + sd**2)
        c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / torch.sqrt(sigma**2 + sd**2)
        return ((self.teacher(x_t.double(), t) - c_skip * x_t) / c_out).to(x)


@pytest.mark.parametrize(
    ("name", "options", "solver"),
    [
        ("DDIMScheduler", {**STABLE, "timestep_spacing": "trailing"}, ddim),
        ("EulerDiscreteScheduler", {**STABLE, "timestep_spacing": "trailing"}, euler),
        ("EulerDiscreteScheduler", {**STABLE, "use_karras_sigmas": True, "prediction_type": "v_prediction"}, euler),
        ("HeunDiscreteScheduler", {**STABLE, "timestep_spacing": "trailing"}, heun),
        ("EDMEulerScheduler", {}, euler),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, euler),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, heun),
    ],
)
def test_our_solver_on_its_nodes_is_the_stock_loop(name, options, solver):
    scheduler, n = build(name, **options), 10  # DDIM's own steps are whole numbers of timesteps
    denoiser = diffusers_denoiser(network := Exact(read_schedule(scheduler)), scheduler)
    scheduler.set_timesteps(n)
    x = draw(3, 6).double()
    start = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    latents = start
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents
        latents = scheduler.step(network(seen.double(), t.expand(3)), t, latents).prev_sample.double()
    times = nodes(scheduler, n)
    table = isinstance(denoiser.process, DDPM) and kind_of(scheduler).latents == "exploding"
    ours = solver(denoiser, start * denoiser.process.a(times[0]) if table else start, times)
    torch.testing.assert_close(ours, latents, rtol=1e-5, atol=1e-5)


def test_a_denoiser_moves_to_another_process():
    denoiser = Preconditioned(Exact(s := read_schedule(build("DDIMScheduler", **STABLE))), s.process, s.prediction)
    x, t = draw(3, 6).double(), torch.full((3,), 2.0, dtype=torch.float64)
    moved = InProcess(denoiser, VE(0.05, 10.0))(x, t)
    torch.testing.assert_close(moved, FiniteSetDenoiser(POINTS, VE(), bandwidth=0.3)(x, t), rtol=1e-9, atol=1e-9)
