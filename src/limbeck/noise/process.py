"""Noising processes x_t = a(t) x_0 + s(t) e (+ d(t) y): coefficients, steps, conversions.

Coefficients are float64 functions of the process's own time ``t``. A time of shape (B,) belongs to samples, one of
shape (B, L) to tokens of x (B, L, ...): coefficients broadcast over the dimensions of x that t does not have.
``y`` is a known end point towards which a process drifts (ResShift); processes without drift ignore it.
"""

from typing import Literal

import torch
from torch import Tensor

from limbeck.errors import ConversionError, LimbeckError, unknown

Prediction = Literal["x0", "eps", "v", "velocity", "score"]
PREDICTIONS: tuple[Prediction, ...] = ("x0", "eps", "v", "velocity", "score")
SMALLEST = 1e-4  # below it, dividing by a signal or noise level has no trustworthy answer


def spread(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient of shape (), (B,) or (B, L) in the dtype and device of x, broadcastable over x.

    Raises LimbeckError for integer x, where every coefficient would be cut to 0 or 1.
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise LimbeckError(f"noise needs floating-point data, not {x.dtype}; scale it to its range first, e.g. x / 127.5 - 1")
    shaped = coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim)) if coefficient.ndim else coefficient
    return shaped.to(x)


class Process:
    """What all processes share. A process defines a, s, da, ds, time_of, t_min and t_max."""

    t_min: float
    t_max: float

    def a(self, t: Tensor) -> Tensor:
        """Signal level a(t) >= 0, float64."""
        raise NotImplementedError

    def s(self, t: Tensor) -> Tensor:
        """Noise level s(t) >= 0, float64."""
        raise NotImplementedError

    def da(self, t: Tensor) -> Tensor:
        """da/dt, float64."""
        raise NotImplementedError

    def ds(self, t: Tensor) -> Tensor:
        """ds/dt, float64."""
        raise NotImplementedError

    def d(self, t: Tensor) -> Tensor:
        """Weight d(t) of the known end point y."""
        return torch.zeros_like(t, dtype=torch.float64)

    def dd(self, t: Tensor) -> Tensor:
        """dd/dt."""
        return torch.zeros_like(t, dtype=torch.float64)

    def time_of(self, sigma: Tensor) -> Tensor:
        """The time at which s/a equals sigma (inverse of :meth:`sigma`), float64."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio s(t)/a(t), float64; inf where a = 0."""
        return self.s(t) / self.a(t)

    def match(self, t: Tensor, other: "Process") -> Tensor:
        """The time of ``other`` that has the signal-to-noise ratio of this process at t, inside its range or beyond.

        Raises ConversionError where ``other`` has no such time (no signal at all in VE; less noise than ResShift's least).
        """
        u = other.time_of(self.sigma(t))
        angle, found = (torch.atan2(p.s(at), p.a(at)) for p, at in ((self, t), (other, u)))
        if not bool((torch.isfinite(u) & torch.isclose(found, angle, rtol=1e-6, atol=0)).all()):
            raise ConversionError(
                f"{type(other).__name__} has no time with the noise-to-signal ratio {_range(self.sigma(t))} of "
                f"{type(self).__name__} at times {_range(t)}; keep the times inside the range of both"
            )
        return u

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x_t = a(t) x0 + s(t) eps + d(t) y, shape of x0."""
        return self._drifted(spread(self.a(t), x0) * x0 + spread(self.s(t), x0) * eps, t, y, +1.0)

    def transition(self, t_from: Tensor, t_to: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) of the Markov step x_to = a x_from + s e towards more noise; e fresh.

        a = a_to / a_from and s^2 = s_to^2 - a^2 s_from^2, computed without cancellation. The drift's weight in the same
        step is d_to - a d_from. Raises ConversionError where no signal is left at t_from or t_to is less noisy.
        """
        a_from = self._divisor(self.a(t_from), "a", t_from)
        ratio = (self.sigma(t_from) / self.sigma(t_to)).nan_to_num(nan=1.0, posinf=torch.inf)  # 0 / 0: no noise, no step
        if bool((ratio > 1 + 1e-12).any()):
            raise ConversionError(
                f"a transition goes towards more noise, but times {_range(t_to)} are less noisy than "
                f"{_range(t_from)}; use posterior() for the way back"
            )
        a = self.a(t_to) / a_from
        s = self.s(t_to) * torch.sqrt(((1 - ratio) * (1 + ratio)).clamp(min=0))
        return a, s

    def diffuse(self, x: Tensor, eps: Tensor, t: Tensor, level: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """Noise a sample at ``level`` (None: clean) up to t with fresh eps."""
        if level is None:
            return self.add_noise(x, eps, t, y)
        a, s = self.transition(level, t)
        x_t = spread(a, x) * x + spread(s, x) * eps
        return x_t if y is None else x_t + spread(self.d(t) - a * self.d(level), x) * y

    def posterior(self, x_t: Tensor, x0: Tensor, t: Tensor, t_to: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (shape of x_t) and standard deviation (shape of t) of q(x_to | x_t, x_0, y), t_to less noisy than t.

        Bayes' rule for the Markov chain of :meth:`transition`. Raises ConversionError where s(t) < 1e-4.
        """
        a, s = self.transition(t_to, t)
        s_t, s_to = self._divisor(self.s(t), "s", t), self.s(t_to)
        from_t, from_0 = a * (s_to / s_t) ** 2, (s / s_t) ** 2
        clean = self._drifted(spread(self.a(t_to), x_t) * x0, t_to, y, +1.0)  # mean of x_to given x_0
        back = x_t if y is None else x_t - spread(self.d(t) - a * self.d(t_to), x_t) * y
        return spread(from_t, x_t) * back + spread(from_0, x_t) * clean, s_to * s / s_t

    def convert(
        self,
        value: Tensor,
        x_t: Tensor,
        t: Tensor,
        source: str,
        target: str,
        y: Tensor | None = None,
    ) -> Tensor:
        """Turn one prediction about x_t into another.

        x0 and eps with x_t = a x0 + s eps (+ d y); v = a eps - s x0; velocity = dx_t/dt = da x0 + ds eps (+ dd y);
        score = -eps / s. Exact to 1e-10 relative in float64. Raises ConversionError where it would divide by a or s below
        1e-4, or for a velocity where the process has none (da or ds infinite, e.g. VP at t = 0).
        """
        for name in (source, target):
            if name not in PREDICTIONS:
                raise unknown("prediction type", name, PREDICTIONS)
        if source == target:
            return value
        x = self._drifted(x_t, t, y, -1.0)
        if source == "velocity" and y is not None:
            value = value - spread(self.dd(t), x) * y
        a, s = self.a(t), self.s(t)
        if target == "x0":
            return self._x0(value, x, t, a, s, source)
        eps = self._eps(value, x, t, a, s, source)
        if target == "eps":
            return eps
        if target == "score":
            return -eps / spread(self._divisor(s, "s", t), x)
        x0 = self._x0(value, x, t, a, s, source)
        if target == "v":
            return spread(a, x) * eps - spread(s, x) * x0
        self._determinant(t, a, s)
        velocity = spread(self.da(t), x) * x0 + spread(self.ds(t), x) * eps
        return velocity if y is None else velocity + spread(self.dd(t), x) * y

    def _x0(self, value: Tensor, x: Tensor, t: Tensor, a: Tensor, s: Tensor, source: str) -> Tensor:
        if source == "x0":
            return value
        if source == "v":
            power = a**2 + s**2
            return spread(a / power, x) * x - spread(s / power, x) * value
        if source == "velocity":
            det = self._determinant(t, a, s)
            return spread(self.ds(t) / det, x) * x - spread(s / det, x) * value
        a = self._divisor(a, "a", t)
        return (x - spread(s, x) * value if source == "eps" else x + spread(s**2, x) * value) / spread(a, x)

    def _eps(self, value: Tensor, x: Tensor, t: Tensor, a: Tensor, s: Tensor, source: str) -> Tensor:
        if source == "eps":
            return value
        if source == "score":
            return -spread(s, x) * value
        if source == "v":
            power = a**2 + s**2
            return spread(s / power, x) * x + spread(a / power, x) * value
        if source == "velocity":
            det = self._determinant(t, a, s)
            return spread(a / det, x) * value - spread(self.da(t) / det, x) * x
        return (x - spread(a, x) * value) / spread(self._divisor(s, "s", t), x)

    def _determinant(self, t: Tensor, a: Tensor, s: Tensor) -> Tensor:
        da, ds = self.da(t), self.ds(t)
        speed = torch.hypot(da, ds)  # the bound must not depend on the unit of time
        return self._divisor((a * ds - s * da) / speed, "(a ds - s da) / |(da, ds)|", t) * speed

    def _drifted(self, x: Tensor, t: Tensor, y: Tensor | None, sign: float) -> Tensor:
        return x if y is None else x + sign * spread(self.d(t), x) * y

    def _divisor(self, value: Tensor, name: str, t: Tensor) -> Tensor:
        if not bool((value.abs() >= SMALLEST).all()):  # nan included
            raise ConversionError(
                f"{type(self).__name__}: cannot divide by {name} = {value.abs().min().item():.3g} at "
                f"times {_range(t)}; conversions need {name} >= {SMALLEST:g}, so keep the time away from that end"
            )
        return value


def _range(t: Tensor) -> str:
    return f"[{t.min().item():.6g}, {t.max().item():.6g}]"
