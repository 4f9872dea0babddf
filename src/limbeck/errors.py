"""Errors that a user can act on. Each message names the value, what is allowed, and the next step."""

from collections.abc import Iterable
from difflib import get_close_matches


class LimbeckError(Exception):
    """A user's error: the command line prints its message alone and exits with 2."""


class ConversionError(LimbeckError):
    """A conversion between prediction types where it has no answer (signal or noise level below 1e-4)."""


def missing_extra(extra: str, what: str) -> LimbeckError:
    """The error where a package is not installed that belongs to an extra.

    >>> str(missing_extra("onnx", "ONNX needs onnxruntime"))
    "ONNX needs onnxruntime: pip install 'limbeck[onnx]'"
    """
    return LimbeckError(f"{what}: pip install 'limbeck[{extra}]'")


def unknown(kind: str, name: str, allowed: Iterable[str]) -> LimbeckError:
    """The error for a name that is not in a table, with the nearest valid one.

    >>> str(unknown("method", "dmb", ["dmd", "sid"]))
    "unknown method 'dmb': did you mean 'dmd'? Allowed: dmd, sid"
    """
    names, name = sorted(allowed), name if len(name) <= 80 else f"{name[:80]}..."
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return LimbeckError(f"unknown {kind} {name!r}:{hint} Allowed: {', '.join(names)}")
