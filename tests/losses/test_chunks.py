"""Likelihoods of chunks against dense matrices, divergences against finite differences and their limit, and an exact source."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.losses.chunks import (
    DIVERGENCES,
    balancing_weights,
    boundary_log_probs,
    chunk_divergence,
    chunk_sums,
    last_tokens,
    log1mexp,
    merged,
    next_log_probs,
    sorted_l1,
)

SMOOTH = [kind for kind in DIVERGENCES if kind not in ("log_ratio", "total_variation")]


def random_chunks(seed, rows=4, tokens=12):
    generator = torch.Generator().manual_seed(seed)
    chunk = (torch.rand(rows, tokens, generator=generator) < 0.5).long().cumsum(1)
    chunk[:, 0] = -1
    chunk[0, 9:] = -1
    return chunk, torch.randn(rows, tokens, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_scattered_sums_are_those_of_a_dense_matrix(seed):
    chunk, values = random_chunks(seed)
    count = int(chunk.max()) + 1
    dense = chunk[:, :, None] == torch.arange(count)  # (B, T, C)
    torch.testing.assert_close(chunk_sums(values, chunk, count), torch.einsum("bt,btc->bc", values, dense.double()))
    places = (dense * torch.arange(chunk.shape[1])[:, None]).amax(1)
    assert torch.equal(last_tokens(chunk, count), places)


@settings(max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_chunks_join_up_to_the_next_end(ends):
    found, group = [], 0
    closing = [i for i, end in enumerate(ends) if end]
    for i, end in enumerate(ends):
        found.append(group if closing and i <= closing[-1] else -1)
        group += end
    assert merged(torch.tensor([ends])).tolist() == [found]


def test_log_probabilities_are_those_of_the_softmax():
    generator = torch.Generator().manual_seed(0)
    logits, ids = torch.randn(2, 5, 7, generator=generator), torch.randint(7, (2, 5), generator=generator)
    p = logits.double().softmax(-1)
    wanted = torch.stack([torch.stack([p[b, j - 1, ids[b, j]].log() for j in range(1, 5)]) for b in range(2)])
    found = next_log_probs(logits.double(), ids)
    torch.testing.assert_close(found[:, 1:], wanted)
    assert (found[:, 0] == 0).all() and next_log_probs(logits.half(), ids).dtype == torch.float32
    mask = torch.tensor([True, False, False, True, False, False, False])
    torch.testing.assert_close(boundary_log_probs(logits.double(), mask), (p[..., 0] + p[..., 3]).log())
    with pytest.raises(LimbeckError, match="no token begins with a space"):
        boundary_log_probs(logits, torch.zeros(7, dtype=torch.bool))


def test_log1mexp_keeps_its_digits_at_both_ends():
    import mpmath

    x = [-1e-12, -1e-6, -0.1, -0.69, -0.7, -3.0, -40.0, -300.0]
    with mpmath.workdps(200):
        exact = torch.tensor([float(mpmath.log(-mpmath.expm1(mpmath.mpf(v)))) for v in x], dtype=torch.float64)
    torch.testing.assert_close(log1mexp(torch.tensor(x, dtype=torch.float64)), exact, rtol=1e-14, atol=0)
    torch.testing.assert_close(log1mexp(torch.tensor(x)), exact.float(), rtol=3e-6, atol=1e-37)


@pytest.mark.parametrize("tau", [1.0, 100.0])
@pytest.mark.parametrize("kind", SMOOTH)
def test_gradients_are_finite_differences(kind, tau):
    t = torch.tensor([-1e-3, -0.2, -1.0, -5.0, -30.0], dtype=torch.float64)
    s = torch.tensor([-0.3, -0.1, -2.5, -4.0, -20.0], dtype=torch.float64, requires_grad=True)
    f = chunk_divergence(t, s, kind, tau)
    (g,) = torch.autograd.grad(f.sum(), s)
    h = 1e-6
    with torch.no_grad():
        difference = (chunk_divergence(t, s + h, kind, tau) - chunk_divergence(t, s - h, kind, tau)) / (2 * h)
    torch.testing.assert_close(g, difference, rtol=1e-5, atol=1e-9)
    assert float(g.abs().min()) > 1e-12


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_student_that_is_its_teacher_has_no_gradient(kind):
    t = torch.tensor([-1e-8, -0.2, -1.0, -5.0, -30.0, -500.0], dtype=torch.float64)
    s = t.clone().requires_grad_()
    f = chunk_divergence(t, s, kind)
    (g,) = torch.autograd.grad(f.sum(), s)
    assert float(g.abs().max()) < 1e-12
    if kind != "binary_ce":
        assert float(f.detach().abs().max()) < 1e-12
    moved = chunk_divergence(t, (t - 0.1).requires_grad_(), kind)
    assert (moved > f.detach()).all()


@pytest.mark.parametrize("tau", [1.0, 100.0])
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_likelihoods_give_finite_numbers(kind, tau, dtype):
    values = [0.0, -1e-8, -1e-4, -0.01, -1.0, -60.0, -500.0]
    t, s = (torch.tensor(x, dtype=dtype) for x in zip(*itertools.product(values, values), strict=True))
    s.requires_grad_()
    f = chunk_divergence(t, s, kind, tau)
    (g,) = torch.autograd.grad(f.sum(), s)
    assert f.dtype == torch.float32 and f.isfinite().all()
    assert g.isfinite().all() or dtype == torch.float16  # a slope of 1e6 is none of its numbers


def test_likelihoods_near_one_and_zero_are_exact_in_float32():
    values = [-1e-8, -1e-3, -1.0, -60.0, -500.0]
    t, s = (torch.tensor(x, dtype=torch.float64) for x in zip(*itertools.product(values, values), strict=True))
    torch.testing.assert_close(chunk_divergence(t.float(), s.float()).double(), chunk_divergence(t, s), rtol=2e-5, atol=1e-6)


def test_a_high_temperature_is_the_limit():
    t = torch.tensor([-0.5, -1.0, -5.0, -12.0], dtype=torch.float64)
    s = torch.tensor([-0.8, -0.6, -9.0, -8.0], dtype=torch.float64)
    tau = 1e4
    limit = chunk_divergence(t, s, "limit", tau, eps=1e-12)
    torch.testing.assert_close(tau * chunk_divergence(t, s, "kl", tau, eps=1e-12), limit, rtol=1e-3, atol=0)
    torch.testing.assert_close(limit, t - s + t * ((-s).log() - (-t).log()), rtol=1e-6, atol=1e-6)
    s.requires_grad_()
    (g,) = torch.autograd.grad(chunk_divergence(t, s, "limit", tau, eps=1e-12).sum(), s)
    torch.testing.assert_close(g, t / s.detach() - 1, rtol=1e-6, atol=1e-6)


def test_divergences_are_those_of_two_events():
    t, s = torch.tensor([-0.3, -2.0], dtype=torch.float64), torch.tensor([-1.1, -0.4], dtype=torch.float64)
    u, v = t - 1e-9, s - 1e-9
    p, q = u.exp(), v.exp()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    wanted = {
        "kl": kl,
        "reverse_kl": q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log(),
        "binary_ce": kl - p * p.log() - (1 - p) * (1 - p).log(),
        "total_variation": (p - q).abs(),
        "log_ratio": (t - s).abs(),
        "renyi": -2 * ((p * q).sqrt() + ((1 - p) * (1 - q)).sqrt()).log(),
        "k2": (t - s).square() / 2,
        "k3": q / p - 1 - (q / p).log(),
    }
    for kind, value in wanted.items():
        torch.testing.assert_close(chunk_divergence(t, s, kind, 1.0, 1e-9), value, rtol=1e-9, atol=1e-12)


def test_bad_options_are_refused():
    x = torch.tensor([-1.0])
    with pytest.raises(LimbeckError, match="unknown divergence 'renyo': did you mean 'renyi'"):
        chunk_divergence(x, x, "renyo")
    for bad in ({"tau": 0.0}, {"eps": 0.0}, {"alpha": 1.0}):
        with pytest.raises(LimbeckError, match="must be positive and alpha"):
            chunk_divergence(x, x, **bad)


def test_sorted_probabilities_of_two_vocabularies():
    generator = torch.Generator().manual_seed(0)
    t, s = torch.randn(3, 5, generator=generator), torch.randn(3, 9, generator=generator, requires_grad=True)
    p = torch.cat([t.softmax(-1).sort(-1, descending=True).values, torch.zeros(3, 4)], -1)
    torch.testing.assert_close(sorted_l1(t, s), (p - s.softmax(-1).sort(-1, descending=True).values).abs().sum(-1))
    assert float(sorted_l1(s.detach(), s.detach()[:, torch.randperm(9, generator=generator)]).max()) < 1e-6


def test_balanced_losses_pull_alike():
    norms = torch.tensor([2.0, 0.5, 0.0, 8.0], dtype=torch.float64)
    w = balancing_weights(norms)
    torch.testing.assert_close(w * norms, torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64) * (w * norms)[0])
    assert float(w.sum()) == pytest.approx(1) and w[2] == 0 and balancing_weights(torch.zeros(2)).tolist() == [0, 0]


# -- an exact source: an order-2 Markov chain on the characters a, b, c and the space ---------------------------------------

A, B, C, SPACE, AB = range(5)


def chain() -> Tensor:
    """P(next | last two), (4, 4, 4); after a space no b, and after "ca" no b either: there "a" may end without a doubt."""
    p = torch.rand(4, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.1
    p[:, A, B] += 1
    p[:, SPACE, B] = p[C, A, B] = 0
    return p / p.sum(-1, keepdim=True)


def teacher_logits(text: list[int], p: Tensor) -> Tensor:
    """log P(character | the two before it) behind every character of the text but the first: exact."""
    return torch.stack([p[SPACE, text[0]].log(), *(p[x, y].log() for x, y in itertools.pairwise(text))])[None]


def tokenised(text: list[int]) -> list[int]:
    """Greedily: "ab" is one token."""
    tokens: list[int] = []
    for x in text:
        if x == B and tokens and tokens[-1] == A:
            tokens[-1] = AB
        else:
            tokens.append(x)
    return tokens


def student_logits(tokens: list[int], p: Tensor) -> Tensor:
    """The Bayes optimum over tokens: behind the token "a" the next character is no b, or it would have been "ab"."""
    out, last = [], (SPACE, SPACE)
    for token in tokens:
        last = (A, B) if token == AB else (last[1], token)
        q = p[last].clone()
        if token == A:
            q[B] = 0
            q = q / q.sum()
        merges = p[last[1], A, B]
        q = torch.cat([q, q[A:B] * merges])
        q[A] = q[A] * (1 - merges)
        out.append(q.log())
    return torch.stack(out)[None]


def markov(seed: int, length: int = 400):
    """(teacher's and student's chunk log-likelihoods, their P_space, the chunks' last tokens' bias 1 - P(b | ...))."""
    p = chain()
    generator = torch.Generator().manual_seed(seed)
    text = [SPACE, C]
    while len(text) < length:
        text.append(int(torch.multinomial(p[text[-2], text[-1]], 1, generator=generator)))
    tokens = tokenised(text)
    widths = torch.tensor([2 if t == AB else 1 for t in tokens])
    count = len(tokens) - 1
    student_chunk = torch.arange(-1, count)[None]  # every token is a chunk; the first is context
    teacher_chunk = student_chunk[0].repeat_interleave(widths)[None]
    found = []
    for ids, logits, chunk in (
        (text, teacher_logits(text, p), teacher_chunk),
        (tokens, student_logits(tokens, p), student_chunk),
    ):
        mask = torch.arange(logits.shape[-1]) == SPACE
        sums = chunk_sums(next_log_probs(logits, torch.tensor([ids])), chunk, count)
        found.append((sums[0], boundary_log_probs(logits, mask).gather(1, last_tokens(chunk, count))[0]))
    ends = [i for i, x in enumerate(text) if x == A and (i + 1 == len(text) or text[i + 1] != B)]
    stops = torch.tensor([1 - float(p[text[i - 1], A, B]) for i in ends], dtype=torch.float64)
    at_a = torch.tensor([t == A for t in tokens[1:]])
    return found, at_a, stops


@pytest.mark.parametrize("seed", range(3))
def test_a_chunk_whose_end_says_something_is_biased_and_a_words_end_corrects_it(seed):
    (teacher, space_t), (student, space_s) = (found := markov(seed))[0]
    at_a, stops = found[1:]
    after_a = torch.cat([torch.tensor([False]), at_a[:-1]])
    gap = student - teacher
    neutral = ~at_a & ~after_a
    assert float(gap[neutral].abs().max()) < 1e-12 and int(neutral.sum()) > 50
    only_end = at_a & ~after_a
    torch.testing.assert_close(gap[only_end], stops.log()[only_end[at_a]], rtol=1e-9, atol=1e-12)
    biased = stops[only_end[at_a]] < 1
    assert float(gap[only_end][biased].abs().mean()) > 0.15
    assert float(gap[only_end][~biased].abs().max()) < 1e-12 and int((~biased).sum()) > 0  # no b can follow "ca"
    corrected = gap + space_s - space_t  # both score "this text, and then a word's end"
    assert float(corrected[~after_a].abs().max()) < 1e-12
    joined = chunk_sums(gap[None], merged(~at_a[None]), len(gap))  # chunks joined over biased ends
    assert float(joined.abs().max()) < 1e-12
