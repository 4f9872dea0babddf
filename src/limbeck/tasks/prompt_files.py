"""Prompts from files: a text of one prompt per line, a list in JSON, or captions beside pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError


def read_prompts(prompts: Path | str | Sequence[str]) -> list[str]:
    """The prompts in FILE.txt (UTF-8, one per line, blank lines skipped) or FILE.json (a list of texts), or a list itself.

    Duplicates stay. Raises LimbeckError for files that are missing, empty, or not of that kind.
    """
    if not isinstance(prompts, (str, Path)):
        found, name = list(prompts), "prompts"
    else:
        name, found = str(prompts), _from_file(Path(prompts))
    if wrong := [p for p in found if not isinstance(p, str)]:
        raise LimbeckError(f"{name} holds {wrong[0]!r}, which is no text; give a list of texts")
    found = [p.strip() for p in found if p.strip()]
    if not found:
        raise LimbeckError(f"{name} holds no prompts; write one per line")
    return found


def _from_file(file: Path) -> list[Any]:
    if file.suffix not in (".txt", ".json"):
        raise LimbeckError(f"prompts are read from FILE.txt (one per line) or FILE.json (a list of texts), not from {file}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError:
        raise LimbeckError(f"the prompts {file} do not exist; write one per line into FILE.txt") from None
    except UnicodeDecodeError as error:
        raise LimbeckError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if file.suffix == ".txt":
        return text.splitlines()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LimbeckError(f"{file} is no JSON ({error}); write a list of texts") from None
    if not isinstance(found, list):
        raise LimbeckError(f"{file} holds a {type(found).__name__}; write a list of texts")
    return found


def captions_of(files: Sequence[Path]) -> list[str]:
    """The captions NAME.txt beside pictures NAME.png. Raises LimbeckError where one is missing."""
    texts = [file.with_suffix(".txt") for file in files]
    if missing := [text for text in texts if not text.is_file()]:
        raise LimbeckError(
            f"{len(missing)} of {len(files)} pictures have no caption, the first is {missing[0]}; write one beside each picture, "
            "or leave --data out and give --prompts"
        )
    return [" ".join(_from_file(text)).strip() for text in texts]
