"""Typed options to and from plain mappings (YAML, JSON)."""

import inspect
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from limbeck.errors import LimbeckError, unknown


def options_to_dict(options: Any) -> dict[str, Any]:
    """A dataclass of options as plain mappings and lists."""
    return _plain(asdict(options))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def options_from_dict(cls: type, values: Any, where: str = "options") -> Any:
    """The dataclass ``cls`` with the given values, the rest at their defaults.

    Raises LimbeckError for unknown names (with the nearest valid one) and values of a wrong type.
    """
    if not isinstance(values, Mapping):
        raise LimbeckError(f"{where} must be a mapping of names to values, not {shown(values)}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    for name in values:
        if name not in names:
            raise unknown(f"name in {where}", str(name)[:80], names)
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [name for name in needed if name not in values]:
        raise LimbeckError(f"{where} lacks {', '.join(lacking)}; add it")
    return cls(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any], where: str) -> None:
    """Raise LimbeckError unless a function takes these keywords; types are checked where they are annotated."""
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in values.items():
        if name in parameters:
            _typed(hints.get(name, Any), value, f"{where}.{name}")
        elif not open_ended:
            raise unknown(f"name in {where}", str(name), parameters)


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else options_from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _typed(inner[0], value, where) if len(inner) == 1 else _any_of(inner, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise unknown(f"value of {where}", str(value)[:80], [str(a) for a in arguments])
        return value
    if origin is tuple or origin in (list, Sequence):
        if not isinstance(value, (list, tuple)):
            raise LimbeckError(f"{where} must be a list, not {shown(value)}")
        kinds = [arguments[0]] * len(value) if origin is not tuple or arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise LimbeckError(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(_typed(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise LimbeckError(f"{where} must be a mapping of names to values, not {shown(value)}")
        if odd := [name for name in value if not isinstance(name, str)]:
            raise LimbeckError(f"{where} has the name {shown(odd[0])}; names are text")
        return {name: _typed(arguments[1], v, f"{where}.{name}") for name, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 1e300:
            raise LimbeckError(f"{where} is {shown(value)}, which is too large")
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise LimbeckError(f"{where} must be of type {hint.__name__}, not {shown(value)}")
    if hint is float and value != value:
        raise LimbeckError(f"{where} is not a number; give one")
    if hint is int and abs(value) >= 2**63:
        raise LimbeckError(f"{where} is {shown(value)}, which is too large")
    return value


def _any_of(hints: list[Any], value: Any, where: str) -> Any:
    plain = [h for h in hints if typing.get_origin(h) or h in (int, float, str, bool)]
    for hint in plain:
        with suppress(LimbeckError):
            return _typed(hint, value, where)
    if any(isinstance(h, type) and isinstance(value, h) for h in hints if h not in plain):
        return value
    raise LimbeckError(f"{where} must be {' or '.join(getattr(h, '__name__', str(h)) for h in hints)}, not {shown(value)}")


def shown(value: Any) -> str:
    """A value in an error: shortened where it is long, on one line."""
    return " ".join(reprlib.repr(value).split())


def changed(old: Any, new: Any, where: str = "") -> list[str]:
    """What differs between two options or mappings, as "name: old -> new"."""
    if is_dataclass(old) and not isinstance(old, type):
        old, new = options_to_dict(old), options_to_dict(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = dict.fromkeys([*old, *new])
        return [line for n in names for line in changed(old.get(n), new.get(n), f"{where}.{n}" if where else str(n))]
    return [] if _plain(old) == _plain(new) else [f"{where}: {old!r} -> {new!r}"]


def merged_options(options: Any, over: Mapping[str, Any]) -> Any:
    """A dataclass of options with some values changed; nested mappings change nested options in part."""
    plain = {name: options_to_dict(v) if is_dataclass(v) and not isinstance(v, type) else v for name, v in over.items()}
    return options_from_dict(type(options), _merge(options_to_dict(options), plain))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _merge(merged[name], value) if nested else value
    return merged
