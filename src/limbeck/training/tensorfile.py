"""Tensors to the bytes of a safetensors file, in pieces: one tensor's copy in memory at a time.

The library's own writer copies a whole file in memory and refuses tied and strided tensors; any safetensors
reader reads what is written here.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from limbeck.errors import LimbeckError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorFileError(LimbeckError):
    """A tensor that a safetensors file cannot hold."""


def untie(named: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split into tensors to write and aliases {name: name of the same tensor among those}.

    Raises:
        TensorFileError: not a plain dense tensor, a dtype without a safetensors name, or a reserved name.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, t in named.items():
        if is_split(t) and t.dtype in _DTYPES:  # never an alias: its memory is a part of it
            kept[name] = t
            continue
        if type(t) not in (Tensor, Parameter) or t.layout is not torch.strided or t.is_meta:
            kind = f"{type(t).__name__}, {t.layout} on {t.device}" if isinstance(t, Tensor) else type(t).__name__
            raise TensorFileError(f"{name!r} is no plain dense tensor ({kind}): gather or convert it first")
        if t.dtype not in _DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise TensorFileError(f"{name!r} has dtype {t.dtype}: convert it to one of {allowed}")
        if name == "__metadata__":
            raise TensorFileError("no tensor may be named '__metadata__': rename it")
        memory = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride(), t.is_conj(), t.is_neg())
        if t.numel() and memory in first:
            aliases[name] = first[memory]
        else:
            kept[name] = t
            first[memory] = name
    return kept, aliases


def chunks(named: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file's bytes: length of the header, header, then the tensors in row-major order.

    Args:
        named: tensors as `untie` gives them.
    """
    names = _order(named)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        t = named[name]
        end = start + t.numel() * t.element_size()
        header[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # for the alignment of what follows
    yield len(text).to_bytes(8, "little")
    yield text
    for name in names:
        dense = whole(named[name].detach()).resolve_conj().resolve_neg().cpu().contiguous()
        yield dense.reshape(-1).view(torch.uint8).numpy().data


def is_split(t: Any) -> bool:
    """Is it a tensor whose parts several processes hold?"""
    return hasattr(t, "full_tensor")


def take_part(named: Mapping[str, Tensor]) -> None:
    """What the processes do that hold parts of tensors of which another one writes a file."""
    split = {name: t for name, t in named.items() if is_split(t)}
    for name in _order(split):
        whole(split[name].detach())


def _order(named: Mapping[str, Tensor]) -> list[str]:
    # Wide dtypes first: every tensor starts at a multiple of its element size.
    return sorted(named, key=lambda name: (-named[name].element_size(), name))


def whole(t: Any) -> Tensor:
    """The tensor itself, gathered from all processes where it is split: then all of them ask for it."""
    return t.full_tensor() if is_split(t) else t
