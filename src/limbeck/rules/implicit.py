"""Score implicit matching: teacher and sample scores compared by any distance, not the squared one alone (SIM)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.denoisers import Denoiser
from limbeck.errors import LimbeckError, unknown
from limbeck.noise import Process, spread
from limbeck.rules.contract import Pull, Sample, Target, fixed_target
from limbeck.rules.identity import WEIGHTS, through_both

Slope = Callable[[Tensor], Tensor]  # y (B, ...) -> the gradient d'(y) of a distance d(y), like y


def _norm(y: Tensor, c: float = 0.0) -> Tensor:
    """sqrt(|y|^2 + c^2) over all elements of a sample, (B, 1, ...)."""
    square = y.square().flatten(1).sum(1) + c**2
    return square.reshape(-1, *[1] * (y.ndim - 1)).sqrt()


def _scaled(y: Tensor, power: float) -> Tensor:
    """y |y|^power for any real power, 0 with gradient 0 at y = 0."""
    zero = y.detach().flatten(1).square().sum(1).reshape(-1, *[1] * (y.ndim - 1)) == 0
    size = _norm(torch.where(zero, torch.ones_like(y), y))
    return torch.where(zero, torch.zeros_like(y), y * size**power)


def _scaled_each(y: Tensor, power: float) -> Tensor:
    """y |y|^power of each element, 0 with gradient 0 at 0."""
    size = torch.where(y == 0, torch.ones_like(y), y).abs()
    return torch.where(y == 0, torch.zeros_like(y), y * size**power)


# d'(y) of the distance with scale c > 0 and power k >= 1; |y| is the norm of all elements of a sample
DISTANCES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "l2": lambda y, c, k: 2 * y,  # |y|^2: SiD with alpha = 1
    "pseudo_huber": lambda y, c, k: y / _norm(y, c),  # sqrt(|y|^2 + c^2) - c
    "unit": lambda y, c, k: _scaled(y, -1.0),  # |y|, the limit c -> 0
    "power": lambda y, c, k: k * _scaled(y, k - 2),  # |y|^k
    "power_each": lambda y, c, k: k * _scaled_each(y, k - 2),  # sum |y_i|^k
    "huber": lambda y, c, k: y.clamp(-c, c),  # sum y_i^2 / 2 below c, c |y_i| - c^2 / 2 above
    "log_cosh": lambda y, c, k: c * torch.tanh(y / c),  # sum c^2 ln cosh(y_i / c)
}
NEED_SCALE = ("pseudo_huber", "huber", "log_cosh")


def distance_slope(distance: str | Slope, c: float | None = None, power: float = 2.0) -> Slope:
    """The d' of a distance by its name in :data:`DISTANCES`, or your own d'.

    ``c`` None: 0.00054 sqrt(D) for pseudo_huber (D elements, the rule of arXiv 2310.14189), 1 for huber and log_cosh.
    Raises LimbeckError for unknown names, c <= 0, powers below 1, and a function that is no differentiable d'.
    """
    if not isinstance(distance, str):
        return _checked(distance)
    if distance not in DISTANCES:
        raise unknown("score distance", distance, DISTANCES)
    if c is not None and c < 0:
        raise LimbeckError(f"the scale c of a distance cannot be negative: {c:g}; give c > 0")
    if c == 0 and distance in NEED_SCALE:
        raise LimbeckError(f"{distance} with c = 0 is not differentiable at 0; give c > 0, or ask for the distance 'unit'")
    if power < 1:
        raise LimbeckError(f"|y|^k with k = {power:g} is no distance to descend; give a power of at least 1")
    formula = DISTANCES[distance]

    def slope(y: Tensor) -> Tensor:
        default = 0.00054 * math.sqrt(y[0].numel()) if distance == "pseudo_huber" else 1.0
        return formula(y, default if c is None else c, power)

    return slope


def _checked(slope: Slope) -> Slope:
    y = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    with torch.enable_grad():
        out = slope(y)
    if not isinstance(out, Tensor) or out.shape != y.shape:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise LimbeckError(f"a distance of your own is given by its gradient d'(y), of the shape of y; yours answered {found}")
    if not out.requires_grad:
        raise LimbeckError("your d'(y) carries no gradient with respect to y; SIM differentiates it: do not detach in it")
    return slope


class ScoreImplicit:
    """The gradient of L = w(t) (-d'(y)) . (D_F - x), y the score of the samples minus the teacher's (SIM, arXiv 2410.16794).

    Its mean is the gradient of E d(y) with the law of x_t held: S_F - grad log q(x_t | x) = a (D_F - x) / s^2, whose factor
    a / s^2 is left to w. Differentiated through x, through the inputs of both frozen networks and through d'(y): see
    :func:`through_both`. The theorem holds for samples at a noise level too, with D* in x's place. ``distance``, ``c`` and
    ``power``: see :func:`distance_slope`. ``space``: y is D_F - D_T ("x0"), or a / s^2 times that ("score").
    """

    def __init__(
        self,
        teacher: Denoiser | Target,
        critic: Denoiser,
        *,
        distance: str | Slope = "pseudo_huber",
        c: float | None = None,
        power: float = 2.0,
        space: str = "x0",
        weight: str = "none",
        guidance: float | Tensor = 1.0,
        critic_guidance: float | Tensor = 1.0,
    ):
        if weight not in WEIGHTS:
            raise unknown("SIM weight", weight, WEIGHTS)
        if space not in ("x0", "score"):
            raise unknown("space of the distance", space, ["x0", "score"])
        self.target, self.critic, self.weight, self.space = fixed_target(teacher), critic, weight, space
        self.slope = distance_slope(distance, c, power)
        self.guidance, self.critic_guidance = guidance, critic_guidance

    def __call__(self, sample: Sample, t: Tensor, eps: Tensor, step: int = 0) -> Pull:
        process: Process = self.critic.process

        def integrand(teacher: Tensor, critic: Tensor, clean: Tensor, t: Tensor) -> Tensor:
            y = critic - teacher
            if self.space == "score":
                y = spread(process.a(t) / process.s(t) ** 2, y) * y
            return -self.slope(y) * (critic - clean)

        return through_both(
            integrand, self.target(step), self.critic, sample, t, eps,
            weight=self.weight, guidance=self.guidance, critic_guidance=self.critic_guidance,
        )  # fmt: skip
