"""JSON documents that carry a format version and the sha256 of themselves."""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import isfinite
from typing import Any

from limbeck.errors import LimbeckError

Document = dict[str, Any]


class Damaged(Exception):
    """Why what was stored cannot be used; a reader turns it into an error or goes on to the next file."""


def check_json(value: Any, where: str) -> None:
    """Raise a LimbeckError unless JSON gives `value` back unchanged, types included."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise LimbeckError(f"{where} has the key {key!r} of type {type(key).__name__}: use a str")
            check_json(key, f"a key of {where}")
            check_json(item, f"{where}.{key}")
    elif type(value) is list:
        for i, item in enumerate(value):
            check_json(item, f"{where}[{i}]")
    elif type(value) is float:
        if not isfinite(value):
            raise LimbeckError(f"{where} is {value}, which JSON cannot hold: store a finite number or None")
    elif type(value) is str:
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise LimbeckError(f"{where} is {value!r}, which is no valid Unicode text")
    elif value is not None and type(value) not in (bool, int):
        raise LimbeckError(
            f"{where} is a {type(value).__name__}, which JSON does not give back: use None, bool, int, float, str, list or dict"
        )


def seal(document: Document) -> bytes:
    """The text of a document that `check_json` accepts, with its sha256 as the last field."""
    digest = sha256(_text(document)).hexdigest()
    return _text({**document, "sha256": digest})


def unseal(data: bytes, newest: int, migrations: Mapping[int, Callable[[Document], Document]]) -> Document:
    """The document in format `newest`, without its sha256.

    Args:
        data: what `seal` returned; a single other byte is an error.
        newest: the format version that the caller reads.
        migrations: from version k, a function that returns the document of version k + 1.

    Raises:
        Damaged: with the reason.
    """
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or type(document.get("format")) is not int:
            raise Damaged("is no document with a format version")
        version = document["format"]
        if version > newest:
            raise Damaged(f"has format {version}, and this Limbeck reads up to format {newest}: update Limbeck")
        document.pop("sha256", None)
        if seal(document) != data:
            raise Damaged("does not agree with its own sha256")
    except (ValueError, RecursionError) as error:
        raise Damaged(f"is not valid JSON ({error})") from None
    for k in range(version, newest):
        if k not in migrations:
            raise Damaged(f"has format {version}, and this Limbeck no longer reads format {k}")
        document = migrations[k](document)
    return document


def _text(document: Document) -> bytes:
    # In the order given, so that a mapping keeps its order; floats are written by repr, which is exact.
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
