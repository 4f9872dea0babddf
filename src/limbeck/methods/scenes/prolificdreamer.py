"""Variational score distillation: scenes whose renders have the teacher's law (ProlificDreamer, arXiv 2305.16213).

The student is a set of n scenes theta_i, the samples are what cameras c see of them, x = E(g(theta_i, c)), with E the teacher's
encoder. Two scores are compared at x_t = a_t x + s_t e: the teacher's, told the view, and that of the renders. y_c is the prompt
for the view of c, y the prompt alone:

(1) eps_T = eps(x_t, null) + w (eps(x_t, y_c) - eps(x_t, null))                    the teacher, guided
(2) eps_F = eps_F(x_t, y, no c) + g (eps_F(x_t, y, c) - eps_F(x_t, y, no c))       the renders' law, guided over the camera
(3) dL/dx = s_t^2 (eps_T - eps_F), t ~ U(early), later U(late)                     no gradient through either
(4) L = E <x, sg[dL/dx]> + regularisers                                            dL/dtheta = s_t^2 (eps_T - eps_F) dx/dtheta
(5) L_F = E |eps_F(a_t sg[x] + s_t e', t, y, c') - e'|^2                           c' = no camera with probability 0.1
(6) eps_F = e                                                                      SDS: one scene is a point, and this its score
(7) D_F = sum_k r_k x_k, r = softmax_k(-|x_t - a_t x_k|^2 / (2 s_t^2))             the exact critic: over renders k, from c or all

For one scene and g = 1, (7) is (6), to rounding; several scenes repel each other through (7), as long as x_t leaves it open whose
render it is. So they must meet noise that is high, and for long enough: with ``early`` down to 0.02 two of them that start
alike may end alike.

Differs from the paper / from its code: predictions are compared as x0, with the weights that make them eps, and at one
signal-to-noise ratio where teacher and critic have different schedules; a critic may predict v, as the paper's does, or anything
else. Critics with a closed form (7) and networks of their own are ours. A camera is c2w, row by row. Losses are sums over an
image's numbers, means over the batch. The paper updates one particle per iteration (``update="one"``); here all are, from the
same cameras, which (7) needs. A gradient that is not finite stops the run, where the code replaces it by 0.
"""

from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.losses import denoising_loss
from limbeck.methods.scenes.critics import CRITICS, exact_critic, same_camera
from limbeck.methods.scenes.options import SceneOptions
from limbeck.methods.scenes.particles import Look, particles_of, pictures
from limbeck.noise import DDPM, Process, TimeLaw, Uniform, UniformInteger
from limbeck.rules import DistributionMatching, Sample, surrogate
from limbeck.scenes import Cameras, Seen, binary_entropy, opaqueness, sparsity
from limbeck.tasks.scenes.task import SceneTask, camera_vector, check_encoder
from limbeck.training import Batch, Keyed, Method, OptimizerOptions, Role, Step, Total, Update
from limbeck.training.diagnostics import diversity


class Views(NamedTuple):
    """B cameras, their numbers within the iteration (B,), and the particles that they look at (B,)."""

    cameras: Cameras
    number: Tensor
    which: Tensor


_GRID = OptimizerOptions(lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
_ADAPTERS = OptimizerOptions(lr=1e-4, kind="adamw", betas=(0.9, 0.999), weight_decay=0.01, warmup=500)
_PAPER: dict[str, Any] = {
    "batch": 1, "update": "one", "critic_kind": "adapters", "student": _GRID, "critic": _ADAPTERS, "critic_times": (0.0, 1.0),
    "critic_weight": "v",
}  # fmt: skip
PRESETS = {
    "recommended": SceneOptions(),
    "sds": SceneOptions(critic_kind="dirac", guidance=100.0),  # (6)
    # stage 1; the paper's random backgrounds begin at iteration 2000, here at once
    "paper-nerf": SceneOptions(iterations=25_000, random_background=0.5, entropy=10.0, **_PAPER),
    "paper-nerf-4": SceneOptions(iterations=100_000, particles=4, random_background=0.5, entropy=10.0, **_PAPER),
    # stage 2 takes SDS for the geometry, stage 3 colours of a mesh that stays
    "paper-geometry": SceneOptions(
        iterations=15_000, batch=1, critic_kind="dirac", guidance=100.0, early=(0.02, 0.5), late_from=1.0,
        student=OptimizerOptions(lr=5e-3, betas=(0.9, 0.99), eps=1e-15),
    ),
    "paper-texture": SceneOptions(iterations=30_000, **{**_PAPER, "early": (0.02, 0.5), "late_from": 1.0}),
}  # fmt: skip


class ProlificDreamer(Method):
    """See the module. Roles: ``student``, the particles; ``teacher``; ``critic`` where one is trained.

    Raises LimbeckError where encoded renders have not the shape of the teacher's data.
    """

    options: SceneOptions

    def __init__(self, task: SceneTask, options: SceneOptions = PRESETS["recommended"], seed: int = 0):
        torch.manual_seed(seed)
        self.task, self.options, self.teacher = task, options, task.teacher
        self.particles = particles_of(task, options.particles, seed)
        self.roles = {
            "teacher": Role(task.teacher),
            "student": Role(self.particles, options.student, rates=self.particles.rates),
        }
        self.critic: Any = None
        if options.critic_kind in CRITICS:
            self.critic = CRITICS[options.critic_kind](task, options)
            self.roles["critic"] = Role(self.critic, options.critic)
        law = self.critic or self.teacher
        self.times = tuple(time_law(law.process, *share) for share in (options.early, options.late))
        self.critic_times = time_law(law.process, *options.critic_times)
        self._checked = False

    @classmethod
    def on(cls, task: Any, options: Any, seed: int) -> "ProlificDreamer":
        return cls(task, options, seed)

    def step(self, batch: Batch) -> Step:
        views = self.views(batch)
        sample, looks = self.produce(batch, views)
        t, eps = self.time(batch), self.normal(batch, "score noise", sample.x)
        rule, sample = yield from self.compared(batch, sample, views)
        pull = rule(sample, t, eps, batch.step)  # (3)
        loss = prod(self.task.shape) * surrogate(sample.x, pull.gradient) + self.regularisers(looks)  # (4)
        yield Update("student", loss, {**pull.logs, "diversity": diversity(sample.x)})
        if self.critic is not None:
            for k in range(self.options.critic_steps):
                yield Update("critic", self.critic_loss(batch, sample.detach(), k))

    # -- the producer -------------------------------------------------------------------------------------------------

    def views(self, batch: Batch) -> Views:
        """This batch's cameras, drawn for the whole iteration, so that its parts see what it would see."""
        o, size = self.options, batch.stride or batch.size
        first = int(batch.index[0]) // size * size
        shared = 1 if o.update == "one" else o.particles
        whole = Keyed(batch.seed, batch.step, torch.arange(first, first + size, shared), batch.device)
        number = (batch.index - first).to(batch.device) // shared
        u = whole.uniform("camera", (self.task.numbers,)).to(torch.get_default_dtype())
        cameras = self.task.cameras(u, batch.step)[number]
        if o.update == "one":
            which = torch.full_like(number, batch.noise.shared_randint("particle", 0, o.particles))
        else:
            which = (batch.index - first).to(batch.device) % o.particles
        return Views(cameras, number, which)

    def produce(self, batch: Batch, views: Views) -> tuple[Sample, list[Look]]:
        """Encoded renders with what critic and teacher are told of them, and what the cameras saw."""
        cameras, _, which = views
        looks = self.particles(cameras, which, self.background(batch, views))
        images = pictures(looks)
        if not self._checked:
            check_encoder(self.task, images)
            self._checked = True
        goal = self.task.goal(cameras) or {}  # the teacher is told nothing of what the critic is told
        return Sample(self.task.encode(images), self.told(cameras), goal=goal), looks

    def background(self, batch: Batch, views: Views) -> Tensor:
        """Behind every render, (B, 3) in [0, 1]; random ones are one to a camera."""
        share, (cameras, number, _) = self.options.random_background, views
        plain = torch.as_tensor(self.task.background, device=batch.device, dtype=cameras.c2w.dtype).expand(batch.size, 3)
        if share == 0:
            return plain
        size = batch.stride or batch.size
        key = replace(batch.noise, index=int(batch.index[0]) // size * size + number.cpu())
        u = key.uniform("background", (4,)).to(plain)
        return torch.where(u[:, :1] < share, u[:, 1:], plain)

    def told(self, cameras: Cameras) -> Cond | None:
        """What a trained critic is told; one in closed form needs none of it."""
        if self.critic is None:
            return None
        return {**(self.task.cond(cameras) or {}), "camera": camera_vector(cameras)}

    def regularisers(self, looks: list[Look]) -> Tensor:
        """The weighted penalties, means over all pixels (and samples on their rays)."""
        rows = sum(len(look.rows) for look in looks)
        return torch.stack([len(look.rows) / rows * self.penalty(look.seen) for look in looks]).sum()

    def penalty(self, seen: Seen) -> Tensor:
        """Of what some cameras see. Raises LimbeckError for entropy without weights on rays."""
        o, total = self.options, seen.opacity.new_zeros(())
        if o.sparsity > 0:
            total = total + o.sparsity * sparsity(seen.opacity)
        if o.opaque > 0:
            total = total + o.opaque * opaqueness(seen.opacity)
        if o.entropy > 0:
            weights = getattr(seen, "weights", None)
            if weights is None:
                raise LimbeckError(f"entropy={o.entropy:g} is of samples on rays, which these scenes have not; leave it at 0")
            total = total + o.entropy * binary_entropy(weights)
        return total

    # -- the two scores -----------------------------------------------------------------------------------------------

    def compared(self, batch: Batch, sample: Sample, views: Views) -> Any:
        """Returns this iteration's rule, and the sample with what its critic is told; may yield totals."""
        o, (cameras, number, _) = self.options, views
        critic, without = self.critic, None
        if o.critic_kind == "exact":  # (7)
            renders, taken = yield from self.gathered(batch, sample.x, number)
            critic = exact_critic(renders, self.teacher.process)
            sample = replace(sample, cond=same_camera(number, taken))
        elif critic is not None:
            without = camera_free(sample.cond)
        rule = DistributionMatching(  # (1) and (2); without a critic (6)
            self.teacher, critic, guidance=o.guidance, critic_guidance=self.camera_guidance, normaliser="vsd",
            negative=self.task.negative(cameras), critic_negative=without,
        )  # fmt: skip
        return rule, sample

    @property
    def camera_guidance(self) -> float:
        """g of (2)."""
        return self.options.critic_guidance

    def gathered(self, batch: Batch, x: Tensor, number: Tensor) -> Any:
        """Returns all renders of the iteration and their cameras' numbers, from this part's: the others add theirs."""
        size = batch.stride or batch.size
        place = batch.index.to(batch.device) % size
        own = x.new_zeros(size, prod(self.task.shape) + 1).double()
        own[place] = torch.cat([x.detach().flatten(1).double(), number[:, None].double()], 1)
        found = yield Total(own)
        return found[:, :-1].reshape(size, *self.task.shape), found[:, -1].long()

    # -- a trained critic ---------------------------------------------------------------------------------------------

    def critic_loss(self, batch: Batch, sample: Sample, k: int) -> Tensor:
        """(5), the k-th time: on the iteration's renders, with new noise."""
        o = self.options
        t = self.critic_times(batch.noise.uniform("critic time", call=k))
        eps = self.normal(batch, "critic noise", sample.x, k)
        dropped = batch.noise.uniform("critic drop", call=k) < o.critic_drop
        cond = {**(sample.cond or {})}
        cond["camera"] = torch.where(dropped[:, None], 0.0, cond["camera"])
        return denoising_loss(self.critic, sample.x, t, eps, cond, weight=o.critic_weight, sigma_data=self.task.sigma_data)

    # -- noise --------------------------------------------------------------------------------------------------------

    def time(self, batch: Batch) -> Tensor:
        """Where the scores are compared, (B,)."""
        late = batch.step >= self.options.late_from * self.options.iterations
        return self.times[late](batch.noise.uniform("score time"))

    def normal(self, batch: Batch, stream: str, like: Tensor, call: int = 0) -> Tensor:
        """Standard normal noise (B, *shape) in the dtype of the renders."""
        return batch.noise.normal(stream, self.task.shape, like.dtype, call=call)


def camera_free(cond: Cond | None) -> Cond:
    """The same prompt without a camera."""
    return {name: torch.zeros_like(value) if name == "camera" else value for name, value in (cond or {}).items()}


def time_law(process: Process, low: float, high: float) -> TimeLaw:
    """U(low, high) in shares of a schedule; of a table all steps between them, both included (20 to 980 of 1000)."""
    if isinstance(process, DDPM):
        last = process.steps - 1
        return UniformInteger(min(round(low * process.steps), last), min(round(high * process.steps), last))
    return Uniform(
        process.t_min + low * (process.t_max - process.t_min), process.t_min + high * (process.t_max - process.t_min)
    )


METHOD, OPTIONS = ProlificDreamer, SceneOptions
__all__ = ["PRESETS", "ProlificDreamer", "SceneOptions", "camera_free", "time_law"]
