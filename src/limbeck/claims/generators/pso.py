"""PSO on a ring of eight modes: preference against sharpness of a 3-step student (arXiv 2410.03190)."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.denoisers import Cond, Denoiser, MixtureDenoiser, Preconditioned
from limbeck.losses import denoising_loss, squared
from limbeck.methods.generators.generator import Ingredients
from limbeck.methods.generators.pso import PSO, PSOOptions
from limbeck.metrics import mode_histogram
from limbeck.networks import ResidualMLP
from limbeck.noise import VE, karras_grid
from limbeck.samplers import Chain, heun
from limbeck.training import Batch, Keyed, Loop, LoopOptions, Method, OptimizerOptions, Role, Step, TensorSource, Update
from limbeck.training.options import merged_options

RADIUS, STD, SIGMA_DATA = 1.0, 0.08, 0.71
SIGMAS = (5.0, 1.0, 0.5)
UP = torch.tensor([-0.3826834323650898, 0.9238795325112867])  # no mode lies on the border of this half plane
PAIRS, JUDGED = 6144, 4096


class EndPoints(Method):
    def __init__(self, student: Preconditioned, iterations: int):
        self.student = student
        self.roles = {"student": Role(student, OptimizerOptions(lr=3e-3, betas=(0.9, 0.99), warmup=20, decay="cosine", clip=1.0))}

    def step(self, batch: Batch) -> Step:
        x_t, t = batch.cond["x_t"], batch.cond["t"]
        yield Update("student", squared(self.student(x_t, t), batch.x).mean())


class Naive(Method):
    def __init__(self, student: Any, optimizer: OptimizerOptions):
        self.student = student
        self.roles = {"student": Role(student, optimizer)}

    def step(self, batch: Batch) -> Step:
        t = torch.tensor(SIGMAS, dtype=torch.float64)[batch.noise.randint("time", 0, len(SIGMAS))]
        yield Update("student", denoising_loss(self.student, batch.x, t, batch.noise.normal("noise", (2,)), weight="x0"))


def teacher():
    return MixtureDenoiser.ring(8, RADIUS, STD, VE())


def distilled(seed: int, iterations: int = 1500, width: int = 64, batch: int = 512) -> Preconditioned:
    g = torch.Generator().manual_seed(seed)
    law = teacher()
    states, ends, times = [], [], []
    for sigma in SIGMAS:
        x0 = law.sample(PAIRS, None, g).float()
        x_t = x0 + sigma * torch.randn(x0.shape, generator=g)
        ends.append(heun(law, x_t, karras_grid(12, 0.02, sigma)))
        states.append(x_t)
        times.append(torch.full((PAIRS,), sigma, dtype=torch.float64))
    source = TensorSource(torch.cat(ends), {"x_t": torch.cat(states), "t": torch.cat(times)})
    torch.manual_seed(seed)
    student = Preconditioned(ResidualMLP((2,), width=width, blocks=3, embedding=32), VE(), "edm", SIGMA_DATA)
    Loop(EndPoints(student, iterations), source, LoopOptions(iterations, batch, seed=seed), quiet=True).train()
    return student.eval()


def looked_at(denoiser: Denoiser) -> tuple[float, float]:
    keyed = Keyed(7, 0, torch.arange(JUDGED))
    chain = Chain(VE(), SIGMAS)
    with torch.no_grad():
        x = chain(denoiser, keyed.normal("z", (2,)), noise=lambda i: keyed.normal(f"renoise {i}", (2,))).x
    centers = teacher().normals.mean.reshape(-1, 2)
    return float((x @ UP > 0).double().mean()), 1 - mode_histogram(x, centers, 3 * STD).off_mode
