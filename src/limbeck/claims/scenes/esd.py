"""Entropic score distillation: a face on every side, provoked, measured and cured (arXiv 2401.00909).

An exact image teacher knows 24 views of a head, and a prompt that says nothing of the view: five views from the front hold a share
of its law. Voxels learn from it by SDS and by ESD, at the same cost in calls of the teacher, and each of 24 renders is told which
view it is nearest to. Noise is high first: what a view becomes is decided while x_t still leaves it open. Limits: a law of views
that is nearly all front, low noise from the start, half of the entropy. Control: prompts for the view, which need no ESD.

Beside it: Gaussians, where lam's effect is known (:mod:`limbeck.claims.scenes.entropy`); and a trained critic, whose camera-free
answer is right only if cameras were dropped in its training.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.claims.claim import Check, Claim, Figures, at_least, at_most, medians
from limbeck.claims.scenes.entropy import LAMS, gaussian_figures
from limbeck.claims.scenes.turntable import turntable_task, view_figures
from limbeck.claims.scenes.voxels import Picture, looked_at, trained
from limbeck.denoisers import Cond, FiniteSetDenoiser
from limbeck.methods.scenes.esd import ESD, ESDOptions
from limbeck.networks import ResidualMLP
from limbeck.noise import spread
from limbeck.scenes import Cameras, angles
from limbeck.tasks.scenes.renders import RenderLibrary
from limbeck.tasks.scenes.task import CAMERA_NUMBERS, SceneTask
from limbeck.training import OptimizerOptions

OPTIONS: dict[str, Any] = {
    "iterations": 300, "batch": 6, "guidance": 1.0, "early": (0.8, 0.98), "late": (0.02, 0.7), "late_from": 0.7, "sparsity": 1.0,
    "student": OptimizerOptions(lr=0.05, betas=(0.9, 0.99)),
}  # fmt: skip
SDS: dict[str, Any] = {"lam": 0.0, "critic_kind": "dirac"}
USUAL: dict[str, Any] = {"early": (0.02, 0.98), "late": (0.02, 0.5), "late_from": 0.4}
# the share of the front views in the teacher's law (None: even; "told": a prompt for the view), and the options
ARMS: dict[str, tuple[float | str | None, dict[str, Any]]] = {
    "SDS": (0.5, SDS),
    "ESD 0.5": (0.5, {"lam": 0.5}),
    "ESD 1": (0.5, {"lam": 1.0}),
    "ESD 1, low noise from the start": (0.5, {"lam": 1.0, **USUAL}),
    "even SDS": (None, SDS),
    "even ESD 1": (None, {"lam": 1.0}),
    "0.8 SDS": (0.8, SDS),
    "0.8 ESD 1": (0.8, {"lam": 1.0}),
    "told SDS": ("told", SDS),
}
SMALL, STEPS, DROP = 8, 400, 0.1


def measure(seed: int) -> Figures:
    """One seed of all arms."""
    library = RenderLibrary.of_heads(1)
    figures: Figures = {}
    for arm in ARMS:
        renders = arm_renders(library, arm, seed)
        figures |= {f"{arm}: {name}": v for name, v in view_figures(renders, library.images[0], library.front()).items()}
    return {**figures, **gaussian_figures(seed), **learned_figures(seed)}


def arm_renders(library: RenderLibrary, arm: str, seed: int) -> Tensor:
    """24 renders of the scene that an arm makes of a seed."""
    share, changes = ARMS[arm]

    def goal(cameras: Cameras) -> Cond:
        if share == "told":
            return library.condition(len(cameras), 0, angles(cameras.position)[0])
        return library.condition(len(cameras), 0, front_share=None if share is None else float(share))

    method = trained(ESD(turntable_task(library, goal), ESDOptions(**{**OPTIONS, **changes}), seed), seed)
    return looked_at(method, library.cameras)[0]


# -- a critic that is trained -----------------------------------------------------------------------------------------


class Turning(nn.Module):
    """A scene that is done: the library's own picture of the view. Its one parameter changes nothing."""

    def __init__(self, library: RenderLibrary):
        super().__init__()
        self.library, self.nothing = library, nn.Parameter(torch.zeros(()))

    def forward(self, cameras: Cameras, background: Tensor | float = 1.0) -> Picture:
        views = len(self.library.cameras)
        place = (angles(cameras.position)[0] * views / 360).round().long() % views
        rgb = (self.library.images[0, place] + 1) / 2 + 0 * self.nothing
        full = torch.ones_like(rgb[:, :1])
        return Picture(rgb, full, full)


def learned_figures(seed: int) -> Figures:
    """How well the camera-free part of a network's answer fits the exact one, with cameras dropped in training and without."""
    library = RenderLibrary.of_heads(1, size=SMALL)

    def cameras(u: Tensor, step: int) -> Cameras:
        return library.cameras[((torch.arange(len(u)) + u[:, 0]) * len(library.cameras) / len(u)).long()]

    task = SceneTask(
        "turning", library.teacher(), library.shape, cameras, lambda seed: Turning(library),
        network=lambda: ResidualMLP(library.shape, width=128, blocks=3), sigma_data=float(library.images.std()),
    )  # fmt: skip
    figures: Figures = {}
    for name, drop in (("dropped", DROP), ("never dropped", 0.0)):
        o = ESDOptions(
            iterations=STEPS, batch=24, lam=0.0, critic_kind="network", critic_drop=drop,
            critic=OptimizerOptions(lr=3e-3, kind="adamw", warmup=20, clip=1.0, decay="cosine"),
        )  # fmt: skip
        method = trained(ESD(task, o, seed), seed)
        figures |= {f"cameras {name} {what}": v for what, v in agreement(method, library, seed).items()}
    return figures


@torch.no_grad()
def agreement(method: ESD, library: RenderLibrary, seed: int) -> Figures:
    """Cosines between the critic's camera-free answer and the exact law of all views: of the scores, at t in [0.4, 0.8], and of the
    clean pictures beside their mean, where views are mixed up, at t in [0.7, 0.98].
    """
    views, process = library.images[0], method.critic.process
    exact, nowhere = FiniteSetDenoiser(views, process), torch.zeros(8 * len(views), CAMERA_NUMBERS)
    generator, x = torch.Generator().manual_seed(seed), views.repeat(8, 1, 1, 1)
    found: Figures = {}
    for name, (low, high) in {"score": (0.4, 0.8), "picture": (0.7, 0.98)}.items():
        t = low + (high - low) * torch.rand(len(x), dtype=torch.float64, generator=generator)
        x_t = process.add_noise(x, torch.randn(x.shape, generator=generator), t)
        base = views.mean(0) if name == "picture" else spread(1 / process.a(t), x) * x_t
        known, learned = ((answer - base).flatten(1) for answer in (exact(x_t, t), method.critic(x_t, t, {"camera": nowhere})))
        scale = torch.ones_like(t) if name == "picture" else process.a(t) / process.s(t)
        found[name] = cosine(spread(scale, known) * known, spread(scale, learned) * learned)
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two tensors of one shape, over all of it."""
    return float(torch.cosine_similarity(a.flatten(), b.flatten(), 0))


def judge(runs: Sequence[Figures]) -> list[Check]:
    """The gates: medians over the seeds, differences within a seed."""
    m, gap = medians(runs), medians([gaps(run) for run in runs])
    return [
        at_least("half of the law in front, SDS: share of views seen as the front (true 0.21)", m["SDS: front"], 0.9),
        at_most("the same, ESD with lam 1", m["ESD 1: front"], 0.4),
        at_most("ESD over SDS: share of views seen as the front", gap["front"], -0.5),
        at_least("ESD over SDS: entropy of the labels, nats", gap["entropy"], 1.5),
        at_least("ESD over SDS: IV, nats", gap["IV"], 1.5),
        at_least("ESD over SDS: PSNR to the nearest pictures of the head, dB", gap["psnr"], 1.0),
        at_least("ESD: distinct views of 24", m["ESD 1: views"], 14),
        at_most("ESD: views out of order, degrees up to a rotation (a face everywhere: 90)", m["ESD 1: order"], 45),
        at_least("lam 0.5 over SDS: entropy of the labels, nats", gap["half"], 0.4, gated=False),
        at_most("lam 0.5: share of views seen as the front", m["ESD 0.5: front"], 0.9, gated=False),
        at_least("low noise from the start, over SDS: entropy of the labels, nats", gap["low"], 0.4, gated=False),
        at_most("the same: share of views seen as the front", m["ESD 1, low noise from the start: front"], 0.9, gated=False),
        at_least(
            "even law, SDS: share of views seen as the front (Janus without a bias)", m["even SDS: front"], 0.9, gated=False
        ),
        at_most("even law, ESD: the same share", m["even ESD 1: front"], 0.4),
        at_most(
            "limit: 0.8 of the law in front, ESD: share of views seen as the front", m["0.8 ESD 1: front"], 0.9, gated=False
        ),
        at_most("control: a prompt for the view, SDS: the same share", m["told SDS: front"], 0.3),
        at_least("control: the same, distinct views of 24", m["told SDS: views"], 18),
        at_most("Gaussian: trace of the student's covariance / the teacher's, lam 0", m["gaussian trace ratio 0"], 0.01),
        at_least("the same, lam 1", m["gaussian trace ratio 1"], 0.95),
        at_least("the same, least rise from one lam to the next, from 0.25 on", gap["rise"], 0.0),
        at_most("the same, largest distance from the root for any lam", gap["root"], 0.1),
        at_most("the same, error of the mean for any lam", m["gaussian mean error"], 0.01),
        at_least("trained critic without a camera: cosine to the exact score", m["cameras dropped score"], 0.7),
        at_least("the same of the clean picture, where views are mixed up", m["cameras dropped picture"], 0.4),
        at_least("control: the same over a critic whose cameras were never dropped", gap["dropped"], 0.3),
    ]


def gaps(run: Figures) -> Figures:
    """Differences within a seed."""
    ratio = [run[f"gaussian trace ratio {lam:g}"] for lam in LAMS]
    root = [run[f"gaussian root {lam:g}"] for lam in LAMS]
    return {
        **{name: run[f"ESD 1: {name}"] - run[f"SDS: {name}"] for name in ("entropy", "IV", "front", "psnr")},
        "half": run["ESD 0.5: entropy"] - run["SDS: entropy"],
        "low": run["ESD 1, low noise from the start: entropy"] - run["SDS: entropy"],
        "dropped": run["cameras dropped picture"] - run["cameras never dropped picture"],
        "root": max(abs(a - b) for a, b in zip(ratio, root, strict=True)),
        "rise": min(b - a for a, b in pairwise(ratio[1:])),
    }


CALIBRATION = (
    "6 seeds, about 34 CPU s each. Half of the law in front: SDS shows the front from 1.00 of the views in every seed, 2..4 distinct "
    "views, entropy 0.29..0.62 nats; ESD with lam 1 0.21..0.25 of them (true: 0.21), 19..22 distinct views, 2.87..3.06 nats (24 views: "
    "3.18), views 6..16 degrees out of order, PSNR 3.0..4.8 dB over SDS. With t from 0.7 instead of 0.8, for 60 per cent of the run, one "
    "seed of five stayed a Janus head. Every gate is more than 3 deviations of the seeds from its bound. Not shown: the paper's lam "
    "0.5 has more entropy (0.62..1.00 nats) but still only fronts; so has lam 1 with low noise from the start (0.90..1.26 nats), and "
    "with 0.8 of the law in front (1.38..1.53 nats; SDS 0.65..1.29). A law of views that is even does not save SDS: 3 seeds of 6 are "
    "Janus heads, the others whole; with lam 1 all are whole (0.13..0.17 in front, 21..23 views). A prompt for the view: 0.13..0.21, "
    "21..22 views, with SDS. Gaussians: trace up to 0.0013, up to 0.0031, 0.010..0.043, 0.315..0.358, 1.000 for lam 0, 0.25, 0.5, 0.75, "
    "1 (roots 0, 0, 0.015, 0.331, 1), the mean exact. Trained critic: cosine of the camera-free score 0.99, of its clean picture "
    "0.66..0.72, and 0.03..0.11 where cameras were never dropped (whose score still has 0.97: most of a score is the noise)."
)
CLAIM = Claim("esd", "2401.00909", measure, judge, calibration=CALIBRATION)
