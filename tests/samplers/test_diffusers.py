"""Equality with diffusers' schedulers, driven by the same nonlinear denoiser from the same state."""

import pytest
import torch

from limbeck.noise import DDPM, VE, RectifiedFlow, ddpm_grid, linear_grid
from limbeck.samplers import Rollout, ancestral, ddim, dpm_solver_pp_2m, euler, generator_noise, heun, stochastic_edm, unipc

diffusers = pytest.importorskip("diffusers")
import_now = diffusers.EulerDiscreteScheduler  # diffusers loads its schedulers on first use, which takes seconds

TABLE = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SINGLE = {"rtol": 1e-5, "atol": 1e-5}  # schedulers that compute in float32 whatever they are given


def run(scheduler, denoiser, x, source, inner=lambda x_t: x_t, **options):
    """The scheduler's own loop around our denoiser, whose answer is turned into what the scheduler expects."""
    process = denoiser.process
    for t in scheduler.timesteps:
        x_t = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        time = torch.full((len(x),), float(t), dtype=torch.float64)
        out = process.convert(denoiser(x_t, time), x_t, time, "x0", source) if source else denoiser(x_t, time)
        x = scheduler.step(out, t, x, **options).prev_sample
    return x


def exact_table(scheduler):
    scheduler.alphas_cumprod, scheduler.one, scheduler.final_alpha_cumprod = TABLE.table, torch.tensor(1.0), torch.tensor(1.0)
    return scheduler


def exact_sigmas(scheduler, times):
    """The scheduler's float32 noise levels, which agree with ours to rounding, replaced by ours in float64."""
    ours = torch.cat([TABLE.sigma(times), torch.zeros(1, dtype=torch.float64)])
    if len(scheduler.sigmas) != len(ours):
        ours = torch.cat([ours[:1], ours[1:-1].repeat_interleave(2), ours[-1:]])
    torch.testing.assert_close(scheduler.sigmas.double(), ours, rtol=2e-4, atol=1e-6)
    scheduler.sigmas = ours
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(eta, spacing, wobbly, normal):
    scheduler = exact_table(diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing))
    scheduler.set_timesteps(10)
    times, x = ddpm_grid(10, spacing=spacing), normal(3, 6)
    assert scheduler.timesteps.tolist() == times.tolist()
    theirs = run(scheduler, wobbly(TABLE), x, "eps", eta=eta, generator=torch.Generator().manual_seed(1))
    ours = ddim(wobbly(TABLE), x, times, eta=eta, noise=generator_noise(x, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_ddim_that_ends_at_index_zero(wobbly, normal):
    """Stable Diffusion's set_alpha_to_one=False: the last step goes to index 0 and stops there."""
    scheduler = exact_table(diffusers.DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False))
    scheduler.final_alpha_cumprod = TABLE.table[0]
    scheduler.set_timesteps(10)
    times = torch.cat([ddpm_grid(10, spacing="leading") + 1, torch.zeros(1, dtype=torch.float64)])
    x = normal(3, 6)
    ours = ddim(wobbly(TABLE), x, times, final=False)
    torch.testing.assert_close(ours, run(scheduler, wobbly(TABLE), x, "eps"), **EXACT)


@pytest.mark.parametrize("n", [10, 1000])
def test_ddpm(n, wobbly, normal):
    scheduler = exact_table(diffusers.DDPMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing"))
    scheduler.set_timesteps(n)
    if n == 1000:
        scheduler.timesteps = scheduler.timesteps[-30:]  # single steps down to index 0
    times, x = scheduler.timesteps.double(), normal(3, 6)
    theirs = run(scheduler, wobbly(TABLE), x, "eps", generator=torch.Generator().manual_seed(1))
    ours = ancestral(wobbly(TABLE), x, times, noise=generator_noise(x, torch.Generator().manual_seed(1)))
    # its last step adds noise of standard deviation 1e-10 unless it starts at index 0
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_euler_ancestral(wobbly, normal):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    times, x = ddpm_grid(10), normal(3, 6)
    exact_sigmas(scheduler, times)
    scale = TABLE.a(times[0])
    theirs = run(scheduler, wobbly(TABLE), x / scale, "eps", generator=torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(1)  # it draws in the float64 of the model's answer
    torch.testing.assert_close(ancestral(wobbly(TABLE), x, times, noise=generator_noise(x, g)), theirs.double(), **SINGLE)


def test_euler(wobbly, normal):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    times, x = ddpm_grid(10), normal(3, 6)
    exact_sigmas(scheduler, times)
    theirs = run(scheduler, wobbly(TABLE), x / TABLE.a(times[0]), "eps")
    torch.testing.assert_close(euler(wobbly(TABLE), x, times), theirs.double(), **SINGLE)


def test_heun(wobbly, normal):
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    times, x = ddpm_grid(10), normal(3, 6)
    exact_sigmas(scheduler, times)
    theirs = run(scheduler, wobbly(TABLE), x / TABLE.a(times[0]), "eps")
    torch.testing.assert_close(heun(wobbly(TABLE), x, times), theirs, **EXACT)


@pytest.mark.parametrize("n", [8, 20])
def test_dpm_solver_multistep(n, wobbly, normal):
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(n)
    times, x = ddpm_grid(n), normal(3, 6)
    exact_sigmas(scheduler, times)
    theirs = run(scheduler, wobbly(TABLE), x, "eps")
    torch.testing.assert_close(dpm_solver_pp_2m(wobbly(TABLE), x, times), theirs.double(), **SINGLE)


@pytest.mark.parametrize("n", [8, 20])
def test_dpm_solver_multistep_that_ends_at_index_zero(n, wobbly, normal):
    """final_sigmas_type="sigma_min" stops at index 0; below 15 steps its last step is of first order."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(n)
    times = torch.cat([ddpm_grid(n), torch.zeros(1, dtype=torch.float64)])
    scheduler.sigmas = TABLE.sigma(times)
    x = normal(3, 6)
    theirs = run(scheduler, wobbly(TABLE), x, "eps")
    ours = dpm_solver_pp_2m(wobbly(TABLE), x, times, lower_order_final=n < 15, final=False)
    torch.testing.assert_close(ours, theirs.double(), **SINGLE)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize(("n", "corrector"), [(8, True), (20, True), (8, False)])
def test_unipc(n, corrector, variant, wobbly, normal):
    """To index 0, where its last step is of first order: "bh1" answers nan where it is asked to go to clean data."""
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS,
        timestep_spacing="trailing",
        solver_type=variant,
        final_sigmas_type="sigma_min",
        disable_corrector=[] if corrector else list(range(n)),
    )
    scheduler.set_timesteps(n)
    times = torch.cat([ddpm_grid(n), torch.zeros(1, dtype=torch.float64)])
    scheduler.sigmas = TABLE.sigma(times)
    x = normal(3, 6)
    theirs = run(scheduler, wobbly(TABLE), x, "eps")
    options = {"variant": variant, "corrector": corrector, "lower_order_final": True, "final": False}
    torch.testing.assert_close(unipc(wobbly(TABLE), x, times, **options), theirs, **EXACT)


def test_unipc_to_clean_data(wobbly, normal):
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    times, x = ddpm_grid(8), normal(3, 6)
    exact_sigmas(scheduler, times)
    torch.testing.assert_close(unipc(wobbly(TABLE), x, times), run(scheduler, wobbly(TABLE), x, "eps"), **EXACT)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift, wobbly, normal):
    process = RectifiedFlow(shift)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    times = linear_grid(8)
    scheduler.set_timesteps(sigmas=times.numpy())
    x, denoiser = normal(3, 6).float(), wobbly(process)
    theirs = x
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        time = process.time_of(sigma.double() / (1 - sigma.double())).expand(3)
        assert sigma == pytest.approx(process.s(time)[0].item(), abs=1e-6)
        v = RectifiedFlow().convert(denoiser(theirs, time), theirs, sigma.double().expand(3), "x0", "velocity")
        theirs = scheduler.step(v, t, theirs).prev_sample
    torch.testing.assert_close(euler(wobbly(process), x, times), theirs, **SINGLE)


def test_flow_match_heun(wobbly, normal):
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    times = linear_grid(8)
    scheduler.set_timesteps(8)
    scheduler.sigmas = torch.cat([times[:1], times[1:].repeat_interleave(2), torch.zeros(1, dtype=torch.float64)]).float()
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    x, denoiser = normal(3, 6).float(), wobbly(RectifiedFlow())
    theirs = x
    for t in scheduler.timesteps:
        time = (t.double() / 1000).expand(3)
        v = RectifiedFlow().convert(denoiser(theirs, time), theirs, time, "x0", "velocity")
        theirs = scheduler.step(v, t, theirs).prev_sample
    torch.testing.assert_close(heun(wobbly(RectifiedFlow()), x, times), theirs, **SINGLE)


class Raw:
    """The network F inside EDM's preconditioning D = c_skip x + c_out F(c_in x), sigma_data = 0.5."""

    process, null = VE(), None

    def __init__(self, network):
        self.network = network

    def answer(self, x, sigma):
        return self.network(x / torch.sqrt(sigma**2 + 0.25), sigma.reshape(1).double().expand(len(x)))

    def __call__(self, x, t, cond=None):
        sigma = t[0]
        out = self.answer(x, sigma.to(x))
        return 0.25 / (sigma**2 + 0.25) * x + 0.5 * sigma / torch.sqrt(sigma**2 + 0.25) * out


def run_edm(scheduler, denoiser, x):
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].clone(), strict=True):
        x = scheduler.step(denoiser.answer(x, sigma), t, x).prev_sample
    return x


def test_edm_euler(wobbly, normal):
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(12)
    denoiser = Raw(wobbly(VE()))
    x = 80 * normal(3, 6).float()
    theirs = run_edm(scheduler, denoiser, x)
    torch.testing.assert_close(euler(denoiser, x, scheduler.sigmas[:-1].double().clamp(0.002, 80.0)), theirs, **SINGLE)


def test_edm_euler_with_churn(wobbly, normal):
    """The scheduler raises the noise inside its step, so it is handed D at the raised state, found with the same numbers."""
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(12)
    denoiser, options = wobbly(VE()), {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    x = 80 * normal(3, 6).float()
    times = scheduler.sigmas[:-1].double().clamp(0.002, 80.0)
    noise = generator_noise(x, torch.Generator().manual_seed(1))
    ours = stochastic_edm(denoiser, x, times, s_churn=3.0, order=1, noise=noise)
    mine, theirs, g = torch.Generator().manual_seed(1), x, torch.Generator().manual_seed(1)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1].clone(), strict=True):
        raised, seen = sigma, theirs
        if 0.05 <= sigma <= 50:
            raised = 1.25 * sigma
            seen = theirs + 1.003 * 0.75 * sigma * torch.randn(3, 6, generator=mine)
        x0 = denoiser(seen, raised.double().expand(3))
        theirs = scheduler.step(x0, t, theirs, generator=g, pred_original_sample=x0, **options).prev_sample
    torch.testing.assert_close(ours, theirs, **SINGLE)


@pytest.mark.parametrize("n", [8, 20])
def test_edm_dpm_solver_multistep(n, wobbly, normal):
    scheduler = diffusers.EDMDPMSolverMultistepScheduler()
    scheduler.set_timesteps(n)
    denoiser, x = Raw(wobbly(VE())), 80 * normal(3, 6).float()
    theirs = run_edm(scheduler, denoiser, x)
    times = scheduler.sigmas[:-1].double().clamp(0.002, 80.0)
    torch.testing.assert_close(dpm_solver_pp_2m(denoiser, x, times), theirs, **SINGLE)


def test_lcm(wobbly, normal):
    """A latent consistency model is a rollout with fresh noise around D = c_skip x + c_out x0_hat."""
    scheduler = diffusers.LCMScheduler(**BETAS, clip_sample=False)
    scheduler.alphas_cumprod = TABLE.table
    scheduler.set_timesteps(4)
    times, x = scheduler.timesteps.double(), normal(3, 6)

    class Boundary:
        process, null, inner = TABLE, None, wobbly(TABLE)

        def __call__(self, x_t, t, cond=None):
            c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t[0].long())  # as rounded there
            return c_skip * x_t + c_out * self.inner(x_t, t)

    theirs = run(scheduler, wobbly(TABLE), x, "eps", generator=torch.Generator().manual_seed(1))
    rollout = Rollout(TABLE, times, start="unit")
    ours = rollout(Boundary(), x, noise=generator_noise(x, torch.Generator().manual_seed(1))).x
    torch.testing.assert_close(ours, theirs, **EXACT)
