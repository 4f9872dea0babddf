"""The options that methods of score distillation into scenes share."""

import warnings
from dataclasses import dataclass
from typing import Literal

from limbeck.errors import LimbeckError
from limbeck.training import OptimizerOptions

Range = tuple[float, float]
TRAINED = ("network", "adapters")
GREAT = 50.0  # a guidance that only SDS needs


@dataclass(frozen=True)
class SceneOptions:
    """What all take. Times are shares of the teacher's schedule, 0 clean and 1 noise. Tasks bring what suits them better than these."""

    iterations: int = 400
    batch: int = 4
    """Renders per iteration: of every particle from batch / particles cameras, or of one particle from batch cameras."""
    particles: int = 1
    """Scenes that learn side by side; what they differ in is their start, and where the critic sees several, each other."""
    update: Literal["all", "one"] = "all"
    """Every particle in every iteration, all from the same cameras; or one, drawn anew each time (the paper)."""
    critic_kind: Literal["dirac", "exact", "network", "adapters"] = "exact"
    """Who knows the score of the renders: nobody, and the noise takes its place (SDS); its closed form over the iteration's renders; a
    network of its own; or low-rank adapters on the teacher."""
    guidance: float = 7.5
    """w of the teacher."""
    critic_guidance: float = 1.0
    """g over the camera: D_F = D_F(no camera) + g (D_F(camera) - D_F(no camera))."""
    early: Range = (0.02, 0.98)
    """Scores are compared at t ~ U(early) at first ..."""
    late: Range = (0.02, 0.5)
    late_from: float = 0.2
    """... and at t ~ U(late) from this share of the run on (1: never)."""
    student: OptimizerOptions = OptimizerOptions(lr=0.01, betas=(0.9, 0.99), eps=1e-15)
    critic: OptimizerOptions = OptimizerOptions(lr=1e-3, kind="adamw", betas=(0.9, 0.999), warmup=20, clip=1.0)
    critic_steps: int = 1
    """K, updates of a trained critic per iteration, all on its renders."""
    critic_drop: float = 0.1
    """Share of renders on which it is trained without their camera."""
    critic_times: Range = (0.02, 0.98)
    critic_weight: str = "edm"
    """Of its loss: edm, eps, v, ... (:data:`limbeck.losses.denoising.WEIGHTS`)."""
    critic_rank: int = 4
    adapter_alpha: float | None = None
    """alpha of the adapters (None: their rank)."""
    critic_layers: tuple[str, ...] = ()
    """Layers with adapters, by name or last part of a name (none: all linear layers and convolutions)."""
    random_background: float = 0.0
    """Share of cameras before whose background is a random colour."""
    sparsity: float = 0.0
    """Weight of mean sqrt(opacity^2 + 0.01)."""
    opaque: float = 0.0
    """Weight of the binary entropy of the opacity, in nats: it is to be 0 or 1."""
    entropy: float = 0.0
    """Weight of the binary entropy, in bits, of the weights of samples on rays (fields alone; raise it where they look foggy)."""

    def __post_init__(self):
        if self.particles < 1:
            raise LimbeckError(f"particles={self.particles}: there must be at least 1 scene to train")
        if self.update == "all" and self.batch % self.particles:
            raise LimbeckError(
                f"batch={self.batch} renders cannot be shared out to {self.particles} particles from the same cameras: give a "
                "multiple, or update='one'"
            )
        for name in ("early", "late", "critic_times"):
            low, high = getattr(self, name)
            if not 0 <= low < high <= 1:
                raise LimbeckError(f"{name}=({low:g}, {high:g}): times are shares of the schedule, 0 <= low < high <= 1")
        for name in ("late_from", "critic_drop", "random_background"):
            if not 0 <= getattr(self, name) <= 1:
                more = "; it is a share of the run, not an iteration" if name == "late_from" else ""
                raise LimbeckError(f"{name}={getattr(self, name):g} must lie in [0, 1]{more}")
        if min(self.sparsity, self.opaque, self.entropy) < 0:
            raise LimbeckError(
                f"sparsity={self.sparsity:g}, opaque={self.opaque:g} and entropy={self.entropy:g}: weights must not be negative"
            )
        self._check_critic()

    def _check_critic(self) -> None:
        kind = self.critic_kind
        if kind in TRAINED and (self.critic_steps < 1 or self.critic.lr == 0):
            raise LimbeckError(
                f"critic_steps={self.critic_steps} and critic.lr={self.critic.lr:g}: the score of the renders would never be "
                "learned, and scenes pulled along the teacher's minus a frozen one diverge; train it, or choose "
                "critic_kind='exact' or 'dirac'"
            )
        if kind == "exact" and self.update == "one" and self.particles > 1:
            raise LimbeckError(
                "critic_kind='exact' needs the renders of all particles from the same cameras: choose update='all', or a trained critic"
            )
        if kind == "dirac" and self.critic_guidance != 1:
            raise LimbeckError(
                f"critic_guidance={self.critic_guidance:g}: the noise itself has no version without the camera; choose "
                "critic_kind='exact', or a trained one"
            )
        if kind in TRAINED and self.critic_guidance != 1 and self.critic_drop == 0:
            raise LimbeckError(
                f"critic_guidance={self.critic_guidance:g} with critic_drop=0: the score without the camera was never trained; "
                "drop about 0.1 of the cameras"
            )
        if kind != "dirac" and self.guidance >= GREAT:
            warnings.warn(
                f"guidance={self.guidance:g} is what SDS needs; with a critic of the renders 7.5 is usual, and more over-saturates",
                stacklevel=4,
            )
