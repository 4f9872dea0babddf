"""Your own PyTorch network, made a one-step generator: `python examples/own_model.py` (about 3 minutes on a laptop).

A plain network, trained here a little as a rectified flow on a folder of pictures, is the slow teacher. The same job from
the command line, once this program has written pictures/ and teacher.pt (in the folder of this file):

    limbeck distill sid --teacher teacher.pt --network own_model:Net --data pictures --prediction velocity --process flow
"""

import math
import random
import sys
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional as F

import limbeck
from limbeck.tasks import load_pictures


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm, self.scale = nn.GroupNorm(4, outputs), nn.Linear(64, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, e):
        h = self.norm(self.first(x)) * (1 + self.scale(e)[..., None, None])
        return self.skip(x) + self.second(F.silu(h))


class Net(nn.Module):
    """The velocity e - x0 at x_t = (1 - t) x0 + t e, of RGB images (B, 3, 16, 16), times (B,) and labels (B,)."""

    def __init__(self, width=16, classes=2):
        super().__init__()
        self.label, self.embed = nn.Embedding(classes, 64), nn.Linear(64, 64)
        self.input, self.output = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.down, self.middle, self.up = Block(width, width), Block(width, 2 * width), Block(3 * width, width)

    def forward(self, x, t, label):
        angle = t[:, None] * math.pi * 2.0 ** torch.arange(-1, 4, 5 / 32, device=t.device)
        e = F.silu(self.embed(torch.cat([angle.cos(), angle.sin()], 1)) + self.label(label))
        fine = self.down(self.input(x), e)
        coarse = self.middle(F.avg_pool2d(fine, 2), e)
        return self.output(F.silu(self.up(torch.cat([fine, F.interpolate(coarse, scale_factor=2)], 1), e)))


def write_pictures(folder, count):
    """Random crops of scikit-learn's two photos, one subfolder per photo: the labels."""
    chance = random.Random(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        small = Image.fromarray(photo).resize((48, 32))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            left, top = chance.randint(0, 32), chance.randint(0, 16)
            small.crop((left, top, left + 16, top + 16)).save(folder / name / f"{i}.png")


def train(net, images, labels, iterations):
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        rows = torch.randint(len(images), (64,))
        x0, t = images[rows], torch.sigmoid(torch.randn(64))
        e = torch.randn_like(x0)
        x_t = torch.lerp(x0, e, t[:, None, None, None])
        loss = F.mse_loss(net(x_t, t, labels[rows]), e - x0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(f"teacher trained, last loss {loss.item():.3f}")


if __name__ == "__main__":
    quick = "--quick" in sys.argv  # a few seconds, to see that it runs
    torch.manual_seed(0)
    write_pictures(Path("pictures"), 20 if quick else 600)
    data, net = load_pictures("pictures"), Net()
    train(net, data.images, data.labels, 20 if quick else 2000)
    torch.save(net.state_dict(), "teacher.pt")
    run = limbeck.distill(
        "teacher.pt", method="sid", data="pictures", network="own_model:Net", prediction="velocity", process="flow",
        iterations=5 if quick else 250, teacher_nodes=3 if quick else 18,
        student={"lr": 5e-4}, critic={"lr": 1e-3}, batch=64,
    )  # fmt: skip
    x = run.sampler()(torch.randn(8, 3, 16, 16), {"label": torch.arange(8) % 2})  # one network call
    print(
        f"student {run.summary['student']}\nteacher {run.summary['teacher']}\n{tuple(x.shape)}; report: {run.path}/report.html"
    )
