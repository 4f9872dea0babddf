"""A method of one's own: one-step regression on the end points of the teacher's probability-flow ODE.

(1) x* = end point of Heun's method from s(T) z                          the teacher's answer to the noise z
(2) L = E mean |G(z, c) - x*|^2                                          G is one call of the student at T

Knowledge distillation in iterative generative models (arXiv 2101.02388), here on a ring of Gaussians in two classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import MixtureDenoiser, Preconditioned
from limbeck.losses import squared
from limbeck.metrics import energy_distance
from limbeck.networks import ResidualMLP
from limbeck.noise import VE, karras_grid
from limbeck.samplers import Rollout, heun
from limbeck.training import Batch, Keyed, Loop, LoopOptions, Method, OptimizerOptions, Role, Step, TensorSource, Update

ADAM = OptimizerOptions(lr=3e-3, betas=(0.9, 0.99), warmup=20, decay="cosine")


class EndPointRegression(Method):
    """See the module. ``times``: the nodes of the teacher's sampler, decreasing; the student starts at the first."""

    def __init__(self, teacher: MixtureDenoiser, student: Preconditioned, times: Tensor):
        self.teacher, self.student, self.times = teacher, student, times
        self.rollout = Rollout(student.process, times[:1])
        self.roles = {"teacher": Role(teacher), "student": Role(student, ADAM)}

    def step(self, batch: Batch) -> Step:
        z = batch.noise.normal("z", self.teacher.shape)
        with torch.no_grad():
            start = self.rollout.process.s(self.times[0]).to(z) * z
            end = heun(self.teacher, start, self.times, batch.cond)  # (1)
        x = self.rollout(self.student, z, batch.cond).x
        yield Update("student", squared(x, end).mean())  # (2)

    def sampler(self, ema: bool = True) -> Callable[..., Tensor]:
        student: Any = self.roles["student"].best if ema else self.student
        return lambda z, cond=None, noise=None: self.rollout(student, z, cond).x.detach()


def main(iterations: int = 400) -> tuple[float, float]:
    """Energy distances to the teacher's law: of the student, and of the teacher when it too is called once."""
    torch.manual_seed(0)
    teacher = MixtureDenoiser.ring(8, radius=1.0, std=0.1, process=VE(), labels=torch.arange(8) % 2)
    student = Preconditioned(ResidualMLP((2,), width=64, blocks=3, classes=2), VE(), "edm", sigma_data=0.7)
    method = EndPointRegression(teacher, student, karras_grid(8, 0.02, 10.0))
    source = TensorSource(None, {"label": torch.arange(2)})  # no data: conditions alone
    Loop(method, source, LoopOptions(iterations, batch=128)).train()

    cond = {"label": torch.arange(2).repeat(1000)}
    z = Keyed(seed=1, step=0, index=torch.arange(2000)).normal("z", (2,))
    real = teacher.sample(2000, cond, torch.Generator().manual_seed(0))
    once = method.rollout(teacher, z, cond).x
    return energy_distance(method.sampler()(z, cond), real), energy_distance(once, real)


if __name__ == "__main__":
    print("energy distance to the data: student {:.4f}, teacher called once {:.4f}".format(*main()))
