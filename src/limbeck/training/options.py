"""Typed options to and from plain mappings (YAML, JSON)."""

import types
import typing
from collections.abc import Mapping
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
        raise LimbeckError(f"{where} must be a mapping of names to values, not {values!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    for name in values:
        if name not in names:
            raise unknown(f"name in {where}", str(name), names)
    needed = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [name for name in needed if name not in values]:
        raise LimbeckError(f"{where} lacks {', '.join(lacking)}; add it")
    return cls(**{name: _typed(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else options_from_dict(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        return _typed(inner[0], value, where) if len(inner) == 1 else value
    if origin is typing.Literal:
        if value not in arguments:
            raise unknown(f"value of {where}", str(value), [str(a) for a in arguments])
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise LimbeckError(f"{where} must be a list, not {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise LimbeckError(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(_typed(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and not isinstance(value, Mapping):
        raise LimbeckError(f"{where} must be a mapping of names to values, not {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise LimbeckError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value


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
