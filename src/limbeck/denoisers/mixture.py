"""The exact denoiser of a mixture of Gaussians, class-conditional if its components carry labels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.denoisers.closed_form import ClosedForm, Pair
from limbeck.denoisers.gaussian import GaussianDenoiser
from limbeck.denoisers.normals import Normals
from limbeck.denoisers.prior import ClassPrior
from limbeck.denoisers.protocol import Cond
from limbeck.errors import LimbeckError
from limbeck.noise import Process


class MixtureDenoiser(ClosedForm):
    """Data sum_i pi_i N(mean_i, Sigma_i), Sigma_i = U_i diag(lam_i) U_i^T + kappa_i (I - U_i U_i^T) (arXiv 2412.09726).

    With responsibilities r = softmax_i(log pi_i + log N(x_t; a mean_i, a^2 Sigma_i + s^2 I)):
    D = sum r_i D_i, S = sum r_i S_i, Cov[x_0 | x_t] = sum r_i (C_i + (D_i - D)(D_i - D)^T) and
    dD/dx v = sum r_i (J_i v + ((S_i - S).v) (D_i - D)).

    ``weights`` (K,) summing to 1; ``means`` (K, *shape); ``kappa`` (K,) or one number; ``U`` (K, d, r) and ``eigenvalues``
    (K, r), None for isotropic components; ``labels`` (K,) integers from 0 without gaps. cond {"label": (B,)} restricts to
    the components of that label; the label ``classes`` means none, as does cond None.
    """

    def __init__(
        self,
        weights: Tensor,
        means: Tensor,
        kappa: Tensor | float,
        process: Process,
        U: Tensor | None = None,
        eigenvalues: Tensor | None = None,
        labels: Tensor | None = None,
        data_range: tuple[float, float] | None = None,
    ):
        k, shape = len(means), tuple(means.shape[1:])
        if (U is None) != (eigenvalues is None):
            raise LimbeckError("give both U and eigenvalues, or neither for isotropic components")
        flat = means.reshape(k, -1)
        normals = Normals(
            flat,
            flat.new_zeros(*flat.shape, 0) if U is None else U,
            flat.new_zeros(k, 0) if eigenvalues is None else eigenvalues,
            kappa,
        )
        prior = ClassPrior(weights, labels)
        if prior.n != k:
            raise LimbeckError(f"{prior.n} weights do not fit {k} components")
        super().__init__(process, shape, prior, data_range, row_cost=k * normals.dim)
        self.normals = normals

    @classmethod
    def from_components(
        cls,
        weights: Tensor,
        components: Sequence[GaussianDenoiser],
        labels: Tensor | None = None,
        data_range: tuple[float, float] | None = None,
    ) -> "MixtureDenoiser":
        """From Gaussians of any ranks (of one shape, in the first one's process)."""
        if not components or len({c.shape for c in components}) > 1:
            raise LimbeckError(f"a mixture needs components of one shape, not {sorted({c.shape for c in components})}")
        if any(c.process != components[0].process for c in components):
            raise LimbeckError("the components live in different processes; make them all in one")
        first, rank = components[0], max(c.U.shape[1] for c in components)
        U = torch.stack([torch.nn.functional.pad(c.U, (0, rank - c.U.shape[1])) for c in components])
        lam = torch.stack(
            [torch.cat([c.eigenvalues, c.eigenvalues.new_full((rank - len(c.eigenvalues),), c.kappa)]) for c in components]
        )
        means = torch.stack([c.mean.reshape(c.shape) for c in components])
        kappa = torch.stack([c.normals.kappa for c in components])
        return cls(weights, means, kappa, first.process, U, lam, labels, data_range)

    @classmethod
    def ring(
        cls,
        modes: int,
        radius: float,
        std: float,
        process: Process,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> "MixtureDenoiser":
        """Isotropic modes at equal angles on a circle in the plane, the first at (radius, 0); equal weights by default."""
        angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / max(modes, 1))
        return cls._isotropic(radius * torch.stack([angle.cos(), angle.sin()], 1), std, process, weights, labels)

    @classmethod
    def grid(
        cls,
        side: int,
        spacing: float,
        std: float,
        process: Process,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> "MixtureDenoiser":
        """side x side isotropic modes in the plane around 0, row by row; equal weights by default."""
        axis = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
        return cls._isotropic(torch.cartesian_prod(axis, axis).reshape(-1, 2), std, process, weights, labels)

    @classmethod
    def _isotropic(
        cls, means: Tensor, std: float, process: Process, weights: Tensor | None, labels: Tensor | None
    ) -> "MixtureDenoiser":
        k = len(means)
        if k < 1 or std < 0:
            raise LimbeckError(f"a mixture needs at least one mode and std >= 0, not {k} modes and std {std:g}")
        equal = torch.full((k,), 1 / k, dtype=torch.float64)
        return cls(equal if weights is None else weights, means, std**2, process, labels=labels)

    @property
    def means(self) -> Tensor:
        """(K, *shape) float64."""
        return self.normals.mean.reshape(-1, *self.shape)

    @property
    def weights(self) -> Tensor:
        """(K,) float64."""
        return self._weights.log_weight.exp()

    @property
    def classes(self) -> int:
        """The number of labels, 0 if unlabelled; also the label that means "none"."""
        return self._weights.classes

    @property
    def class_weights(self) -> Tensor:
        """Probability of each label, (classes,) float64."""
        return self._weights.class_weights

    @property
    def _weights(self) -> ClassPrior:
        assert self.prior is not None
        return self.prior

    def responsibilities(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """p(component | x_t, cond), (B, K)."""

        def rule(log_w, x, a, s):
            return torch.softmax(self._log_joint(log_w, *self.normals.centred(x, a), a, s), 0).T

        return self._by_rows(rule, x_t, t, cond).to(x_t.dtype)

    def sample(
        self,
        n: int,
        cond: Cond | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """n draws of x_0 under cond (whose tensors have n rows), (n, *shape), in ``dtype`` (default: torch's)."""
        index = self._weights.draw(n, cond, generator)
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64).to(self.normals.mean.device)
        x = torch.empty_like(z)
        for i in index.unique().tolist():
            rows, U = index == i, self.normals.U[i]
            on, off = self.normals.eigenvalues[i].sqrt(), self.normals.kappa[i].sqrt()
            x[rows] = self.normals.mean[i] + off * z[rows] + ((on - off) * (z[rows] @ U)) @ U.T
        return x.to(dtype or torch.get_default_dtype()).reshape(n, *self.shape)

    def _log_joint(self, log_w: Tensor, q: Tensor, c: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return log_w.T + self.normals.log_prob(q, c, a, s)  # (K, b)

    def _parts(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, *pairs: Pair) -> tuple[Tensor, list[Tensor]]:
        """r (K, b, 1) and, for every pair, the components' combinations (K, b, d)."""
        q, c = self.normals.centred(x, a)
        r = torch.softmax(self._log_joint(log_w, q, c, a, s), 0)[..., None]
        mean = self.normals.mean[:, None]
        rational = self.normals.rational
        parts = [alpha * mean + self.normals.transform(q, c, *rational(a, s, alpha * a, beta)) for alpha, beta in pairs]
        return r, parts

    def _combination(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, pair: Pair) -> Tensor:
        r, (part,) = self._parts(log_w, x, a, s, pair)
        return (r * part).sum(0)

    def _deviations(
        self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, left: Pair, right: Pair
    ) -> tuple[Tensor, Tensor, Tensor]:
        r, parts = self._parts(log_w, x, a, s, left, right)
        L, R = (part - (r * part).sum(0) for part in parts)
        return r, L, R

    def _product(
        self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, v: Tensor, inner: Pair, left: Pair, right: Pair
    ) -> Tensor:
        v = v.double()
        r, L, R = self._deviations(log_w, x, a, s, left, right)
        within = self.normals.transform(v, v @ self.normals.U, *self.normals.rational(a, s, *inner))
        return (r * (within + L * (R * v).sum(-1, keepdim=True))).sum(0)

    def _trace(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, inner: Pair, left: Pair, right: Pair) -> Tensor:
        r, L, R = self._deviations(log_w, x, a, s, left, right)
        within = self.normals.trace(*self.normals.rational(a, s, *inner))
        return (r[..., 0] * (within + (L * R).sum(-1))).sum(0)

    def _covariance(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        x0 = torch.ones_like(a), torch.zeros_like(a)
        r, D, _ = self._deviations(log_w, x, a, s, x0, x0)
        on, off = self.normals.rational(a, s, s**2, torch.zeros_like(s))
        identity = torch.eye(self.dim, dtype=torch.float64, device=a.device)
        cov = torch.einsum("kbd,kbe->bde", r * D, D) + (r * off).sum(0)[..., None] * identity
        for i, U in enumerate(self.normals.U):
            cov = cov + (U * (r[i] * (on[i] - off[i]))[:, None]) @ U.T
        return cov

    def _log_prob(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return torch.logsumexp(self._log_joint(log_w, *self.normals.centred(x, a), a, s), 0)
