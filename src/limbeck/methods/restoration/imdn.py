"""Information multi-distillation network for super-resolution (IMDN, arXiv 1909.11856): no teacher, distillation is inside.

The network F and its equations are :mod:`limbeck.networks.imdn`: after each convolution of a block a quarter of the channels is
kept, the rest is refined. It is trained on pairs alone:

(1) LR = b(HR)                             MATLAB's bicubic at 1 / s, in 8 bits (:mod:`limbeck.tasks.picture_pairs`)
(2) x, y = g(crop(LR)), g(crop(HR))        one place in both, g one of the 8 symmetries of the square, at random
(3) L = mean |F(x) - y|                    RGB in [0, 1]
(4) rate_k = rate 2^-floor(k / K)          halved every K iterations (``student.halve_every``)

x3 and x4 begin with all weights of a trained x2 but those of the last convolution (:func:`new_student`, ``begin``).

Differs from the paper: nothing in (1) to (4). Where the degraded picture has the target's size already (IMDN_AS, pairs of one size),
the same loss trains it. Rates, iterations and the beginning of x3 and x4 are those of the published code and its author's notes.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError
from limbeck.networks.imdn import IMDN, copy_body, load_imdn
from limbeck.networks.imdn.blocks import Statistic
from limbeck.tasks.picture_pairs import DegradedPictures, PicturePairs
from limbeck.training import Batch, EmaOptions, Method, OptimizerOptions, Role, Step, Update


@dataclass(frozen=True)
class IMDNOptions:
    """Options of IMDN. The defaults are what a CPU trains in a quarter of a minute."""

    iterations: int = 1000
    batch: int = 4
    patch: int = 32
    """Side of the crops of real pictures, a multiple of the scale."""
    scale: int = 2
    nf: int = 16
    """Channels, a multiple of 4."""
    blocks: int = 3
    statistic: Statistic = "std+mean"
    """What the attention looks at; "mean" is without contrast."""
    student: OptimizerOptions = field(
        default_factory=lambda: OptimizerOptions(lr=8e-3, betas=(0.9, 0.99), warmup=20, decay="cosine", final=0.01)
    )
    ema: EmaOptions | None = None

    def __post_init__(self):
        if self.patch < 1 or self.patch % self.scale:
            raise LimbeckError(f"patch={self.patch} must be a multiple of scale={self.scale}")


_PAPER = IMDNOptions(  # 1,000 epochs of 1,000 iterations on DIV2K
    iterations=1_000_000, batch=16, patch=192, nf=64, blocks=6, student=OptimizerOptions(lr=2e-4, betas=(0.9, 0.999), halve_every=200_000)
)  # fmt: skip
PRESETS = {
    "recommended": IMDNOptions(),
    "paper-x2": _PAPER,
    "paper-x3": replace(_PAPER, scale=3),  # both begin with a trained x2
    "paper-x4": replace(_PAPER, scale=4),
}


def new_student(options: IMDNOptions, seed: int = 0, begin: IMDN | Path | str | None = None) -> IMDN:
    """A new network of the options' size, with weights of the seed; ``begin``: a trained one of another scale, or its file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = IMDN(options.scale, options.nf, options.blocks, options.statistic)
    if begin is None:
        return student
    trained = begin if isinstance(begin, nn.Module) else load_imdn(begin)
    if type(trained) is not IMDN:  # IMDN_AS has other first layers
        raise LimbeckError(f"{begin} holds {type(trained).__name__}; an IMDN begins with an IMDN")
    return copy_body(student, trained)


class IMDNTraining(Method):
    """See the module. ``student``: an IMDN, or any network from degraded to real pictures.

    The source is `PicturePairs`, or `DegradedPictures` for the options' scale.
    """

    def __init__(self, student: nn.Module, options: IMDNOptions = PRESETS["recommended"]):
        self.student, self.options = student, options
        self.roles = {"student": Role(student, options.student, options.ema)}

    @classmethod
    def on(cls, task: Any, options: IMDNOptions, seed: int) -> "IMDNTraining":
        """A new student for the pictures of a :class:`limbeck.tasks.photos_sr.SuperResolution`."""
        return cls(new_student(options, seed, task.begin_with).to(task.device, task.source.dtype), options)

    def step(self, batch: Batch) -> Step:
        source = batch.source
        if not isinstance(source, PicturePairs | DegradedPictures):
            raise LimbeckError(
                f"IMDN learns from pairs of pictures, not from a {type(source).__name__}: give "
                "limbeck.tasks.picture_pairs.degraded_pairs(pictures, scale)"
            )
        x, y = source.pairs(self.options.scale).crops(batch.rows, batch.noise, self.options.patch)  # (1) and (2)
        answer = self.student(x)
        if answer.shape != y.shape:
            raise LimbeckError(_misfit(self.student, x, answer, y))
        error = answer - y
        decibels = -10 * torch.log10(error.detach().square().mean((1, 2, 3)).clamp(min=1e-12))
        yield Update("student", error.abs().mean(), {"psnr": decibels.double().mean()})  # (3), at the rate of (4)

    @torch.no_grad()
    def restored(self, low: Tensor, ema: bool = True) -> Tensor:
        """The student's answer (B, 3, s H, s W), clamped to [0, 1], to degraded pictures (B, 3, H, W) in [0, 1]."""
        student = self.roles["student"].best if ema else self.student
        mode = student.training
        answer = student.eval()(low).clamp(0, 1)
        student.train(mode)
        return answer


def _misfit(student: nn.Module, x: Tensor, answer: Tensor, y: Tensor) -> str:
    sizes = f"{type(student).__name__} made {tuple(answer.shape)} of {tuple(x.shape)}, and the real crops are {tuple(y.shape)}"
    if answer.shape == x.shape:
        return (
            f"{sizes}: it keeps the size, so it is not enlarged; give it pictures already resized to the target's "
            "(limbeck.networks.bicubic), as pairs of one size"
        )
    return f"{sizes}: the student's scale is another one than the pairs'"


METHOD, OPTIONS = IMDNTraining, IMDNOptions
__all__ = ["PRESETS", "IMDNOptions", "IMDNTraining", "new_student"]
