"""Normal distributions with low-rank-plus-isotropic covariances: functions of the covariance, applied to vectors."""

import math

import torch
from torch import Tensor, nn

from limbeck.errors import LimbeckError


class Normals(nn.Module):
    """N(mean, Sigma), Sigma = U diag(eigenvalues) U^T + kappa (I - U U^T): one of them, or K with a leading dimension.

    mean (..., d); U (..., d, r), orthonormal columns (zero columns: directions that keep kappa, whose eigenvalue must be
    kappa); eigenvalues (..., r); kappa (...), the variance of all other directions. Kept in float64. Tiny negative
    eigenvalues become 0. Raises LimbeckError for NaN, negative variances, wrong shapes and columns not orthonormal.
    """

    mean: Tensor
    U: Tensor
    eigenvalues: Tensor
    kappa: Tensor
    _rest: Tensor

    def __init__(self, mean: Tensor, U: Tensor, eigenvalues: Tensor, kappa: Tensor | float):
        super().__init__()
        mean, U, eigenvalues = (value.to(torch.float64, copy=True) for value in (mean, U, eigenvalues))
        kappa = torch.as_tensor(kappa, dtype=torch.float64, device=mean.device).expand(mean.shape[:-1]).clone()
        if U.ndim != mean.ndim + 1 or U.shape[:-1] != mean.shape or eigenvalues.shape != (*mean.shape[:-1], U.shape[-1]):
            raise LimbeckError(
                "a Gaussian needs mean (d,), U (d, r) and eigenvalues (r,), a mixture the same with K in front, not "
                f"{tuple(mean.shape)}, {tuple(U.shape)} and {tuple(eigenvalues.shape)}"
            )
        if U.shape[-1] > U.shape[-2]:
            raise LimbeckError(f"the rank {U.shape[-1]} exceeds the dimension {U.shape[-2]}")
        if not all(bool(torch.isfinite(value).all()) for value in (mean, U, eigenvalues, kappa)):
            raise LimbeckError("the mean, directions or eigenvalues hold NaN or infinity; check the data they come from")
        eigenvalues = clamp_eigenvalues(eigenvalues)
        if bool((kappa < 0).any()):
            raise LimbeckError(f"the remainder kappa is a variance and cannot be negative: {kappa.min().item():g}")
        gram, size = U.mT @ U, (U * U).sum(-2).round()
        if not torch.allclose(gram, torch.diag_embed(size), atol=1e-6) or bool((size > 1).any()):
            raise LimbeckError("the columns of U are not orthonormal; take them from eigh, svd or qr")
        for name, value in {"mean": mean, "U": U, "eigenvalues": eigenvalues, "kappa": kappa}.items():
            self.register_buffer(name, value)
        # In full rank nothing is left for kappa but rounding errors, which 1 / (a^2 kappa + s^2) must not amplify.
        full = size.sum(-1) == U.shape[-2]
        self.register_buffer("_rest", torch.where(full, eigenvalues.mean(-1), kappa) if U.shape[-1] else kappa)

    @property
    def rank(self) -> int:
        return self.U.shape[-1]

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues (..., 1, r) and the remaining variance (..., 1, 1), ready to meet rows of a batch."""
        return self.eigenvalues.unsqueeze(-2), self._rest[..., None, None]

    def centred(self, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """q = x - a mean (..., B, d) and its coordinates c = U^T q (..., B, r) for x (B, d), a (B, 1)."""
        q = x.double() - a * self.mean.unsqueeze(-2)
        return q, q @ self.U

    def transform(self, q: Tensor, c: Tensor, on: Tensor, off: Tensor) -> Tensor:
        """f(Sigma) q = off q + U ((on - off) c): ``on`` = f(eigenvalues) (..., B, r), ``off`` = f(kappa) (..., B, 1)."""
        return off * q + ((on - off) * c) @ self.U.mT if self.rank else off * q

    def rational(self, a: Tensor, s: Tensor, numerator: Tensor, minus: Tensor) -> tuple[Tensor, Tensor]:
        """f(lam) = (numerator lam - minus) / (a^2 lam + s^2) on the eigenvalues and on the rest."""
        on, off = ((numerator * lam - minus) / _variance(lam, a, s) for lam in self.spectrum())
        return on, off

    def trace(self, on: Tensor, off: Tensor) -> Tensor:
        """The trace of f(Sigma), (..., B)."""
        return on.sum(-1) + (self.dim - self.rank) * off[..., 0]

    def log_prob(self, q: Tensor, c: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """log N(q; 0, a^2 Sigma + s^2 I), (..., B)."""
        on, off = (_variance(lam, a, s) for lam in self.spectrum())
        square = (q * q).sum(-1) / off[..., 0] + (c * c * (1 / on - 1 / off)).sum(-1)
        return -(square + self.trace(on.log(), off.log()) + self.dim * math.log(2 * math.pi)) / 2


def clamp_eigenvalues(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues of a covariance with rounding errors below 0 set to 0; raises LimbeckError for NaN or truly negative ones."""
    if eigenvalues.numel() == 0:
        return eigenvalues
    if not bool(torch.isfinite(eigenvalues).all()):
        raise LimbeckError("the eigenvalues hold NaN or infinity; check the data they come from")
    low, high = eigenvalues.min().item(), eigenvalues.max().item()
    if low < -1e-6 * abs(high):
        raise LimbeckError(
            f"not a covariance: its smallest eigenvalue is {low:.3g} (largest {high:.3g}); eigenvalues must be >= 0"
        )
    return eigenvalues.clamp(min=0)


def _variance(lam: Tensor, a: Tensor, s: Tensor) -> Tensor:
    return (a**2 * lam + s**2).clamp(min=1e-300)  # 0 only without noise and without variance, where q = 0
