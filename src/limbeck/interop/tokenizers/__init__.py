"""Tokenizers in bytes, texts in two vocabularies aligned, and embeddings carried over to another vocabulary."""

from limbeck.interop.tokenizers.alignment import Pair, Texts, align, pair, paired
from limbeck.interop.tokenizers.byteform import ByteForm, Document, Encoded, Special, byte_tokenizer
from limbeck.interop.tokenizers.fast import byte_form
from limbeck.interop.tokenizers.transfer import carried, sources, transplant

__all__ = [
    "ByteForm",
    "Document",
    "Encoded",
    "Pair",
    "Special",
    "Texts",
    "align",
    "byte_form",
    "byte_tokenizer",
    "carried",
    "pair",
    "paired",
    "sources",
    "transplant",
]
