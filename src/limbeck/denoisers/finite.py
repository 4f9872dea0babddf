"""The exact denoiser of a finite set of samples, fast in float32 where that is safe and exact everywhere."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.denoisers.closed_form import ClosedForm, Pair
from limbeck.denoisers.prior import ClassPrior
from limbeck.denoisers.protocol import Cond
from limbeck.errors import LimbeckError
from limbeck.noise import Process

NEAREST = 16  # candidates that float32 proposes and float64 decides
NEGLIGIBLE = 40.0  # exponents this far below the best one carry no weight: n e^-40 < 1e-12 up to n = 2e5
SMALLEST_WEIGHT = 1e-26  # about e^-60; below it weights are 0, as denormals make products several times slower


class _Group(NamedTuple):
    """Rows whose posterior is known over the same kind of points."""

    rows: Tensor | None  # indices into the chunk; None: all
    r: Tensor  # (b, n) weights over the whole set or (b, k) over some points each
    m: Tensor  # centred points, (n, d) or (b, k, d), in the dtype for products with them

    def dot(self, v: Tensor) -> Tensor:
        """m_i . v, in the shape and dtype of r."""
        v = v.to(self.m)
        return (v @ self.m.T if self.m.ndim == 2 else (self.m @ v[..., None])[..., 0]).to(self.r)

    def average(self, r: Tensor) -> Tensor:
        """sum r_i m_i, (b, d)."""
        r = r.to(self.m)
        return r @ self.m if self.m.ndim == 2 else (r[:, None] @ self.m)[:, 0]

    def scatter(self) -> Tensor:
        """sum r_i (m_i - M)(m_i - M)^T, (b, d, d), row by row: a row's differences are as large as the whole set."""
        points = self.m.expand(len(self.r), *self.m.shape[-2:])
        roots = [r.sqrt()[:, None] * (m - M) for r, m, M in zip(self.r, points, self.average(self.r), strict=True)]
        return torch.stack([root.T @ root for root in roots]) if roots else self.m.new_zeros(0, *2 * self.m.shape[-1:])

    def variance(self) -> Tensor:
        """The trace of the scatter, (b, 1), in float64."""
        r, m = self.r.double(), self.m.double()
        if m.ndim == 2:
            return (r @ (m * m).sum(1) - (r @ m).square().sum(1))[:, None]
        return (r * (m - r[:, None] @ m).square().sum(2)).sum(1, keepdim=True)


class FiniteSetDenoiser(ClosedForm):
    """Data uniform (or with a prior) over x_1..x_n: D = sum r_i x_i, r = softmax_i(log p_i - ||x_t - a x_i||^2 / (2 s^2)).

    With a ``bandwidth`` tau every point is N(x_i, tau^2 I) (kernel density estimate): V = a^2 tau^2 + s^2 replaces s^2 in r,
    M = sum r_i x_i, D = M + (a tau^2 / V) (x_t - a M), S = -(x_t - a M) / V (arXiv 2412.09726).

    ``bank`` (n, *shape); ``prior`` (n,) summing to 1 (default uniform); ``labels`` (n,) integers from 0 without gaps.
    cond {"label": (B,)}: the points of that label (``classes`` = none); {"prior": (B, n)}: other log weights per sample.

    Precision: the bank is centred once. Where x_t is not float64, exponents are float32 as long as their error
    2^-22 |x_t - a mean| R a / V (R: radius of the bank) stays below 1e-3; beyond, float32 proposes the 16 nearest points and
    float64 decides, if a bound on its error shows that no other point matters; else all exponents are float64. Linear in n.
    """

    centre: Tensor
    points: Tensor
    squares: Tensor
    _points32: Tensor
    _squares32: Tensor

    def __init__(
        self,
        bank: Tensor,
        process: Process,
        prior: Tensor | None = None,
        bandwidth: float = 0.0,
        labels: Tensor | None = None,
    ):
        if len(bank) == 0 or not bool(torch.isfinite(bank).all()):
            raise LimbeckError(f"the bank must hold at least one finite sample; this one has shape {tuple(bank.shape)}")
        if not bandwidth >= 0:
            raise LimbeckError(
                f"the bandwidth is a standard deviation and cannot be {bandwidth:g}; 0 means the points themselves"
            )
        n = len(bank)
        weights = ClassPrior(torch.full((n,), 1 / n, dtype=torch.float64) if prior is None else prior, labels)
        if weights.n != n:
            raise LimbeckError(f"a prior of {weights.n} weights does not fit a bank of {n} samples")
        data_range = (float(bank.min()), float(bank.max()))
        super().__init__(
            process, tuple(bank.shape[1:]), weights.to(bank.device), data_range, row_cost=n + NEAREST * bank[0].numel()
        )
        flat = bank.reshape(n, -1).double()
        self.register_buffer("centre", flat.mean(0))
        self.register_buffer("points", flat - self.centre)
        self.register_buffer("squares", (self.points**2).sum(1))
        self.register_buffer("_points32", self.points.float())
        self.register_buffer("_squares32", self.squares.float())
        self.bandwidth = float(bandwidth)

    @property
    def bank(self) -> Tensor:
        """(n, *shape) float64."""
        return (self.points + self.centre).reshape(-1, *self.shape)

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
        """p(point | x_t, cond), (B, n), computed in float64."""

        def rule(log_w, x, a, s):
            q, V = self._residual(x, a, s)
            return torch.softmax(self._exponents(log_w, q, a, V), 1)

        return self._by_rows(rule, x_t, t, cond).to(x_t.dtype)

    def sample(
        self,
        n: int,
        cond: Cond | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """n draws of x_0 under cond (whose tensors have n rows), (n, *shape), in ``dtype`` (default: torch's)."""
        x = self.points[self._weights.draw(n, cond, generator)] + self.centre
        if self.bandwidth > 0:
            x = x + self.bandwidth * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        return x.to(dtype or torch.get_default_dtype()).reshape(n, *self.shape)

    def _residual(self, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """q = x - a centre (b, d) and V (b, 1), float64."""
        V = (a * self.bandwidth) ** 2 + s**2
        if bool((V <= 0).any()):
            raise LimbeckError(
                "without noise and bandwidth a finite set has no density; use times t >= t_min or a bandwidth > 0"
            )
        return x.double() - a * self.centre, V

    def _exponents(self, log_w: Tensor, q: Tensor, a: Tensor, V: Tensor) -> Tensor:
        """log p_i - ||q - a m_i||^2 / (2 V) without the term in ||q||^2, (b, n), in float64."""
        return torch.addmm(log_w - (a**2 / (2 * V)) * self.squares, q * (a / V), self.points.T)

    def _exponents32(self, log_w: Tensor, q: Tensor, a: Tensor, V: Tensor) -> Tensor:
        half = (a**2 / (2 * V)).float()
        return torch.addmm(log_w.float() - half * self._squares32, (q * (a / V)).float(), self._points32.T)

    def _groups(self, log_w: Tensor, x: Tensor, q: Tensor, a: Tensor, V: Tensor) -> list[_Group]:
        """The posterior of every row, at the precision it needs."""
        if x.dtype == torch.float64:
            return [self._dense(None, log_w, q, a, V, self.points)]
        with torch.no_grad():
            reach = a * self.squares.max().sqrt()
            error = 2.0**-22 * reach * torch.maximum(reach, q.norm(dim=1, keepdim=True)) / V
            easy = (error < 1e-3)[:, 0]
        if bool(easy.all()):
            return [self._single(None, log_w, q, a, V)]
        if not bool(easy.any()):
            return self._nearest(None, log_w, q, a, V, error)
        yes, no = easy.nonzero()[:, 0], (~easy).nonzero()[:, 0]
        single = self._single(yes, log_w[yes], q[yes], a[yes], V[yes])
        return [single, *self._nearest(no, log_w[no], q[no], a[no], V[no], error[no])]

    def _dense(self, rows: Tensor | None, log_w: Tensor, q: Tensor, a: Tensor, V: Tensor, points: Tensor) -> _Group:
        r = torch.softmax(self._exponents(log_w, q, a, V), 1)
        return _Group(rows, F.threshold(r, SMALLEST_WEIGHT, 0.0), points)

    def _single(self, rows: Tensor | None, log_w: Tensor, q: Tensor, a: Tensor, V: Tensor) -> _Group:
        r = torch.softmax(self._exponents32(log_w, q, a, V), 1)
        return _Group(rows, F.threshold(r, SMALLEST_WEIGHT, 0.0), self._points32)

    def _nearest(self, rows: Tensor | None, log_w: Tensor, q: Tensor, a: Tensor, V: Tensor, error: Tensor) -> list[_Group]:
        n = len(self.points)
        with torch.no_grad():
            best, index = self._exponents32(log_w, q, a, V).topk(min(NEAREST + 1, n), 1)
            index, outside = index[:, :NEAREST], best[:, NEAREST:].double()
        m = self.points[index]
        exponents = log_w.gather(1, index) + (a / V) * (m @ q[..., None])[..., 0] - (a**2 / (2 * V)) * self.squares[index]
        with torch.no_grad():  # a float32 product of d terms errs by less than about sqrt(d) 2^-24 |q| |a m| / V
            sure = (outside + (4 + self.dim**0.5 / 4) * error < exponents.amax(1, keepdim=True) - NEGLIGIBLE).all(1)
        group = _Group(rows, torch.softmax(exponents, 1), m)
        if bool(sure.all()):
            return [group]
        yes, no = sure.nonzero()[:, 0], (~sure).nonzero()[:, 0]
        there = (lambda i: i) if rows is None else (lambda i: rows[i])
        # the answer is no more precise than float32, so only the exponents need more
        dense = self._dense(there(no), log_w[no], q[no], a[no], V[no], self._points32)
        return [dense] if len(yes) == 0 else [_Group(there(yes), group.r[yes], m[yes]), dense]

    def _posterior(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> tuple[Tensor, Tensor, list[_Group]]:
        q, V = self._residual(x, a, s)
        return q, V, self._groups(log_w, x, q, a, V)

    def _combination(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, pair: Pair) -> Tensor:
        alpha, beta = pair
        q, V, groups = self._posterior(log_w, x, a, s)
        M = _gathered(groups, [g.average(g.r) for g in groups])
        return alpha * (self.centre + M) + (alpha * a * self.bandwidth**2 - beta) / V * (q - a * M)

    def _product(
        self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, v: Tensor, inner: Pair, left: Pair, right: Pair
    ) -> Tensor:
        _, V, groups = self._posterior(log_w, x, a, s)
        parts = []
        for g in groups:
            along = g.dot(v if g.rows is None else v[g.rows])
            parts.append(g.average(g.r * (along - (g.r * along).sum(1, keepdim=True))))
        between = _slope(a, s, V, left) * _slope(a, s, V, right)
        return (inner[0] * self.bandwidth**2 - inner[1]) / V * v.double() + between * _gathered(groups, parts)

    def _trace(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, inner: Pair, left: Pair, right: Pair) -> Tensor:
        _, V, groups = self._posterior(log_w, x, a, s)
        spread = _gathered(groups, [g.variance() for g in groups])
        between = _slope(a, s, V, left) * _slope(a, s, V, right)
        return (self.dim * (inner[0] * self.bandwidth**2 - inner[1]) / V + between * spread)[:, 0]

    def _covariance(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        _, V, groups = self._posterior(log_w, x, a, s)
        between = _gathered(groups, [g.scatter() for g in groups])
        identity = torch.eye(self.dim, dtype=torch.float64, device=a.device)
        return (self.bandwidth**2 * s**2 / V)[..., None] * identity + (s**2 / V)[..., None] ** 2 * between

    def _log_prob(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        q, V = self._residual(x, a, s)
        square = (q * q).sum(1) / V[:, 0] + self.dim * (2 * torch.pi * V[:, 0]).log()
        return torch.logsumexp(self._exponents(log_w, q, a, V), 1) - square / 2


def _slope(a: Tensor, s: Tensor, V: Tensor, pair: Pair) -> Tensor:
    """How alpha D + beta S of one point moves with the point, (b, 1)."""
    return (pair[0] * s**2 + pair[1] * a) / V


def _gathered(groups: list[_Group], parts: list[Tensor]) -> Tensor:
    """The groups' answers in the order of the rows, float64."""
    if len(groups) == 1:
        return parts[0].double()
    rows = torch.cat([g.rows for g in groups if g.rows is not None])
    return torch.cat([part.double() for part in parts])[rows.argsort()]
