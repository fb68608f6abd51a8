"""Strings made safe, and cut into words: the one place where text is cleaned, in training and in serving.

The Unicode tables are those of the running Python; the golden vectors of a bundle notice a difference that matters.
"""

from __future__ import annotations

import re
import unicodedata

from .errors import InputError

MAX_CHARS = 4096
"""Words and trigrams are read from the first so many characters of a text: a bound on the work of one request."""

_UNSAFE = re.compile("[\x00\ud800-\udfff]")
_WORD = re.compile(r"\w+")


def clean_text(text: str, limit: int | None = None) -> str:
    """Text that every tokenizer and UTF-8 encoder accepts: NUL becomes a space, a lone surrogate U+FFFD.

    Of a longer text only the first `limit` characters are kept.

    Raises
    ------
    InputError : `text` is not a str.
    """
    if not isinstance(text, str):
        raise InputError(f"expected text as str, got {type(text).__name__}")
    text = text[:limit]
    if text.isascii() and "\x00" not in text:
        return text
    return _UNSAFE.sub(lambda match: " " if match[0] == "\x00" else "\ufffd", text)


def normalize(text: str, limit: int | None = None) -> str:
    """NFKC and casefold of the cleaned text, without white space at the ends."""
    text = clean_text(text, limit)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.casefold().strip()


def split_words(text: str) -> list[str]:
    """The runs of ``\\w+`` of the normalized first `MAX_CHARS` characters, in order, repeats kept."""
    return _WORD.findall(normalize(text, MAX_CHARS))
