"""How much of a teacher's score simple closed forms of the data explain, by noise level (arXiv 2412.09726)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers.closed_form import ClosedForm
from limbeck.denoisers.finite import FiniteSetDenoiser
from limbeck.denoisers.fit import explained_variance, fit_mixture
from limbeck.denoisers.gaussian import GaussianDenoiser
from limbeck.denoisers.protocol import Cond, Denoiser, Reconditioned

LEVELS = (20.0, 10.0, 5.0, 2.0, 1.0, 0.5, 0.1)


@dataclass(frozen=True)
class Explained:
    """Explained variances: ``values`` of each model at ``sigmas`` (s / a), of the ``target``; 1 is all, below 0 none."""

    sigmas: tuple[float, ...]
    values: dict[str, tuple[float, ...]]
    target: str = "score"

    def best(self, sigma: float) -> str:
        """The model that explains most at one of the noise levels."""
        i = self.sigmas.index(sigma)
        return max(self.values, key=lambda name: self.values[name][i])

    def table(self) -> str:
        """A text table, a model a line."""
        width = max(len(name) for name in (*self.values, self.target))
        heads = [f"{self.target:<{width}}", *(f"{f'sigma {s:g}':>12}" for s in self.sigmas)]
        lines = [f"{name:<{width}}" + "".join(f"{v:>12.6f}" for v in values) for name, values in self.values.items()]
        return "\n".join(["".join(heads), *lines])

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {**asdict(self), "sigmas": list(self.sigmas), "values": {n: list(v) for n, v in self.values.items()}}


@torch.no_grad()
def explained_by(
    reference: Denoiser,
    data: Tensor,
    sigmas: Sequence[float] = LEVELS,
    clusters: Sequence[int] = (10,),
    rank: int | None = None,
    target: str = "score",
    probe: Tensor | None = None,
    cond: Cond | None = None,
    seed: int = 0,
) -> Explained:
    """What five kinds of models made from ``data`` (N, ...) explain of the reference's predictions on ``probe`` (data).

    "mean", the point at the mean, score (a mean - x_t) / s^2; "isotropic", the Gaussian with one variance; "gaussian", with
    the covariance (``rank`` leading directions); "k components" of a mixture for every k in ``clusters``; "data points", the
    optimal denoiser of the data. The same noise serves all. ``cond`` are the probe's conditions: the reference sees them,
    the models do not. Raises LimbeckError as the models' own makers do.
    """
    process = reference.process
    gaussian = GaussianDenoiser.from_data(data, process, rank)
    isotropic = GaussianDenoiser.from_data(data, process, 0)
    models: dict[str, ClosedForm] = {
        "mean": GaussianDenoiser(gaussian.mean, gaussian.U[:, :0], gaussian.eigenvalues[:0], 0.0, process, gaussian.shape),
        "isotropic": isotropic,
        "gaussian": gaussian,
        **{f"{k} components": fit_mixture(data, k, process, rank, seed=seed) for k in clusters},
        "data points": FiniteSetDenoiser(data, process),
    }
    times = process.time_of(torch.tensor(sigmas, dtype=torch.float64))
    values = {}
    for name, model in models.items():
        seen = Reconditioned(model, lambda cond: None)
        generator = torch.Generator().manual_seed(seed)
        found = explained_variance(seen, reference, data if probe is None else probe, times, generator, target, cond)
        values[name] = tuple(found.tolist())
    return Explained(tuple(float(s) for s in sigmas), values, target)
