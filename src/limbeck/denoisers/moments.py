"""Mean, covariance and leading directions of data too large to hold in float64: one or a few passes by batches."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

LARGEST_DENSE = 8192  # above it a d x d covariance is not formed
LARGE_RANK = 1024  # directions kept there
BATCH = 4096


class Moments:
    """Streaming mean and covariance in float64 (Chan, Golub & LeVeque 1983), and the range of the data.

    >>> moments = Moments()
    >>> for batch in torch.arange(12.0).view(3, 2, 2):  # batches (B, ...)
    ...     moments.add(batch)
    >>> moments.count, moments.mean.tolist()
    (6, [5.0, 6.0])

    ``covariance`` is the unbiased one (divided by count - 1), (d, d); with ``dense=False`` only its trace is kept.
    """

    def __init__(self, dense: bool = True):
        self.dense, self.count = dense, 0
        self.shape: tuple[int, ...] = ()
        self.low, self.high = float("inf"), float("-inf")

    def add(self, batch: Tensor) -> None:
        """Take in a batch (B, ...). Raises LimbeckError for another shape than before, or NaN."""
        if len(batch) == 0:
            return
        x = batch.detach().reshape(len(batch), -1).double()
        if self.count == 0:
            self.shape = tuple(batch.shape[1:])
            self.mean = torch.zeros_like(x[0])
            self._scatter = x.new_zeros(x.shape[1], x.shape[1]) if self.dense else x.new_zeros(())
        if tuple(batch.shape[1:]) != self.shape:
            raise LimbeckError(f"this batch holds samples of shape {tuple(batch.shape[1:])}, earlier ones {self.shape}")
        if not bool(torch.isfinite(x).all()):
            raise LimbeckError(f"batch after {self.count} samples: the data hold NaN or infinity")
        mean = x.mean(0)
        y, delta, total = x - mean, mean - self.mean, self.count + len(x)
        self._scatter += self._outer(y) + self._outer(delta[None]) * (self.count * len(x) / total)
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total
        self.low, self.high = min(self.low, x.min().item()), max(self.high, x.max().item())

    @property
    def covariance(self) -> Tensor:
        """(d, d), divided by count - 1. Raises LimbeckError below two samples."""
        self._enough()
        return self._scatter / (self.count - 1)

    @property
    def total_variance(self) -> float:
        """The trace of the covariance."""
        self._enough()
        return float(self._scatter.trace() if self.dense else self._scatter) / (self.count - 1)

    def _outer(self, y: Tensor) -> Tensor:
        return y.T @ y if self.dense else (y * y).sum()

    def _enough(self) -> None:
        if self.count < 2:
            raise LimbeckError(f"a covariance needs at least 2 samples, not {self.count}")


def leading_directions(
    x: Tensor, mean: Tensor, rank: int, generator: torch.Generator | None = None, passes: int = 4
) -> tuple[Tensor, Tensor]:
    """The ``rank`` leading eigenvectors U (d, r) and eigenvalues (r,) of the covariance of x (N, ...), without forming it.

    Randomised subspace iteration with oversampling (Halko, Martinsson & Tropp, arXiv 0909.4061, Alg. 4.4), float64, by
    batches; exact where rank reaches N - 1. Error of an eigenvalue about (lam_{r+20} / lam_r)^(2 passes).
    """
    n, d = len(x), mean.numel()
    generator = generator or torch.Generator().manual_seed(0)
    start = torch.randn(d, min(rank + 20, d, n), generator=generator, dtype=torch.float64).to(mean.device)
    Q = torch.linalg.qr(start).Q
    for _ in range(passes):
        Q = torch.linalg.qr(sum(y.T @ (y @ Q) for y in _centred(x, mean))).Q
    small = sum((z := y @ Q).T @ z for y in _centred(x, mean))
    eigenvalues, V = torch.linalg.eigh(small / (n - 1))
    return Q @ V.flip(1)[:, :rank], eigenvalues.flip(0)[:rank]


def _centred(x: Tensor, mean: Tensor):
    for batch in x.split(BATCH):
        yield batch.reshape(len(batch), -1).double() - mean
