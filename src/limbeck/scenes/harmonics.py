"""Real spherical harmonics of degrees 0 to 3, in the order and with the signs of Gaussian splatting."""

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

C0 = 0.28209479177387814  # 1 / sqrt(4 pi): a colour c is the coefficient (c - 0.5) / C0
MAX_DEGREE = 3


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Y_lm at unit ``directions`` (..., 3), l = 0..degree and m = -l..l: (..., (degree + 1)^2).

    With the Condon-Shortley phase: Y_11 = -sqrt(3 / 4 pi) x. Raises LimbeckError for a degree beyond 3.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise LimbeckError(f"spherical harmonics of degree {degree}: splats have 0 to {MAX_DEGREE}")
    x, y, z = directions.unbind(-1)
    terms = [torch.full_like(x, C0)]
    if degree >= 1:
        c = 0.4886025119029199  # sqrt(3 / 4 pi)
        terms += [-c * y, c * z, -c * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree >= 2:
        c = 1.0925484305920792  # sqrt(15 / 4 pi)
        terms += [
            c * x * y,
            -c * y * z,
            0.31539156525252005 * (3 * zz - 1),  # sqrt(5 / 16 pi)
            -c * x * z,
            c / 2 * (xx - yy),
        ]
    if degree >= 3:
        a, b = 0.5900435899266435, 0.4570457994644658  # sqrt(35 / 32 pi), sqrt(21 / 32 pi)
        terms += [
            -a * y * (3 * xx - yy),
            2.890611442640554 * x * y * z,  # sqrt(105 / 4 pi)
            -b * y * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),  # sqrt(7 / 16 pi)
            -b * x * (5 * zz - 1),
            1.445305721320277 * z * (xx - yy),  # sqrt(105 / 16 pi)
            -a * x * (xx - 3 * yy),
        ]
    return torch.stack(terms, -1)


def degree_of(coefficients: int) -> int:
    """The degree that has that many coefficients; raises LimbeckError where none has."""
    for degree in range(MAX_DEGREE + 1):
        if (degree + 1) ** 2 == coefficients:
            return degree
    raise LimbeckError(f"{coefficients} spherical-harmonic coefficients per channel: allowed are 1, 4, 9 and 16")
