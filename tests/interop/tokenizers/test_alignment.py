"""Alignment: chunks give the text back on both sides, are the shortest possible, and survive truncation and special tokens."""

import unicodedata
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers import Special, align, byte_form, byte_tokenizer, pair, paired

TEXT = st.text(st.sampled_from(" \n\tabehnost.'1é東京😀Ü") | st.characters(exclude_categories=["Cs"]), max_size=40).map(
    lambda text: unicodedata.normalize("NFC", text).replace("\u2581", "_")
)
PAIRS = [
    ("bpe 320", "bpe 400"), ("bpe 400", "bytes"), ("qwen", "llama"), ("gemma", "bytes"), ("unigram", "bpe 320"), ("mistral", "prefix"),
]  # fmt: skip


def two_pointers(a, b):
    """The shortest chunks of two lists of positive or zero widths, by walking along both: (tokens of a, tokens of b) each."""
    found, i, j, i0, j0, x, y = [], 0, 0, 0, 0, 0, 0
    while i < len(a) or j < len(b):
        if x <= y and i < len(a):
            x, i = x + a[i], i + 1
        elif j < len(b):
            y, j = y + b[j], j + 1
        else:
            break
        if x == y and x > 0 and i > i0 and j > j0:
            found.append((range(i0, i), range(j0, j)))
            i0, j0 = i, j
    return found


def cut(ids, chunks, count):
    return [[t for t, c in zip(ids, chunks, strict=True) if c == k] for k in range(count)]


@pytest.mark.parametrize("names", PAIRS)
def test_chunks_are_the_text_and_the_shortest(forms, names):
    teacher, student = (forms[name] for name in names)

    @settings(max_examples=60)
    @given(TEXT)
    def check(text):
        sides = [teacher.encode(text), student.encode(text)]
        widths = [side.widths for side in sides]
        *chunks, count = align(*widths)
        wanted = {*accumulate(widths[0])} & {*accumulate(widths[1])} - {0}
        assert count == len(wanted)  # a chunk ends wherever it can
        ends = [0, *sorted(wanted)]
        for side, found in zip(sides, chunks, strict=True):
            assert all(0 <= b - a <= 1 for a, b in pairwise(found)) and (found >= 0).all()  # monotone, nothing left out
            pieces = cut(side.widths, found, count)
            assert [sum(p) for p in pieces] == [b - a for a, b in pairwise(ends)]
        first, second = (
            [b"".join((teacher, student)[s].pieces[i] for i in ids) for ids in cut(sides[s].ids, chunks[s], count)]
            for s in (0, 1)
        )
        assert all(a in (b, b" " + b) or b == b" " + a for a, b in zip(first[:1], second[:1], strict=True))
        assert first[1:] == second[1:] and b"".join(first) in (text.encode(), b" " + text.encode())

    check()


@given(st.lists(st.integers(1, 5), max_size=30), st.lists(st.integers(1, 5), max_size=30))
def test_alignment_is_a_walk_along_both_sides(a, b):
    *chunks, count = align(a, b)
    walked = two_pointers(a, b)
    assert [(r.start, r.stop) for r, _ in walked] == [
        (min(w), max(w) + 1) for k in range(count) if (w := [i for i, c in enumerate(chunks[0]) if c == k])
    ]
    assert [(r.start, r.stop) for _, r in walked] == [
        (min(w), max(w) + 1) for k in range(count) if (w := [i for i, c in enumerate(chunks[1]) if c == k])
    ]


def test_the_same_tokenizer_gives_a_chunk_per_token(forms):
    for name, form in forms.items():
        ids, widths = form.encode("the shortest 東京 text 😀")
        first, second, count = align(widths, widths)
        if widths[0] == 0:  # a lone mark joins what follows
            continue
        assert first.tolist() == second.tolist() == list(range(len(ids))) and count == len(ids), name


def test_tokens_without_bytes_and_without_counterpart():
    first, second, count = align([0, 3, 2, 0, 0, 1, 1], [3, -1, -1, 2, 1, 1])
    assert first.tolist() == [0, 0, 1, 2, 2, 2, 3] and second.tolist() == [0, -1, -1, 1, 2, 3] and count == 4
    assert [list(x) for x in align([], [1, 2])[:2]] == [[], [-1, -1]] and align([], [])[2] == 0
    assert align([2, 2], [3, 3])[0].tolist() == [-1, -1]


def test_truncation_keeps_the_common_prefix(forms):
    text = "the shortest chunks that both sides agree on, in the text of the teacher"
    whole = pair(text, forms["bpe 320"], forms["bytes"])
    cut_ = pair(text, forms["bpe 320"], forms["bytes"], most=(6, 512))
    assert len(cut_.teacher_ids) == 6 and 0 < cut_.chunks < whole.chunks
    assert cut_.student_chunks.max() == cut_.teacher_chunks.max() == cut_.chunks - 1
    n = (cut_.student_chunks >= 0).nonzero()[0].max() + 1
    assert cut_.student_chunks[:n].tolist() == whole.student_chunks[:n].tolist() and (cut_.student_chunks[n:] == -1).all()
    assert pair(text, forms["bpe 320"], forms["bytes"], most=(512, 10)).chunks <= 10


def test_roles_are_aligned_as_units_and_others_masked(make, forms):
    chatty = byte_form(
        make.roles(make.byte_level(300, specials=("<s>", "</s>", "<|user|>"))), {"user": "<|user|>the\n", "think": "<|user|>"}
    )
    plain = byte_tokenizer(("bos", "user", "pad"))
    found = pair([Special("bos"), Special("user"), "東京 text", Special("think"), "the text", Special("eos")], chatty, plain)
    user, n = len(chatty.specials["user"]), len(plain.encode("東京 text").ids)
    assert found.student_chunks[:2].tolist() == [-1, 0]  # nothing predicts the first token
    assert found.teacher_chunks[: 1 + user].tolist() == [-1, *[0] * user]
    assert found.teacher_chunks[-1] == -1 and found.student_chunks[-1] == found.chunks - 1  # the student has no eos
    k = len(chatty.encode("東京 text").ids)
    assert found.teacher_chunks[1 + user + k] == -1 and found.student_chunks[2 + n] >= 0  # nor has it "think"
    with pytest.raises(
        LimbeckError, match=r"neither TokenizersBackend nor bytes has a token for the role 'system'; they know bos, eos"
    ):
        pair([Special("system"), "a"], chatty, plain)


def test_the_first_token_of_either_side_is_predicted_by_nothing(forms):
    plain = byte_tokenizer(())
    found = pair("ab", plain, plain)
    assert found.teacher_chunks.tolist() == [-1, 0] and found.chunks == 1
    with_bos = pair([Special("bos"), "ab"], forms["bytes"], plain)  # the student alone lacks a first token
    assert with_bos.teacher_chunks.tolist() == [-1, -1, 0] and with_bos.student_chunks.tolist() == [-1, 0]


def test_rows_are_padded_and_lengths_tell_padding_from_eos(make, forms):
    form = byte_form(make.roles(make.byte_level(300)))  # pad is eos
    source = paired([["the text", Special("eos")], ["t h e texts", Special("eos")]], form, forms["bytes"])
    cond = source.cond
    assert source.size == 2 and cond["student_length"].tolist() == [9, 12] and cond["student_ids"].shape == (2, 12)
    lengths = [len(form.encode(t).ids) + 1 for t in ("the text", "t h e texts")]
    assert cond["teacher_length"].tolist() == lengths
    for i, n in enumerate(lengths):
        assert cond["teacher_ids"][i, n - 1 :].tolist() == [1] * (max(lengths) - n + 1)
        assert cond["teacher_chunks"][i, n - 1] >= 0 and (cond["teacher_chunks"][i, n:] == -1).all()


def test_documents_without_a_chunk_are_left_out_or_refused(forms):
    with pytest.warns(UserWarning, match=r"1 of 2 documents are left out \(the first is number 1\)"):
        source = paired(["the text", "t"], forms["bpe 320"], forms["bytes"])
    assert source.size == 1 and source.kept == (0,)
    with pytest.raises(LimbeckError, match=r"none of 2 documents has a chunk that .* and bytes agree on"):
        paired(["t", ""], forms["bpe 320"], forms["bytes"])
    with pytest.raises(LimbeckError, match=r"none of 1 documents .* most=\(1, 512\) larger than 1"):
        paired(["the text"], forms["bpe 320"], forms["bytes"], most=(1, 512))


def test_a_book_is_aligned_at_once():
    n = 200_000  # quadratic memory would be 90 GB
    first, second, count = align([3, 1, 2] * n, [1, 1, 4] * n)
    assert count == n and first[::3].tolist() == second[2::3].tolist() == list(range(n))
