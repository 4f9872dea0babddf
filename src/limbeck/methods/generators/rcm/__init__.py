"""rCM: continuous-time consistency with a small distribution matching term (arXiv 2510.08431), and sCM (arXiv 2410.11081).

TrigFlow: x_t = cos t x_0 + sin t e, t in [0, pi/2], data of unit standard deviation; F is the velocity, the consistency
function f(x, t) = cos t x - sin t F. F^- is F without gradient, F_T the teacher's velocity (guided at w), x_0 data.

(1) dF = cos t sin t dF^-/dt along (F_T, 1)                                        one Jacobian-vector product
(2) g = -cos t sqrt(1 - r^2 sin^2 t) (F^- - F_T) - r cos t sin t x_t - dF,  r = min(1, i/H)
(3) g <- g / (|g| + c)
(4) L_sCM = |F(x_t, t) - F^- - g|^2,  ln tan t ~ p_G                               its value says nothing: log |g| of (2)
(5) x <- f(x_{t_n}, t_n), n = 1..N, N ~ U{1..N_max}: t_1 = pi/2, t_n = min(t^ ~ p_D, t_{n-1}); the last call alone has a gradient
(6) g' = (f_F - f_T) / mean|x - f_T| at x_t, t ~ p_D;  L_DMD = |x - sg[x - g']|^2  from i > H on
(7) L = L_sCM + lambda L_DMD
(8) L_F = |x - f_F(x_t, t)|^2 / sin^2 t                                            critic: the error of its velocity
(9) x <- cos t' f(x, t) + sin t' e'                                                the sampler's steps, k <= 4 (or 8)

Iteration i is the student's where i <= H or i mod F_q = 0, else the critic's. lambda = 0 (preset ``scm``) has no critic and is
sCM; without L_sCM it is DMD, and needs no data. Student and critic start as the teacher and stay what it is, a denoiser in its
own process: TrigFlow is how it is looked at. Any teacher will do: another process is met at equal signal-to-noise ratio.

Options: sCM's own warm-up; |g| under one root with c, or g clamped; F_T of the sample instead of a teacher's (sCT); the
derivative by differences, whole or in time alone; discrete consistency on a grid (``jvp="dcm"``), without any derivative.

lambda depends on the size of the data: g of (3) has a length below 1 per sample, g' of (6) one that grows with the root of
its numbers. The paper's 0.01, on a video's two million, weighs about as much as 2 on 64 numbers or 10 on two.

Differs from the paper / from its code: losses are means over elements, not sums, in both terms alike, so lambda is the
paper's. Both go through one backward pass; the code makes two to save memory. (6) divides by mean + 1e-6, not by
max(mean, 1e-5). Samples whose tangent or pull is not finite count nothing, and their share is logged. Iteration and r start
at 0. The paper-wan presets draw p_G for 21 latent frames, the code's mean of 0.7; for 14B the code has 1.5 and no warm-up.
"""

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Denoiser, derivative, in_process
from limbeck.errors import LimbeckError
from limbeck.losses import (
    angle,
    consistency_loss,
    consistency_tangent,
    continuous_loss,
    denoising_loss,
    normalise_tangent,
    squared,
    trig_velocity,
)
from limbeck.methods.generators.generator import Generator, Ingredients, check_guidance, first_rows, trained_copy
from limbeck.methods.generators.rcm.options import PRESETS, RCMOptions, flow_angle
from limbeck.networks import RngCapture
from limbeck.noise import TrigFlow, linear_grid, spread
from limbeck.rules import DistributionMatching, Sample, ScoreRule, surrogate
from limbeck.training import Batch, Role, Step, Update
from limbeck.training.diagnostics import diversity
from limbeck.training.failure import NotFinite

Logs = dict[str, Tensor | float]


class RCM(Generator):
    """See the module. ``parts.images`` is needed where ``scm_weight`` > 0."""

    def __init__(self, parts: Ingredients, options: RCMOptions = PRESETS["recommended"]):
        o, sd = options, parts.sigma_data
        _check_data(parts, o)
        check_guidance(parts.teacher, o.guidance)
        sigmas = tuple(sd * torch.tensor(o.angles[: o.steps], dtype=torch.float64).tan())
        super().__init__(parts, tuple(float(s) for s in sigmas))  # (9), in the student's own process
        self.options = o
        self.flow = TrigFlow(sd)
        self.f: Denoiser = in_process(self.student, self.flow)
        self.teacher: Denoiser = in_process(parts.teacher, self.flow)
        self.roles = {"teacher": Role(parts.teacher), "student": Role(self.student, o.student, o.ema)}
        self.rule: DistributionMatching | None = None
        if o.dmd_weight > 0:
            critic = trained_copy(parts.begin)
            self.critic: Any = in_process(critic, self.flow)
            self.roles["critic"] = Role(critic, o.critic)
            self.rule = DistributionMatching(self.teacher, self.critic, guidance=o.guidance)
        if o.scm_weight > 0 and o.jvp != "dcm":  # fail before anything is trained
            x, cond = first_rows(parts)
            t = torch.full((len(x),), 0.5, dtype=torch.float64, device=x.device)
            self.derivative(x / sd, t, torch.zeros_like(x), cond, RngCapture(x.device))

    def step(self, batch: Batch) -> Step:
        o, i = self.options, batch.step
        if not o.trains_student(i):
            with torch.no_grad():
                sample = self.samples(batch)
            yield Update("critic", self.critic_loss(batch, sample))
            return
        losses: list[Tensor] = []
        logs: Logs = {}
        if o.scm_weight > 0:
            loss, logs = self.consistency(batch) if o.jvp != "dcm" else self.discrete_consistency(batch)
            losses.append(o.scm_weight * loss)
        if self.rule is not None and (i > o.warmup or o.scm_weight == 0):
            loss, more = self.matching(batch, self.rule)
            losses.append(o.dmd_weight * loss)
            logs |= more
        yield Update("student", torch.stack(losses).sum(), logs)  # (7)

    def finish(self, step: int) -> None:
        if not self.options.trains_student(step):  # the average's length is in iterations, all of them
            self.roles["student"].update_ema(step + 1)

    # -- consistency --------------------------------------------------------------------------------------------------

    def consistency(self, batch: Batch) -> tuple[Tensor, Logs]:
        """L_sCM of (4) on the batch's data."""
        o, sd = self.options, self.sigma_data
        assert batch.x is not None
        x0, e = batch.x / sd, self.normal(batch, "noise")
        t = angle(o.p_G(batch.noise.uniform("time")))
        cos, sin = spread(t.cos(), x0), spread(t.sin(), x0)
        x_t, rng = cos * x0 + sin * e, RngCapture(x0.device)
        with torch.no_grad():
            if o.velocity == "teacher":
                F_T = trig_velocity(self.teacher, x_t, t, batch.cond, o.guidance, sigma_data=sd)
            else:
                F_T = cos * e - sin * x0
        still, dF = self.derivative(x_t, t, F_T, batch.cond, rng)  # (1)
        r = min(1.0, batch.step / o.warmup) if o.warmup else 1.0
        g = consistency_tangent(still, F_T, x_t, t, dF, r, o.warmup_form)  # (2)
        finite = _finite(g - still, "tangent")
        length = g.double().flatten(1).norm(dim=1)
        kept = spread(finite.double(), x_t).bool()
        g, still, x_t = (torch.where(kept, y, 0.0) for y in (normalise_tangent(g, o.normalisation, o.c), still, x_t))  # (3)
        F = torch.where(kept, trig_velocity(self.f, x_t, t, batch.cond, sigma_data=sd), 0.0)
        speed = (length / t.cos())[finite].mean() if bool(finite.any()) else length.new_zeros(())
        return continuous_loss(F, still, g), {"df_dt": speed, "nonfinite": 1 - finite.double().mean()}  # (4)

    def derivative(self, x_t: Tensor, t: Tensor, F_T: Tensor, cond: Any, rng: RngCapture) -> tuple[Tensor, Tensor]:
        """(F^-, cos t sin t dF^-/dt along (F_T, 1)) in units of sigma_data, under one dropout mask."""
        o = self.options
        return derivative(
            lambda x, t: trig_velocity(self.f, x, t, cond, sigma_data=self.sigma_data),
            x_t, t, F_T, t.cos() * t.sin(), network=self.student, form=o.jvp, h=o.h, attention=o.attention, rng=rng,
        )  # fmt: skip

    def discrete_consistency(self, batch: Batch) -> tuple[Tensor, Logs]:
        """|f(x_t, t) - sg f(x_t', t')|^2 between neighbours of a grid, x_t' = cos(t - t') x_t - sin(t - t') F_T."""
        o, sd = self.options, self.sigma_data
        assert batch.x is not None
        grid = angle(flow_angle(linear_grid(o.dcm_points, shift=o.dcm_shift))).to(batch.x.device)
        grid = torch.cat([grid, angle(grid.new_zeros(1))])
        n = batch.noise.randint("time", 0, o.dcm_points)
        t, t_low, e = grid[n], grid[n + 1], self.normal(batch, "noise")
        x_t = self.flow.add_noise(batch.x, e, t)
        with torch.no_grad():
            if o.velocity == "teacher":
                F_T = sd * trig_velocity(self.teacher, x_t / sd, t, batch.cond, o.guidance, sigma_data=sd)
            else:
                F_T = self.flow.convert(e, x_t, t, "eps", "velocity")
            x_low = spread((t - t_low).cos(), x_t) * x_t - spread((t - t_low).sin(), x_t) * F_T
        return consistency_loss(self.f, self.f, x_t, t, x_low, t_low, batch.cond, distance=squared) / sd**2, {}

    # -- distribution matching ----------------------------------------------------------------------------------------

    def samples(self, batch: Batch) -> Sample:
        """The student's samples, (5)."""
        o = self.options
        count = batch.noise.shared_randint("steps", 1, o.rollout_steps + 1)
        start = math.pi / 2 if o.rollout_start is None else math.atan(o.rollout_start)
        t = angle(torch.full((batch.size,), start, dtype=torch.float64, device=batch.device))
        z = self.normal(batch, "z")
        x_t = spread(self.flow.s(t), z) * z
        with torch.no_grad():
            for n in range(1, count):
                x = self.f(x_t, t, batch.cond)
                t = torch.minimum(angle(o.p_D(batch.noise.uniform("renoise time", call=n))), t)
                x_t = self.flow.add_noise(x, self.normal(batch, f"renoise {n}"), t)
        return Sample(self.f(x_t, t, batch.cond), batch.cond)

    def matching(self, batch: Batch, rule: ScoreRule) -> tuple[Tensor, Logs]:
        """A loss with the gradient of L_DMD of (6)."""
        sample = self.samples(batch)
        t, eps = angle(self.options.p_D(batch.noise.uniform("score time"))), self.normal(batch, "score noise")
        pull = rule(sample, t, eps, batch.step)
        finite = _finite(pull.gradient, "score difference")
        g = torch.where(spread(finite.double(), sample.x).bool(), pull.gradient, 0.0)
        loss = 2 * surrogate(sample.x / self.sigma_data, g)  # (6)
        dropped = {"nonfinite pulls": 1 - finite.double().mean()}
        return loss, {**pull.logs, "diversity": diversity(sample.x), **dropped}

    def critic_loss(self, batch: Batch, sample: Sample) -> Tensor:
        """L_F of (8) on the student's samples."""
        t, eps = angle(self.options.p_D(batch.noise.uniform("critic time"))), self.normal(batch, "critic noise")
        loss = denoising_loss(self.critic, sample.x, t, eps, sample.cond, weight="velocity")  # (8)
        return loss / self.sigma_data**2


def _check_data(parts: Ingredients, options: RCMOptions) -> None:
    if options.scm_weight == 0:
        return
    if not parts.images:
        raise LimbeckError(
            "the consistency term starts from data x_0, and there are none: give data, give samples of the teacher as data "
            "(a set that it made once will do), or set scm_weight to 0, which leaves distribution matching"
        )
    measured = float(parts.example.double().std())
    if not 0.5 < measured / parts.sigma_data < 2:
        raise LimbeckError(
            f"sigma_data={parts.sigma_data:g}, but the data's standard deviation is {measured:.3g}: times and tangents are in "
            "units of sigma_data; scale the data (latents) to it, or set sigma_data to what they have"
        )


def _finite(g: Tensor, what: str) -> Tensor:
    """Which samples (B,) of g (B, ...) are finite: a few may drop out. Raises NotFinite where none is left to learn from."""
    finite = g.isfinite().flatten(1).all(1)
    if not bool(finite.any()):
        raise NotFinite("student", f"{what} of all {len(g)} samples", float(g[~g.isfinite()][0]))
    return finite


METHOD, OPTIONS = RCM, RCMOptions
__all__ = ["PRESETS", "RCM", "RCMOptions"]
