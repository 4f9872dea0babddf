"""Pipelines of diffusers read from disk: what they sample with our parts is what they sample themselves."""

import pytest
import torch

from limbeck.denoisers import ClassifierFree
from limbeck.errors import LimbeckError
from limbeck.interop.pipelines import open_pipeline
from limbeck.interop.texts import longest
from limbeck.noise import RectifiedFlow
from limbeck.samplers import Experts, ddim

pytestmark = pytest.mark.filterwarnings("ignore:.*prompts have more than")
PROMPTS = ["a cat on the hill", "blue house"]
STEPS, W = 3, 2.5
HOW = {
    "flux": {"height": 16, "width": 16, "tokens": 8},
    "qwen": {"height": 16, "width": 16, "tokens": 8},
    "sd3": {"tokens": 8},
    "pixart": {"height": 16, "width": 16, "tokens": 8},
    "sana": {"height": 32, "width": 32, "tokens": 8},
    "wan": {"height": 16, "width": 16, "num_frames": 5, "tokens": 8},
    "wan_experts": {"height": 16, "width": 16, "num_frames": 5, "tokens": 8},
    "cogvideox": {"tokens": 16},
}
GUIDED = {"qwen": "true_cfg_scale", "flux": "true_cfg_scale"}


def stock(folder, pipeline, z, w):
    """(what the pipeline itself makes of noise z under a first-order scheduler, that scheduler)."""
    import diffusers

    pipe = getattr(diffusers, pipeline.kind).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipeline.schedule.process, RectifiedFlow):
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=pipeline.shift)
    elif pipeline.kind != "CogVideoXPipeline":
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False, timestep_spacing="trailing"
        )
    if pipeline.kind == "DiTPipeline":
        return None, pipe.scheduler
    call = {"prompt": PROMPTS, "num_inference_steps": STEPS, "latents": z, "output_type": "pt"}
    call |= {"height": pipeline.size[0], "width": pipeline.size[1], GUIDED.get(name_of(folder), "guidance_scale"): w}
    if pipeline.kind == "StableDiffusionXLPipeline":
        call["negative_prompt"] = None
    elif pipeline.kind == "FluxPipeline":
        call |= {"guidance_scale": 3.5, "negative_prompt": ["", ""], "latents": pipe._pack_latents(z, *z.shape)}
    elif pipeline.kind == "QwenImagePipeline":
        call |= {"negative_prompt": ["", ""], "latents": pipe._pack_latents(z[:, None], *z.shape)}
    else:
        call["negative_prompt"] = ["", ""]
    if pipeline.tokens is not None:
        call["max_sequence_length"] = pipeline.tokens
    if pipeline.frames is not None:
        call["num_frames"] = pipeline.frames
    if pipeline.kind.startswith(("PixArt", "Sana")):
        call["use_resolution_binning"] = False
    answer = pipe(**call)
    return getattr(answer, "frames", None) if pipeline.frames else answer.images, pipe.scheduler


def name_of(folder):
    return folder.name


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "pixart", "sana", "qwen", "wan", "cogvideox")]


@pytest.mark.parametrize("name", ["stable_diffusion", "sd3", "flux", "wan_experts", *SLOW])
def test_texts_guidance_network_and_decoder_are_those_of_the_stock_pipeline(name, tiny_pipeline):
    folder = tiny_pipeline(name)
    pipeline = open_pipeline(folder, **HOW.get(name, {}))
    z = torch.randn(2, *pipeline.shape, generator=torch.Generator().manual_seed(0))
    theirs, scheduler = stock(folder, pipeline, z, W)
    cond, null = pipeline.encode_text(PROMPTS)
    denoiser = pipeline.denoiser(null)
    flow = isinstance(pipeline.schedule.process, RectifiedFlow)
    times = scheduler.sigmas[:-1].double() if flow else scheduler.timesteps.double()
    start = z if pipeline.kind != "StableDiffusionXLPipeline" else z * scheduler.init_noise_sigma
    with torch.no_grad():
        x = ddim(ClassifierFree(denoiser, W), start, times, cond)
    ours = (pipeline.decode(x) / 2 + 0.5).clamp(0, 1)
    if pipeline.frames is not None:
        ours = ours.movedim(2, 1)
    assert ours.shape == theirs.shape and float(theirs.std()) > 0.02
    torch.testing.assert_close(ours, theirs.to(ours), rtol=2e-3, atol=2e-3)


def test_classes_and_pixels_need_no_text(tiny_pipeline):
    dit = open_pipeline(tiny_pipeline("dit"))
    assert (dit.texts, dit.classes, dit.shape, dit.size) == (False, 10, (4, 8, 8), (16, 16))
    denoiser = dit.denoiser()
    assert int(denoiser.null["label"]) == 10  # the row behind the classes
    pixels = open_pipeline(tiny_pipeline("ddpm"))
    x = torch.rand(2, 3, 8, 8)
    assert pixels.shape == (3, 8, 8) and pixels.encode(x) is x and pixels.decode(x) is x and pixels.denoiser().null == {}


@pytest.mark.parametrize(
    "name", ["sd3", "wan_experts", *(param for param in SLOW if param.values[0] not in ("sdxl", "pixart"))]
)
def test_latents_have_the_scale_that_networks_are_trained_on(name, tiny_pipeline):
    """decode(z) is what the autoencoder says of unscaled latents, and encode is scaled the same way."""
    pipeline = open_pipeline(tiny_pipeline(name), **HOW.get(name, {}))
    vae = pipeline.component("vae")
    images = torch.rand(2, 3, *pipeline.size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = pipeline.encode(images)
    with torch.no_grad():
        raw = vae.encode(images[:, :, None] if name in ("qwen", "wan", "wan_experts", "cogvideox") else images)
        raw = raw.latent_dist.mean if hasattr(raw, "latent_dist") else raw.latent
        theirs = vae.decode(raw).sample
    config = vae.config
    if name in ("qwen", "wan", "wan_experts"):
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        scaled = (raw - mean) / std
    else:
        scaled = (raw - (config.get("shift_factor") or 0.0)) * config.scaling_factor
    scaled = scaled[:, :, 0] if name == "qwen" else scaled.movedim(1, 2) if name == "cogvideox" else scaled
    torch.testing.assert_close(z, scaled)
    torch.testing.assert_close(pipeline.decode(z), theirs[:, :, 0] if name == "qwen" else theirs, rtol=1e-4, atol=1e-4)


def test_experts_take_over_where_the_pipeline_says(tiny_pipeline):
    pipeline = open_pipeline(tiny_pipeline("wan_experts"), **HOW["wan_experts"])
    experts = pipeline.denoiser(pipeline.encode_text(["a cat"])[1])
    assert isinstance(experts, Experts)
    noisy = experts.index(torch.tensor([1.0, 0.875, 0.875 - 1e-9, 0.5, 1e-3], dtype=torch.float64))
    assert noisy.tolist() == [1, 1, 0, 0, 0]  # the stock pipeline: transformer where t >= boundary
    weights = dict(pipeline.component("transformer_2").named_parameters())
    name, first = next(iter(experts.expert_0.network.model.named_parameters()))
    assert torch.equal(first, weights[name])


def test_components_are_loaded_when_needed_and_only_then(tiny_pipeline):
    pipeline = open_pipeline(tiny_pipeline("stable_diffusion"))
    assert pipeline.shape == (4, 8, 8) and pipeline.loaded == []
    pipeline.encode_text(["a cat"])
    assert pipeline.loaded == ["text_encoder", "tokenizer"]
    pipeline.denoiser()
    pipeline.decode(torch.zeros(1, 4, 8, 8))
    assert pipeline.loaded[2:] == ["unet", "scheduler", "vae"]


def test_a_pipeline_in_memory_is_read_like_its_folder(tiny_pipeline):
    from diffusers import StableDiffusionPipeline

    folder = tiny_pipeline("stable_diffusion")
    there, here = open_pipeline(folder), open_pipeline(StableDiffusionPipeline.from_pretrained(folder))
    for ours, theirs in zip(there.encode_text(PROMPTS), here.encode_text(PROMPTS), strict=True):
        torch.testing.assert_close(dict(ours), dict(theirs), rtol=0, atol=0)
    assert there.shape == here.shape and here.digest("vae") is None and there.digest("vae") != there.digest("text_encoder")


def test_long_prompts_are_counted_once(tiny_pipeline):
    pipeline = open_pipeline(tiny_pipeline("stable_diffusion"))
    long = "red dog on the hill and the blue house"
    with pytest.warns(UserWarning, match=r"2 of 3 prompts have more than 16 tokens \(the longest 3\d\)") as said:
        pipeline.encode_text([long, "a cat", long])
    assert len([w for w in said if "prompts have" in str(w.message)]) == 1


def test_the_flow_shift_follows_the_size(tiny_pipeline):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    folder = tiny_pipeline("flux")
    mu = calculate_shift(32 * 16 // 4, 256, 4096, 0.5, 1.15)  # 64 x 32 pixels are 32 x 16 latents
    assert open_pipeline(folder, height=64, width=32).shift == pytest.approx(torch.tensor(mu).exp().item(), rel=1e-6)
    assert open_pipeline(tiny_pipeline("wan_experts")).shift == 5.0 and open_pipeline(tiny_pipeline("sd3")).shift == 3.0


def test_the_longest_text_is_that_of_the_pipelines_call(tiny_pipeline):
    from diffusers import FluxPipeline, StableDiffusionPipeline

    assert longest(FluxPipeline.from_pretrained(tiny_pipeline("flux"))) == 512
    assert longest(StableDiffusionPipeline.from_pretrained(tiny_pipeline("stable_diffusion"))) == 16


def test_sizes_that_do_not_fit_are_refused(tiny_pipeline):
    for how, message in [
        ({"height": 17}, r"17 x 16 pixels.*multiples of 2"),
        ({"num_frames": 5}, "makes pictures; leave it out"),
    ]:
        with pytest.raises(LimbeckError, match=message):
            _ = open_pipeline(tiny_pipeline("stable_diffusion"), **how).shape
    with pytest.raises(LimbeckError, match=r"num_frames=4: this pipeline makes 1, 3, 5, ... frames; e.g. 5"):
        _ = open_pipeline(tiny_pipeline("wan_experts"), num_frames=4).shape
    with pytest.raises(LimbeckError, match="18 x 16 pixels.*multiples of 4"):
        _ = open_pipeline(tiny_pipeline("flux"), height=18, width=16).shape
