"""The noise floor of a statistic: what it reads on real data alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.metrics.samples import as_labels, as_rows, at_least


def bootstrap_floor(
    features: Tensor,
    statistic: Callable[[Tensor, Tensor], float],
    repeats: int,
    seed: int,
    *,
    labels: Tensor | None = None,
    copies: int = 1,
) -> float:
    """The noise floor: the median over `repeats` of statistic(resample of the features, features).

    A resample of features (N, ...) holds `copies` * N of them, drawn with replacement; with integer `labels`
    (N,) it holds exactly `copies` times each class's own number, drawn within the class. A generator that
    reads about this number cannot be told from the data. `statistic` gets float64 rows (copies * N, D) and
    (N, D).
    Raises `LimbeckError` for empty or non-finite features, wrong labels, no repeats or copies, or a statistic
    that is not finite.
    """
    rows = as_rows(features, "features")
    at_least(repeats, 1, "repeats")
    at_least(copies, 1, "copies")
    if labels is None:
        classes = [torch.arange(len(rows))]
    else:
        labels = as_labels(labels, len(rows), "labels").cpu()
        classes = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
    generator = torch.Generator().manual_seed(seed)

    def resample() -> Tensor:
        drawn = [c[torch.randint(len(c), (copies * len(c),), generator=generator)] for c in classes]
        return rows[torch.cat(drawn).to(rows.device)]

    values = torch.tensor([statistic(resample(), rows) for _ in range(repeats)], dtype=torch.float64)
    if infinite := int((~values.isfinite()).sum()):
        raise LimbeckError(f"the statistic is NaN or infinite on {infinite} of {repeats} resamples: check what it divides by")
    return values.quantile(0.5).item()
