"""Stock pipelines, tiny and random, that leave out their first steps, against the loop over teleport_scheduler."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from limbeck.denoisers import GaussianDenoiser
from limbeck.errors import LimbeckError
from limbeck.interop import teleport_scheduler, teleported
from limbeck.noise import VE

diffusers = pytest.importorskip("diffusers")

BETAS = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "trailing",
}  # fmt: skip
SKIP, N = 3, 10


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
    gaussian = fitted(3, 8, 8)
    with pytest.raises(LimbeckError, match="a SimpleNamespace has no scheduler"), teleported(SimpleNamespace(), gaussian, 3):
        pass
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
    pipe.scheduler = diffusers.DDPMScheduler()
    with pytest.warns(UserWarning, match="teleportation is deterministic"), teleported(pipe, gaussian, 3):
        pass
    pipe = stable_diffusion(diffusers.LCMScheduler())
    with pytest.raises(LimbeckError, match="cannot start a LCMScheduler midway"), teleported(pipe, gaussian, 3):
        pass
    pipe = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    with teleported(pipe, gaussian, N - 1), pytest.raises(LimbeckError, match="skip at most 8"):
        pipe(1, num_inference_steps=N)
    assert not pipe.unet._forward_pre_hooks
