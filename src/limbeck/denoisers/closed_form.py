"""What closed-form denoisers share: every prediction, Jacobian product and divergence from a few flat float64 rules."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from limbeck.denoisers.prior import ClassPrior
from limbeck.denoisers.protocol import Cond, Denoiser, times_like
from limbeck.errors import LimbeckError, unknown
from limbeck.noise import PREDICTIONS, Process

Pair = tuple[Tensor, Tensor]  # coefficients of (x0, score), each (B, 1)
ROW_BUDGET = 2**23  # numbers in the largest temporary of one chunk of rows
DENSE_BUDGET = 2**28  # numbers in a dense posterior covariance
CONVENTIONS = {"[0, 1]": (0.0, 1.0), "[-1, 1]": (-1.0, 1.0), "[0, 255]": (0.0, 255.0)}


class ClosedForm(nn.Module):
    """A denoiser with exact posterior mean, score, density, Jacobian and posterior covariance.

    Each prediction about x_t is alpha D + beta S (D = x0, S = score): eps = -s S, v = -s D - a s S and
    velocity = da D - s ds S, so that nothing is divided by a or s. Inputs x_t (B, *shape), t (B,) or a number;
    computed in float64 (a finite set: as precisely as it needs), answered in x_t's dtype, differentiable in x_t and t.
    Rows are worked off in chunks of bounded memory. Subclasses state the rules whose names begin with an underscore.
    """

    process: Process

    def __init__(
        self,
        process: Process,
        shape: tuple[int, ...],
        prior: ClassPrior | None = None,
        data_range: tuple[float, float] | None = None,
        row_cost: int = 1,
    ):
        super().__init__()
        self.process, self.shape, self.prior, self.data_range = process, tuple(shape), prior, data_range
        self.dim, self._rows = math.prod(shape), max(1, ROW_BUDGET // max(1, row_cost))

    @property
    def null(self) -> Mapping[str, Tensor]:
        """{} if unconditional, else {"label": classes}."""
        return {} if self.prior is None else self.prior.null

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """D(x_t, t, cond) = E[x_0 | x_t], shape of x_t."""
        return self.predict(x_t, t, "x0", cond)

    def score(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """The gradient of log p_t(x_t | cond), shape of x_t."""
        return self.predict(x_t, t, "score", cond)

    def eps(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """E[e | x_t] = (x_t - a D) / s, shape of x_t."""
        return self.predict(x_t, t, "eps", cond)

    def v(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """a eps - s D, shape of x_t."""
        return self.predict(x_t, t, "v", cond)

    def velocity(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """dx/dt of the probability-flow ODE, a' D + s' eps, shape of x_t."""
        return self.predict(x_t, t, "velocity", cond)

    def predict(self, x_t: Tensor, t: Tensor, target: str, cond: Cond | None = None) -> Tensor:
        """The prediction named ``target``: x0, eps, v, velocity or score; shape of x_t."""

        def rule(log_w, x, a, s, alpha, beta):
            return self._combination(log_w, x, a, s, (alpha, beta))

        return self._by_rows(rule, x_t, t, cond, *self._coefficients(x_t, t, target)).to(x_t.dtype).reshape(x_t.shape)

    def jvp(self, x_t: Tensor, t: Tensor, v: Tensor, cond: Cond | None = None, target: str = "x0") -> Tensor:
        """(d prediction / d x_t) v for v in the shape of x_t; the Jacobian is symmetric, so this is the vjp too."""

        def rule(log_w, x, a, s, v, alpha, beta):
            score = torch.zeros_like(a), torch.ones_like(a)
            return self._product(log_w, x, a, s, v, (alpha * a, beta), (alpha, beta), score)

        flat = self._flat(v, "v")
        out = self._by_rows(rule, x_t, t, cond, flat, *self._coefficients(x_t, t, target))
        return out.to(x_t.dtype).reshape(x_t.shape)

    def divergence(self, x_t: Tensor, t: Tensor, cond: Cond | None = None, target: str = "velocity") -> Tensor:
        """The trace of d prediction / d x_t, (B,); by default the divergence of the probability-flow velocity."""

        def rule(log_w, x, a, s, alpha, beta):
            score = torch.zeros_like(a), torch.ones_like(a)
            return self._trace(log_w, x, a, s, (alpha * a, beta), (alpha, beta), score)

        return self._by_rows(rule, x_t, t, cond, *self._coefficients(x_t, t, target)).to(x_t.dtype)

    def covariance_times(self, x_t: Tensor, t: Tensor, v: Tensor, cond: Cond | None = None) -> Tensor:
        """Cov[x_0 | x_t] v without the matrix; v and the answer have the shape of x_t."""

        def rule(log_w, x, a, s, v):
            x0 = torch.ones_like(a), torch.zeros_like(a)
            return self._product(log_w, x, a, s, v, (s**2, torch.zeros_like(a)), x0, x0)

        return self._by_rows(rule, x_t, t, cond, self._flat(v, "v")).to(x_t.dtype).reshape(x_t.shape)

    def posterior_covariance(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """Cov[x_0 | x_t] = (s^2 / a) dD/dx, (B, d, d). Raises LimbeckError where it would not fit: use covariance_times."""
        if len(x_t) * self.dim**2 > DENSE_BUDGET:
            raise LimbeckError(
                f"{len(x_t)} posterior covariances of {self.dim} x {self.dim} numbers are too large; "
                "use covariance_times(x_t, t, v) for products with them, or fewer samples"
            )
        return self._by_rows(self._covariance, x_t, t, cond).to(x_t.dtype)

    def log_prob(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """log p_t(x_t | cond) in nats, (B,)."""
        return self._by_rows(self._log_prob, x_t, t, cond).to(x_t.dtype)

    def check_range(self, x: Tensor) -> None:
        """Raise a LimbeckError, with the factor to apply, unless clean data x lie in the range that the statistics saw."""
        if self.data_range is None:
            raise LimbeckError(f"this {type(self).__name__} was not made from data, so it has no data range to compare with")
        ours, theirs = _convention(*self.data_range), _convention(float(x.min()), float(x.max()))
        if ours == theirs or ours is None or theirs is None:
            return
        (low, high), (to_low, to_high) = CONVENTIONS[ours], CONVENTIONS[theirs]
        scale = (to_high - to_low) / (high - low)
        shift = to_low - scale * low
        raise LimbeckError(
            f"the statistics are of data in {ours}, but these data are in {theirs}: apply x -> {scale:.6g} x + {shift:.6g} to "
            f"the statistics (mean <- {scale:.6g} mean + {shift:.6g}, eigenvalues <- {scale**2:.6g} eigenvalues: "
            f"GaussianDenoiser.rescaled({scale:.6g}, {shift:.6g})), or bring the data to {ours}"
        )

    def _combination(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, pair: Pair) -> Tensor:
        """alpha D + beta S, (b, d), for rows x (b, d), a and s (b, 1) and normalised log weights (b, components)."""
        raise NotImplementedError

    def _product(
        self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, v: Tensor, inner: Pair, left: Pair, right: Pair
    ) -> Tensor:
        """sum r_i [f(Sigma_i) v + (L_i - L) (R_i - R).v], f(lam) = (inner_0 lam - inner_1) / V; L and R are combinations."""
        raise NotImplementedError

    def _trace(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor, inner: Pair, left: Pair, right: Pair) -> Tensor:
        """The trace of the matrix in :meth:`_product`, (b,)."""
        raise NotImplementedError

    def _covariance(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_prob(self, log_w: Tensor, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError

    def _coefficients(self, x_t: Tensor, t: Tensor, target: str) -> Pair:
        if target not in PREDICTIONS:
            raise unknown("prediction type", target, PREDICTIONS)
        a, s = self._levels(x_t, t)
        if target in ("x0", "score"):
            return torch.full_like(a, target == "x0"), torch.full_like(a, target == "score")
        if target == "eps":
            return torch.zeros_like(a), -s
        if target == "v":
            return -s, -a * s
        time = times_like(x_t, t)
        return self.process.da(time)[:, None], -s * self.process.ds(time)[:, None]

    def _levels(self, x_t: Tensor, t: Tensor) -> Pair:
        if isinstance(t, Tensor) and t.shape not in ((), (1,), (len(x_t),)):
            raise LimbeckError(f"one time per sample is needed: t has shape {tuple(t.shape)} for {len(x_t)} samples")
        time = times_like(x_t, t)
        return self.process.a(time)[:, None], self.process.s(time)[:, None]

    def _flat(self, x: Tensor, name: str = "x_t") -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            permuted = sorted(x.shape[1:]) == sorted(self.shape)
            raise LimbeckError(
                f"{type(self).__name__} knows samples of shape {self.shape}, but {name} has shape {tuple(x.shape)}; "
                + ("permute its dimensions (channels first)" if permuted else f"give it as (B, {str(self.shape)[1:-1]})")
            )
        return x.reshape(len(x), self.dim)

    def _by_rows(self, rule: Callable[..., Tensor], x_t: Tensor, t: Tensor, cond: Cond | None, *extras: Tensor) -> Tensor:
        x, (a, s) = self._flat(x_t), self._levels(x_t, t)
        if self.prior is None and cond:
            raise LimbeckError(f"{type(self).__name__} is unconditional, but was given the condition {', '.join(cond)}")
        out = []
        for i in range(0, max(len(x), 1), self._rows):
            rows = slice(i, i + self._rows)
            part = x[rows]
            log_w = a.new_zeros(len(part), 1) if self.prior is None else self.prior.log_weights(cond, rows, len(x))
            out.append(rule(log_w, part, a[rows], s[rows], *(extra[rows] for extra in extras)))
        return out[0] if len(out) == 1 else torch.cat(out)


def predict(denoiser: Denoiser, x_t: Tensor, t: Tensor, target: str, cond: Cond | None = None) -> Tensor:
    """What any denoiser predicts about x_t as x0, eps, v, velocity or score, in the shape of x_t.

    Closed forms answer directly, at every noise level; others through ``process.convert``, with its ConversionError.
    """
    if isinstance(denoiser, ClosedForm):
        return denoiser.predict(x_t, t, target, cond)
    return denoiser.process.convert(denoiser(x_t, t, cond), x_t, t, "x0", target)


def _convention(low: float, high: float) -> str | None:
    """The first usual data range that holds [low, high]."""
    return next((name for name, (a, b) in CONVENTIONS.items() if low >= a - 1e-2 and high <= b + 1e-2), None)
