"""What the claims on restoration share: photos that lie in scikit-learn's and scikit-image's wheels, and one held out."""

from functools import lru_cache

import torch
from torch import Tensor

from limbeck.errors import missing_extra


@lru_cache(maxsize=1)
def photos() -> tuple[list[Tensor], Tensor]:
    """(to train on: china, flower, coffee and chelsea; held out: astronaut), RGB (3, H, W), uint8, sides cut to multiples of 12."""
    from sklearn.datasets import load_sample_images

    try:
        from skimage import data
    except ImportError:
        raise missing_extra("restoration", "the photos need scikit-image") from None
    arrays = [*load_sample_images().images, data.coffee(), data.chelsea(), data.astronaut()]
    pictures = [torch.tensor(a).permute(2, 0, 1) for a in arrays]
    pictures = [p[:, : p.shape[1] // 12 * 12, : p.shape[2] // 12 * 12].contiguous() for p in pictures]
    return pictures[:-1], pictures[-1]
