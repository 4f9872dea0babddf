"""Teachers that a task makes itself: denoising training through the library's own loop, cached on disk."""

import hashlib
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from limbeck import denoisers, losses, networks, noise, training
from limbeck.denoisers import Cond, Preconditioned, load_denoiser, save_denoiser
from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss
from limbeck.noise import InSigma, LogNormal
from limbeck.training import Batch, EmaOptions, Loop, LoopOptions, Method, OptimizerOptions, Role, Step, TensorSource, Update


@dataclass(frozen=True)
class TeacherOptions:
    """How a task's teacher is trained."""

    iterations: int = 3000
    batch: int = 128
    optimizer: OptimizerOptions = OptimizerOptions(lr=1e-3, betas=(0.9, 0.99), warmup=100, decay="cosine", clip=1.0)
    ema: EmaOptions = EmaOptions("inverse", 0.05)
    mean: float = -1.2
    std: float = 1.2
    """The noise law ln sigma ~ N(mean, std^2)."""
    weight: str = "edm"
    """Of the loss, see `limbeck.losses.denoising_loss`."""
    drop: float = 0.1
    """Share of samples that are trained without their condition."""
    seed: int = 0


class Denoising(Method):
    """Denoising training of one role, "teacher", with dropped conditions (EDM's loss, arXiv 2206.00364)."""

    def __init__(self, teacher: Preconditioned, options: TeacherOptions):
        self.teacher, self.options = teacher, options
        self.times = InSigma(LogNormal(options.mean, options.std), teacher.process)
        self.roles = {"teacher": Role(teacher, options.optimizer, options.ema)}

    def step(self, batch: Batch) -> Step:
        x, noise = batch.x, batch.noise
        assert x is not None
        cond = drop_conditions(batch.cond, self.teacher.null, noise.uniform("drop") < self.options.drop)
        t, eps = self.times(noise.uniform("time")), noise.normal("noise", tuple(x.shape[1:]), x.dtype)
        weight, sd = self.options.weight, self.teacher.sigma_data
        yield Update("teacher", denoising_loss(self.teacher, x, t, eps, cond, weight=weight, sigma_data=sd))


def drop_conditions(cond: Cond | None, null: Mapping[str, Tensor] | None, dropped: Tensor) -> Cond | None:
    """The conditions with the null condition in the samples marked by ``dropped`` (B,) bool."""
    if not cond or not null:
        return cond
    keep = {name: ~dropped.reshape(-1, *[1] * (value.ndim - 1)) for name, value in cond.items()}
    return {name: torch.where(keep[name], value, null[name].to(value)) for name, value in cond.items()}


def cache_folder() -> Path:
    """Where teachers are kept: LIMBECK_CACHE, or ~/.cache/limbeck."""
    return Path(os.environ.get("LIMBECK_CACHE") or Path.home() / ".cache" / "limbeck")


def cached_teacher(
    name: str, build: Callable[[], Preconditioned], source: TensorSource, options: TeacherOptions, quiet: bool = False
) -> tuple[Preconditioned, dict[str, Any]]:
    """(the teacher, facts): trained once per configuration, data, code and torch version, then read from the cache.

    The facts hold ``origin`` ("trained" or "cached"), the ``seconds`` of training and the ``file``.
    """
    torch.manual_seed(options.seed)
    fresh = build()
    key = _key(fresh, source, options)
    path = cache_folder() / f"{name}-{key[:16]}.safetensors"
    if path.is_file():
        try:
            known, info = load_denoiser(path)
            return known, {**info, "origin": "cached", "file": str(path)}
        except LimbeckError as error:
            print(f"{error}; training the teacher again", file=sys.stderr)
    loop = Loop(
        Denoising(fresh, options), source, LoopOptions(options.iterations, options.batch, seed=options.seed), quiet=quiet
    )
    loop.train(f"train teacher {name}")
    teacher: Any = loop.method.roles["teacher"].best
    info = {"seconds": round(loop.seconds, 1), "iterations": options.iterations}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # two processes may train the same teacher at once
        made = save_denoiser(Path(folder) / path.name, teacher, info)
        os.replace(made, path)
        os.replace(made.with_suffix(".json"), path.with_suffix(".json"))
    return teacher, {**info, "origin": "trained", "file": str(path)}


def _key(teacher: Preconditioned, source: TensorSource, options: TeacherOptions) -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    config = {**denoisers.denoiser_config(teacher), "options": asdict(options)}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for value in [source.x, *(source.cond or {}).values()]:
        if value is not None:
            digest.update(value.contiguous().cpu().numpy().tobytes())
    for package in (noise, networks, denoisers, losses, training):
        digest.update(_code(package).encode())
    digest.update(inspect.getsource(sys.modules[__name__]).encode())
    return digest.hexdigest()


def _code(package: ModuleType) -> str:
    folder = Path(str(package.__file__)).parent
    return "".join(file.read_text() for file in sorted(folder.rglob("*.py")))
