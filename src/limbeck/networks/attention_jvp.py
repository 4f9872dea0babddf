"""Attention with its forward-mode derivative, in blocks: memory grows with L, not with L^2.

torch's fused attention has no forward-mode derivative, and its plain one keeps several L x L matrices. Here, with
S = scale Q K^T, P = softmax(S), tS = scale (tQ K^T + Q tK^T) and H = P * tS,

    O = P V,    tO = P tV + H V - rowsum(H) * O,

block of keys by block of keys under a running maximum m, as FlashAttention-2 does (rCM, arXiv 2510.08431, Appendix):
with P~ = exp(S_j - m') and H~ = P~ * tS_j, the sums O, C = P~ tV + H~ V, l = rowsum P~ and r = rowsum H~ are rescaled
by exp(m - m') and added to; at the end O / l, tO = C / l - (r / l) O and LSE = m + ln l. The shift m needs no
derivative: it cancels.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, unknown

Triple = tuple[Tensor, Tensor, Tensor]
KERNELS = ("tiled", "triton")
TILE = 2**20  # numbers in one block of S over all batches and heads: measured best on one core (benchmarks/attention_jvp.py)
SHORTEST = 64


def attention_jvp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None = None,
    scale: float | None = None,
    block: int | None = None,
    causal: bool = False,
    kernel: str = "tiled",
) -> tuple[Tensor, Tensor]:
    """(O, tO): softmax(scale Q K^T) V and its derivative along (tq, tk, tv).

    q (..., H, L, d), k (..., G, M, d), v (..., G, M, d'); H a multiple of G: heads in a row share keys and values.
    Tangents are like their tensors, or None for zero. ``mask``: boolean, broadcastable to (..., H, L, M), True where a
    query sees a key; ``causal``: query i sees keys 0..i, without a mask. ``scale`` is 1 / sqrt(d) by default, ``block``
    the number of keys and of queries worked on at once. A query that sees no key gets O = tO = 0, as torch's attention
    answers. O is differentiable in q, k and v, in blocks too; tO is a constant for gradients. ``kernel``: "tiled" or
    "triton" (:mod:`limbeck.networks.attention_triton`). Raises LimbeckError for shapes that do not fit.
    """
    check_attention(q, k, v, tq, tk, tv, mask)
    if kernel not in KERNELS:
        raise unknown("attention kernel", kernel, KERNELS)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    arguments = (q, k, v, tq, tk, tv, mask, scale, block, causal, kernel)
    function = _Attention.apply if torch.is_grad_enabled() else forward  # inside torch.func, requires_grad does not tell
    with torch.autocast(q.device.type, enabled=False):
        return function(*arguments)[:2]


def check_attention(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None
) -> None:
    """Raise LimbeckError where shapes, heads, tangents or mask do not fit."""
    fit = q.ndim == k.ndim == v.ndim >= 3 and q.shape[:-3] == k.shape[:-3] and k.shape[:-1] == v.shape[:-1]
    if not fit or q.shape[-1] != k.shape[-1] or q.shape[-3] % k.shape[-3]:
        raise LimbeckError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: expected (..., H, L, d), (..., G, M, d) "
            "and (..., G, M, d') with H a multiple of G"
        )
    for name, x, tx in (("q", q, tq), ("k", k, tk), ("v", v, tv)):
        if tx is not None and tx.shape != x.shape:
            raise LimbeckError(
                f"the tangent of {name} has shape {tuple(tx.shape)}: expected {tuple(x.shape)}, or None for zero"
            )
    if mask is not None and mask.dtype != torch.bool:
        raise LimbeckError(f"the attention mask is {mask.dtype}: give a boolean one, True where a query sees a key")


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
    kernel: str,
) -> Triple:
    """(O, tO, LSE) without gradients of its own; LSE (..., H, L) is -inf for a query that sees no key.

    Half precision is worked on in float32: sums over many keys, and a derivative that is their small difference.
    """
    if kernel == "triton":
        from limbeck.networks.attention_triton import forward as compiled

        return compiled(q, k, v, tq, tk, tv, mask, scale, block, causal)
    tiles = _Tiles(q, k, mask, block, causal)
    K, V = tiles.wide(k), tiles.wide(v)
    both = [(a, b) for a, b in ((tq, K), (q, None if tk is None else tiles.wide(tk))) if a is not None and b is not None]
    keys = torch.cat([b for _, b in both], -1) if both else None
    TV = None if tv is None else tiles.wide(tv)
    O, tO = (q.new_empty(*q.shape[:-1], v.shape[-1]) for _ in range(2))
    LSE = q.new_empty(q.shape[:-1], dtype=tiles.dtype)
    for rows in tiles.queries():
        Q = scale * tiles.cut(q, rows)
        both_q = None if keys is None else scale * torch.cat([tiles.cut(a, rows) for a, _ in both], -1)
        m = Q.new_full((*Q.shape[:-1], 1), -math.inf)
        l, r = torch.zeros_like(m), torch.zeros_like(m)
        o, c = (Q.new_zeros(*Q.shape[:-1], V.shape[-1]) for _ in range(2))
        for cols in tiles.keys(rows):
            S = tiles.masked(Q @ K[:, cols].mT, rows, cols)
            m_new = torch.maximum(m, S.amax(-1, keepdim=True))
            shift = m_new.masked_fill(torch.isneginf(m_new), 0.0)  # no key yet: exp(-inf - 0) = 0, not nan
            fade = torch.exp(m - shift)
            P = S.sub_(shift).exp_()  # 0 where masked, so that H is too
            l.mul_(fade).add_(P.sum(-1, keepdim=True))
            o.mul_(fade).baddbmm_(P, V[:, cols])
            c.mul_(fade)
            if TV is not None:
                c.baddbmm_(P, TV[:, cols])
            if keys is not None and both_q is not None:
                H = (both_q @ keys[:, cols].mT).mul_(P)
                r.mul_(fade).add_(H.sum(-1, keepdim=True))
                c.baddbmm_(H, V[:, cols])
            m = m_new
        whole = l.clamp(min=torch.finfo(l.dtype).tiny)  # l >= 1 wherever there is a key
        o.div_(whole)
        tiles.put(O, rows, o)
        tiles.put(tO, rows, c.div_(whole).sub_(r.div_(whole) * o))
        tiles.put(LSE[..., None], rows, m + torch.log(l))
    return O, tO, LSE


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    O: Tensor,
    LSE: Tensor,
    mask: Tensor | None,
    scale: float,
    block: int | None,
    causal: bool,
) -> Triple:
    """The gradients of q, k and v for the gradient of O: dS = P * (dO V^T - rowsum(dO * O)), block by block."""
    tiles = _Tiles(q, k, mask, block, causal)
    K, V = tiles.wide(k), tiles.wide(v)
    dq, dK, dV = torch.empty_like(q, memory_format=torch.contiguous_format), torch.zeros_like(K), torch.zeros_like(V)
    lse = LSE.masked_fill(torch.isneginf(LSE), math.inf)[..., None]  # P = 0 where a query sees no key
    for rows in tiles.queries():
        Q, dO, at = scale * tiles.cut(q, rows), tiles.cut(gradient, rows), tiles.cut(lse, rows)
        D = (dO * tiles.cut(O, rows)).sum(-1, keepdim=True)
        dQ = torch.zeros_like(Q)
        for cols in tiles.keys(rows):
            P = tiles.masked(Q @ K[:, cols].mT, rows, cols).sub_(at).exp_()
            dV[:, cols] += P.mT @ dO
            dS = (dO @ V[:, cols].mT).sub_(D).mul_(P)
            dQ.baddbmm_(dS, K[:, cols])
            dK[:, cols] += dS.mT @ Q
        tiles.put(dq, rows, dQ.mul_(scale))
    return dq, dK.view_as(k).to(k.dtype), dV.view_as(v).to(v.dtype)


class _Tiles:
    """Blocks of queries and of keys. Heads that share keys are worked on as more queries: (N, heads x block, d)."""

    def __init__(self, q: Tensor, k: Tensor, mask: Tensor | None, block: int | None, causal: bool):
        (self.L, self.M), self.causal = (q.shape[-2], k.shape[-2]), causal
        self.dtype = torch.promote_types(q.dtype, torch.float32)
        self.batch, self.shared = k.shape[:-2], q.shape[-3] // k.shape[-3]
        if block is None:
            side = math.isqrt(TILE // max(math.prod(q.shape[:-2]), 1))
            block = max(SHORTEST, 1 << max(side, 1).bit_length() - 1)
        if block < 1:
            raise LimbeckError(f"block={block}: attention is worked on in blocks of at least 1")
        self.block = block
        self.mask = None if mask is None else self._heads(mask.expand(*q.shape[:-1], self.M))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-3, (self.batch[-1], self.shared))  # (..., G, H / G, L, .)

    def queries(self) -> Iterator[slice]:
        return (slice(i, min(i + self.block, self.L)) for i in range(0, self.L, self.block))

    def keys(self, rows: slice) -> Iterator[slice]:
        end = min(rows.stop, self.M) if self.causal else self.M
        return (slice(j, min(j + self.block, end)) for j in range(0, end, self.block))

    def cut(self, x: Tensor, rows: slice) -> Tensor:
        """(..., H, L, d) -> (N, H / G x block, d)"""
        part = self._heads(x)[..., rows, :]
        return part.reshape(math.prod(self.batch), -1, x.shape[-1]).to(self.dtype)

    def wide(self, x: Tensor) -> Tensor:
        """(..., G, M, d) -> (N, M, d)"""
        return x.flatten(0, -3).to(self.dtype)

    def put(self, into: Tensor, rows: slice, part: Tensor) -> None:
        """The way back."""
        self._heads(into)[..., rows, :] = part.view(*self.batch, self.shared, -1, part.shape[-1])

    def masked(self, S: Tensor, rows: slice, cols: slice) -> Tensor:
        """S with -inf where a query does not see a key, in place."""
        if self.mask is not None:
            S.masked_fill_(~self.mask[..., rows, cols].reshape(S.shape), -math.inf)
        if self.causal and cols.stop > rows.start + 1:
            i, j = torch.arange(rows.start, rows.stop, device=S.device), torch.arange(cols.start, cols.stop, device=S.device)
            S.masked_fill_((j > i[:, None]).repeat(self.shared, 1), -math.inf)
        return S


class _Attention(torch.autograd.Function):
    """forward() with the gradient of O; tO and LSE are constants."""

    @staticmethod
    def forward(*arguments: Any) -> Triple:
        return forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Triple) -> None:
        q, k, v, _, _, _, ctx.mask, ctx.scale, ctx.block, ctx.causal, _ = inputs
        O, tO, LSE = output
        ctx.mark_non_differentiable(tO, LSE)
        ctx.save_for_backward(q, k, v, O, LSE)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, O, LSE = ctx.saved_tensors
        found = backward(gradient, q, k, v, O, LSE, ctx.mask, ctx.scale, ctx.block, ctx.causal)
        return (*found, *(None,) * 8)
