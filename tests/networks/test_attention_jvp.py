"""Attention and its derivative in blocks against torch's plain attention under torch.func.jvp."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.errors import LimbeckError
from limbeck.networks import attention_jvp, dual_attention
from limbeck.networks.attention_jvp import forward

F64 = torch.float64
SHAPES = {  # B, H, G, L, M, d, d'
    "self": (2, 3, 3, 37, 37, 8, 8),
    "grouped, cross": (2, 4, 2, 37, 21, 5, 7),
    "one group": (1, 6, 1, 20, 50, 16, 3),
    "one token": (2, 2, 2, 1, 1, 4, 4),
}
MASKS = {
    "none": None,
    "of all": lambda g, B, L, M: torch.rand(L, M, generator=g) > 0.5,
    "of a sample, rows without keys": lambda g, B, L, M: torch.rand(B, 1, L, M, generator=g) > 0.9,
    "of keys": lambda g, B, L, M: torch.rand(B, 1, 1, M, generator=g) > 0.3,
}


def tensors(shape, dtype=F64, seed=0):
    B, H, G, L, M, d, d_v = shape
    g = torch.Generator().manual_seed(seed)
    sizes = 2 * [(B, H, L, d), (B, G, M, d), (B, G, M, d_v)]
    return [torch.randn(size, generator=g, dtype=dtype) for size in sizes]


def plain(q, k, v, mask=None, **options):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[-3] != k.shape[-3], **options)


def reference(x, mask=None, **options):
    return torch.func.jvp(lambda q, k, v: plain(q, k, v, mask, **options), tuple(x[:3]), tuple(x[3:]))


def made(mask, shape):
    B, _, _, L, M, _, _ = shape
    return None if MASKS[mask] is None else MASKS[mask](torch.Generator().manual_seed(1), B, L, M)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_answer_and_derivative_are_torchs(shape, mask, dtype):
    x, seen = tensors(SHAPES[shape], dtype), made(mask, SHAPES[shape])
    tolerance = 1e-12 if dtype == F64 else 1e-5
    expected = reference(x, seen)
    for block in (None, 1, 7, 16):  # 37 = 5 * 7 + 2 = 2 * 16 + 5: ragged last blocks
        for found, wanted in zip(attention_jvp(*x, seen, block=block), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    O, tO = expected
    if shape != "one token":
        assert float(tO.abs().max()) > 0.1 and float((tO - O).abs().max()) > 0.1


def test_a_query_that_sees_no_key_answers_zero():
    x = tensors(SHAPES["self"])
    seen = torch.ones(37, 37, dtype=torch.bool)
    seen[[0, 20, 36]] = False
    assert torch.equal(plain(*x[:3], seen)[:, :, 20], torch.zeros(2, 3, 8, dtype=F64))  # as torch has it
    x[0].requires_grad_()
    O, tO = attention_jvp(*x, seen, block=8)
    for y in (O, tO):
        assert float(y[:, :, [0, 20, 36]].detach().abs().max()) == 0 and bool(y.isfinite().all())
    (gradient,) = torch.autograd.grad(O.sum(), x[0])
    assert bool(gradient.isfinite().all()) and float(gradient[:, :, 20].abs().max()) == 0
    lse = forward(*x, seen, 1.0, 8, False, "tiled")[2]
    assert bool(torch.isneginf(lse[:, :, 20]).all()) and bool(lse[:, :, 1].isfinite().all())


def test_log_sum_exp():
    x = tensors(SHAPES["grouped, cross"])
    lse = forward(*x, None, 0.3, 8, False, "tiled")[2]
    scores = 0.3 * x[0] @ x[1].repeat_interleave(2, 1).mT
    torch.testing.assert_close(lse, torch.logsumexp(scores, -1), rtol=1e-13, atol=1e-13)


def test_scores_beyond_the_range_of_exp():
    x = [50 * y for y in tensors(SHAPES["self"])]  # exp(2500 d) overflows: the running maximum is needed
    for found, wanted in zip(attention_jvp(*x, block=8), reference(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("missing", [(0,), (1, 2), (0, 1), (0, 1, 2)])
def test_a_missing_tangent_is_zero(missing):
    x = tensors(SHAPES["grouped, cross"])
    zeros = [*x[:3], *(torch.zeros_like(y) if i in missing else y for i, y in enumerate(x[3:]))]
    given = [*x[:3], *(None if i in missing else y for i, y in enumerate(x[3:]))]
    for found, wanted in zip(attention_jvp(*given, block=8), attention_jvp(*zeros, block=8), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("block", [None, 1, 8])
def test_causal_is_a_triangular_mask(block):
    x = tensors(SHAPES["self"])
    for found, wanted in zip(attention_jvp(*x, causal=True, block=block), reference(x, is_causal=True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    longer = tensors((1, 4, 2, 9, 30, 4, 4))  # more keys than queries
    triangle = torch.ones(9, 30, dtype=torch.bool).tril()
    for found, wanted in zip(attention_jvp(*longer, causal=True, block=block), reference(longer, triangle), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    x = [y.to(dtype) for y in tensors(SHAPES["self"])]
    exact = attention_jvp(*(y.double() for y in x))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_jvp(*x, block=4)
    for y, wanted in zip(found, exact, strict=True):
        assert y.dtype == dtype
        torch.testing.assert_close(y, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-4)  # rounded once


def test_the_scale_and_more_batch_dimensions():
    q, k, v, *tangents = (y.reshape(2, 1, *y.shape[1:]) for y in tensors(SHAPES["grouped, cross"]))
    mask = torch.rand(37, 21, generator=torch.Generator().manual_seed(0)) > 0.4
    found = attention_jvp(q, k, v, *tangents, mask, scale=0.3, block=16)
    expected = reference([y[:, 0] for y in (q, k, v, *tangents)], mask, scale=0.3)
    for y, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(y[:, 0], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", ["self", "grouped, cross"])
def test_the_gradient_of_the_answer_is_torchs(shape, mask):
    *x, _, _, _ = tensors(SHAPES[shape])
    tangents, seen = tensors(SHAPES[shape], seed=1)[3:], made(mask, SHAPES[shape])
    for y in x:
        y.requires_grad_()
    weight = torch.randn(plain(*x, seen).shape, dtype=F64)
    expected = torch.autograd.grad((plain(*x, seen) * weight).sum(), x)
    for block in (None, 1, 16):
        O, tO = attention_jvp(*x, *tangents, seen, block=block)
        assert not tO.requires_grad
        for found, wanted in zip(torch.autograd.grad((O * weight).sum(), x), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_the_gradient_by_differences(causal):
    q, k, v, *tangents = tensors((1, 2, 1, 5, 6, 3, 2))
    for y in (q, k, v):
        y.requires_grad_()
    torch.autograd.gradcheck(lambda *x: attention_jvp(*x, *tangents, causal=causal, block=2)[0], (q, k, v))


def test_inside_a_derivative_of_torch():
    q, k, v, tq, tk, tv = tensors(SHAPES["self"])
    factor = torch.tensor(0.7, dtype=F64, requires_grad=True)
    found, expected = (
        torch.func.jvp(lambda q, k, v, f=f: f(factor * q, k, v), (q, k, v), (tq, tk, tv)) for f in (dual_attention, plain)
    )
    for y, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(o.sum(), factor)[0] for o in (found[0], expected[0])]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        again = torch.func.jvp(lambda q: dual_attention(q, k, v), (q,), (tq,))
    alone = reference([q, k, v, tq, torch.zeros_like(tk), torch.zeros_like(tv)])
    torch.testing.assert_close(again[1], alone[1], rtol=1e-12, atol=1e-12)


def test_without_tangents_it_is_torchs_own_attention():
    q, k, v, *_ = tensors(SHAPES["grouped, cross"])
    assert torch.equal(dual_attention(q, k, v), F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


class Largest(TorchDispatchMode):
    """The largest tensor that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for y in out if isinstance(out, tuple) else (out,):
            if isinstance(y, torch.Tensor):
                self.numbers = max(self.numbers, y.numel())
        return out


def test_no_matrix_of_all_scores_is_made():
    largest = {}
    for L in (256, 512):
        x = tensors((1, 2, 2, L, L, 4, 4), torch.float32)
        with Largest() as seen:
            attention_jvp(*x, block=32)
        q = x[0].requires_grad_()
        with Largest() as back:
            attention_jvp(*x, block=32)[0].sum().backward()
        assert q.grad is not None
        with Largest() as squares:
            reference(x)
        largest[L] = (seen.numbers, back.numbers, squares.numbers)
    assert largest[512][2] == 4 * largest[256][2] == 2 * 512**2
    assert largest[512][0] <= 2 * largest[256][0] and largest[512][1] <= 2 * largest[256][1]
    assert largest[512][0] <= 2 * 512 * 8  # q or k beside its tangent


def test_what_the_derivative_needs_its_last_term_for():
    x = tensors(SHAPES["self"])
    q, k, v, tq, tk, tv = x
    P = torch.softmax(q @ k.mT / math.sqrt(8), -1)
    H = P * (tq @ k.mT + q @ tk.mT) / math.sqrt(8)
    torch.testing.assert_close(attention_jvp(*x)[1], P @ tv + H @ v - H.sum(-1, keepdim=True) * (P @ v), rtol=1e-12, atol=1e-12)
    assert float((attention_jvp(*x)[1] - (P @ tv + H @ v)).abs().max()) > 0.1


def test_bad_input():
    x = tensors(SHAPES["self"])
    with pytest.raises(LimbeckError, match=r"q \(2, 3, 37, 8\), k \(2, 2, 37, 8\) .* H a multiple of G"):
        attention_jvp(x[0], x[1][:, :2], x[2][:, :2], None, None, None)
    with pytest.raises(LimbeckError, match=r"do not fit"):
        attention_jvp(x[0], x[1][..., :4], x[2], None, None, None)
    with pytest.raises(LimbeckError, match=r"the tangent of k has shape \(2, 3, 36, 8\): expected \(2, 3, 37, 8\), or None"):
        attention_jvp(*x[:4], x[4][:, :, 1:], x[5])
    with pytest.raises(LimbeckError, match=r"the attention mask is torch.float64: give a boolean one"):
        attention_jvp(*x, mask=torch.zeros(37, 37, dtype=F64))
    with pytest.raises(LimbeckError, match=r"block=0"):
        attention_jvp(*x, block=0)
    with pytest.raises(LimbeckError, match=r"unknown attention kernel 'trion': did you mean 'triton'"):
        attention_jvp(*x, kernel="trion")
