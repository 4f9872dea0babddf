"""The methods, one room per system, and the one table that names them. Importing this imports no method."""

from typing import Any

from limbeck.errors import unknown
from limbeck.methods.table import METHODS, Entry


def find(name: str) -> Entry:
    """The entry of an id or alias, in any case, "_" for "-" allowed. Raises LimbeckError with the nearest id."""
    wanted = name.lower().replace("_", "-")
    for entry in METHODS.values():
        if wanted == entry.id or wanted in entry.aliases:
            return entry
    raise unknown("method", name, METHODS)


def preset_of(name: str, presets: dict[str, Any], preset: str | None) -> Any:
    """The options of a preset; an alias that is also a preset (``ct``) chooses it. Raises LimbeckError if unknown."""
    wanted = preset or (name if name in presets else "recommended")
    if wanted not in presets:
        raise unknown("preset", wanted, presets)
    return presets[wanted]


__all__ = ["METHODS", "Entry", "find", "preset_of"]
