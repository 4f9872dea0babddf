"""Pipelines of diffusers, tiny and random, written to disk without a download. Each maker returns the pipeline."""

import json
from pathlib import Path

import torch

WORDS = ("a", "cat", "dog", "red", "blue", "house", "on", "the", "hill")
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 600}


def clip_tokenizer(folder: Path, length: int = 16):
    """A CLIP tokenizer of bytes and a few words, written to files and read from them."""
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in [*range(33, 127), *range(161, 173), *range(174, 256)]] + [chr(256 + i) for i in range(68)]
    tokens = [*letters, *(c + "</w>" for c in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length)


def words_tokenizer(length: int = 16):
    """A tokenizer of whole words with padding, for text encoders other than CLIP's."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, padding_side="right", **special)


def clip(projected: bool = False, width: int = 16, length: int = 16):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        **{**TEXT, "hidden_size": width},
        max_position_embeddings=length,
        projection_dim=width,
        bos_token_id=518,
        eos_token_id=519,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(width: int = 16):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=24, num_layers=1, num_heads=2)).eval()


def kl(channels: int = 4, **more):
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": channels}
    return AutoencoderKL(3, 3, **blocks, **sizes, **more).eval()


def unet(**more):
    from diffusers import UNet2DModel

    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "block_out_channels": (8, 16)}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**sizes, **blocks, norm_num_groups=4, attention_head_dim=4, **more).eval()


def text_unet(width: int = 16, **more):
    from diffusers import UNet2DConditionModel

    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (8, 16)}
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    heads = {"norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": width}
    return UNet2DConditionModel(**{**sizes, **blocks, **heads, **more}).eval()


def ddpm(folder: Path, **more):
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(unet(**more), DDPMScheduler())


def ddpm_v(folder: Path):
    """v-prediction with a zero terminal signal."""
    from diffusers import DDIMScheduler, DDPMPipeline

    return DDPMPipeline(unet(), DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))


def dit(folder: Path):
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip
    return DiTPipeline(model.eval(), kl(), DDIMScheduler())


def stable_diffusion(folder: Path, **scheduler):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    steps = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
        **scheduler,
    }
    return StableDiffusionPipeline(
        kl(), clip(), clip_tokenizer(folder / "files"), text_unet(), DDIMScheduler(**steps), None, None, requires_safety_checker=False
    )  # fmt: skip


def sdxl(folder: Path):
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 16 + 6 * 4,
    }
    tokenizer = clip_tokenizer(folder / "files")
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return StableDiffusionXLPipeline(
        kl(), clip(), clip(projected=True), tokenizer, tokenizer, text_unet(width=32, **more), scheduler, add_watermarker=False
    )


def sd3(folder: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, pos_embed_max_size=8,
    )  # fmt: skip
    tokenizer = clip_tokenizer(folder / "files")
    return StableDiffusion3Pipeline(
        model.eval(), FlowMatchEulerDiscreteScheduler(shift=3.0), kl(shift_factor=0.06, scaling_factor=1.5), clip(True), tokenizer,
        clip(True), tokenizer, t5(32), words_tokenizer(),
    )  # fmt: skip


def flux(folder: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    vae, tokenizer = kl(shift_factor=0.1159, scaling_factor=0.3611), clip_tokenizer(folder / "files")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae, clip(), tokenizer, t5(), words_tokenizer(), model.eval())


def pixart(folder: Path):
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=24,
        sample_size=128, patch_size=2, caption_channels=16, norm_num_groups=2, use_additional_conditions=True,
    )  # fmt: skip
    return PixArtAlphaPipeline(words_tokenizer(), t5(), kl(), model.eval(), DPMSolverMultistepScheduler())


def sana(folder: Path):
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1), downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    model = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=16, sample_size=8,
    )  # fmt: skip
    gemma = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return SanaPipeline(
        words_tokenizer(), Gemma2Model(gemma).eval(), vae.eval(), model.eval(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    )


def qwen(folder: Path):
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 2.5, 3.0],
    )  # fmt: skip
    model = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "vocab_size": 64, "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"}, "rope_theta": 1e6,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192
    )
    return QwenImagePipeline(scheduler, vae.eval(), encoder.eval(), words_tokenizer(128), model.eval())


def wan_transformer():
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=16,
        ffn_dim=16, num_layers=1, rope_max_seq_len=16,
    ).eval()  # fmt: skip


def wan(folder: Path, experts: bool = False):
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True], scale_factor_spatial=2,
        scale_factor_temporal=2, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 2.0, 2.5, 3.0],
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    more = {"transformer_2": wan_transformer(), "boundary_ratio": 0.875} if experts else {}
    return WanPipeline(words_tokenizer(), t5(), vae.eval(), scheduler, transformer=wan_transformer(), **more)


def wan_experts(folder: Path):
    return wan(folder, experts=True)


def cogvideox(folder: Path):
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
        scaling_factor=1.15,
    )  # fmt: skip
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16, num_layers=1,
        sample_width=4, sample_height=4, sample_frames=9, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=3.0)
    return CogVideoXPipeline(words_tokenizer(), t5(), vae.eval(), model.eval(), scheduler)


MAKERS = {
    "ddpm": ddpm,
    "ddpm_v": ddpm_v,
    "dit": dit,
    "stable_diffusion": stable_diffusion,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "sana": sana,
    "qwen": qwen,
    "wan": wan,
    "wan_experts": wan_experts,
    "cogvideox": cogvideox,
}


def saved(name: str, folder: Path, **more) -> Path:
    """Write a tiny pipeline to FOLDER/NAME; returns that folder."""
    torch.manual_seed(0)
    place = folder / name
    MAKERS[name](folder, **more).save_pretrained(place)
    return place
