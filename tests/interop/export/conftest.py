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


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """(name of a tiny pipeline, method, options...) -> the folder of a run of one iteration."""
    from limbeck.runs import distill

    place = tmp_path_factory.mktemp("students")

    def made(name: str, method: str, *, data=None, **options) -> Path:
        from tiny_pipelines import saved

        model = place / name
        if not model.is_dir():
            saved(name, place)
        prompts = place / "prompts.txt"
        prompts.write_text("\n".join(PROMPTS) + "\n")
        asked = {} if name in ("ddpm", "classes", "dit") else {"prompts": str(prompts)}
        pictures = {} if data is None else {"data": data}
        out = place / f"{name}-{method}-{len(list(place.iterdir()))}"
        few = {"judged": 2, "judged_batch": 2, "teacher_nodes": 2, "iterations": 1, "batch": 2, "quiet": True}
        return distill(method=method, model=str(model), out=out, **few, **asked, **pictures, **options).path

    return made


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


def ours(run: Path, seed: int, count: int = 2) -> torch.Tensor:
    """The samples of ``limbeck sample RUN --noise torch``."""
    from limbeck.runs import open_run
    from limbeck.runs.exporting import sample_as_pipelines_do

    done, task = open_run(run, quiet=True)
    return sample_as_pipelines_do(done, task, count, seed)
