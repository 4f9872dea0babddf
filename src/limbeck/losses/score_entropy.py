"""The loss of networks that give log ratios of a masked sequence."""

import torch
from torch import Tensor


def score_entropy(log_score: Tensor, x: Tensor, clean: Tensor, total: Tensor, rate: Tensor, mask: int) -> Tensor:
    """Denoising score entropy on the absorbing graph (arXiv 2310.16834, Eq. 15), () : 0 only for the exact ratios of one clean x.

    rate sum over masked places of sum_{y != MASK} exp(log s_y) - r log s_{clean} + r (log r - 1), r = 1 / expm1(total), as a mean
    over places and sequences. log_score (B, L, S), x and clean (B, L), total and rate (B,).
    """
    r = 1 / total.expm1()[:, None]
    real = torch.arange(log_score.shape[-1], device=x.device) != mask
    positive = (log_score.exp() * real).sum(-1)
    there = log_score.gather(-1, clean[..., None])[..., 0]
    error = positive - r * there + r * (r.log() - 1)
    return (rate[:, None] * torch.where(x == mask, error, 0.0)).mean()
