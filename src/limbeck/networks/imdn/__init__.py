"""IMDN, lightweight super-resolution by information multi-distillation (arXiv 1909.11856), and its published weights.

`blocks` has the block and its attention, `networks` the two networks, `published` reads checkpoints. All take RGB (B, 3, H, W)
in [0, 1]. The distillation is of features inside one network: there is no teacher.
"""

from limbeck.networks.imdn.blocks import ContrastAttention, MultiDistillation
from limbeck.networks.imdn.networks import IMDN, IMDNAS
from limbeck.networks.imdn.published import copy_body, load_imdn, save_imdn

__all__ = [
    "IMDN",
    "IMDNAS",
    "ContrastAttention",
    "MultiDistillation",
    "copy_body",
    "load_imdn",
    "save_imdn",
]
