"""The exact denoiser of Gaussian data: every quantity, and the probability flow, in closed form."""

import torch
from torch import Tensor

from limbeck.denoisers.closed_form import ClosedForm, Pair
from limbeck.denoisers.moments import BATCH, LARGE_RANK, LARGEST_DENSE, Moments, leading_directions
from limbeck.denoisers.normals import Normals, clamp_eigenvalues
from limbeck.denoisers.protocol import times_like
from limbeck.errors import LimbeckError
from limbeck.noise import Process


class GaussianDenoiser(ClosedForm):
    """Data N(mean, Sigma), Sigma = U diag(lam) U^T + kappa (I - U U^T), in any process (arXiv 2412.09726).

    With q = x_t - a mean and V(lam) = a^2 lam + s^2, functions of Sigma give everything:
    D = mean + [a lam / V] q, S = -[1 / V] q, Cov[x_0 | x_t] = [lam s^2 / V], and the probability flow from T to t
    x_t = a_t mean + [sqrt(V_t / V_T)] q_T, as y' = y V' / (2 V) in every eigendirection.

    ``mean`` (d,) or in the shape of a sample; ``U`` (d, r); ``eigenvalues`` (r,); ``kappa`` >= 0 the variance outside U
    (the paper has 0; the mean of the discarded eigenvalues is the maximum-likelihood value). ``shape``: of one sample, by
    default mean's. ``count``: the number of samples behind the statistics. Unconditional.
    """

    def __init__(
        self,
        mean: Tensor,
        U: Tensor,
        eigenvalues: Tensor,
        kappa: float,
        process: Process,
        shape: tuple[int, ...] | None = None,
        count: int | None = None,
        data_range: tuple[float, float] | None = None,
    ):
        super().__init__(process, shape or tuple(mean.shape), data_range=data_range, row_cost=mean.numel())
        if mean.numel() != self.dim:
            raise LimbeckError(f"a mean of {mean.numel()} numbers does not fit samples of shape {self.shape}")
        if U.ndim == 2:
            _check_rank(U.shape[1], self.dim, count)
        self.normals, self.count = Normals(mean.reshape(-1), U, eigenvalues, kappa), count

    @classmethod
    def from_covariance(
        cls,
        mean: Tensor,
        cov: Tensor,
        process: Process,
        rank: int | None = None,
        shape: tuple[int, ...] | None = None,
        count: int | None = None,
        data_range: tuple[float, float] | None = None,
    ) -> "GaussianDenoiser":
        """From a covariance (d, d); ``rank`` leading directions are kept, kappa is the mean of the other eigenvalues."""
        d = mean.numel()
        if tuple(cov.shape) != (d, d):
            raise LimbeckError(f"a mean of {d} numbers needs a covariance ({d}, {d}), not {tuple(cov.shape)}")
        if not bool(torch.isfinite(cov).all()) or not torch.allclose(cov, cov.T, rtol=1e-4, atol=1e-6 * float(cov.abs().max())):
            raise LimbeckError("the covariance is not symmetric and finite; check the data it comes from")
        rank = (d if count is None else min(count - 1, d)) if rank is None else rank
        _check_rank(rank, d, count)
        eigenvalues, U = torch.linalg.eigh(cov.double())
        eigenvalues, U = clamp_eigenvalues(eigenvalues).flip(0), U.flip(1)
        kappa = eigenvalues[rank:].mean().item() if rank < d else 0.0
        return cls(mean, U[:, :rank], eigenvalues[:rank], kappa, process, shape, count, data_range)

    @classmethod
    def from_moments(cls, moments: Moments, process: Process, rank: int | None = None) -> "GaussianDenoiser":
        """From accumulated statistics; remembers their shape, count and data range."""
        return cls.from_covariance(
            moments.mean, moments.covariance, process, rank, moments.shape, moments.count, (moments.low, moments.high)
        )

    @classmethod
    def from_data(cls, x: Tensor, process: Process, rank: int | None = None) -> "GaussianDenoiser":
        """From data x (N, ...) in the model's range, by batches in float64.

        ``rank``: at most min(N - 1, d), the default up to d = 8192; beyond, randomised subspace iteration finds 1024.
        """
        dense = x[0].numel() <= LARGEST_DENSE
        moments = Moments(dense)
        for batch in x.split(BATCH):
            moments.add(batch)
        if dense:
            return cls.from_moments(moments, process, rank)
        n, d = len(x), moments.mean.numel()
        rank = min(LARGE_RANK, n - 1, d) if rank is None else rank
        _check_rank(rank, d, n)
        rest = moments.total_variance
        U, eigenvalues = leading_directions(x, moments.mean, rank)
        kappa = max((rest - eigenvalues.sum().item()) / (d - rank), 0.0) if rank < min(n - 1, d) else 0.0
        return cls(moments.mean, U, eigenvalues, kappa, process, moments.shape, n, (moments.low, moments.high))

    @property
    def mean(self) -> Tensor:
        """(d,) float64."""
        return self.normals.mean

    @property
    def U(self) -> Tensor:
        """(d, r) float64, orthonormal columns."""
        return self.normals.U

    @property
    def eigenvalues(self) -> Tensor:
        """(r,) float64, of the directions in U."""
        return self.normals.eigenvalues

    @property
    def kappa(self) -> float:
        """The variance of every direction outside U."""
        return self.normals.kappa.item()

    def flow_map(self, x_from: Tensor, t_from: Tensor | float, t_to: Tensor | float) -> Tensor:
        """The probability-flow ODE's exact solution from t_from to t_to, either way; shape of x_from (B, ...).

        Raises LimbeckError at a noiseless t_from if a direction has no variance: nothing tells its noise.
        """
        x, (a, s) = self._flat(x_from, "x_from"), self._levels(x_from, times_like(x_from, t_from))
        a_to, s_to = self._levels(x_from, times_like(x_from, t_to))
        ratios = []
        for lam in self.normals.spectrum():
            variance = a**2 * lam + s**2
            if bool((variance == 0).any()):
                raise LimbeckError(
                    f"the flow cannot leave noiseless samples of a Gaussian with eigenvalues 0: t_from = {t_from}"
                )
            ratios.append(torch.sqrt((a_to**2 * lam + s_to**2) / variance))
        x_to = a_to * self.mean + self.normals.transform(*self.normals.centred(x, a), *ratios)
        return x_to.to(x_from.dtype).reshape(x_from.shape)

    def sample(self, n: int, generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """n draws of x_0, (n, *shape), in ``dtype`` (default: torch's)."""
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64).to(self.mean.device)
        on, off = (lam.sqrt() for lam in self.normals.spectrum())
        x = self.mean + self.normals.transform(z, z @ self.U, on, off)
        return x.to(dtype or torch.get_default_dtype()).reshape(n, *self.shape)

    def moved_to(self, process: Process) -> "GaussianDenoiser":
        """The same Gaussian of clean data in another process."""
        return GaussianDenoiser(
            self.mean, self.U, self.eigenvalues, self.kappa, process, self.shape, self.count, self.data_range
        )

    def rescaled(self, scale: float, shift: float) -> "GaussianDenoiser":
        """The Gaussian of scale x + shift: from data in [0, 1] to [-1, 1] with (2, -1)."""
        known = None if self.data_range is None else (scale * self.data_range[0] + shift, scale * self.data_range[1] + shift)
        return GaussianDenoiser(
            scale * self.mean + shift,
            self.U,
            scale**2 * self.eigenvalues,
            scale**2 * self.kappa,
            self.process,
            self.shape,
            self.count,
            known and (min(known), max(known)),
        )

    def _combination(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, pair: Pair) -> Tensor:
        alpha, beta = pair
        weights = self.normals.rational(a, s, alpha * a, beta)
        return alpha * self.mean + self.normals.transform(*self.normals.centred(x, a), *weights)

    def _product(
        self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, v: Tensor, inner: Pair, left: Pair, right: Pair
    ) -> Tensor:
        v = v.double()
        return self.normals.transform(v, v @ self.U, *self.normals.rational(a, s, *inner))

    def _trace(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, inner: Pair, left: Pair, right: Pair) -> Tensor:
        return self.normals.trace(*self.normals.rational(a, s, *inner))

    def _covariance(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        on, off = self.normals.rational(a, s, s**2, torch.zeros_like(s))
        identity = torch.eye(self.dim, dtype=torch.float64, device=a.device)
        return (self.U * (on - off)[:, None]) @ self.U.T + off[..., None] * identity

    def _log_prob(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return self.normals.log_prob(*self.normals.centred(x, a), a, s)


def _check_rank(rank: int, d: int, count: int | None) -> None:
    most = d if count is None else min(count - 1, d)
    if count is not None and count < 2:
        raise LimbeckError(f"a covariance needs at least 2 samples, not {count}")
    if not 0 <= rank <= most:
        behind = "" if count is None else f" and {count} samples (n - 1 = {count - 1})"
        raise LimbeckError(f"rank {rank} is not possible with dimension {d}{behind}; choose 0 <= rank <= {most}")
