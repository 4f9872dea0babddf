"""How well one denoiser describes another (explained variance), and mixtures fitted to data."""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.denoisers.closed_form import predict
from limbeck.denoisers.gaussian import GaussianDenoiser
from limbeck.denoisers.mixture import MixtureDenoiser
from limbeck.denoisers.protocol import Cond, Denoiser, in_process, times_like
from limbeck.errors import LimbeckError
from limbeck.noise import Process

ROWS = 512


@torch.no_grad()
def explained_variance(
    model: Denoiser,
    reference: Denoiser,
    data: Tensor,
    times: Sequence[float] | Tensor,
    generator: torch.Generator | None = None,
    target: str = "score",
    cond: Cond | None = None,
) -> Tensor:
    """EV(t) = 1 - sum ||S_ref - S_model||^2 / sum ||S_ref||^2 over x_t = a x_0 + s e of data (arXiv 2412.09726), (len(times),).

    ``data`` (N, ...) clean samples with ``cond``; ``times`` of the reference's process (the model is seen in it); the same
    noise e serves all times. ``target``: "score" as in the paper, or "x0" for the denoisers themselves (lower: their
    difference is the same, but what it is compared with lacks the noise), or another prediction. float64.
    """
    if len(data) == 0:
        raise LimbeckError("the explained variance needs at least one sample of data")
    process, model = reference.process, in_process(model, reference.process)
    grid = torch.as_tensor(times, dtype=torch.float64)
    if grid.ndim != 1:
        raise LimbeckError(f"times must be a list of times, not of shape {tuple(grid.shape)}")
    noise = torch.randn(data.shape, generator=generator, dtype=torch.float64)
    error, size = torch.zeros_like(grid), torch.zeros_like(grid)
    for i in range(0, len(data), ROWS):
        x0, e = data[i : i + ROWS], noise[i : i + ROWS].to(data)
        part = cond and {name: value[i : i + ROWS] for name, value in cond.items()}
        for k, time in enumerate(grid):
            t = times_like(x0, time)
            x_t = process.add_noise(x0, e, t)
            expected = predict(reference, x_t, t, target, part).double()
            error[k] += (expected - predict(model, x_t, t, target, part).double()).square().sum().cpu()
            size[k] += expected.square().sum().cpu()
    return 1 - error / size


def fit_mixture(
    x: Tensor,
    clusters: int,
    process: Process,
    rank: int | None = None,
    labels: Tensor | None = None,
    jitter: float = 1e-5,
    seed: int = 0,
) -> MixtureDenoiser:
    """A Gaussian mixture of k-means clusters of x (N, ...): weights = counts / N, covariances + jitter I.

    Covariances are unbiased, and 0 for one member. ``rank`` leading directions of each are kept, the others with their mean
    variance (default: all of them). With ``labels`` (N,) every class gets ``clusters`` components of its own, and the mixture
    is class-conditional. MiniBatchKMeans, batches of 2048.
    Raises LimbeckError for fewer samples (of a class) than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if labels is not None and (labels.shape != x.shape[:1] or labels.is_floating_point()):
        raise LimbeckError(f"labels must be {len(x)} integers, not {labels.dtype} of shape {tuple(labels.shape)}")
    flat, shape = x.reshape(len(x), -1).double().cpu(), tuple(x.shape[1:])
    d = flat.shape[1]
    kinds: list[int | None] = [None] if labels is None else sorted(set(labels.tolist()))
    parts, counts, classes = [], [], []
    for kind in kinds:
        members = flat if labels is None or kind is None else flat[labels.cpu() == kind]
        if not 1 <= clusters <= len(members):
            where = "" if kind is None else f" of class {kind}"
            raise LimbeckError(f"cannot make {clusters} clusters of {len(members)} samples{where}; choose 1..{len(members)}")
        kmeans = MiniBatchKMeans(clusters, batch_size=2048, random_state=seed, n_init=3)
        assigned = torch.as_tensor(kmeans.fit_predict(members.numpy()))
        for i in assigned.unique():
            own = members[assigned == i]
            cov = own.T.cov().reshape(d, d) if len(own) > 1 else flat.new_zeros(d, d)
            cov = cov + jitter * torch.eye(d, dtype=torch.float64)
            parts.append(GaussianDenoiser.from_covariance(own.mean(0).reshape(shape), cov, process, rank))
            counts.append(len(own))
            classes.append(kind)
    weights = torch.tensor(counts, dtype=torch.float64) / len(flat)
    kept = None if labels is None else torch.tensor(classes)
    return MixtureDenoiser.from_components(weights, parts, kept, (float(x.min()), float(x.max()))).to(x.device)
