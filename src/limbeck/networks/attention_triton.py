"""The blocks of :mod:`limbeck.networks.attention_jvp` as one Triton kernel: O, its derivative tO, and LSE in one pass.

Imported only where it is asked for (``kernel="triton"``). Sums are float32 whatever the inputs are; the powers are of 2,
with log2(e) in the scale. Gradients are not made here: those of O come from LSE, in blocks of torch. With
TRITON_INTERPRET=1 in the environment before the first import, the kernel runs on a CPU, slowly, to be checked.
"""

import math
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise LimbeckError('the Triton kernel needs triton (pip install triton), or choose kernel="tiled"') from error

QUERIES, KEYS = 64, 32
LOG2_E = 1.4426950408889634


@triton.jit
def _kernel(
    Q, K, V, TQ, TK, TV, MASK, O, TO, LSE,
    L, M, d, d_v, H, shared, scale, scale_2,
    mask_b, mask_h, mask_l, mask_m,
    D: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    HAS_TQ: tl.constexpr, HAS_TK: tl.constexpr, HAS_TV: tl.constexpr, HAS_MASK: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head: pointers to contiguous (N, L, d), (N / shared, M, d) and (N / shared, M, d_v)."""
    first, head = tl.program_id(0) * ROWS, tl.program_id(1).to(tl.int64)
    group = head // shared
    i, x, y = first + tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, D_V)
    at_q = head * L * d + i[:, None] * d + x[None, :]
    is_q = (i[:, None] < L) & (x[None, :] < d)
    q = tl.load(Q + at_q, mask=is_q, other=0.0)
    if HAS_TQ:
        tq = tl.load(TQ + at_q, mask=is_q, other=0.0)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    l, r = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    o, c = tl.zeros([ROWS, D_V], tl.float32), tl.zeros([ROWS, D_V], tl.float32)
    end = M
    if CAUSAL:
        end = tl.minimum(M, first + ROWS)
    for start in range(0, end, COLS):
        j = start + tl.arange(0, COLS)
        at_k = group * M * d + j[None, :] * d + x[:, None]  # transposed: (D, COLS)
        is_k = (j[None, :] < M) & (x[:, None] < d)
        at_v = group * M * d_v + j[:, None] * d_v + y[None, :]
        is_v = (j[:, None] < M) & (y[None, :] < d_v)
        k = tl.load(K + at_k, mask=is_k, other=0.0)
        v = tl.load(V + at_v, mask=is_v, other=0.0)
        seen = (i[:, None] < L) & (j[None, :] < M)
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None])
        if HAS_MASK:
            at = (head // H) * mask_b + (head % H) * mask_h + i[:, None] * mask_l + j[None, :] * mask_m
            seen = seen & (tl.load(MASK + at, mask=seen, other=0) != 0)
        s = tl.where(seen, tl.dot(q, k, input_precision="ieee") * scale_2, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # no key yet
        fade = tl.exp2(m - shift)
        p = tl.exp2(s - shift[:, None])
        p_v = p.to(v.dtype)
        l = l * fade + tl.sum(p, 1)
        o = o * fade[:, None] + tl.dot(p_v, v, input_precision="ieee")
        c = c * fade[:, None]
        r = r * fade
        if HAS_TV:
            tv = tl.load(TV + at_v, mask=is_v, other=0.0)
            c += tl.dot(p_v, tv, input_precision="ieee")
        if HAS_TQ or HAS_TK:
            ts = tl.zeros([ROWS, COLS], tl.float32)
            if HAS_TQ:
                ts += tl.dot(tq, k, input_precision="ieee")
            if HAS_TK:
                tk = tl.load(TK + at_k, mask=is_k, other=0.0)
                ts += tl.dot(q, tk, input_precision="ieee")
            h = p * ts * scale
            r += tl.sum(h, 1)
            c += tl.dot(h.to(v.dtype), v, input_precision="ieee")
        m = m_new
    whole = tl.where(l > 0, l, 1.0)
    o = o / whole[:, None]
    c = c / whole[:, None] - (r / whole)[:, None] * o
    at_o = head * L * d_v + i[:, None] * d_v + y[None, :]
    is_o = (i[:, None] < L) & (y[None, :] < d_v)
    tl.store(O + at_o, o.to(O.dtype.element_ty), mask=is_o)
    tl.store(TO + at_o, c.to(TO.dtype.element_ty), mask=is_o)
    log = tl.where(l > 0, m + tl.log2(whole), float("-inf"))
    tl.store(LSE + head * L + i, log / 1.4426950408889634, mask=i < L)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None,
    scale: float,
    block: int | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(O, tO, LSE) as :func:`limbeck.networks.attention_jvp.forward` gives them; LSE is float32.

    ``block``: a power of two of at least 16 (None: 64 queries, 32 keys). Raises LimbeckError for float64, which the
    float32 sums would waste, and for other blocks.
    """
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise LimbeckError(f'the Triton kernel sums in float32, but q is {q.dtype}; choose kernel="tiled"')
    rows, cols = (QUERIES, KEYS) if block is None else (block, block)
    if rows < 16 or rows & (rows - 1):
        raise LimbeckError(f"block={block}: the Triton kernel's blocks are powers of two of at least 16")
    q, k, v, tq, tk, tv = (None if x is None else x.contiguous() for x in (q, k, v, tq, tk, tv))  # type: ignore[assignment]
    (H, L, d), (M, d_v), shared = q.shape[-3:], v.shape[-2:], q.shape[-3] // k.shape[-3]
    N = math.prod(q.shape[:-2])
    O, tO = (q.new_empty(*q.shape[:-1], d_v) for _ in range(2))
    LSE = q.new_empty(q.shape[:-1], dtype=torch.float32)
    seen, strides = q, [0, 0, 0, 0]
    if mask is not None:
        seen = mask.view(torch.uint8).expand(*q.shape[:-1], M)
        if q.ndim > 4:
            seen = seen.reshape(-1, H, L, M)
        strides = [*(0,) * (4 - seen.ndim), *seen.stride()]
    grid: Any = (triton.cdiv(L, rows), N)
    _kernel[grid](
        q, k, v, q if tq is None else tq, k if tk is None else tk, v if tv is None else tv, seen, O, tO, LSE,
        L, M, d, d_v, H, shared, scale, scale * LOG2_E, *strides,
        D=max(16, triton.next_power_of_2(d)), D_V=max(16, triton.next_power_of_2(d_v)), ROWS=rows, COLS=cols,
        HAS_TQ=tq is not None, HAS_TK=tk is not None, HAS_TV=tv is not None, HAS_MASK=mask is not None, CAUSAL=causal,
    )  # fmt: skip
    return O, tO, LSE
