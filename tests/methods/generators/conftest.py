"""A teacher of 2-D points with three classes that costs nothing, and what every generator must do with it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from limbeck.denoisers import GaussianDenoiser, MixtureDenoiser, Preconditioned
from limbeck.methods import find
from limbeck.methods.generators.generator import Ingredients
from limbeck.networks import ResidualMLP
from limbeck.noise import DDPM, VE
from limbeck.training import Batch, Loop, LoopOptions, OptimizerOptions, TensorSource, Total, Update

F64 = torch.float64
SHAPE, CLASSES, SIZE = (2,), 3, 10
ADAM = OptimizerOptions(lr=1e-2, warmup=2, decay="cosine", clip=1.0)


def data():
    generator = torch.Generator().manual_seed(7)
    return 0.5 * torch.randn(SIZE, *SHAPE, generator=generator, dtype=F64), {"label": torch.arange(SIZE) % CLASSES}


def network(classes=CLASSES, dropout=0.0):
    return ResidualMLP(SHAPE, width=8, blocks=2, classes=classes, embedding=16, dropout=dropout)


def teacher(classes=CLASSES, process=None, dropout=0.0, seed=0):
    """An untrained teacher whose weights are all random, so that every input matters."""
    torch.manual_seed(seed)
    made = Preconditioned(network(classes, dropout), VE() if process is None else process, "edm", 0.5).double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.4)
    return made.requires_grad_(False).eval()


def ingredients(of=None, images=True, classes=CLASSES, dropout=0.0, **other):
    x, cond = data()
    of = teacher(classes, dropout=dropout) if of is None else of
    fresh = lambda: network(classes, dropout).double()  # noqa: E731
    return Ingredients(of, SHAPE, x, cond if classes else None, images, 0.5, other.get("network", fresh))


def make(name, parts=None, **options):
    """A method of that id with these options and fast optimizers on the tiny teacher."""
    cls, options_class, _ = find(name).load()
    fast = {
        "student": ADAM,
        **({} if name == "ict" else {"critic": ADAM}),
        **({"discriminator": ADAM} if name == "dmd" else {}),
    }
    torch.manual_seed(3)
    return cls(ingredients() if parts is None else parts, options_class(**{"iterations": 8, **fast, **options}))


def batch(method, step=0, size=6, classes=CLASSES):
    x, cond = data()
    index = step * method.draws * size + torch.arange(size)
    return Batch(TensorSource(x, cond if classes else None), 0, step, index, torch.device("cpu"), size)


def loop(method, folder=None, **options):
    given = {"iterations": method.options.iterations, "batch": 6, "log_every": 1, **options}
    return Loop(method, TensorSource(*data()), LoopOptions(**given), folder=folder, quiet=True)


def weights(of):
    """All that the next iteration of a loop depends on, but the global random states."""
    tensors, _ = of.state()
    return {f"{group}.{name}": v.clone() for group, named in tensors.items() for name, v in named.items() if group != "rng"}


def yields(method, at, apply=lambda update: None):
    """What one iteration yields; nothing is trained unless ``apply`` does."""
    found, steps, reply = [], method.step(at), None
    while True:
        try:
            found.append(y := steps.send(reply))
        except StopIteration:
            return found
        reply = y.value if isinstance(y, Total) else None
        if isinstance(y, Update):
            apply(y)


def spy(module, monkeypatch):
    """Record (x_t, t, cond) of every call of a module."""
    calls, forward = [], module.forward

    def record(x_t, t, cond=None):
        calls.append((x_t.detach().clone(), t.clone(), None if cond is None else {n: v.clone() for n, v in cond.items()}))
        return forward(x_t, t, cond)

    monkeypatch.setattr(module, "forward", record)
    return calls


@pytest.fixture
def tiny():
    return SimpleNamespace(
        data=data, network=network, teacher=teacher, ingredients=ingredients, make=make, batch=batch, loop=loop,
        weights=weights, yields=yields, spy=spy,
    )  # fmt: skip


MEANS = torch.tensor([[0.5, -0.2], [-0.3, 0.4]], dtype=F64)
FACTOR = torch.tensor([[0.5, 0.0], [0.3, 0.2]], dtype=F64)


def gaussian_classes(factor=FACTOR, means=MEANS):
    parts = [GaussianDenoiser.from_covariance(m, factor @ factor.T, DDPM("scaled_linear", 1000, 0.00085, 0.012)) for m in means]
    return MixtureDenoiser.from_components(torch.tensor([0.5, 0.5], dtype=F64), parts, labels=torch.arange(2))


def design():
    """(z, e, t, labels) whose second moments are those of independent normal numbers at every time and class: expectations of
    what is linear in (z, e), times z, are exact."""
    raw = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    raw = torch.cat([raw, -raw])
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / len(raw))).T
    times, classes = torch.tensor([100.0, 300.0, 600.0], dtype=F64), torch.arange(2)
    n = len(white)
    rows = white.repeat(6, 1)
    return rows[:, :2], rows[:, 2:], times.repeat_interleave(2 * n), classes.repeat_interleave(n).repeat(3)


@pytest.fixture
def classes():
    """Two Gaussian classes N(means[y], factor factor^T) in Stable Diffusion's schedule: their exact denoiser, and a design."""
    return SimpleNamespace(factor=FACTOR, means=MEANS, denoiser=gaussian_classes, design=design)
