"""JSON and YAML files that nobody vouches for: plain values alone, of bounded size, or an error of one line."""

import json
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError

MOST_BYTES = 2**24
MOST_VALUES = 200_000  # YAML's references let a few lines hold billions
DEEPEST = 32


def read_plain(path: Path) -> tuple[str, Any]:
    """(text, content) of a .json file, or of a YAML one.

    Raises LimbeckError where it cannot be read, is damaged, too large, or nests too deep; FileNotFoundError where there is none.
    """
    import yaml

    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"has more than {MOST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        check_size(content)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, OverflowError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise LimbeckError(f"{path} is damaged: it is not readable {kind} ({said[:200]}); repair or remove it") from None
    return text, content


def check_size(content: Any) -> None:
    """Raise ValueError where values nest too deep or are too many; one that holds itself is both."""
    count, level = 0, [content]
    for _ in range(DEEPEST):
        count += len(level)
        if count > MOST_VALUES:
            raise ValueError(f"has more than {MOST_VALUES} values")
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, (dict, list)) and len(deeper) <= MOST_VALUES:
                deeper += value.values() if isinstance(value, dict) else value
        if not (level := deeper):
            return
    raise ValueError(f"nests deeper than {DEEPEST}")
