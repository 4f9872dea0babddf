"""Tiny students of tiny pipelines, exported, and the stock library that samples them without limbeck."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PROGRAM = Path(__file__).parent / "stock_sampler.py"
PROMPTS = ("a red cat", "a dog on the hill")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Prompts, latents and teachers' samples are kept apart from the person's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.syspath_prepend(Path(__file__).parents[1])
        yield


def classes(folder: Path):
    """A class-conditional U-Net whose samples stay within the range of pictures."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from tiny_pipelines import unet

    return DDPMPipeline(unet(num_class_embeds=3), DDPMScheduler(prediction_type="v_prediction"))


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """(name of a tiny pipeline, method, options...) -> the folder of a run of one iteration."""
    from limbeck.runs import distill

    place, runs = tmp_path_factory.mktemp("students"), {}

    def model_of(name: str) -> Path:
        from tiny_pipelines import MAKERS, saved

        if not (place / name).is_dir():
            saved(name, place) if name in MAKERS else own_saved(name, place / name)
        return place / name

    def made(name: str, method: str, *, data=None, **options) -> Path:
        key = repr((name, method, sorted(options.items(), key=str)))
        if data is None and key in runs:
            return runs[key]
        model = model_of(name)
        prompts = place / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS) + "\n")
        asked = {} if name in ("ddpm_v", "classes", "dit") else {"prompts": str(prompts)}
        pictures = {}
        if data is not None:  # asked in words, the captions lie beside
            asked, pictures = {}, {"data": str(folder_of(data, place / f"pictures-{len(runs)}", name == "stable_diffusion"))}
        out = place / f"{name}-{method}-{len(list(place.iterdir()))}"
        few = {"judged": 2, "judged_batch": 2, "teacher_nodes": 2, "iterations": 1, "batch": 2, "quiet": True}
        runs[key if data is None else repr(pictures)] = done = distill(
            method=method, model=str(model), out=out, **{**few, **asked, **pictures, **options}
        ).path
        return done

    made.model = model_of
    return made


def folder_of(images: torch.Tensor, folder: Path, captions: bool) -> Path:
    """A folder with the pictures (N, 3, H, W) in [-1, 1]."""
    from PIL import Image

    folder.mkdir()
    for i, x in enumerate(((images + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(x).save(folder / f"{i}.png")
        if captions:
            (folder / f"{i}.txt").write_text(PROMPTS[2 * i // len(images)])  # of 4 pictures the judges take 0 and 2
    return folder


def own_saved(name: str, folder: Path) -> None:
    """Write one of the pipelines above."""
    torch.manual_seed(0)
    {"classes": classes}[name](folder).save_pretrained(folder)


@pytest.fixture(scope="session")
def stock(tmp_path_factory):
    """(jobs) -> the arrays that stock diffusers samples, all in one process without limbeck."""

    def sample(jobs: list[dict]) -> list[np.ndarray]:
        place = tmp_path_factory.mktemp("stock")
        for i, job in enumerate(jobs):
            job["out"] = str(place / f"{i}.npy")
        (place / "jobs.json").write_text(json.dumps(jobs))
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LIMBECK_TYPECHECK")}
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(place / "jobs.json")], env=clean, cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [np.load(job["out"]) for job in jobs]

    return sample


@pytest.fixture(scope="session")
def ours():
    """(run, seed) -> two samples of ``limbeck sample RUN --noise torch --seed SEED``."""
    from limbeck.runs import open_run
    from limbeck.runs.exporting import sample_as_pipelines_do

    def sample(run: Path, seed: int, count: int = 2) -> torch.Tensor:
        done, task = open_run(run, quiet=True)
        return sample_as_pipelines_do(done, task, count, seed)

    return sample
