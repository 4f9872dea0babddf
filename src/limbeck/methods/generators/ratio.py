"""A learned density ratio made usable: E_q[r] = 1 in every bin of noise levels (f-distill, arXiv 2502.15681)."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.methods.generators.score import ScoreDistillation
from limbeck.rules import Divergence, Pull, Sample, density_ratio, divergence
from limbeck.training import Batch, Total
from limbeck.training.failure import NotFinite

WANTED = 16  # samples in a bin, for its average to be about all of them and not about each


class RatioBins:
    """Averages of r = p/q over samples of q by noise level; r over its bin's average has the mean 1 that every ratio must have.

    ``bins`` of equal width over places u in [0, 1] (the noise law's own uniform number, so that they fill evenly); each holds
    m <- ema m + (1 - ema) (the batch's mean of r in it), m = 1 at first; a bin without samples keeps its m. :meth:`sums` are
    to be added up over micro-batches and ranks before they go into :meth:`normalise`; :meth:`finish` once an iteration.
    """

    def __init__(self, bins: int = 10, ema: float = 0.0):
        if bins < 1 or not 0 <= ema < 1:
            raise LimbeckError(f"ratio_bins={bins} must be at least 1 and ratio_ema={ema:g} in [0, 1)")
        self.bins, self.ema = bins, ema
        self.mean = torch.ones(bins, dtype=torch.float64)
        self._next = self.mean

    def sums(self, r: Tensor, u: Tensor) -> Tensor:
        """The sum of r (B,) and the count of samples in every bin, (2, bins); ``u`` (B,)."""
        zeros = r.new_zeros(2, self.bins, dtype=torch.float64)
        return zeros.index_add(1, self._bin(u), torch.stack([r.double(), torch.ones_like(r, dtype=torch.float64)]))

    def normalise(self, r: Tensor, u: Tensor, sums: Tensor) -> Tensor:
        """r (B,) over the average of its bin, which these sums renew."""
        total, count = sums
        old = self.mean.to(total)
        fresh = self.ema * old + (1 - self.ema) * total / count.clamp(min=1)
        self._next = torch.where(count > 0, fresh, old)
        return r / (self._next[self._bin(u)] + 1e-6)

    def finish(self) -> None:
        """Keep the averages of this iteration."""
        self.mean = self._next

    def state(self) -> dict[str, Tensor]:
        return {"ratio_bins": self.mean}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.mean = self._next = state["ratio_bins"].double()

    def _bin(self, u: Tensor) -> Tensor:
        return (u * self.bins).long().clamp(0, self.bins - 1)


class RatioWeighted(ScoreDistillation):
    """Score distillation whose pull is weighed by h(r) of an f-divergence, r learned by the discriminator (none chosen: h = 1)."""

    divergence: Divergence
    ratios: RatioBins | None = None

    def weigh_by(self, name: str, bins: int, ema: float, batch: int) -> None:
        """Choose the divergence of that name; rkl weighs nothing. Raises LimbeckError for unknown names; warns where a batch is
        too small for the bins."""
        self.divergence = divergence(name)
        self.ratios = None if name == "rkl" else RatioBins(bins, ema)
        expected = batch / bins  # the law of places is uniform
        if self.ratios is not None and ema < 0.9 and expected < WANTED:
            warnings.warn(
                f"a batch of {batch} puts {expected:.2g} samples into each of {bins} time bins: with ratio_ema={ema:g} a ratio "
                "that is alone in its bin is divided by itself, and the divergence makes no difference; use batches of at least "
                f"{WANTED * bins}, fewer ratio_bins, or ratio_ema of 0.9",
                stacklevel=3,
            )

    def weighed(self, rule: Any, batch: Batch, sample: Sample, t: Tensor, eps: Tensor) -> Any:
        """The rule with h(r) as its ratio weight: one total for the bins, one for the scale of h."""
        if self.ratios is None:
            return rule
        with torch.no_grad():
            r, u = self.ratio(batch, sample, t, eps), self.place(t)
        sums = yield Total(self.ratios.sums(r, u))
        h = self.divergence.h(self.ratios.normalise(r, u, sums))  # with E_q[r] = 1 in every bin
        total, count = yield Total(torch.stack([h.sum(), torch.full_like(h[0], len(h))]))
        h = h / (total / count + 1e-6)  # one scale for the whole batch
        weighing = copy.copy(rule)
        weighing.ratio_weight = lambda x_t, t, cond: h
        logs = {"ratio": sums[0].sum() / sums[1].sum(), "weight_rms": h.square().mean().sqrt()}

        def logged(sample: Sample, t: Tensor, eps: Tensor, step: int = 0) -> Pull:
            pull = weighing(sample, t, eps, step)
            return replace(pull, logs={**pull.logs, **logs})

        return logged

    def ratio(self, batch: Batch, sample: Sample, t: Tensor, eps: Tensor) -> Tensor:
        """r = exp(l) at the point x_t of the score difference, (B,). Raises LimbeckError for logits that are not finite."""
        assert self.adversary is not None
        logits = self.adversary.logits(self.process.diffuse(sample.x.detach(), eps, t, sample.level), t, sample.cond)
        if bad := logits[~torch.isfinite(logits)].tolist():
            raise NotFinite("discriminator", f"logit of {len(bad)} of {logits.numel()} samples", bad[0])
        return density_ratio(logits)

    def place(self, t: Tensor) -> Tensor:
        """Where times (B,) lie in the law of score times: the u in [0, 1] that it makes t from, to 1/4096."""
        grid = self.score_times(torch.linspace(0, 1, 4097, dtype=torch.float64, device=t.device))
        return torch.searchsorted(grid, t.contiguous()).clamp(max=4096).double() / 4096

    def finish(self, step: int) -> None:
        if self.ratios is not None:
            self.ratios.finish()

    def state(self) -> dict[str, Tensor]:
        return {} if self.ratios is None else self.ratios.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        if self.ratios is not None:
            self.ratios.load_state(state)
