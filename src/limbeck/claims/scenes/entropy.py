"""Entropic score distillation where everything is Gaussian: what lam does to the student's law, trained and by a root.

The teacher's data are N(m, P), the student's sample is x = mu + L z: z is the "camera". Told z, the law of x is a point; not told,
it is N(mu, Q), Q = L L^T. With w = s^2 the expected gradients are

(1) d/dmu = E_t s^3 a V_P^-1 (mu - m)                                    V_P = a^2 P + s^2 I
(2) d/dL  = E_t s^3 a (V_P^-1 - lam V_Q^-1) L

so that mu = m whatever lam is, and Q has P's eigenvectors and, for an eigenvalue p of P, the root q of
E_t s^3 a / (a^2 p + s^2) = lam E_t s^3 a / (a^2 q + s^2): p itself for lam = 1, less for less, and 0 where there is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.denoisers import Cond, GaussianDenoiser
from limbeck.noise import CosineVP, Process, spread
from limbeck.rules import DistributionMatching, Sample, surrogate

LAMS = (0.0, 0.25, 0.5, 0.75, 1.0)
TIMES = (0.02, 0.98)
MEAN, COVARIANCE = (1.0, -0.5), ((1.0, 0.4), (0.4, 0.5))


@dataclass
class RenderLaws:
    """The scores of A students' samples in closed form: arm i of the batch (B, d), B / A rows each, is N(mu_i, Q_i).

    cond {"render": (B, d)}: told the camera, a sample's law is the point that it is.
    """

    mu: Tensor
    Q: Tensor
    process: Process

    @property
    def null(self) -> dict[str, Tensor]:
        """Nothing is told."""
        return {}

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if cond:
            return cond["render"]
        arms = len(self.mu)
        x = x_t.unflatten(0, (arms, -1))
        a, s = (spread(c, x_t).unflatten(0, (arms, -1)) for c in (self.process.a(t), self.process.s(t)))
        V = a[..., None] ** 2 * self.Q[:, None] + s[..., None] ** 2 * torch.eye(x.shape[-1]).to(x)
        part = torch.linalg.solve(V, (x - a * self.mu[:, None])[..., None])
        return (self.mu[:, None] + a * (self.Q[:, None] @ part)[..., 0]).flatten(0, 1)


def trained(seed: int, steps: int = 1500, batch: int = 64, lr: float = 0.02) -> tuple[Tensor, Tensor]:
    """(mu (A, d), Q (A, d, d)) of students that followed the rule, one per lam of ``LAMS``; Adam, the rate decays to 0.

    All arms see the same noise.
    """
    m, P = (torch.tensor(value, dtype=torch.float64) for value in (MEAN, COVARIANCE))
    process, generator = CosineVP(), torch.Generator().manual_seed(seed)
    teacher = GaussianDenoiser.from_covariance(m, P, process)
    arms, d = len(LAMS), len(m)
    mu = torch.zeros(arms, d, dtype=torch.float64, requires_grad=True)
    L = torch.eye(d, dtype=torch.float64).repeat(arms, 1, 1).requires_grad_()
    guidance = (1 - torch.tensor(LAMS, dtype=torch.float64)).repeat_interleave(batch)
    optimizer = torch.optim.Adam([mu, L], lr, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    for _ in range(steps):
        half = torch.randn(2, batch // 2, d, dtype=torch.float64, generator=generator)
        z, eps = torch.cat([half, -half], 1).repeat(1, arms, 1)  # pairs, whose noise leaves mu alone
        t = TIMES[0] + (TIMES[1] - TIMES[0]) * torch.rand(batch // 2, dtype=torch.float64, generator=generator).repeat(2 * arms)
        x = (mu[:, None] + z.unflatten(0, (arms, batch)) @ L.mT).flatten(0, 1)
        critic = RenderLaws(mu.detach(), (L @ L.mT).detach(), process)
        rule = DistributionMatching(teacher, critic, critic_guidance=guidance, normaliser="vsd")
        pull = rule(Sample(x, {"render": x.detach()}, goal={}), t, eps)
        optimizer.zero_grad()
        (x.numel() * surrogate(x, pull.gradient) / batch).backward()
        optimizer.step()
        decay.step()
    return mu.detach(), (L @ L.mT).detach()


def times_and_weights(nodes: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """a^2, s^2 and s^3 a at the midpoints of ``nodes`` equal parts of ``TIMES``."""
    process = CosineVP()
    t = TIMES[0] + (TIMES[1] - TIMES[0]) * (torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes
    a, s = process.a(t), process.s(t)
    return a**2, s**2, s**3 * a


def stationary(lam: float, variances: Sequence[float]) -> list[float]:
    """The student's variance along each eigenvector of P, by bisection of (2); ``variances``: P's eigenvalues."""
    a2, s2, weight = times_and_weights()
    found = []
    for p in variances:
        aim = float((weight / (a2 * p + s2)).mean())
        low, high = 0.0, float(p)
        if lam * float((weight / s2).mean()) <= aim:
            high = 0.0  # the whole gradient is positive: it shrinks to a point
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if lam * float((weight / (a2 * middle + s2)).mean()) > aim else (low, middle)
        found.append((low + high) / 2)
    return found


def gaussian_figures(seed: int) -> dict[str, float]:
    """Trace of the student's covariance over the teacher's, trained and by the root, and the largest error of the mean."""
    mu, Q = trained(seed)
    m, P = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(COVARIANCE, dtype=torch.float64)
    variances = torch.linalg.eigvalsh(P)
    figures = {"gaussian mean error": float((mu - m).abs().max())}
    for i, lam in enumerate(LAMS):
        figures[f"gaussian trace ratio {lam:g}"] = float(Q[i].trace() / P.trace())
        figures[f"gaussian root {lam:g}"] = sum(stationary(lam, variances.tolist())) / float(P.trace())
    return figures
