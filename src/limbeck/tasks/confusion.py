"""Which classes are taken for which, as a picture."""

import torch
from torch import Tensor

SIDE = 120  # pixels, about


def confusion(labels: Tensor, answers: Tensor, classes: int) -> Tensor:
    """(1, H, W) in [-1, 1]: the share of each true class (row) that gets each answer (column), white for all of it.

    ``labels`` and ``answers``: (N,), integers below ``classes``.
    """
    cells = torch.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)
    shares = (2 * cells.double() / cells.sum(1, keepdim=True).clamp(min=1) - 1).float().cpu()
    cell = max(1, SIDE // classes)
    return shares.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[None]
