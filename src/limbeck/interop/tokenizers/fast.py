"""Fast tokenizers of transformers in bytes: byte-level ones (GPT-2's alphabet) and sentencepiece's (a mark for the space)."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers.byteform import ByteForm

MARK = "\u2581"  # sentencepiece's space
ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
LOSSY = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _alphabet() -> dict[int, str]:
    """GPT-2's character for each byte: itself where it can be printed, else the next one from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


ALPHABET = _alphabet()
_BYTE_OF = {character: byte for byte, character in ALPHABET.items()}


def byte_form(tokenizer: Any, units: Mapping[str, str] | None = None) -> ByteForm:
    """A fast tokenizer (``transformers.PreTrainedTokenizerFast``) in bytes. The tokenizer itself stays as it is.

    ``units``: what it writes for roles of its own, special tokens included, e.g. {"user": "<|im_start|>user\\n"}; bos, eos and
    the like are known. Texts are read without special tokens: one that looks like ``</s>`` is text. Raises LimbeckError for a
    slow tokenizer, one whose normaliser or splitting changes the text, and a token whose bytes cannot be recovered. Unicode's
    NFC alone passes (Qwen's tokenizers have it): a text that it changes is refused when it comes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if backend is None or not hasattr(backend, "to_str"):
        raise LimbeckError(
            f"{name} ({type(tokenizer).__name__}) is no fast tokenizer, so the bytes of its tokens are not known; load it with "
            "transformers.AutoTokenizer.from_pretrained(..., use_fast=True), or use limbeck.interop.tokenizers.byte_tokenizer()"
        )
    written = json.loads(backend.to_str())
    byte_level = _style(name, written)
    own = type(backend).from_str(json.dumps(_plain(written)))
    own.encode_special_tokens = True
    pieces = _pieces(name, own, written, byte_level)
    specials = {role: (i,) for role in ROLES if (i := getattr(tokenizer, f"{role}_token_id", None)) is not None}
    for role, text in (units or {}).items():
        specials[role] = tuple(backend.encode(text, add_special_tokens=False).ids)
    lost = [role for role, unit in specials.items() if not unit or max(unit) >= len(pieces)]
    if lost:
        raise LimbeckError(f"{name} has no tokens for {', '.join(lost)} among its {len(pieces)}; say what it writes in units=")

    known = {i for i, piece in enumerate(pieces) if piece is not None}

    def read(text: str) -> list[int]:
        return own.encode(text, add_special_tokens=False).ids

    def split(loose: bytes) -> list[int]:
        if byte_level:
            word = "".join(ALPHABET[b] for b in loose)
        else:
            try:
                word = loose.decode().replace(" ", MARK)
            except UnicodeDecodeError:
                found = [own.token_to_id(f"<0x{b:02X}>") for b in loose]
                return [i for i in found if i is not None]
        return [token.id for token in own.model.tokenize(word) if token.id in known]

    return ByteForm(name, pieces, specials, read, split)


def _style(name: str, written: dict[str, Any]) -> bool:
    """Is it byte-level (else sentencepiece's)? Raises LimbeckError for what changes texts."""
    steps = {key: list(_flat(written[key])) for key in ("normalizer", "pre_tokenizer", "decoder")}
    for step in steps["normalizer"]:
        kind = step["type"]
        spaces = kind == "Replace" and step["pattern"] == {"String": " "} and step["content"] == MARK
        if not (spaces or kind in ("NFC", "ByteLevel") or (kind == "Prepend" and step["prepend"] == MARK)):
            raise LimbeckError(
                f"the normaliser {kind} of {name} changes texts (as lower case or NFKC do), so its tokens cannot be aligned with "
                "another tokenizer's; take a model whose tokenizer keeps the text"
            )
    for step in steps["pre_tokenizer"]:
        if step["type"] in LOSSY or step.get("behavior") == "Removed":
            raise LimbeckError(
                f"{name} splits texts by {step['type']}, which drops spaces, so its tokens do not give the text back; take a "
                "byte-level or sentencepiece tokenizer"
            )
    if written["model"].get("dropout"):
        raise LimbeckError(f"{name} merges at random (dropout={written['model']['dropout']:g}); set its dropout to None")
    kinds = {step["type"] for key in steps for step in steps[key]}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "Prepend", "Replace"}:
        return False
    some = next(iter(written["model"].get("vocab", None) or ["?"]))
    raise LimbeckError(
        f"cannot recover the bytes of token {some!r} of {name}: it is neither byte-level nor sentencepiece's "
        f"({written['model']['type']}); take another tokenizer"
    )


def _flat(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a normaliser, pre-tokenizer or decoder, sequences taken apart."""
    if step is None:
        return
    inner = next((step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step), None)
    if inner is None:
        yield step
    else:
        for one in inner:
            yield from _flat(one)


def _plain(written: dict[str, Any]) -> dict[str, Any]:
    return {**written, "truncation": None, "padding": None}


def _pieces(name: str, own: Any, written: dict[str, Any], byte_level: bool) -> tuple[bytes | None, ...]:
    vocabulary: dict[str, int] = own.get_vocab(with_added_tokens=True)
    added = {token["content"]: token["special"] for token in written["added_tokens"]}
    unknown = _unknown(written["model"])
    pieces: list[bytes | None] = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        if added.get(token) or token == unknown:
            pieces[i] = None
        elif token in added:
            pieces[i] = token.replace(MARK, " ").encode() if not byte_level else token.encode()
        elif not byte_level:
            byte = _BYTE.fullmatch(token) if written["model"].get("byte_fallback") else None
            pieces[i] = bytes([int(byte[1], 16)]) if byte else token.replace(MARK, " ").encode()
        elif all(character in _BYTE_OF for character in token):
            pieces[i] = bytes(_BYTE_OF[character] for character in token)
        else:
            raise LimbeckError(
                f"cannot recover the bytes of token {token!r} ({i}) of {name}: it is not written in the byte-level alphabet; add "
                "it to the tokenizer as an added token, or take another tokenizer"
            )
    return tuple(pieces)


def _unknown(model: dict[str, Any]) -> str | None:
    """The token for what a model does not know."""
    if model.get("unk_id") is not None:
        return model["vocab"][model["unk_id"]][0]
    return model.get("unk_token")
