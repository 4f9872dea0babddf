"""From a diffusers pipeline on disk to a few-step one, and back into a process that knows diffusers alone.

A small Stable Diffusion of digits is made and trained first (a minute), so that nothing has to be downloaded; your own
folder takes its place. Then come the two commands that matter, and the proof that stock diffusers gives the same pictures.

    python examples/diffusers_pipeline.py [--out runs/demo-diffusers] [--quick]
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck import cli
from limbeck.denoisers import Preconditioned
from limbeck.interop import DiffusersNetwork, diffusers_denoiser
from limbeck.report import image_grid, side_by_side
from limbeck.runs import open_run
from limbeck.runs.exporting import sample_as_pipelines_do
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
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    ).eval()
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(24, 48),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    )
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
            raise ImportError("limbeck is not to be found here")

sys.meta_path.insert(0, Blocker())
import json, torch
from diffusers import DiffusionPipeline

folder, call, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
pipeline = DiffusionPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(**call, output_type="pt", generator=torch.manual_seed(0)).images
torch.save(2 * images - 1, out)
"""


def alone(folder: Path, out: Path, **call: object) -> Tensor:
    """Pictures of a pipeline's folder, drawn by a process in which limbeck cannot be imported."""
    command = [sys.executable, "-c", ALONE, str(folder), json.dumps(call), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"})
    return torch.load(out, weights_only=True)


def limbeck(*arguments: object) -> None:
    """Show a command and run it."""
    words = [str(word) for word in arguments]
    print("\n$ limbeck " + " ".join(words), flush=True)
    if code := cli.main(words):
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo-diffusers"))
    parser.add_argument("--quick", action="store_true", help="train for a few iterations: it runs, the pictures are noise")
    given = parser.parse_args()
    teacher, run, student = (given.out / name for name in ("teacher", "run", "student"))
    if not (teacher / "model_index.json").is_file():
        build_pipeline(teacher, given.quick)
    prompts = [f"digit {word}" for word in WORDS]
    (given.out / "prompts.txt").write_text("\n".join(prompts) + "\n")

    train = ["--iterations", 300, "--batch", 64, "--student.lr", 5e-4, "--critic.lr", 1e-3, "--judged", 500]
    if given.quick:
        train = ["--iterations", 4, "--batch", 8, "--judged", 100, "--teacher-nodes", 3]
    limbeck(
        "distill", "dmd", "--model", teacher, "--prompts", given.out / "prompts.txt", "--teacher-guidance", 2, "--student-rank", 16,
        "--critic-rank", 16, *train, "--judged-batch", 128, "--out", run, "--overwrite",
    )  # fmt: skip
    limbeck("export", run, "--to", "diffusers", student, "--overwrite")
    limbeck("sample", run, "--noise", "torch", "--count", 40, "--out", given.out / "limbeck.png")

    many = prompts * 4
    theirs = alone(student, given.out / "stock.pt", prompt=many, num_inference_steps=1, guidance_scale=1.0)
    before = alone(teacher, given.out / "teacher.pt", prompt=many, num_inference_steps=50, guidance_scale=2.0)
    done, task = open_run(run, quiet=True)
    ours = task.evaluator.shown(sample_as_pipelines_do(done, task, len(many), seed=0)).clamp(-1, 1)
    gap = float((ours - theirs).abs().max())
    titles = {
        "teacher: stock diffusers, 100 calls": before,
        "student: limbeck, 1 call": ours,
        "student: stock diffusers, 1 call": theirs,
    }
    picture = side_by_side({title: image_grid(images, 10) for title, images in titles.items()})
    picture.save(given.out / "side-by-side.png")
    print(f"\nlargest difference between limbeck's pictures and stock diffusers': {gap:.1e} (images in [-1, 1])")
    print(given.out / "side-by-side.png")
    sys.exit(gap > 1e-4)


if __name__ == "__main__":
    main()
