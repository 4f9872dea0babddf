"""Options of Hyper-SD and the stages that they plan: schedules are functions of the step alone."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

from limbeck.errors import LimbeckError
from limbeck.training import EmaOptions, OptimizerOptions


@dataclass(frozen=True)
class Stage:
    """One stage of a run: iterations start..end-1, ``segments`` k and ``grid`` N of its consistency loss, weights of its terms."""

    index: int
    name: str
    kind: Literal["consistency", "reward", "score"]
    segments: int
    grid: int
    w_mse: float
    w_adv: float
    start: int
    end: int


@dataclass(frozen=True)
class HyperSDOptions:
    """Options of Hyper-SD. The defaults are meant for the digits. Positions lie in [0, 1]: 0 clean, 1 noise."""

    iterations: int = 2000
    batch: int = 128
    student: OptimizerOptions = OptimizerOptions(lr=1e-3, betas=(0.9, 0.99), warmup=20, decay="cosine", clip=1.0)
    discriminator: OptimizerOptions = OptimizerOptions(lr=1e-3, warmup=20, clip=1.0)
    critic: OptimizerOptions = OptimizerOptions(lr=2e-3, warmup=20, clip=1.0)
    ema: EmaOptions = EmaOptions("constant", 0.95)
    """theta^- of the consistency target, which is also what samples."""
    segments: tuple[int, ...] = (8, 4, 2, 1)
    """k of the consistency stages."""
    then: tuple[Literal["reward", "score"], ...] = ("score",)
    """What follows the last k: human feedback, score distillation of one step."""
    lengths: tuple[float, ...] = ()
    """Lengths of all stages, relative to one another (none given: equal)."""
    grid: tuple[int, ...] = (64,)
    """N: training starts at N equally spaced positions, and the teacher's jump is one interval. One, or one per k."""
    w_mse: tuple[float, ...] = (1.0, 1.0, 0.5, 0.1)
    w_adv: tuple[float, ...] = (0.1, 0.1, 0.5, 1.0)
    """Weights of the distance and of the adversarial term: one, or one per k."""
    schedule: Literal["time", "karras", "angle"] = "angle"
    """What position is equally spaced in: the process's own time, sigma^(1/7), or arctan(sigma)."""
    sigma_low: float = 0.002
    sigma_high: float = 80.0
    target: Literal["uniform", "border"] = "uniform"
    """u_e of (3): anywhere below the teacher's jump, or the border."""
    solver: Literal["base", "previous_stage"] = "base"
    """Whose ODE is followed: the teacher's, or from the second stage on that of the stage before."""
    guidance_low: float = 1.0
    guidance_high: float = 1.0
    """w ~ U[low, high] per sample, which the student learns to need no more."""
    keep_guidance: bool = False
    """The student is to be guided when it samples: the teacher is guided little or not at all, see ``drop``."""
    drop: float = 0.0
    """Share of samples that are distilled without their condition."""
    distance: Literal["l2", "pseudo_huber"] = "l2"
    offset_noise: float = 0.0
    """Standard deviation of what is added to all pixels of a channel of e."""
    reset_target: bool = True
    """theta^- begins every stage as theta."""
    reset_optimizer: bool = True
    """The student's optimizer, warm-up and decay begin every stage anew."""
    rank: int = 0
    alpha: float | None = None
    adapt: tuple[str, ...] = ()
    """Low-rank adapters on the shared frozen base (0: all weights), their alpha (None: the rank) and layers (none: all)."""
    gan_features: tuple[str, ...] = ()
    """Layers that the discriminator reads (none given: the network's own choice)."""
    gan_renoise: bool = True
    """The discriminator sees both points noised further, to a position ~ U[u_e, 1]."""
    anchor: float = 0.0
    """Weight of the last k's consistency loss in the stages after it: what keeps more than one step working."""
    rewards: tuple[str, ...] = ()
    """Names of the task's rewards, or MODULE:FUNCTION (x, cond) -> (B,)."""
    hinges: tuple[float, ...] = ()
    """alpha_d, beyond which a reward pulls no more: one per reward."""
    reward_weight: float = 1.0
    """Weight of the reward terms; they act in the reward stage, and in the score stage unless that comes before it."""
    reward_low: float = 1.0
    reward_high: float = 1.0
    """Positions between which the rewarded prediction is made, in ``reward_steps`` calls from noise."""
    reward_steps: int = 1
    structure: str = ""
    """MODULE:FUNCTION (prediction, image, cond) -> (B,): a loss of a frozen network against the image ("": none)."""
    structure_weight: float = 1.0
    structure_from: float = 0.75
    structure_to: float = 0.25
    structure_steps: int = 3
    """The image is noised to ``from`` and denoised in ``steps`` calls, the last one at ``to``."""
    first: float = 1.0
    """Position at which the one-step generator of the score stage starts."""
    begin: Literal["noise", "unit"] = "noise"
    """The first input: s(t) z, or z itself (models that begin with N(0, I) where s < 1)."""
    score_low: float = 0.02
    score_high: float = 0.98
    """Scores are compared, and the critic learns, at positions uniform between these."""
    score_guidance: float = 1.0
    """w of the real score."""
    real_score: Literal["base", "tscd"] = "base"
    """Whose score is the real one: the teacher's, or that of the last consistency stage's end."""
    dmd_weight: float = 1.0
    mse_weight: float = 0.5
    mse_target: Literal["own", "teacher"] = "own"
    mse_steps: int = 4
    """The better target: the student's own average in so many steps, or the teacher's DDIM, from the same noise."""
    critic_steps: int = 1
    critic_rank: int = 0
    critic_weight: str = "edm"
    steps: int = 0
    """Steps of sampling (0: the last k)."""
    eta: float = 0.0
    """gamma of TCD sampling; 0 is deterministic."""

    def __post_init__(self):
        k, n = self.segments, len(self.segments)
        if not k or min(k) < 1 or any(b >= a for a, b in pairwise(k)):
            raise LimbeckError(
                f"segments are {k}: every stage merges those of the one before, so k must decrease, e.g. 8 4 2 1"
            )
        for name in ("grid", "w_mse", "w_adv"):
            if len(getattr(self, name)) not in (1, n):
                raise LimbeckError(
                    f"{name} has {len(getattr(self, name))} entries for {n} segments {k}; give one, or one per k"
                )
        for one, grid in zip(k, self._per_k(self.grid), strict=True):
            if grid % one:
                near = max(grid // one, 1) * one
                raise LimbeckError(
                    f"k={one} does not divide the grid of N={grid} intervals; choose N a multiple of k, e.g. {near}"
                )
        if self.lengths and len(self.lengths) != n + len(self.then):
            raise LimbeckError(f"lengths has {len(self.lengths)} entries for {n + len(self.then)} stages; give one per stage")
        if 0 < self.steps < k[-1]:
            raise LimbeckError(
                f"steps={self.steps}, but the segments {k} end at k={k[-1]}: nothing has learned to jump over a border of them; "
                f"sample with at least {k[-1]} steps, or let the segments go on down to {self.steps}"
            )
        if len(self.hinges) != len(self.rewards):
            raise LimbeckError(
                f"{len(self.rewards)} rewards need as many hinges, not {len(self.hinges)}; give alpha_d for each"
            )
        if not 0 <= self.guidance_low <= self.guidance_high:
            raise LimbeckError(f"guidance is U[{self.guidance_low:g}, {self.guidance_high:g}]; give 0 <= low <= high")
        for low, high in ((self.reward_low, self.reward_high), (self.score_low, self.score_high), (0.0, self.first)):
            if not 0 <= low <= high <= 1 or high == 0:
                raise LimbeckError(f"positions lie in [0, 1], 0 clean and 1 noise, not [{low:g}, {high:g}]")
        if self.reward_steps > 1 and self.reward_high >= 1:
            raise LimbeckError(f"{self.reward_steps} reward_steps need a reward_high below 1, where the first of them is")
        if not 0 < self.structure_to < self.structure_from <= 1 or self.structure_steps < 2:
            raise LimbeckError("the structure loss needs 0 < structure_to < structure_from <= 1 and at least 2 structure_steps")
        if any(s.end <= s.start for s in self.stages):
            raise LimbeckError(f"{self.iterations} iterations leave a stage without any; give more, or fewer stages")

    def _per_k(self, values: tuple) -> tuple:
        return values * len(self.segments) if len(values) == 1 else values

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        last = len(self.segments) - 1
        names = [*(str(k) for k in self.segments), *self.then]
        parts = self.lengths or (1.0,) * len(names)
        ends = [round(self.iterations * part / sum(parts)) for part in accumulate(parts)]
        grid, w_mse, w_adv = (self._per_k(values) for values in (self.grid, self.w_mse, self.w_adv))
        found = []
        for i, (name, start, end) in enumerate(zip(names, [0, *ends], ends, strict=False)):
            kind: Literal["consistency", "reward", "score"] = "consistency" if i <= last else self.then[i - last - 1]
            j = min(i, last)
            found.append(Stage(i, name, kind, self.segments[j], int(grid[j]), w_mse[j], w_adv[j], start, end))
        return tuple(found)

    def at(self, step: int) -> Stage:
        """The stage of an iteration."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])

    @property
    def rewards_stay(self) -> bool:
        """Do rewards act in the stage of score distillation?"""
        return "reward" not in self.then[self.then.index("score") :] if self.rewards and "score" in self.then else False

    @property
    def sampling_steps(self) -> int:
        """Steps of the finished student's sampler."""
        return self.steps or self.segments[-1]


_SLOW = OptimizerOptions(lr=1e-6, kind="adamw", betas=(0.9, 0.999), weight_decay=0.01, clip=1.0)
_SD15 = HyperSDOptions(
    iterations=40_000, batch=512, student=_SLOW, discriminator=_SLOW, critic=_SLOW, grid=(40,), schedule="time",
    guidance_low=7.5, guidance_high=7.5, offset_noise=0.1, rank=64, critic_rank=64, begin="unit", score_guidance=7.5,
    then=("reward", "score"), mse_steps=8,
)  # fmt: skip
_SDXL = replace(_SD15, guidance_low=5.0, guidance_high=8.0)
PRESETS = {
    "recommended": HyperSDOptions(lengths=(1, 1, 1, 1, 4)),
    "border": HyperSDOptions(target="border", then=()),
    "paper-sd15": _SD15,
    "paper-sdxl": replace(_SDXL, first=0.8),
    "paper-sdxl-unified": replace(_SDXL, anchor=1.0, eta=1.0),
    "paper-sdxl-guided": replace(
        _SDXL,
        segments=(8,),
        w_mse=(1.0,),
        w_adv=(0.1,),
        then=(),
        guidance_low=1.0,
        guidance_high=1.0,
        keep_guidance=True,
        drop=0.1,
    ),
}
"""Those named "paper" keep its stages, batch, learning rate and start; it gives no iterations, grid, guidance, rank or weights."""
