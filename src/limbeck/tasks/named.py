"""Python objects that the user names as MODULE:NAME: the only code of theirs that is imported.

Who is given a run by somebody else has named nothing: what its config.yaml names is not imported (`named_by`).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from torch import nn

from limbeck.errors import LimbeckError, unknown

_source: ContextVar[str] = ContextVar("source", default="")


@contextmanager
def named_by(source: object, trusted: bool) -> Iterator[None]:
    """Inside, code is named by a file or folder ``source``: unless it is trusted, `imported` refuses to import it."""
    token = _source.set("" if trusted else str(source))
    try:
        yield
    finally:
        _source.reset(token)


def refuse_code(name: str, what: str) -> None:
    """Raise LimbeckError where ``name`` is code, or a place to write to, that nobody but an untrusted file has named."""
    if source := _source.get():
        raise LimbeckError(
            f"{source} names {what} {name!r}, which may do anything that you may do; look at it, and if you trust it say "
            "--trust-code (trust_code=True)"
        )


def imported(name: str, what: str) -> Any:
    """The object MODULE:NAME; MODULE is looked for in the current directory first. ``what`` it is for says the error.

    Raises LimbeckError where the name is none, the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise LimbeckError(f"{what} {name!r} is not of the form MODULE:NAME, e.g. mymodels:make_teacher")
    refuse_code(name, what)
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        names = [n for n in vars(found) if not n.startswith("_")]
        raise unknown(f"name in {module_name} ({what})", attribute, names) from None
    except Exception as error:  # whatever the person's module does when it is imported
        raise LimbeckError(f"{what} {name}: importing {module_name} from {here} failed: {said(error)}") from error
    return found


def made(found: Any, name: str, what: str) -> Any:
    """The object itself if it is a module or denoiser, else what calling it without arguments returns."""
    if isinstance(found, nn.Module) or (hasattr(found, "process") and not isinstance(found, type)):
        return found
    if not callable(found):
        raise LimbeckError(
            f"{what} {name} is a {type(found).__name__}; name a function or class that is called without arguments"
        )
    try:
        return found()
    except LimbeckError:
        raise
    except Exception as error:
        raise LimbeckError(f"{what} {name}() failed: {said(error)}; it is called without arguments") from error


def said(error: Exception) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
