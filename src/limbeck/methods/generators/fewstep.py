"""What methods that go on from a few-step student share: at which noise levels it samples."""

import math
from collections.abc import Sequence

from limbeck.errors import LimbeckError
from limbeck.methods.generators.generator import Ingredients


def among(sigma: float, levels: Sequence[float]) -> bool:
    """Is sigma one of the levels, but for rounding?"""
    return any(math.isclose(sigma, level, rel_tol=1e-4) for level in levels)


def sampled_levels(parts: Ingredients, sigmas: tuple[float, ...], trained: tuple[float, ...], method: str) -> tuple[float, ...]:
    """The noise levels of the start's sampler: ``sigmas``, or those that it was distilled for.

    Raises LimbeckError where there is no few-step student to start from, for levels that it was not distilled for, and for
    ``trained`` levels that are not the sampler's.
    """
    own = parts.start_sigmas
    if parts.start is None or not (own or sigmas):
        raise LimbeckError(
            f"{method} trains a student that samples in few steps already, and was given none: name its run with `limbeck "
            f"distill {method} --from-run RUN`, or give from_run= (and sigmas=, the noise levels of its steps) from Python"
        )
    sigmas = sigmas or own or ()
    for name, given, allowed in (("sampler's", sigmas, own or sigmas), ("trained", trained, sigmas)):
        if missing := [s for s in given if not among(s, allowed)]:
            raise LimbeckError(
                f"the {name} noise levels {missing} are not among {list(allowed)}: a few-step model is sampled and trained at the "
                "levels that it was distilled for; choose among these"
            )
    return sigmas
