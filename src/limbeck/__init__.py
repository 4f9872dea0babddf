"""Limbeck: distillation in one library. See README.md and docs/architecture.md.

``limbeck.distill(teacher, method="dmd", data=images)`` is the main job; ``limbeck.Run`` is what it returns.
"""

from typing import TYPE_CHECKING, Any

from limbeck.version import __version__

__all__ = ["Run", "__version__", "distill"]

if TYPE_CHECKING:
    from limbeck.runs import Run, distill


def __getattr__(name: str) -> Any:
    if name in ("Run", "distill"):  # imported at first use, so that parts can be had without the whole
        from limbeck import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
