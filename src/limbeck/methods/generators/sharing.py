"""One noised batch and one answer of the critic for the updates of student and critic (``share_draws``).

With x = G(z), x_t = a x + s e at one t and one e, the critic is asked once, with gradient: D_F(x_t, t). Detached it is the
critic's side of the pull, as it is it gives the critic's loss. A cycle of student and critic costs two forwards fewer than
one in which each makes and noises samples of its own. The two updates are correlated by that.
"""

from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError


class AskedOnce:
    """A denoiser whose first answer, made with gradient, serves everybody who asks at the same (x_t, t)."""

    def __init__(self, denoiser: Any):
        self.denoiser, self.process, self.null = denoiser, denoiser.process, denoiser.null
        self.question: tuple[Tensor, Tensor] | None = None

    def __call__(self, x_t: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        if self.question is None:
            self.question = x_t, t
            with torch.enable_grad():
                self.answer = self.denoiser(x_t, t, cond)
        elif not (torch.equal(x_t, self.question[0]) and torch.equal(t, self.question[1])):
            raise LimbeckError(
                "share_draws: the critic's loss asks at another noised sample than the pull did; leave share_draws off for this method"
            )
        return self.answer


def check_shared(o: Any, order: str, unshared: str) -> None:
    """Raise LimbeckError where one question to the critic cannot serve both updates, naming what stands against it.

    ``o``: the options of a score method; ``order``: who is updated first; ``unshared``: why the method cannot share ("": it can).
    """
    guided = o.guidance_high is not None and o.guidance_random != "teacher"
    conflicts = {
        unshared: bool(unshared),
        "the method updates its critic before the student, which differentiates through it": order != "student",
        f"critic_steps={o.critic_steps} wants new samples for each of the critic's updates (1 is allowed)": o.critic_steps > 1,
        f"critic_guidance={o.critic_guidance:g} asks the critic differently for the pull (1 is allowed)": o.critic_guidance != 1,
        "guidance_high guides the critic at random; set guidance_random to 'teacher'": guided,
        f"critic_training_guidance={o.critic_training_guidance:g} asks it differently for its own loss (1 is allowed)":
            o.critic_training_guidance != 1,
        f"critic_drop={o.critic_drop:g} drops conditions for its own loss alone (0 is allowed)": o.critic_drop > 0,
        f"score_law={o.score_law!r} and critic_law={o.critic_law!r} are two laws of t; set critic_law to 'score', or score_law to 'critic'":
            o.critic_law != "score" and o.score_law != "critic",
    }  # fmt: skip
    if found := [text for text, stands in conflicts.items() if stands]:
        raise LimbeckError(f"share_draws gives both updates one answer of the critic, but {found[0]}; or leave share_draws off")
