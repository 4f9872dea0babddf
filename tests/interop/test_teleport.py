"""Stock diffusers schedulers started midway against our own solvers, on one teacher in closed form; and their state."""

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch

from limbeck.denoisers import FiniteSetDenoiser, GaussianDenoiser
from limbeck.errors import LimbeckError
from limbeck.interop import scheduler_nodes, teleport_scheduler, teleported
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


@pytest.fixture
def normal():
    return lambda *shape, seed=0: torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


def unet(text=None):
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    if text is None:
        return diffusers.UNet2DModel(
            **sizes, in_channels=3, out_channels=3, attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip
    return diffusers.UNet2DConditionModel(
        **sizes, in_channels=4, out_channels=4, attention_head_dim=4, cross_attention_dim=text,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


def fitted(*shape):
    data = 0.3 + 0.5 * torch.randn(200, *shape, generator=torch.Generator().manual_seed(4))
    return GaussianDenoiser.from_data(data, VE())


def stable_diffusion(scheduler):
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, unet=unet(text=6), scheduler=scheduler, requires_safety_checker=False, **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def calls_of(network):
    seen = []
    network.register_forward_pre_hook(
        lambda module, args, options: seen.append(args[1:2] or options["timestep"]), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize(
    ("name", "options", "guidance", "tolerance"),
    [("DDIM", {"clip_sample": False}, 1.0, 0.0), ("DDIM", {"clip_sample": False}, 4.0, 0.0), ("UniPCMultistep", {}, 4.0, 0.0),
     ("DPMSolverMultistep", {}, 1.0, 0.0), ("EulerDiscrete", {}, 4.0, 1e-5), ("HeunDiscrete", {}, 1.0, 1e-5)],
)  # fmt: skip
def test_a_stock_pipeline_leaves_out_its_first_steps(name, options, guidance, tolerance, normal):
    """A stable diffusion pipeline, told to jump, against the loop over teleport_scheduler written out."""
    scheduler = getattr(diffusers, f"{name}Scheduler")(**BETAS, **options)
    pipe, gaussian, x = stable_diffusion(scheduler), fitted(4, 8, 8), normal(2, 4, 8, 8).float()
    prompt, negative, seen = normal(2, 3, 6, seed=1).float(), normal(2, 3, 6, seed=2).float(), calls_of(pipe.unet)
    text = {"prompt_embeds": prompt, "negative_prompt_embeds": negative if guidance > 1 else None, "guidance_scale": guidance}
    asked = {"height": 8, "width": 8, "num_inference_steps": N, "latents": x.clone(), "output_type": "latent", **text}
    plain = pipe(**asked).images
    with teleported(pipe, gaussian, SKIP) as jumps:
        found = pipe(**asked).images
        again = pipe(**asked).images
    assert pipe.scheduler is scheduler and torch.equal(asked["latents"], x)
    assert torch.equal(found, again) and [j.skip for j in jumps] == [SKIP, SKIP]
    calls = N * scheduler.order - (scheduler.order - 1)
    assert len(seen) == calls + 2 * (calls - SKIP * scheduler.order)
    assert torch.equal(pipe(**asked).images, plain) and float((plain - found).abs().max()) > 1e-3

    stepper = type(scheduler).from_config(scheduler.config)
    stepper.set_timesteps(N)
    latents, timesteps, _ = teleport_scheduler(stepper, gaussian, x * stepper.init_noise_sigma, SKIP)
    with torch.no_grad():
        for t in timesteps:
            both = torch.cat([latents] * 2) if guidance > 1 else latents
            answer = pipe.unet(
                stepper.scale_model_input(both, t), t, torch.cat([negative, prompt]) if guidance > 1 else prompt
            )[0]
            if guidance > 1:
                answer = answer.chunk(2)[0] + guidance * (answer.chunk(2)[1] - answer.chunk(2)[0])
            latents = stepper.step(answer, t, latents).prev_sample
    torch.testing.assert_close(found, latents, rtol=tolerance, atol=tolerance)


def test_a_pipeline_that_draws_its_latents_in_its_loop():
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    seen, gaussian, g = calls_of(pipe.unet), fitted(3, 8, 8), torch.Generator().manual_seed
    with teleported(pipe, gaussian, SKIP):
        found = pipe(2, generator=g(3), num_inference_steps=N, output_type="np").images
    assert len(seen) == N - SKIP
    pipe.scheduler.set_timesteps(N)
    latents, timesteps, _ = teleport_scheduler(pipe.scheduler, gaussian, torch.randn(2, 3, 8, 8, generator=g(3)), SKIP)
    with torch.no_grad():
        for t in timesteps:
            latents = pipe.scheduler.step(pipe.unet(latents, t).sample, t, latents, eta=0.0).prev_sample
    torch.testing.assert_close(torch.tensor(found), (latents / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), rtol=0, atol=1e-6)


def test_flux_as_it_is():
    """Packed latents, prepared before the timesteps are set from sigmas and a dynamic shift."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = diffusers.FluxPipeline(
        scheduler, diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), None, None, None, None, network
    )
    pipe.set_progress_bar_config(disable=True)
    seen, gaussian, n = calls_of(network), fitted(16, 16), 6
    x, text, pooled = torch.randn(1, 16, 16), torch.randn(1, 3, 8), torch.randn(1, 8)
    asked = {"prompt_embeds": text, "pooled_prompt_embeds": pooled, "height": 8, "width": 8, "output_type": "latent"}
    with teleported(pipe, gaussian, 2):
        found = pipe(**asked, latents=x, num_inference_steps=n).images
    assert len(seen) == n - 2
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).tolist(), mu=calculate_shift(16, 256, 4096, 0.5, 1.15))
    latents, timesteps, _ = teleport_scheduler(scheduler, gaussian, x, 2)
    ids = pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
    options = {"pooled_projections": pooled, "encoder_hidden_states": text, "txt_ids": torch.zeros(3, 3), "img_ids": ids}
    with torch.no_grad():
        for t in timesteps:
            answer = network(hidden_states=latents, timestep=t.expand(1) / 1000, **options).sample
            latents = scheduler.step(answer, t, latents).prev_sample
    torch.testing.assert_close(found, latents, rtol=1e-6, atol=1e-6)


class PackedFlow(diffusers.DiffusionPipeline):
    """A pipeline in the order of the flow transformers': latents first, then timesteps from sigmas, then the loop."""

    def __init__(self, transformer, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def prepare_latents(self, latents):
        return latents, None

    @torch.no_grad()
    def __call__(self, latents, n, moved=False):
        latents, _ = self.prepare_latents(latents)
        accepts = "sigmas" in inspect.signature(self.scheduler.set_timesteps).parameters
        self.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / n, n).tolist()) if accepts else None
        timesteps = self.scheduler.timesteps
        self.scheduler.set_begin_index(0)
        latents = latents + 0 if moved else latents
        for t in timesteps:
            latents = self.scheduler.step(self.transformer(hidden_states=latents), t, latents, return_dict=False)[0]
        return latents


class Transformer(torch.nn.Module):
    def forward(self, hidden_states):
        return torch.tanh(hidden_states)


def test_a_flow_pipeline_that_prepares_before_it_sets_timesteps(normal):
    pipe = PackedFlow(Transformer(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    x, gaussian = normal(2, 5, 3).float(), fitted(5, 3)
    given = x.clone()
    with teleported(pipe, gaussian, SKIP) as jumps:
        found = pipe(given, N)
        with pytest.raises(LimbeckError, match="steps other latents than it prepared"):
            pipe(given, N, moved=True)
    assert torch.equal(given, x) and jumps[0].sigma_from == float("inf")
    pipe.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / N, N).tolist())
    latents, timesteps, _ = teleport_scheduler(pipe.scheduler, gaussian, x, SKIP)
    for t in timesteps:
        latents = pipe.scheduler.step(torch.tanh(latents), t, latents).prev_sample
    torch.testing.assert_close(found, latents, rtol=0, atol=0)
    torch.testing.assert_close(pipe(given, N), pipe(x, N), rtol=0, atol=0)  # nothing stays behind


def test_pipelines_that_cannot_jump_say_so():
    with pytest.raises(LimbeckError, match="a SimpleNamespace has no scheduler"), teleported(SimpleNamespace(), GAUSSIAN, 3):
        pass
    pipe = stable_diffusion(diffusers.LCMScheduler())
    with pytest.raises(LimbeckError, match="cannot start a LCMScheduler midway"), teleported(pipe, GAUSSIAN, 3):
        pass
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with teleported(pipe, fitted(3, 8, 8), N - 1), pytest.raises(LimbeckError, match="skip at most 8"):
        pipe(1, num_inference_steps=N)
    assert not pipe.unet._forward_pre_hooks
