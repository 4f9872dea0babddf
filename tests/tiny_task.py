"""A task that costs nothing, for tests of runs and of the command line: 4x4 images and an untrained teacher."""

import torch
from torch import nn

from limbeck.denoisers import Preconditioned
from limbeck.networks import ResidualMLP
from limbeck.noise import VE
from limbeck.tasks import Evaluator, Task
from limbeck.training import TensorSource

SHAPE = (1, 4, 4)
PREFERRED = {"sid": {"alpha": 1.1, "student": {"lr": 0.003}}}


def network():
    return ResidualMLP(SHAPE, width=8, blocks=1, classes=2, embedding=8)


def tiny(*, scale=0.5, device="cpu", dtype="float32", quiet=False):
    """Two classes, brighter and darker; ``scale`` of the noise on them is the task's one option."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 2
    noise = torch.randn(24, *SHAPE, generator=generator, dtype=torch.float64)
    images = (0.4 * (labels.double() - 0.5)[:, None, None, None] + scale * noise).clamp(-1, 1).to(device, getattr(torch, dtype))
    teacher = Preconditioned(network(), VE(), "edm", 0.5).eval()
    for p in teacher.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    evaluator = Evaluator(
        lambda x: nn.functional.avg_pool2d(x, 2).flatten(1),
        images,
        48,
        {"label": labels.repeat(2).to(device)},
        lambda x, cond: float(((x.mean((1, 2, 3)) > 0).long() == cond["label"]).double().mean()),
    )
    source = TensorSource(images.cpu(), {"label": labels})
    facts = {"origin": "made", "seconds": 0.0}
    return Task("tiny", teacher.to(images), source, SHAPE, evaluator, 0.5, network, teacher_nodes=3, facts=facts)
