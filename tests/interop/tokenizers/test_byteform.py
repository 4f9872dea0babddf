"""Tokenizers in bytes: every text comes back byte by byte, or is refused with a reason."""

import unicodedata
from itertools import accumulate
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.interop.tokenizers import Special, byte_form, byte_tokenizer
from limbeck.interop.tokenizers.fast import ALPHABET

SOME = st.text(st.sampled_from(" \n\tabehnost.'1é東京😀Ü") | st.characters(exclude_categories=["Cs"]), max_size=40)
TEXT = SOME.map(lambda text: unicodedata.normalize("NFC", text).replace("\u2581", "_"))
NAMES = ["bytes", "bpe 320", "bpe 400", "prefix", "qwen", "mistral", "llama", "gemma", "unigram"]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_comes_back_token_by_token(forms, name):
    form = forms[name]

    @settings(max_examples=60)
    @given(TEXT)
    def check(text):
        ids, widths = form.encode(text)
        assert sum(widths) == len(text.encode()) and min(widths, default=0) >= 0
        for i, width, end in zip(ids, widths, accumulate(widths), strict=True):
            assert form.pieces[i].endswith(text.encode()[end - width : end])

    check()


def test_the_alphabet_is_that_of_byte_level_tokenizers():
    from tokenizers import pre_tokenizers

    assert sorted(ALPHABET.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    for text in ("é 東\n\x7f", "".join(map(chr, range(32)))):
        [(written, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        assert written == "".join(ALPHABET[b] for b in text.encode())


def test_a_space_before_the_first_word_is_no_text(forms):
    for name in ("prefix", "mistral", "llama", "unigram"):
        form = forms[name]
        ids, widths = form.encode("the the")
        assert b"".join(form.pieces[i] for i in ids) == b" the the" and sum(widths) == 7, name
    ids, widths = forms["mistral"].encode("東")
    assert [forms["mistral"].pieces[i] for i in ids] == [b" ", "東".encode()] and widths == [0, 3]
    assert sum(forms["prefix"].encode(" the")[1]) == 4 and sum(forms["llama"].encode(" the")[1]) == 4


def test_bytes_that_no_token_has_fall_back_to_bytes(forms):
    form = forms["gemma"]
    ids, widths = form.encode("ß")
    assert [form.pieces[i] for i in ids] == [b"\xc3", b"\x9f"] and widths == [1, 1]


def test_text_that_looks_like_a_special_token_is_text(forms):
    for form in forms.values():
        ids, widths = form.encode("a</s>b<s>")
        assert None not in [form.pieces[i] for i in ids] and sum(widths) == len("a</s>b<s>")


def test_special_tokens_by_role_are_one_unit(make):
    tokenizer = make.roles(make.byte_level(300, specials=("<s>", "</s>", "<|user|>")))
    form = byte_form(tokenizer, {"user": "<|user|>the\n"})
    unit = form.specials["user"]
    assert form.pieces[unit[0]] is None and b"".join(form.pieces[i] for i in unit[1:]) == b"the\n"
    document = [Special("bos"), Special("user"), "the", "", Special("eos")]
    ids, widths = form.encode(document)
    assert ids[1 : 1 + len(unit)] == list(unit) and widths[: 1 + len(unit)] == [1, *[0] * (len(unit) - 1), 1]
    ids, widths = form.encode(document, frozenset({"eos"}))
    assert widths[: 1 + len(unit)] == [-1] * (1 + len(unit)) and widths[-1] == 1
    assert form.specials["pad"] == form.specials["eos"] == (1,)


def test_the_tokenizer_itself_stays_as_it_is(make):
    tokenizer = make.roles(make.byte_level(300))
    tokenizer.backend_tokenizer.enable_truncation(2)
    before = tokenizer.backend_tokenizer.to_str()
    assert len(byte_form(tokenizer).encode("the shortest chunks of the text").ids) > 2
    assert tokenizer.backend_tokenizer.to_str() == before and not tokenizer.backend_tokenizer.encode_special_tokens


def test_tokens_that_were_added_as_text_are_text(make):
    tokenizer = make.byte_level(300)
    tokenizer.add_tokens(["    ", "東京都"])
    form = byte_form(make.roles(tokenizer))
    ids, widths = form.encode("a    東京都")
    assert [form.pieces[i] for i in ids[-2:]] == [b"    ", "東京都".encode()] and widths[-2:] == [4, 9]


def test_what_can_follow_a_word():
    form = byte_tokenizer(("eos",))
    assert [i for i, follows in enumerate(form.boundary().tolist()) if follows] == [9, 10, 32, 256]


def test_loose_bytes_split_as_inside_a_text(forms):
    for name in NAMES:
        form = forms[name]
        assert b"".join(form.pieces[i] for i in form.split(b" the texts")) == b" the texts"
    assert [forms["bpe 320"].pieces[i] for i in forms["bpe 320"].split(b"\xe6\x9d")] in ([b"\xe6\x9d"], [b"\xe6", b"\x9d"])
    assert [forms["llama"].pieces[i] for i in forms["llama"].split(b"\xe6\x9d")] == [b"\xe6", b"\x9d"]


def normal(kind):
    from tokenizers import normalizers

    steps = {
        "NFKC": [normalizers.NFKC()],
        "Lowercase": [normalizers.NFC(), normalizers.Lowercase()],
        "StripAccents": [normalizers.StripAccents()],
        "Replace": [normalizers.Replace("``", '"')],
        "Strip": [normalizers.Strip()],
    }
    return normalizers.Sequence(steps[kind])


@pytest.mark.parametrize("kind", ["NFKC", "Lowercase", "StripAccents", "Replace", "Strip"])
def test_a_normaliser_that_changes_texts_is_named(make, kind):
    with pytest.raises(LimbeckError, match=f"the normaliser {kind} of TokenizersBackend changes texts"):
        byte_form(make.fast(make.byte_level(300, normalizer=normal(kind))))


def test_nfc_passes_until_it_changes_a_text(forms):
    form, text = forms["qwen"], "caf" + unicodedata.normalize("NFD", "é")
    assert sum(form.encode("café").widths) == 5
    with pytest.raises(LimbeckError, match=r"changes the text: at 'e.' its tokens .* .unicodedata.normalize"):
        form.encode(text)
    assert sum(form.encode(unicodedata.normalize("NFC", text)).widths) == 5


def test_what_is_refused(make, forms):
    from tokenizers import Tokenizer, models, pre_tokenizers

    with pytest.raises(LimbeckError, match=r"'\\ud800', which is no character"):
        forms["bytes"].encode("a\ud800")
    with pytest.raises(LimbeckError, match=r"slow/one \(SimpleNamespace\) is no fast tokenizer, .* use_fast=True"):
        byte_form(SimpleNamespace(name_or_path="slow/one"))
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "the": 1, "##s": 2}, unk_token="[UNK]"))
    with pytest.raises(LimbeckError, match=r"cannot recover the bytes of token '.*' of .* \(WordPiece\)"):
        byte_form(make.fast(words))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with pytest.raises(LimbeckError, match="splits texts by BertPreTokenizer, which drops spaces"):
        byte_form(make.fast(words))
    lossy = make.marked("bpe")
    lossy.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    with pytest.raises(LimbeckError, match="splits texts by WhitespaceSplit"):
        byte_form(make.fast(lossy))
    odd = Tokenizer(models.BPE({"a": 0, "東": 1}, []))
    odd.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(LimbeckError, match=r"cannot recover the bytes of token '東' \(1\)"):
        byte_form(make.fast(odd))
    random = Tokenizer(models.BPE({"a": 0}, [], dropout=0.5))
    random.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(LimbeckError, match=r"merges at random \(dropout=0.5\)"):
        byte_form(make.fast(random))
    with pytest.raises(LimbeckError, match="has no tokens for user"):
        byte_form(make.fast(make.byte_level(300)), {"user": ""})


def test_unknown_characters_are_refused_when_they_come(make):
    form = byte_form(make.roles(make.marked("bpe", fallback=False)))
    assert sum(form.encode("the text").widths) == 8
    with pytest.raises(LimbeckError, match=r"cannot recover the bytes of token 0 that .* writes for 'ß text'"):
        form.encode("the ß text")
    form = byte_form(make.roles(make.marked("bpe")))
    with pytest.raises(LimbeckError, match="changes the text: at '▁b'"):  # the mark itself would come back as a space
        form.encode("a▁b")
