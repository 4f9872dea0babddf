"""Entropic score distillation: variational score distillation whose views must differ from one another (arXiv 2401.00909).

For one camera c and one scene, the law of noised renders is a Gaussian of constant entropy. So the divergence that
:mod:`limbeck.methods.scenes.prolificdreamer` minimises asks every view alone to be likely, and all views run to the teacher's
favourite: a face on every side (Janus). ESD gives back the entropy of the renders of all cameras, q_t(x_t) = E_c q_t(x_t | c):

(1) J = -E_{t,c,x_t} w_t log p_t(x_t) - lam E_t w_t H(q_t)                          lam in [0, 1]
(2)   = lam E_t w_t KL(q_t || p_t) + (1 - lam) E_{t,c} w_t KL(q_t(. | c) || p_t) + const
(3) dJ/dx = s_t^2 (eps_T - lam eps_F(x_t, no c) - (1 - lam) eps_F(x_t, c))          no gradient through any
(4) g = 1 - lam                                                                     guidance over the camera, in the critic

By (4) it is ProlificDreamer's method with another g and one more call of the critic: lam = 0 is VSD, lam = 1 fits the law of all
renders to the teacher's. The text stays in both calls; only the camera leaves. The exact critic without a camera knows the
renders of this iteration's cameras: give it several. A trained one learns it from the share of renders (``critic_drop``) whose
camera it is not told.

What it can do and what not (``limbeck reproduce esd``): lam = 1 asks for the *teacher's* law of views. Where half of that is
front, SDS gives a face on every side and lam = 1 all sides; where it is nearly all front, so is what comes out, and a prompt for
each view does more, as it removes the bias. The paper's lam = 0.5 gives more variety, but no cure there. What a view becomes is
decided while x_t leaves it open: noise must be high first (``early``), or every view is stuck with the picture nearest to its
start before lam counts.

Differs from the paper / from its code: the paper advises lam about 0.5 in threestudio's ProlificDreamer (there
``guidance_scale_lora`` = g); its weight s_t / a_t w(t) is the s_t^2 of its code here. The critic in closed form is ours.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.denoisers import Cond
from limbeck.errors import LimbeckError
from limbeck.methods.scenes.options import TRAINED, Range, SceneOptions
from limbeck.methods.scenes.prolificdreamer import PRESETS as VSD_PRESETS
from limbeck.methods.scenes.prolificdreamer import ProlificDreamer, Views
from limbeck.rules import Sample
from limbeck.training import Batch


@dataclass(frozen=True)
class ESDOptions(SceneOptions):
    """Those of variational score distillation and lam, which says its ``critic_guidance``."""

    batch: int = 6
    early: Range = (0.8, 0.98)
    late: Range = (0.02, 0.7)
    late_from: float = 0.7
    lam: float = 1.0
    """Weight of the entropy of all views, in [0, 1]: 0 is VSD, 1 fits the law of all renders to the teacher's (the paper: 0.5)."""

    def __post_init__(self):
        super().__post_init__()
        lam, cameras = self.lam, self.batch if self.update == "one" else self.batch // self.particles
        if not 0 <= lam <= 1:
            why = (
                "below 0, g = 1 - lam exceeds 1 and entropy is subtracted: this rewards mode collapse"
                if lam < 0
                else "above 1, views would be driven away from what the teacher knows"
            )
            raise LimbeckError(f"lam={lam:g} must lie in [0, 1]; {why}")
        if self.critic_guidance != 1:
            raise LimbeckError(
                f"critic_guidance={self.critic_guidance:g}: here it is 1 - lam; set lam={1 - self.critic_guidance:g} instead"
            )
        if lam == 0:
            return
        if self.critic_kind == "dirac":
            raise LimbeckError(
                f"lam={lam:g} with critic_kind='dirac': the noise itself has no version without the camera; choose 'exact', or a "
                "trained critic"
            )
        if self.critic_kind in TRAINED and self.critic_drop == 0:
            raise LimbeckError(
                f"lam={lam:g} with critic_drop=0: the camera-free score was never trained; drop about 0.1 of the cameras"
            )
        if self.critic_kind == "exact" and cameras < 2:
            warnings.warn(
                f"lam={lam:g} has no effect: the exact critic sees one camera per iteration; give a batch of several cameras",
                stacklevel=3,
            )


PRESETS = {
    "recommended": ESDOptions(),
    "vsd": ESDOptions(lam=0.0),
    "paper-nerf": ESDOptions(**vars(VSD_PRESETS["paper-nerf"]), lam=0.5),
}


class ESD(ProlificDreamer):
    """See the module. Warns where the teacher is told the view exactly: then there is nothing to diversify."""

    options: ESDOptions

    @property
    def camera_guidance(self) -> float:
        """(4): by it the gradient is (3), which is that of (1) and of (2)."""
        return 1 - self.options.lam

    def compared(self, batch: Batch, sample: Sample, views: Views) -> Any:
        if batch.step == 0 and self.options.lam > 0 and fixes_the_view(sample.goal):
            warnings.warn(
                "the teacher is told the view of every camera exactly, so ESD has nothing to diversify: lam=0 (VSD) costs one "
                "call of the critic less",
                stacklevel=2,
            )
        return (yield from super().compared(batch, sample, views))


def fixes_the_view(goal: Cond | None) -> bool:
    """Does every row's prior of a finite teacher leave one of its pictures?"""
    prior: Tensor | None = (goal or {}).get("prior")
    return prior is not None and bool((torch.softmax(prior, 1).amax(1) > 0.99).all())


METHOD, OPTIONS = ESD, ESDOptions
__all__ = ["ESD", "PRESETS", "ESDOptions", "fixes_the_view"]
