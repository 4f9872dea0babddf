import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from limbeck.training.tensorfile import TensorFileError, chunks, untie

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
SIGNED = [torch.int64, torch.int32, torch.int16, torch.int8]
UNSIGNED = [torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool]
DTYPES = [*FLOATS, torch.complex64, *SIGNED, *UNSIGNED]


def random_bits(dtype, *shape):
    width = torch.empty(0, dtype=dtype).element_size()
    octets = torch.randint(0, 256, (*shape, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return (octets % 2 if dtype is torch.bool else octets).view(dtype).reshape(shape)


def equal(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)


def bits(t):
    return t.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def written(named):
    return b"".join(chunks(named))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(dtype):
    named = {"a": random_bits(dtype, 3, 5), "scalar": random_bits(dtype), "empty": random_bits(dtype, 0, 4)}
    back = load(written(named))
    assert back.keys() == named.keys()
    assert all(equal(named[name], back[name]) for name in named)


def test_mixed_dtypes_and_odd_sizes_stay_aligned():
    named = {f"t{i}": random_bits(dtype, i % 4 + 1, 3) for i, dtype in enumerate(DTYPES)}
    back = load(written(named))
    assert all(equal(named[name], back[name]) for name in named)


def test_the_bytes_are_those_of_the_library_itself():
    named = {"net.bias": torch.randn(3), "net.weight": torch.randn(3, 4).double(), "höhe": torch.randn(())}
    assert written(named) == save(named, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.transpose(0, 3),
        lambda t: t[:, 1:, ::2],
        lambda t: t[:1].expand(5, 4, 6, 3),
        lambda t: torch.complex(t, t).conj(),
        lambda t: torch.complex(t, t).conj().imag,
        lambda t: nn.Parameter(t),
    ],
)
def test_any_strides_and_views_are_written_by_value(view):
    t = view(torch.randn(2, 4, 6, 3))
    kept, aliases = untie({"t": t})
    assert aliases == {}
    back = load(written(kept))["t"]
    assert torch.equal(back, t.detach())
    assert back.is_contiguous()


def test_only_the_very_same_tensor_is_an_alias():
    t = torch.randn(4, 4, dtype=torch.complex64)
    empty = torch.empty(0)
    named = {"a": t, "b": t.view(4, 4), "row": t[0], "turned": t.T, "conj": t.conj(), "c": t.detach()}
    kept, aliases = untie(named | {"e1": empty, "e2": empty, "copy": t.clone()})
    assert aliases == {"b": "a", "c": "a"}
    assert list(kept) == ["a", "row", "turned", "conj", "e1", "e2", "copy"]
    back = load(written(kept))
    assert all(torch.equal(back[name], kept[name].resolve_conj()) for name in kept)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("w", torch.eye(3).to_sparse(), "sparse_coo"),
        ("w", torch.empty(3, device="meta"), "meta"),
        ("w", torch.zeros(2, dtype=torch.complex128), "complex128"),
        ("w", nn.UninitializedParameter(), "UninitializedParameter"),
        ("w", 3.0, "float"),
        ("__metadata__", torch.zeros(2), "__metadata__"),
    ],
)
def test_what_cannot_be_written_is_named(name, value, why):
    with pytest.raises(TensorFileError, match=why) as caught:
        untie({name: value})
    assert repr(name) in str(caught.value)
