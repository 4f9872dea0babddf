"""Tokenizers trained here: byte-level BPEs of two sizes, sentencepiece's BPE and Unigram with byte fallback, and bad ones."""

import json
from types import SimpleNamespace

import pytest

from limbeck.interop.tokenizers import byte_form, byte_tokenizer

CORPUS = [
    "def align(a, b):\n    return the shortest chunks that both sides agree on\n",
    "The teacher's tokens are not the student's tokens; the text is the same text.\n\n\tfor x in range(10): print(x)\n",
    "naïve café, 東京 は 日本 の 首都, 😀😀 emoji, Ünïcode and the the the",
] * 4
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def fast(tokenizer, **roles):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)


def byte_level(size, prefix=False, normalizer=None, specials=("<s>", "</s>"), pattern=None, corpus=CORPUS):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=pattern is None)
    if pattern is not None:
        level = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
    tokenizer.pre_tokenizer = level
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def marked(kind="bpe", prepend="always", legacy=False, fallback=True, size=120):
    """Sentencepiece's: a mark for the space, put before the first word or not (Llama's, Mistral's, Gemma's)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    unigram = kind == "unigram"
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if legacy else prepend)
    which = trainers.UnigramTrainer if unigram else trainers.BpeTrainer
    more = {"unk_token": "<unk>"} if unigram else {}
    tokenizer.train_from_iterator(CORPUS, which(vocab_size=size, special_tokens=["<unk>"], show_progress=False, **more))
    written = json.loads(tokenizer.to_str())
    model = written["model"]
    bytes_ = BYTES if fallback else []
    if unigram:
        pieces = [["<unk>", 0.0], *([b, -20.0] for b in bytes_), *(p for p in model["vocab"] if p[0] != "<unk>")]
        tokenizer.model = models.Unigram([tuple(p) for p in pieces], unk_id=0, byte_fallback=fallback)
    else:
        vocabulary = {token: i for i, token in enumerate(["<unk>", *bytes_, *(t for t in model["vocab"] if t != "<unk>")])}
        merges = [tuple(m) for m in model["merges"]]
        tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=True)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        tokenizer.pre_tokenizer = None
    return tokenizer


def roles(tokenizer):
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="session")
def forms():
    """Tokenizers in bytes by name; all write every text."""
    from tokenizers import normalizers

    gpt4 = r"\p{N}{1,3}|[^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
    made = {
        "bpe 320": byte_level(320),
        "bpe 400": byte_level(400, corpus=CORPUS[1:] + ["tokens of another text, and the text of another token"] * 9),
        "prefix": byte_level(300, prefix=True),
        "qwen": byte_level(350, normalizer=normalizers.NFC(), pattern=gpt4),
        "mistral": marked("bpe", "first"),
        "llama": marked("bpe", legacy=True),
        "gemma": marked("bpe", "never"),
        "unigram": marked("unigram", "always"),
    }
    return {"bytes": byte_tokenizer(), **{name: byte_form(roles(t)) for name, t in made.items()}}


@pytest.fixture(scope="session")
def make():
    """The functions above, for tokenizers that a test makes itself."""
    return SimpleNamespace(fast=fast, byte_level=byte_level, marked=marked, roles=roles)
