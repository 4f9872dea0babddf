"""Stock diffusers schedulers started midway against our own solvers, on one teacher in closed form; and their state."""

import warnings

import pytest
import torch

from limbeck.denoisers import FiniteSetDenoiser, GaussianDenoiser
from limbeck.errors import LimbeckError
from limbeck.interop import scheduler_nodes, teleport_scheduler
from limbeck.noise import DDPM, VE, VP, RectifiedFlow, linear_grid
from limbeck.samplers import ancestral, ddim, dpm_solver_pp_2m, euler, generator_noise, heun, unipc

diffusers = pytest.importorskip("diffusers")
import_now = diffusers.EulerDiscreteScheduler  # diffusers loads its schedulers on first use, which takes seconds

TABLE = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)
BETAS = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "trailing",
}  # fmt: skip
EXACT = {"rtol": 1e-9, "atol": 1e-9}
SINGLE = {"rtol": 2e-5, "atol": 2e-5}  # schedulers that compute in float32 whatever they are given
POINTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
GAUSSIAN = GaussianDenoiser.from_data(POINTS, VP())  # in a process that no scheduler here has
SKIP, N = 3, 10


def teacher(process):
    return FiniteSetDenoiser(POINTS, process, bandwidth=0.3)


def table_scheduler(name, **options):
    """A scheduler of the DDPM table with its float32 levels replaced by ours; (it, our times)."""
    no_clip = {"clip_sample": False} if name.startswith("DD") else {}
    scheduler = getattr(diffusers, f"{name}Scheduler")(**BETAS, **no_clip, **options)
    scheduler.set_timesteps(N)
    times = scheduler.timesteps[:: scheduler.order].double()
    if not hasattr(scheduler, "sigmas"):
        scheduler.alphas_cumprod, scheduler.one = TABLE.table, torch.tensor(1.0)
        scheduler.final_alpha_cumprod = torch.tensor(1.0)
        return scheduler, times
    ours = torch.cat([TABLE.sigma(times), torch.zeros(1, dtype=torch.float64)])
    if scheduler.order == 2:
        ours = torch.cat([ours[:1], ours[1:-1].repeat_interleave(2), ours[-1:]])
    torch.testing.assert_close(scheduler.sigmas.double(), ours, rtol=2e-4, atol=1e-6)
    scheduler.sigmas = ours
    return scheduler, times


def rest_of_the_run(scheduler, timesteps, denoiser, x, answer, **options):
    """The pipeline's loop over the timesteps that remain."""
    for t in timesteps:
        x_t = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(answer(denoiser, x, x_t, t), t, x, **options).prev_sample
    return x


def eps(denoiser, x, x_t, t):
    time = torch.full((len(x),), float(t), dtype=torch.float64)
    return TABLE.convert(denoiser(x_t, time), x_t, time, "x0", "eps")


@pytest.mark.parametrize(
    ("name", "options", "solver", "exploding", "tolerance"),
    [
        ("DDIM", {}, ddim, False, EXACT),
        ("EulerDiscrete", {}, euler, True, SINGLE),
        ("HeunDiscrete", {}, heun, True, EXACT),
        ("DPMSolverMultistep", {}, dpm_solver_pp_2m, False, SINGLE),
        ("UniPCMultistep", {}, unipc, False, EXACT),
    ],
)
@pytest.mark.parametrize("skip", [0, SKIP])
def test_schedulers_on_a_ddpm_table(skip, name, options, solver, exploding, tolerance, normal):
    scheduler, times = table_scheduler(name, **options)
    x, denoiser = normal(3, 6), teacher(TABLE)
    latents = x / TABLE.a(times[0]) if exploding else x
    latents, timesteps, jump = teleport_scheduler(scheduler, GAUSSIAN, latents, skip)
    there = GAUSSIAN.moved_to(TABLE).flow_map(x, times[:1].expand(3), times[skip : skip + 1].expand(3))
    scale = TABLE.a(times[skip]) if exploding else 1.0
    torch.testing.assert_close(latents * scale, there if skip else x, rtol=1e-12, atol=1e-12)
    assert jump.skip == skip and len(timesteps) == len(scheduler.timesteps) - skip * scheduler.order
    assert jump.sigma_to == pytest.approx(TABLE.sigma(times[skip]).item(), rel=1e-12)
    theirs = rest_of_the_run(scheduler, timesteps, denoiser, latents, eps)
    torch.testing.assert_close(solver(denoiser, there if skip else x, times[skip:]), theirs.double(), **tolerance)


@pytest.mark.parametrize("name", ["DDPM", "EulerAncestralDiscrete"])
def test_schedulers_that_add_noise_go_on_and_warn(name, normal):
    scheduler, times = table_scheduler(name)
    exploding = name.startswith("Euler")
    x, denoiser, g = normal(3, 6), teacher(TABLE), torch.Generator().manual_seed
    with pytest.warns(UserWarning, match="teleportation is deterministic"):
        latents, timesteps, _ = teleport_scheduler(scheduler, GAUSSIAN, x / TABLE.a(times[0]) if exploding else x, sigma=2.0)
    there = latents * TABLE.a(times[-len(timesteps)]) if exploding else latents
    theirs = rest_of_the_run(scheduler, timesteps, denoiser, latents, eps, generator=g(1))
    ours = ancestral(denoiser, there, times[-len(timesteps) :], noise=generator_noise(x, g(1)))
    torch.testing.assert_close(ours, theirs.double(), **SINGLE)


@pytest.mark.parametrize(
    ("name", "solver"), [("FlowMatchEulerDiscrete", euler), ("FlowMatchHeunDiscrete", heun)], ids=["euler", "heun"]
)
def test_flow_matching(name, solver, normal):
    process, times = RectifiedFlow(), linear_grid(N)
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    scheduler.set_timesteps(N)
    sigmas = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    if scheduler.order == 2:
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.sigmas, scheduler.timesteps = sigmas, 1000 * sigmas[:-1]
    x, denoiser = normal(3, 6), teacher(process)
    latents, timesteps, jump = teleport_scheduler(scheduler, GAUSSIAN, x, SKIP)
    assert jump.sigma_from == float("inf") and jump.sigma_to == pytest.approx(7 / 3)

    def velocity(denoiser, x, x_t, t):
        time = (t / 1000).expand(len(x))
        return process.convert(denoiser(x, time), x, time, "x0", "velocity")

    theirs = rest_of_the_run(scheduler, timesteps, denoiser, latents, velocity)
    torch.testing.assert_close(solver(denoiser, latents, times[SKIP:]), theirs.double(), **SINGLE)


@pytest.mark.parametrize(
    ("name", "solver"), [("EDMEuler", euler), ("EDMDPMSolverMultistep", dpm_solver_pp_2m)], ids=["euler", "dpm"]
)
def test_edm(name, solver, normal):
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    scheduler.set_timesteps(N)
    x, denoiser = 80 * normal(3, 6), teacher(VE(t_min=0.0019, t_max=80.1))
    times = scheduler.sigmas[:-1].double()
    latents, timesteps, jump = teleport_scheduler(scheduler, GAUSSIAN, x, SKIP)
    assert jump.skip == SKIP and latents.dtype == torch.float64

    def network(denoiser, x, x_t, t):
        """F of D = c_skip x + c_out F, which the scheduler undoes."""
        sigma = scheduler.sigmas[scheduler.step_index].double()
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / torch.sqrt(sigma**2 + 0.25)
        return (denoiser(x.double(), sigma.expand(len(x))) - c_skip * x) / c_out

    theirs = rest_of_the_run(scheduler, timesteps, denoiser, latents, network)
    torch.testing.assert_close(solver(denoiser, latents, times[SKIP:]), theirs.double(), **SINGLE)


@pytest.mark.parametrize(
    ("name", "options"),
    [("DPMSolverMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
     ("UniPCMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"})],
)  # fmt: skip
def test_flow_levels_of_multistep_schedulers(name, options, normal):
    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    scheduler.set_timesteps(N)
    process, times = scheduler_nodes(scheduler)
    assert isinstance(process, RectifiedFlow)
    x, denoiser = normal(3, 6).float(), teacher(RectifiedFlow())
    latents, timesteps, _ = teleport_scheduler(scheduler, GAUSSIAN, x, SKIP)

    def velocity(denoiser, x, x_t, t):
        time = scheduler.sigmas[SKIP if scheduler.step_index is None else scheduler.step_index].double().expand(len(x))
        return process.convert(denoiser(x, time), x, time, "x0", "velocity")

    theirs = rest_of_the_run(scheduler, timesteps, denoiser, latents, velocity)
    solver = unipc if name.startswith("Uni") else dpm_solver_pp_2m
    torch.testing.assert_close(solver(denoiser, latents, times[SKIP:]), theirs, **SINGLE)


def test_a_zero_terminal_signal_may_be_left_behind(normal):
    scheduler = diffusers.DDIMScheduler(**BETAS, rescale_betas_zero_snr=True)
    scheduler.set_timesteps(N)
    x = normal(3, 6)
    latents, timesteps, jump = teleport_scheduler(scheduler, GAUSSIAN, x, 2)
    assert jump.sigma_from > 1e15 and len(timesteps) == N - 2 and bool(latents.isfinite().all())


def test_the_automatic_choice_sees_the_teacher_in_the_schedulers_process(normal):
    scheduler, _ = table_scheduler("DDIM")
    reference = teacher(VE(0.002, 2000.0))
    g = torch.Generator().manual_seed(0)
    _, timesteps, jump = teleport_scheduler(scheduler, GAUSSIAN, normal(3, 6), reference=reference, data=POINTS, generator=g)
    assert 0 < jump.skip < N - 2 and jump.explained_variance > 0.999 and len(timesteps) == N - jump.skip


def test_every_other_state_is_named(normal):
    x = normal(3, 6)
    with pytest.raises(LimbeckError, match="cannot start a DPMSolverSinglestepScheduler midway; use one of DDIMScheduler"):
        teleport_scheduler(diffusers.DPMSolverSinglestepScheduler(), GAUSSIAN, x, 3)
    for name in ("DDIM", "DDPM", "UniPCMultistep", "EDMEuler", "FlowMatchEulerDiscrete"):
        with pytest.raises(LimbeckError, match="no timesteps yet; call scheduler.set_timesteps"):
            teleport_scheduler(getattr(diffusers, f"{name}Scheduler")(), GAUSSIAN, x, 3)
    scheduler, _ = table_scheduler("UniPCMultistep")
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(LimbeckError, match="has taken steps already; call scheduler.set_timesteps"):
        teleport_scheduler(scheduler, GAUSSIAN, x, 3)
    scheduler, _ = table_scheduler("HeunDiscrete")
    with pytest.raises(LimbeckError, match="cannot skip 9 of 10 nodes.*at most 8"):
        teleport_scheduler(scheduler, GAUSSIAN, x, 9)
    mirrored = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    mirrored.set_timesteps(5)
    with pytest.raises(LimbeckError, match="the scheduler's noise levels must decrease strictly"):
        teleport_scheduler(mirrored, GAUSSIAN, x, 3)
    sde = diffusers.DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++")
    sde.set_timesteps(N)
    with pytest.warns(UserWarning, match="teleportation is deterministic"):
        teleport_scheduler(sde, GAUSSIAN, x, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teleport_scheduler(scheduler, GAUSSIAN, x, 3)
