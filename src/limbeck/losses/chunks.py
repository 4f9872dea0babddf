"""Likelihoods of chunks of text, whatever tokens they are made of, and divergences between them (arXiv 2503.20083).

A chunk is a run of tokens of a row; ``chunk`` (B, T) int64 has its number for each token, ascending along a row, -1 for tokens
of none. Two models agree on a chunk's text, not on its tokens, so that what can be compared is the probability of the whole.
Half precision is computed in float32.
"""

from math import log

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, unknown
from limbeck.losses.ranking import upcast

DIVERGENCES = ("binary_ce", "kl", "reverse_kl", "total_variation", "log_ratio", "renyi", "k2", "k3", "limit")


def next_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """log p(id_j | ids before j), shape (B, T), of logits (B, T, V) and ids (B, T); 0 for the first, which nothing predicts."""
    scores = upcast(logits[:, :-1])
    found = scores.gather(-1, ids[:, 1:, None])[..., 0] - scores.logsumexp(-1)
    return torch.cat([found.new_zeros(len(found), 1), found], 1)


def boundary_log_probs(logits: Tensor, mask: Tensor) -> Tensor:
    """log of the probability (B, T) that a token of ``mask`` (V,) comes next. Raises LimbeckError where the mask is empty."""
    if not bool(mask.any()):
        raise LimbeckError("no token begins with a space, newline or tab or is special, so that no word ever ends")
    scores = upcast(logits)
    return (scores[..., mask].logsumexp(-1) - scores.logsumexp(-1)).clamp(max=0.0)


def chunk_sums(values: Tensor, chunk: Tensor, chunks: int) -> Tensor:
    """The sum (B, chunks) of values (B, T) over the tokens of each chunk; 0 where a row has fewer. Linear in B T."""
    rows = torch.arange(len(chunk), device=chunk.device)[:, None] * chunks
    kept = chunk >= 0
    out = values.new_zeros(len(chunk) * chunks)
    return out.index_add(0, (rows + chunk)[kept], values[kept]).reshape(len(chunk), chunks)


def last_tokens(chunk: Tensor, chunks: int) -> Tensor:
    """The place (B, chunks) of each chunk's last token; 0 where a row has fewer."""
    places = torch.arange(chunk.shape[1], device=chunk.device).expand_as(chunk)
    out = torch.zeros(len(chunk), chunks + 1, dtype=torch.int64, device=chunk.device)
    return out.scatter_reduce(1, chunk.where(chunk >= 0, chunks), places, "amax")[:, :chunks]


def merged(ends: Tensor) -> Tensor:
    """New numbers (B, C) of chunks that are joined up to the next that ends a group, ``ends`` (B, C) bool; the rest has -1."""
    group = ends.long().cumsum(1) - ends.long()
    return group.where(group < ends.sum(1, keepdim=True), -1)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, without loss of digits at either end."""
    near = x > -log(2.0)
    low, high = x.where(near, -1.0), x.where(~near, -1.0)  # the branch not taken must have a finite gradient too
    return torch.where(near, (-torch.expm1(low)).log(), torch.log1p(-high.exp()))


def chunk_divergence(
    teacher: Tensor, student: Tensor, kind: str = "binary_ce", tau: float = 100.0, eps: float = 1e-6, alpha: float = 0.5
) -> Tensor:
    """Divergence of two log-likelihoods of the same chunks as events "this chunk, or anything else", elementwise.

    With u = teacher / tau - eps (no gradient), v = student / tau - eps, P = e^u, Q = e^v:

    - binary_ce: -(P log Q + (1 - P) log(1 - Q)); kl: the same minus the entropy of P; reverse_kl: of Q relative to P
    - total_variation: |P - Q|; renyi: of order ``alpha``; k2: (u - v)^2 / 2; k3: e^(v - u) - 1 - (v - u)
    - log_ratio: |teacher - student|, whatever tau
    - limit: what tau KL becomes for tau -> infinity, U - V + U (log -V - log -U), with U = tau u and V = tau v

    Likelihoods above 0 (rounding) count as 0. Raises LimbeckError for an unknown kind, tau <= 0, eps <= 0 or alpha outside (0, 1).
    """
    if kind not in DIVERGENCES:
        raise unknown("divergence", kind, DIVERGENCES)
    if not (tau > 0 and eps > 0 and 0 < alpha < 1):
        raise LimbeckError(f"tau={tau:g} and eps={eps:g} must be positive and alpha={alpha:g} lie in (0, 1)")
    t, s = upcast(teacher.detach()).clamp(max=0.0), upcast(student).clamp(max=0.0)
    if kind == "log_ratio":
        return (t - s).abs()
    u, v = t / tau - eps, s / tau - eps
    if kind == "total_variation":
        return (u.exp() - v.exp()).abs()
    if kind == "k2":
        return (u - v).square() / 2
    if kind == "k3":
        return torch.expm1((v - u).clamp(max=80.0)) - (v - u)  # e^88 is more than float32 has
    if kind == "limit":
        return tau * (u - v + u * (torch.log(-v) - torch.log(-u)))
    not_u, not_v = log1mexp(u), log1mexp(v)
    if kind == "binary_ce":
        return -(u.exp() * v + not_u.exp() * not_v)
    if kind == "kl":
        return u.exp() * (u - v) + not_u.exp() * (not_u - not_v)
    if kind == "reverse_kl":
        return v.exp() * (v - u) + not_v.exp() * (not_v - not_u)
    return torch.logaddexp(alpha * u + (1 - alpha) * v, alpha * not_u + (1 - alpha) * not_v) / (alpha - 1)


def sorted_l1(teacher: Tensor, student: Tensor) -> Tensor:
    """sum_k |p_(k) - q_(k)| of the probabilities in descending order, zeros filling up the shorter (ULD, arXiv 2402.12030).

    Logits (..., V) of vocabularies of any two sizes; the teacher's get no gradient. Shape (...).
    """
    p, q = (upcast(x).softmax(-1).sort(-1, descending=True).values for x in (teacher.detach(), student))
    width = max(p.shape[-1], q.shape[-1])
    p, q = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (p, q))
    return (p - q).abs().sum(-1)


def balancing_weights(norms: Tensor) -> Tensor:
    """w_l / sum w of losses whose gradients have these norms (L,), w_l = 1 / norm: every w_l L_l then pulls alike.

    A loss without gradient gets 0; where all have none, all get 0.
    """
    w = torch.where(norms > 0, 1 / norms.where(norms > 0, 1.0), 0.0)
    return w / w.sum().clamp(min=torch.finfo(w.dtype).tiny)
