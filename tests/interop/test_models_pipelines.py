"""Models of diffusers are called as their stock pipelines call them: what those pipelines hand over is recorded and compared."""

import inspect

import pytest
import torch

from limbeck.interop import DiffusersNetwork


class Recorder:
    """What a model was called with the first time, by the names of its arguments, and what it answered."""

    def __init__(self, model):
        self.model, self.given, self.answer = model, None, None

    def __enter__(self):
        self.handle = self.model.register_forward_hook(self.note, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def note(self, model, args, kwargs, output):
        if self.given is None:
            given = inspect.signature(model.forward).bind(*args, **kwargs).arguments
            told = {**(given.pop("added_cond_kwargs", None) or {}), **given}
            told.pop("return_dict", None)
            self.given = {name: value for name, value in told.items() if not (value is None or value == {})}
            self.answer = output[0]


def components(pipeline, case, **more):
    names = inspect.signature(pipeline.__init__).parameters
    parts = {name: None for name in names if name not in ("self", "boundary_ratio", "expand_timesteps")}
    parts |= {"unet" if "unet" in names else "transformer": case.model, "scheduler": case.scheduler()} | more
    return pipeline(**{name: value for name, value in parts.items() if name in names})


def recorded(pipeline, case, shape, more=(), **call):
    """(what the pipeline handed over, what the model answered, the noise that it began with, its first timestep)."""
    made = components(pipeline, case, **dict(more))
    made.set_progress_bar_config(disable=True)
    with Recorder(case.model) as recorder, torch.no_grad():
        made(**call, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return recorder.given, recorder.answer, noise, made.scheduler.timesteps[0]


def check(case, found, cond, fixed=None):
    """The network hands the same over and gets the same answer, of which it gives the mean."""
    given, answer, x, timestep = found
    network = DiffusersNetwork(case.model, fixed=fixed)
    with Recorder(case.model) as recorder, torch.no_grad():
        mine = network(x, timestep.expand(len(x)), cond)
    assert set(recorder.given) == set(given)
    for name, value in given.items():
        ours = recorder.given[name]
        if isinstance(value, torch.Tensor):
            value = value.expand_as(ours)  # a U-Net's timestep is one number
        torch.testing.assert_close(
            ours, value, rtol=0, atol=0, check_dtype=False, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(recorder.answer, answer, rtol=0, atol=0)
    if answer.ndim == x.ndim:  # not packed
        torch.testing.assert_close(mine, answer[:, : x.shape[1]], rtol=0, atol=0)


def prompts(case, **names):
    """The case's conditions under the pipeline's names."""
    return {theirs: case.cond[ours] for theirs, ours in names.items()}


SIZE = {"height": 64, "width": 64, "guidance_scale": 1.0, "output_type": "latent"}


def test_ddpm(tiny):
    from diffusers import DDPMPipeline

    case = tiny("ddpm")
    check(case, recorded(DDPMPipeline, case, (2, 3, 8, 8), batch_size=2, output_type="np"), None)


def test_stable_diffusion(tiny):
    from diffusers import StableDiffusionPipeline

    case = tiny("sd15")
    more = {"safety_checker": None, "requires_safety_checker": False}
    found = recorded(
        StableDiffusionPipeline, case, (2, 4, 8, 8), more, prompt_embeds=case.cond["encoder_hidden_states"], **SIZE
    )
    check(case, found, case.cond)


def test_stable_diffusion_xl_with_its_sizes_and_guidance_embedding(tiny):
    from diffusers import StableDiffusionXLPipeline
    from diffusers.pipelines.latent_consistency_models import LatentConsistencyModelPipeline

    case = tiny("sdxl")
    text = prompts(case, prompt_embeds="encoder_hidden_states", pooled_prompt_embeds="text_embeds")
    more = {"force_zeros_for_empty_prompt": True, "add_watermarker": False}
    found = recorded(StableDiffusionXLPipeline, case, (2, 4, 8, 8), more, **text, **SIZE | {"guidance_scale": 7.5})
    scale = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.full((2,), 6.5), embedding_dim=6)
    check(case, found, case.cond | {"timestep_cond": scale})


def test_dit(tiny):
    from diffusers import AutoencoderKL, DiTPipeline

    case = tiny("dit")
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=1)
    found = recorded(
        DiTPipeline,
        case,
        (2, 4, 8, 8),
        {"vae": vae, "id2label": None},
        class_labels=[3, 7],
        guidance_scale=1.0,
        output_type="np",
    )
    check(case, found, case.cond)


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-sigma"])
def test_pixart(tiny, name):
    import diffusers

    case = tiny(name)
    pipeline = diffusers.PixArtAlphaPipeline if name == "pixart-alpha" else diffusers.PixArtSigmaPipeline
    text = prompts(case, prompt_embeds="encoder_hidden_states", prompt_attention_mask="encoder_attention_mask")
    call = SIZE | {"use_resolution_binning": False, "negative_prompt": None}
    check(case, recorded(pipeline, case, (2, 4, 8, 8), **text, **call), case.cond, case.fixed)


def test_sd3(tiny):
    from diffusers import StableDiffusion3Pipeline

    case = tiny("sd3")
    text = prompts(case, prompt_embeds="encoder_hidden_states", pooled_prompt_embeds="pooled_projections")
    found = recorded(StableDiffusion3Pipeline, case, (2, 4, 8, 12), **text, **SIZE | {"width": 96})
    check(case, found, case.cond)


def test_flux_is_packed_and_unpacked_as_its_pipeline_does(tiny):
    from diffusers import FluxPipeline

    case = tiny("flux")
    text = prompts(case, prompt_embeds="encoder_hidden_states", pooled_prompt_embeds="pooled_projections")
    found = recorded(FluxPipeline, case, (2, 4, 8, 12), **text, **SIZE | {"width": 96, "guidance_scale": 3.5})
    check(case, found, case.cond, case.fixed)
    _, answer, x, timestep = found
    with torch.no_grad():
        mine = DiffusersNetwork(case.model, fixed=case.fixed)(x, timestep.expand(2), case.cond)
    torch.testing.assert_close(mine, FluxPipeline._unpack_latents(answer, 64, 96, 8), rtol=0, atol=0)


def test_qwen_image_is_packed_and_unpacked_as_its_pipeline_does(tiny):
    from diffusers import QwenImagePipeline

    case = tiny("qwen")
    text = prompts(case, prompt_embeds="encoder_hidden_states", prompt_embeds_mask="encoder_hidden_states_mask")
    call = SIZE | {"width": 96, "guidance_scale": None, "true_cfg_scale": 1.0}
    given, answer, noise, timestep = recorded(QwenImagePipeline, case, (2, 1, 4, 8, 12), **text, **call)
    x = noise[:, 0]
    check(case, (given, answer, x, timestep), case.cond)
    with torch.no_grad():
        mine = DiffusersNetwork(case.model)(x, timestep.expand(2), case.cond)
    torch.testing.assert_close(mine, QwenImagePipeline._unpack_latents(answer, 64, 96, 8)[:, :, 0], rtol=0, atol=0)


def test_sana(tiny):
    from diffusers import SanaPipeline

    case = tiny("sana")
    text = prompts(case, prompt_embeds="encoder_hidden_states", prompt_attention_mask="encoder_attention_mask")
    size = SIZE | {"height": 256, "width": 256, "use_resolution_binning": False, "negative_prompt": None}
    check(case, recorded(SanaPipeline, case, (2, 4, 8, 8), **text, **size), case.cond)


def test_sana_sprint_hides_the_guidance_scale(tiny):
    from diffusers import SanaSprintPipeline, SCMScheduler

    case = tiny("sana-sprint")
    text = prompts(case, prompt_embeds="encoder_hidden_states", prompt_attention_mask="encoder_attention_mask")
    size = SIZE | {"height": 256, "width": 256, "use_resolution_binning": False, "guidance_scale": 4.5}
    more = {"scheduler": SCMScheduler(prediction_type="trigflow", sigma_data=0.5)}
    given, answer, _, _ = recorded(SanaSprintPipeline, case, (2, 4, 8, 8), more, **text, **size)
    check(case, (given, answer, given["hidden_states"], given["timestep"][0]), case.cond, case.fixed)


def test_wan(tiny):
    from diffusers import WanPipeline

    case = tiny("wan")
    text = prompts(case, prompt_embeds="encoder_hidden_states", negative_prompt_embeds="encoder_hidden_states")
    size = SIZE | {"height": 32, "num_frames": 9}
    check(case, recorded(WanPipeline, case, (2, 4, 3, 4, 8), **text, **size), case.cond)


@pytest.mark.parametrize("name", ["cogvideox", "cogvideox-1.5", "cogvideox-2b"])
def test_cogvideox_and_its_rotary_embeddings(tiny, name):
    from diffusers import CogVideoXPipeline

    case = tiny(name)
    text = prompts(case, prompt_embeds="encoder_hidden_states", negative_prompt_embeds="encoder_hidden_states")
    found = recorded(CogVideoXPipeline, case, (2, 4, 4, 8, 12), **text, **SIZE | {"width": 96, "num_frames": 13})
    check(case, found, case.cond)
