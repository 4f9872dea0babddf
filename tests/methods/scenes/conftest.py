"""Tiny scenes whose renders cost nothing: a coloured disc that turns with the camera, and a teacher in closed form over pictures."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from limbeck.denoisers import FiniteSetDenoiser
from limbeck.methods import find
from limbeck.noise import CosineVP
from limbeck.scenes import NUMBERS, CameraLaw, angles
from limbeck.tasks.scenes.task import SceneTask
from limbeck.training import Batch, Keyed, Loop, LoopOptions, TensorSource, Total, Update, checkpoints

SIZE, SHAPE = 4, (3, 4, 4)
LAW = CameraLaw()
F64 = torch.float64


class Seen(SimpleNamespace):
    @property
    def image(self):
        return 2 * self.rgb - 1


class Blob(nn.Module):
    """rgb = sigmoid(base + cos(azimuth) x turn): smooth in the parameters, different from every side."""

    rates = {"turn": 0.5}

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base = nn.Parameter(torch.randn(SHAPE, generator=generator, dtype=F64))
        self.turn = nn.Parameter(torch.randn(SHAPE, generator=generator, dtype=F64))

    def forward(self, cameras, background=0.0):
        azimuth = torch.deg2rad(angles(cameras.position)[0]).to(F64)[:, None, None, None]
        opacity = torch.sigmoid(self.base[:1] + azimuth.sin())
        behind = torch.as_tensor(background, dtype=F64)
        behind = behind[..., None, None] if behind.ndim else behind
        rgb = opacity * torch.sigmoid(self.base + azimuth.cos() * self.turn) + (1 - opacity) * behind
        return Seen(rgb=rgb, opacity=opacity, depth=opacity)


def bank(n=6):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=F64) * 2 - 1


def task(**changes):
    given = {
        "name": "tiny", "teacher": FiniteSetDenoiser(bank(), CosineVP()), "shape": SHAPE,
        "cameras": lambda u, step: LAW(u, SIZE, SIZE), "scene": Blob,
    }  # fmt: skip
    return SceneTask(**{**given, **changes})


def make(of=None, seed=0, method="prolificdreamer", **options):
    cls, options_class, _ = find(method).load()
    return cls(task() if of is None else of, options_class(**{"iterations": 8, **options}), seed)


def batch(method, step=0, seed=0):
    size = method.options.batch
    return Batch(TensorSource(None, size=1), seed, step, step * size + torch.arange(size), torch.device("cpu"), size)


def loop(method, folder=None, **options):
    given = {"iterations": method.options.iterations, "batch": method.options.batch, **options}
    return Loop(method, method.task.source, LoopOptions(**given), folder=folder, quiet=True)


def yields(method, at):
    """What one iteration yields; nothing is trained."""
    found, steps, reply = [], method.step(at), None
    while True:
        try:
            found.append(y := steps.send(reply))
        except StopIteration:
            return found
        reply = y.value if isinstance(y, Total) else None


def gradients(method, at):
    """d loss / d parameter of the student's update."""
    update = next(y for y in yields(method, at) if isinstance(y, Update) and y.roles == "student")
    return torch.autograd.grad(update.loss, list(method.particles.parameters()), allow_unused=True)


def weights(of):
    """All that the next iteration of a loop depends on, but the global random states."""
    tensors, _ = of.state()
    return {f"{group}.{name}": v.clone() for group, named in tensors.items() for name, v in named.items() if group != "rng"}


def check_resumes(fresh, folder):
    """Five iterations of a loop over ``fresh()`` equal three, a checkpoint in the folder, and two of another loop, bit for bit."""
    whole, first, again = (loop(fresh(), folder=place) for place in (None, folder, None))
    for _ in range(5):
        whole.iterate()
    for _ in range(3):
        first.iterate()
    first.save()
    again.restore(checkpoints.load(folder / "checkpoints"))
    while again.step < 5:
        again.iterate()
    one, other = weights(whole), weights(again)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def tiny():
    return SimpleNamespace(
        task=task, make=make, batch=batch, loop=loop, yields=yields, gradients=gradients, weights=weights, bank=bank, Blob=Blob,
        check_resumes=check_resumes, Keyed=Keyed, NUMBERS=NUMBERS, LAW=LAW, SHAPE=SHAPE,
    )  # fmt: skip
