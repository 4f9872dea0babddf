import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.training.sealed import Damaged, check_json, seal, unseal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def same(a, b):
    """Equality of values, types, signs of zero, and the order of mappings."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@settings(max_examples=30)
@given(st.dictionaries(st.text(), VALUES))
def test_documents_come_back_exactly(meta):
    check_json(meta, "meta")
    document = {"format": 1, "meta": meta}
    assert same(unseal(seal(document), 1, {}), document)


DATA = seal({"format": 1, "step": 900, "meta": {"lr": 1e-05, "größe": [1, None, "\u2028 a\\b\n"]}})


def test_every_flipped_bit_is_found():
    for place in range(8 * len(DATA)):
        data = bytearray(DATA)
        data[place // 8] ^= 1 << place % 8
        with pytest.raises(Damaged):
            unseal(bytes(data), 1, {})


def test_every_truncation_and_addition_is_found():
    for size in range(len(DATA)):
        with pytest.raises(Damaged):
            unseal(DATA[:size], 1, {})
    for extra in (b"\n", b" ", b"\0", DATA):
        with pytest.raises(Damaged):
            unseal(DATA + extra, 1, {})


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{}", b"[]", b"null", b"3", b"\xff", b'{"format": true}', b'{"format": "1"}', b"[" * 100_000),
        b'{"format": 1, "a": NaN}',
        b'{"format": 1, "a": ' + b"9" * 5000 + b"}",
        DATA.decode().encode("utf-16"),
    ],
)
def test_what_is_no_sealed_document_is_damaged(data):
    with pytest.raises(Damaged):
        unseal(data, 1, {})


def test_a_newer_format_is_named_before_anything_else():
    with pytest.raises(Damaged, match=r"format 7.*up to format 2: update"):
        unseal(json.dumps({"format": 7, "otherwise": "sealed"}).encode(), 2, {})


def test_older_formats_migrate_step_by_step():
    migrations = {
        1: lambda old: {**old, "format": 2, "trail": ["1->2"]},
        2: lambda old: {**old, "format": 3, "trail": [*old["trail"], "2->3"]},
    }
    data = seal({"format": 1, "step": 4})
    assert unseal(data, 3, migrations) == {"format": 3, "step": 4, "trail": ["1->2", "2->3"]}
    with pytest.raises(Damaged, match="no longer reads format 2"):
        unseal(data, 3, {1: migrations[1]})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, r"meta\.a\[1\]\.b is nan"),
        (-math.inf, r"meta\.a\[1\]\.b is -inf"),
        ((1, 2), r"meta\.a\[1\]\.b is a tuple"),
        (np.float64(1), r"meta\.a\[1\]\.b is a float64"),
        (b"x", r"meta\.a\[1\]\.b is a bytes"),
        ({1: 2}, r"meta\.a\[1\]\.b has the key 1"),
        ("\ud83d\ude00", r"meta\.a\[1\]\.b is .* no valid Unicode"),
        ({"\ud800": 1}, r"a key of meta\.a\[1\]\.b"),
    ],
)
def test_what_json_would_change_is_refused_by_place(value, where):
    with pytest.raises(LimbeckError, match=where):
        check_json({"a": [0, {"b": value}]}, "meta")
