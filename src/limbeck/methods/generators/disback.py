"""DisBack: any score distillation, towards one ever better teacher after another (arXiv 2408.15991).

At first the student's samples lie where the teacher has no mass and its score is not reliable. A copy D' of the teacher learns
these samples; what it was on the way is the student's way back.

(1) D'_0 = D_T;  D' <- min E w(t) |D'(x_t, t, c) - x|^2,  x = G_0(z, c)          K1 iterations on the untrained student
(2) D'_1, ..., D'_N: D' after every m iterations, all or those at equal drops of (1)
(3) D_F <- D'_N                                                                   the critic starts as the last of them
(4) D_T <- D'_i,  i = max(N - 1 - floor((k - K1) / K2), 0)                        the host's teacher at iteration k >= K1
(5) the losses of the host (DMD, SiD, or any other score distillation), D_F learning on throughout

Here D' is the host's critic before the student moves: (1) is the critic's own loss, rate and schedule, and (3) needs no copy.
So ``targets="teacher"``, which leaves (4) out, is the host with ``student_after`` = K1, bit for bit: the control that says
what the intermediate teachers add to a critic that starts warm. N = 1 is the same. ``"forward"`` takes the nodes the wrong way
round before the teacher. One iteration is ``critic_steps`` updates of D' in stage 1. K1, m and K2 count iterations.

Differs from the paper / from its code: K2 is fixed instead of "until convergence" (the code's choice too). The published code
loads the path's checkpoints with names that do not match and silently keeps the teacher; here names that do not match are an
error. Adam's averages go on from stage 1 to stage 2. A discriminator, where the host has one, learns in stage 1 too.

What was found here, on a ring of Gaussians with a far student (see the claim): the warm critic of (3) alone is faster than the
host; the intermediate teachers of (4) cost time, nodes at equal drops of the loss less than half of it; and DMD's normaliser
alone brings nearly as much. Try ``targets="teacher"`` first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.methods import find
from limbeck.methods.generators.backtracking import (
    Backtracking,
    Degradation,
    chosen_nodes,
    fingerprint,
    load_path,
    put_weights,
    record_path,
    retarget,
    trained_weights,
)
from limbeck.methods.generators.generator import Generator, Ingredients
from limbeck.methods.generators.options import ScoreOptions, dmd2_rate
from limbeck.methods.generators.score import ScoreDistillation
from limbeck.samplers import Chain, Rollout
from limbeck.tasks import refuse_code
from limbeck.training import Batch, EmaOptions, Role, Step, Total, Update
from limbeck.training.options import options_from_dict


@dataclass(frozen=True)
class DisBackOptions(ScoreOptions):
    """Options of DisBack: those of all score methods, which go to the host, and the path. Not tried on the digits."""

    host: str = "dmd"
    """Which score distillation."""
    host_options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Options that the host alone has, names and values by turns."""
    degrade: int = 80
    """K1: iterations in which the teacher's copy learns the untrained student."""
    every: int = 10
    """m: iterations between two recorded copies."""
    nodes: int | None = None
    """N: how many of them the path has (None: all)."""
    spacing: Literal["iteration", "loss"] = "iteration"
    """Nodes at equal numbers of iterations, or at equal drops of the loss (then record more of them than nodes)."""
    interval: int = 30
    """K2: iterations towards each target; the last, the teacher itself, stays to the end."""
    targets: Literal["backward", "teacher", "forward"] = "backward"
    """The path back; the teacher alone (control: a warm critic and nothing else); the path the wrong way round (ablation)."""
    record: str | None = None
    """A folder to write the path to."""
    path: str | None = None
    """A folder with the path of an earlier run, instead of stage 1."""

    def __post_init__(self):
        super().__post_init__()
        if self.path is not None and self.record is not None:
            raise LimbeckError(
                f"record={self.record} has nothing to write where the path is read from {self.path}; give one of them"
            )
        if self.student_after != 0:
            raise LimbeckError(
                f"student_after={self.student_after}: the student is frozen for the degrade={self.degrade} iterations in which "
                "its path is made, and trained from then on; leave student_after at 0 and set degrade"
            )
        if self.interval < 1 or self.every < 1 or self.degrade < self.every or self.degrade % self.every:
            raise LimbeckError(
                f"degrade={self.degrade} must be a multiple of every={self.every}, and every and interval={self.interval} at least 1"
            )
        if self.nodes is not None and not 1 <= self.nodes <= self.degrade // self.every:
            raise LimbeckError(f"nodes={self.nodes} must lie in 1..{self.degrade // self.every}, the copies that are recorded")


_RATE = dmd2_rate(5e-7)
PRESETS = {
    "recommended": DisBackOptions(),
    "paper-sdxl": DisBackOptions(
        iterations=20_200, batch=64, student=_RATE, critic=_RATE, discriminator=_RATE, critic_steps=5, guidance=8.0,
        sigmas=(1.1606,), begin="unit", score_low=0.13799, score_high=13.0431, score_law="uniform", critic_law="process",
        critic_weight="eps", gan_weight=5e-3, gan_critic_weight=1e-2, gan_on="critic", ema=EmaOptions("constant", 0.9999),
        degrade=200, every=20, interval=200,
    ),
}  # fmt: skip
"""paper-sdxl: the published script's 100,000 steps with the student at every fifth, so K1 = K2 = 1,000 steps and m = 100 are a
fifth here. Unverified: batch and average, and everything of the paper's other tables."""


class DisBack(Generator):
    """See the module. ``given``: as the host takes it. Raises LimbeckError for a host that is no score distillation, options
    that it does not have, a path that does not fit, and intervals that leave no time for the teacher itself."""

    def __init__(self, parts: Ingredients, options: DisBackOptions = PRESETS["recommended"], **given: Any):
        o = self.options = options
        entry: Any = find(o.host)
        host, options_of_host, _ = entry.load() if entry.module else (None, dict, None)
        if not (isinstance(host, type) and issubclass(host, ScoreDistillation)):
            raise LimbeckError(f"{o.host} is no score distillation, whose teacher could be another; choose e.g. dmd or sid")
        self.start = o.degrade if o.path is None else 0
        shared = {f.name: getattr(o, f.name) for f in fields(ScoreOptions)} | {"student_after": self.start}
        self.host = host(
            parts, options_from_dict(options_of_host, {**shared, **o.host_options}, f"host_options of {o.host}"), **given
        )
        if getattr(self.host, "phases", None) is not None:
            raise LimbeckError(
                f"{o.host} makes a critic per phase, and a path is what one critic was on the way: take another producer or host"
            )
        super().__init__(parts, o.sigmas, self.host.student, renoise=o.renoise, begin=o.begin)
        self.draws = self.host.draws
        self.losses: list[float] = []
        if o.record is not None:
            refuse_code(o.record, "the folder to write the path to,")
        self.recorded: list[dict[str, Tensor]] = []
        self.path = Degradation(parts.teacher, self.host.critic)
        if o.path is not None:
            self.path.weights, self.losses = load_path(o.path, parts.teacher, self.host.critic, self._student())
            put_weights(self.host.critic, self.path.weights[-1])  # (3)
        self.roles = {**self.host.roles, "target": Role(self.path.holder)}
        if o.record is not None:
            self.whole = "its path is written down as it is made"
        self.count = len(self.path.weights) or o.nodes or o.degrade // o.every  # N
        self.target = self._target()
        retarget(self.host, self.target)  # (4)
        self._loss = 0.0

    def _student(self) -> str:
        o = self.options
        return fingerprint(self.host.student, o.sigmas, o.renoise, o.begin)

    def _target(self) -> Backtracking:
        """The order of (4), checked."""
        o, n = self.options, self.count
        if o.targets == "teacher":
            return Backtracking(self.path, [], [0])
        left = max(o.iterations - self.start - (n - 1) * o.interval, 0)
        if left < o.interval:
            raise LimbeckError(
                f"the true teacher would be used for {left} iterations only, after {n - 1} others of interval={o.interval} each "
                f"(iterations={o.iterations}); lower interval or raise iterations"
            )
        order = range(1, n) if o.targets == "forward" else range(n - 1, 0, -1)
        return Backtracking(self.path, [self.start + o.interval * j for j in range(1, n)], [*order, 0])

    def step(self, batch: Batch) -> Step:
        steps, reply, learned = self.host.step(batch), None, False
        while True:
            try:
                y = steps.send(reply)  # (5)
            except StopIteration:
                return
            if batch.step < self.start and isinstance(y, Update):
                if "student" in y.roles:
                    raise LimbeckError(
                        f"{self.options.host} trains its student at step {batch.step}, while its path is made until step "
                        f"{self.start}: it must stay as it is; a host heeds student_after"
                    )
                if "critic" in y.roles and not learned:  # (1), as it was before this iteration's updates
                    learned, size = True, torch.full_like(y.loss, batch.size, dtype=torch.float64)
                    total = yield Total(torch.stack([y.loss.detach().double() * size, size]).detach())
                    assert total is not None
                    self._loss = float(total[0] / total[1])
            reply = yield y

    def finish(self, step: int) -> None:
        self.host.finish(step)
        if step >= self.start:
            return
        self.losses.append(self._loss)
        if (step + 1) % self.options.every == 0:
            self.recorded.append(trained_weights(self.host.critic))
        if step + 1 == self.start:
            self._settle()

    def _settle(self) -> None:
        o = self.options
        nodes = chosen_nodes(self.losses, o.every, self.count, o.spacing)  # (2)
        self.path.weights, self.recorded = [self.recorded[i] for i in nodes], []
        if o.record is not None and self.writes:
            record_path(o.record, self.path, self.losses, self._student())

    def state(self) -> dict[str, Tensor]:
        """The host's, the losses, and the path where no folder holds it."""
        tensors = {f"host/{name}": value for name, value in self.host.state().items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        in_folder = self.options.record is not None or self.options.path is not None
        if not (in_folder and self.path.weights):
            for i, weights in enumerate(self.path.weights or self.recorded):
                tensors |= {f"node/{i}/{name}": value for name, value in weights.items()}
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.host.load_state({n.removeprefix("host/"): v for n, v in state.items() if n.startswith("host/")})
        self.losses = state["losses"].tolist()
        nodes: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            kind, _, rest = name.partition("/")
            if kind == "node":
                i, _, own = rest.partition("/")
                nodes.setdefault(int(i), {})[own] = value.to(next(self.student.parameters()).device)
        kept = [nodes[i] for i in sorted(nodes)]
        if len(self.losses) < self.start:
            self.recorded = kept
        elif self.options.record is not None:
            self.path.weights = load_path(self.options.record, self.path.teacher, self.host.critic)[0]
        elif self.options.path is None:
            self.path.weights = kept

    @property
    def sampling(self) -> Rollout | Chain:
        return self.host.sampling

    def sampler(self, ema: bool = True, steps: int | None = None) -> Callable[..., Tensor]:
        return self.host.sampler(ema, steps)


METHOD, OPTIONS = DisBack, DisBackOptions
__all__ = ["PRESETS", "DisBack", "DisBackOptions"]
