"""The adversarial term of score methods: a discriminator that reads the features of a denoiser at noised samples (DMD2)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from limbeck.denoisers import Cond
from limbeck.losses import discriminator_loss, generator_loss, logit_accuracy, r1_finite_difference
from limbeck.networks import FeatureTap
from limbeck.noise import TimeLaw
from limbeck.rules import Sample, input_gradient
from limbeck.training import Batch


class Adversary:
    """(1) L_D = softplus(l(x_t^fake)) + softplus(-l(x_t^real)),  (2) L_G = softplus(-l(x_t)), l = log p_real / p_fake.

    ``watched``: the denoiser whose layers ``heads`` read: the frozen teacher, or the critic, which is then trained on (1) too.
    ``times``: the law at which real and fake are compared, each at a time and noise of its own; ``normal`` (batch, stream)
    draws noise; ``r1``: weight of the finite-difference R1 penalty on real samples. ``paired``: real and fake share time and
    noise; ``clamp``: logits stay in [-clamp, clamp] (SiDA has both). Heads may have no parameters: see ``ChannelMean``.
    ``within`` (u, fake, times): the times of samples with windows of their own, which their reals then have too; without it the
    discriminator would compare the teacher with all windows at once.
    """

    def __init__(
        self,
        watched: Any,
        heads: nn.Module,
        times: TimeLaw,
        normal: Callable[[Batch, str], Tensor],
        r1: float = 0.0,
        *,
        paired: bool = False,
        clamp: float | None = None,
        within: Callable[[Tensor, Sample, TimeLaw], Tensor] | None = None,
    ):
        self.watched, self.heads, self.times, self.normal, self.r1 = watched, heads, times, normal, r1
        self.process, self.paired, self.clamp, self.within = watched.process, paired, clamp, within

    @property
    def trained(self) -> bool:
        """Have the heads parameters of their own?"""
        return any(True for _ in self.heads.parameters())

    def logits(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        """l at (x_t, t, c), (B, heads)."""
        with FeatureTap(self.watched, list(self.heads.shapes)) as tap:  # type: ignore[arg-type]
            self.watched(x_t, t, cond)
        logits = self.heads(tap.features)
        return logits if self.clamp is None else logits.clamp(-self.clamp, self.clamp)

    def gradient(self, sample: Sample, t: Tensor, eps: Tensor) -> Tensor:
        """Gradient of (2) for the sum over elements of x, like a pull's."""

        def loss(x: Tensor) -> Tensor:
            x_t = self.process.diffuse(x, eps, t, sample.level)
            return generator_loss(self.logits(x_t, t, sample.cond)) * x.numel()

        return input_gradient(loss, sample.x, self.watched, self.heads)[0]

    def loss(self, batch: Batch, fake: Sample) -> tuple[Tensor, dict[str, Tensor]]:
        """(1) on the batch's images and the sample, with logs: logit_accuracy."""
        assert batch.x is not None
        logits = {}
        for name, of in (("fake", fake), ("real", Sample(batch.x, batch.cond))):
            stream = "fake" if self.paired else name
            u = batch.noise.uniform(f"{stream} time")
            t = self.times(u) if self.within is None else self.within(u, fake, self.times)
            x_t = self.process.diffuse(of.x.detach(), self.normal(batch, f"{stream} noise"), t, of.level)
            logits[name] = self.logits(x_t, t, batch.cond)
        loss = discriminator_loss(logits["real"], logits["fake"])
        if self.r1 > 0:
            of_real = lambda y: self.logits(y, t, batch.cond)  # noqa: E731
            loss = loss + self.r1 * r1_finite_difference(of_real, x_t, self.normal(batch, "r1 noise"))
        return loss, {"logit_accuracy": logit_accuracy(logits["real"].detach(), logits["fake"].detach())}
