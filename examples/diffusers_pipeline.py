"""From a diffusers pipeline on disk to a few-step one, and back into a process that knows diffusers alone.

A small Stable Diffusion of digits is made and trained first (a minute), so that nothing has to be downloaded; your own
folder takes its place. Then come the two commands that matter, and the proof that stock diffusers gives the same pictures.

    python examples/diffusers_pipeline.py [--out runs/demo-diffusers] [--quick]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.denoisers import Preconditioned
from limbeck.interop import DiffusersNetwork, diffusers_denoiser
from limbeck.tasks import TeacherOptions, load_digits
from limbeck.tasks.teacher import Denoising
from limbeck.training import EmaOptions, Loop, LoopOptions, OptimizerOptions, TensorSource

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TOKENS = 4  # start, "digit", the number, end


def build_pipeline(folder: Path, quick: bool = False) -> None:
    """Make a small Stable Diffusion of 8 x 8 digits, train its autoencoder and its U-Net, and save it."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    images, labels = load_digits()
    images = images.expand(-1, 3, -1, -1)
    vae = trained_autoencoder(images, 60 if quick else 300)
    tokenizer = word_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=TOKENS, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
    ).eval()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(24, 48),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(256)])
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
        prompts = [f"digit {WORDS[label]}" for label in labels]
        embedded = text(tokenizer([*prompts, ""], padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids)[0]
    cond, null = {"encoder_hidden_states": embedded[:-1]}, {"encoder_hidden_states": embedded[-1]}
    denoiser = diffusers_denoiser(DiffusersNetwork(unet, null), scheduler)
    train_unet(denoiser, vae.config.scaling_factor * latents, cond, 60 if quick else 1000)
    StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)


def trained_autoencoder(images: Tensor, iterations: int):
    """An AutoencoderKL, trained to give the images back."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(16,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        latent_channels=4, norm_num_groups=8, sample_size=8,
    )  # fmt: skip
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3, fused=True)
    for i in range(iterations):
        x = images[torch.randint(len(images), (32,))]
        posterior = vae.encode(x).latent_dist
        loss = F.mse_loss(vae.decode(posterior.sample()).sample, x) + 1e-4 * posterior.kl().mean()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - i / iterations)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"autoencoder: mean square error {loss.detach():.4f}")
    return vae.eval().requires_grad_(False)


def train_unet(denoiser: Preconditioned, latents: Tensor, cond: dict[str, Tensor], iterations: int) -> None:
    """Denoising training by the library's own loop; the averaged weights stay in the denoiser."""
    optimizer = OptimizerOptions(lr=2e-3, betas=(0.9, 0.99), warmup=50, decay="cosine", clip=1.0)
    options = TeacherOptions(iterations, 64, optimizer, EmaOptions("inverse", 0.05), mean=0.0, std=1.5, weight="eps")
    loop = Loop(Denoising(denoiser, options), TensorSource(latents, cond), LoopOptions(iterations, options.batch))
    loop.train("train the U-Net")
    denoiser.load_state_dict(loop.method.roles["teacher"].best.state_dict())


def word_tokenizer():
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = "<start>", "<end>"
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate((start, end, "digit", *WORDS))}, unk_token=end))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(f"{start} $A {end}", special_tokens=[(start, 0), (end, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=start, eos_token=end, pad_token=end, unk_token=end, model_max_length=TOKENS
    )


ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "limbeck":
            raise ImportError("limbeck is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from diffusers import DiffusionPipeline

folder, seed, steps, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
pipeline = DiffusionPipeline.from_pretrained(folder)
prompts = [f"digit {word}" for word in WORDS] * 4
images = pipeline(prompts, num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="pt",
                  generator=torch.Generator().manual_seed(seed)).images
torch.save(images, out)
"""
