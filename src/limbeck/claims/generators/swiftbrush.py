"""SwiftBrush on the digits: variational score distillation against its SDS limit, image-free (arXiv 2312.05239).

The teacher predicts eps in Stable Diffusion's own schedule, where one call at the last time multiplies its errors by
1/a_T = 14.6. Labels are all that training sees: there are no images in its source. Arms from the same start: VSD with a
low-rank critic; SDS (the critic replaced by the noise); and the student that never trains, the teacher called once. A
Frechet distance alone does not tell a collapse, so the variance within the classes is measured in pixels, against the real
one.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.generators.digits import distil
from limbeck.denoisers import Preconditioned
from limbeck.methods.generators.generator import Generator
from limbeck.metrics import class_variance_ratio
from limbeck.networks import ResidualMLP
from limbeck.noise import DDPM
from limbeck.tasks import Task, TeacherOptions, build_task, cached_teacher
from limbeck.tasks.task import Sampler
from limbeck.training import OptimizerOptions, TensorSource

STABLE_DIFFUSION = DDPM("scaled_linear", 1000, 0.00085, 0.012)
TEACHER = TeacherOptions(
    iterations=4000, mean=0.2, std=1.5, weight="eps",
    optimizer=OptimizerOptions(lr=2e-3, betas=(0.9, 0.99), warmup=100, decay="cosine", clip=1.0),
)  # fmt: skip
START = {"sigmas": (), "begin": "unit"}
GUIDANCE = 1.5


@lru_cache(maxsize=1)
def eps_task() -> Task:
    """The digits with an eps teacher (cached), and labels alone to train on."""
    digits = build_task("digits", quiet=True)
    network = lambda: ResidualMLP(digits.shape, width=256, blocks=3, classes=10, noise="positional")  # noqa: E731
    fresh = lambda: Preconditioned(network(), STABLE_DIFFUSION, "eps")  # noqa: E731
    teacher, facts = cached_teacher("digits-eps", fresh, digits.source, TEACHER, quiet=True)
    labels = TensorSource(None, digits.source.cond)
    return replace(digits, teacher=teacher, source=labels, network=network, sigmas=(0.03, 14.6), facts=facts)


def figures_of(sampler: Sampler, calls: int, label: str) -> Figures:
    """The evaluator's figures, and the variance within the classes over the real digits'."""
    evaluator = eps_task().evaluator
    assert evaluator.cond is not None
    x = evaluator.sample(sampler).clamp(-1, 1)
    labels = evaluator.cond["label"]
    ratio = class_variance_ratio(x, labels, evaluator.real, labels[: len(evaluator.real)])
    return {f"{label} {name}": v for name, v in {**evaluator.judge(x, evaluator.cond), "variance": ratio, "nfe": calls}.items()}
