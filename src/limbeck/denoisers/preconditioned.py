"""Networks as denoisers: D(x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise, cond) in every process."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from limbeck.denoisers.protocol import Cond
from limbeck.errors import ConversionError, unknown
from limbeck.noise import Process, spread
from limbeck.noise.process import SMALLEST

Coefficients = tuple[Tensor, Tensor, Tensor]  # c_skip, c_out, c_in


def _edm(process: Process, t: Tensor, sd: float) -> Coefficients:
    # EDM (arXiv 2206.00364, Table 1) on x_t / a, written so that a = 0 is allowed
    a, s = process.a(t), process.s(t)
    size = s**2 + (sd * a) ** 2
    return sd**2 * a / size, sd * s / torch.sqrt(size), torch.rsqrt(size)


def _trigflow(process: Process, t: Tensor, sd: float) -> Coefficients:
    # sCM (arXiv 2410.11081): D = cos(t) x - sd sin(t) F(x / sd); under matched SNR it is EDM's with F negated
    c_skip, c_out, c_in = _edm(process, t, sd)
    return c_skip, -c_out, c_in


def _consistency(process: Process, t: Tensor, sd: float) -> Coefficients:
    # iCT (arXiv 2310.14189): exact boundary f(x, t_min) = x / a
    a, sigma = process.a(t), process.sigma(t)
    gap = sigma - process.sigma(torch.tensor(process.t_min, dtype=torch.float64, device=t.device))
    c_skip, c_out = sd**2 / (gap**2 + sd**2), sd * gap / torch.sqrt(sigma**2 + sd**2)
    return c_skip / a, c_out, torch.rsqrt(process.s(t) ** 2 + (sd * a) ** 2)


def _x0(process: Process, t: Tensor, sd: float) -> Coefficients:
    one = torch.ones_like(t, dtype=torch.float64)
    return 0 * one, one, one


def _eps(process: Process, t: Tensor, sd: float) -> Coefficients:
    a = _signal(process, t)
    return 1 / a, -process.s(t) / a, torch.ones_like(a)


def _score(process: Process, t: Tensor, sd: float) -> Coefficients:
    a = _signal(process, t)
    return 1 / a, process.s(t) ** 2 / a, torch.ones_like(a)


def _v(process: Process, t: Tensor, sd: float) -> Coefficients:
    a, s = process.a(t), process.s(t)
    power = a**2 + s**2
    return a / power, -s / power, torch.ones_like(a)


def _velocity(process: Process, t: Tensor, sd: float) -> Coefficients:
    a, s, da, ds = process.a(t), process.s(t), process.da(t), process.ds(t)
    det = a * ds - s * da
    return ds / det, -s / det, torch.ones_like(a)


def _signal(process: Process, t: Tensor) -> Tensor:
    a = process.a(t)
    if bool((a < SMALLEST).any()):
        raise ConversionError(
            f"an eps or score network has no x0 where the signal level is {a.min().item():.3g} < {SMALLEST:g}; "
            "use times with more signal, or a v or velocity network"
        )
    return a


SCALINGS: dict[str, Callable[[Process, Tensor, float], Coefficients]] = {
    "edm": _edm,
    "trigflow": _trigflow,
    "consistency": _consistency,
    "x0": _x0,
    "eps": _eps,
    "score": _score,
    "v": _v,
    "velocity": _velocity,
}


def _quarter_log(process: Process, t: Tensor) -> Tensor:
    return (torch.log(process.s(t)) - torch.log(process.a(t).clamp(min=1e-5))) / 4


NOISE_INPUTS: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "log_sigma": _quarter_log,  # ln(sigma) / 4, EDM
    "sigma": lambda process, t: process.sigma(t),
    "angle": lambda process, t: torch.atan2(process.s(t), process.a(t)),  # TrigFlow's t
    "time": lambda process, t: t.double(),
    "thousand": lambda process, t: 1000 * t.double(),  # flow models that count 0..1000
}
_DEFAULT_INPUT = {"edm": "log_sigma", "consistency": "log_sigma", "trigflow": "angle"}


class Preconditioned(nn.Module):
    """A network F(x, c_noise, cond) as a denoiser in a process.

    ``prediction``: what F answers, or how it is preconditioned: edm, trigflow, consistency, x0, eps, score, v, velocity.
    ``sigma_data``: the data's standard deviation (edm, trigflow and consistency use it).
    ``noise_input``: how F is told the noise: log_sigma, sigma, angle, time, thousand (default: log_sigma, angle or time).
    Coefficients are float64 and applied in x's dtype; ``compute_dtype`` runs F alone under autocast (bfloat16, float16).
    Raises LimbeckError for unknown names, ConversionError where the prediction has no x0.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        prediction: str = "edm",
        sigma_data: float = 0.5,
        noise_input: str | None = None,
        compute_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        noise_input = noise_input or _DEFAULT_INPUT.get(prediction, "time")
        if prediction not in SCALINGS:
            raise unknown("prediction type", prediction, SCALINGS)
        if noise_input not in NOISE_INPUTS:
            raise unknown("noise input", noise_input, NOISE_INPUTS)
        self.network, self.process, self.prediction = network, process, prediction
        self.sigma_data, self.noise_input, self.compute_dtype = sigma_data, noise_input, compute_dtype

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition", as the network declares it; None if it declares nothing."""
        return getattr(self.network, "null", None)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        c_skip, c_out, c_in = SCALINGS[self.prediction](self.process, t, self.sigma_data)
        c_noise = NOISE_INPUTS[self.noise_input](self.process, t).to(x_t.dtype)
        with torch.autocast(x_t.device.type, self.compute_dtype, enabled=self.compute_dtype is not None):
            out = self.network(spread(c_in, x_t) * x_t, c_noise, cond)
        return spread(c_skip, x_t) * x_t + spread(c_out, x_t) * out.to(x_t.dtype)
