"""Networks as denoisers: D(x_t, t) = c_skip x_t + c_out F(c_in x_t, c_noise, cond) in every process."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from limbeck.denoisers.protocol import Cond
from limbeck.errors import unknown
from limbeck.noise import PREDICTIONS, Process, spread

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
    # iCT (arXiv 2310.14189): exact boundary f(x, t_min) = x / a, on x_t / a like EDM's; gap = a (sigma - sigma_min)
    a, s = process.a(t), process.s(t)
    gap = s - a * process.sigma(torch.tensor(process.t_min, dtype=torch.float64, device=t.device))
    c_in = torch.rsqrt(s**2 + (sd * a) ** 2)
    return sd**2 * a / (gap**2 + (sd * a) ** 2), sd * gap * c_in, c_in


SCALINGS: dict[str, Callable[[Process, Tensor, float], Coefficients]] = {
    "edm": _edm,
    "trigflow": _trigflow,
    "consistency": _consistency,
}


def _quarter_log(process: Process, t: Tensor, sd: float) -> Tensor:
    return (torch.log(process.s(t)) - torch.log(process.a(t).clamp(min=1e-5))) / 4


NOISE_INPUTS: dict[str, Callable[[Process, Tensor, float], Tensor]] = {
    "log_sigma": _quarter_log,  # ln(sigma) / 4, EDM
    "log_sigma_thousand": lambda process, t, sd: 1000 * _quarter_log(process, t, sd),  # consistency models
    "sigma": lambda process, t, sd: process.sigma(t),
    "angle": lambda process, t, sd: torch.atan2(process.s(t), sd * process.a(t)),  # TrigFlow's t for this sigma_data
    "time": lambda process, t, sd: t.double(),
    "thousand": lambda process, t, sd: 1000 * t.double(),  # flow models that count 0..1000
}
_DEFAULT_INPUT = {"edm": "log_sigma", "consistency": "log_sigma", "trigflow": "angle"}


class Preconditioned(nn.Module):
    """A network F(x, c_noise, cond) as a denoiser in a process.

    ``prediction``: how F is preconditioned (edm, trigflow, consistency: :data:`SCALINGS`) or, for a plain network, what it
    answers (x0, eps, score, v, velocity), turned into x0 by :meth:`Process.convert`.
    ``sigma_data``: the data's standard deviation (edm, trigflow, consistency and angle use it).
    ``noise_input``: how F is told the noise, by :data:`NOISE_INPUTS` (default: log_sigma, angle or time).
    ``compute_dtype``: bfloat16 or float16 runs F alone under autocast; None leaves it as the caller runs it.
    Coefficients are float64 and applied in x's dtype; c_noise reaches F in float32 or wider.
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
        if prediction not in (allowed := (*SCALINGS, *PREDICTIONS)):
            raise unknown("prediction type", prediction, allowed)
        if noise_input not in NOISE_INPUTS:
            raise unknown("noise input", noise_input, NOISE_INPUTS)
        self.network, self.process, self.prediction = network, process, prediction
        self.sigma_data, self.noise_input, self.compute_dtype = sigma_data, noise_input, compute_dtype

    @property
    def null(self) -> Mapping[str, Tensor] | None:
        """What stands for "no condition", as the network declares it; None if it declares nothing."""
        return getattr(self.network, "null", None)

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if self.prediction not in SCALINGS:
            return self.process.convert(self._answer(x_t, t, cond), x_t, t, self.prediction, "x0")
        c_skip, c_out, c_in = SCALINGS[self.prediction](self.process, t, self.sigma_data)
        return spread(c_skip, x_t) * x_t + spread(c_out, x_t) * self._answer(spread(c_in, x_t) * x_t, t, cond)

    def _answer(self, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        c_noise = NOISE_INPUTS[self.noise_input](self.process, t, self.sigma_data)
        c_noise = c_noise.to(torch.promote_types(x.dtype, torch.float32))  # bfloat16 cannot count to 999
        with nullcontext() if self.compute_dtype is None else torch.autocast(x.device.type, self.compute_dtype):
            return self.network(x, c_noise, cond).to(x.dtype)
