"""A learned density ratio made usable: E_q[r] = 1 in every bin of noise levels (f-distill, arXiv 2502.15681)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from limbeck.errors import LimbeckError


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
