"""The proof of a compiled tokenizer: texts of all kinds through it and through the library."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from .._wordpiece import Wordpiece
from ..errors import BuildError

RANDOM_TEXTS = 4000
_POINTS_IN_A_TEXT = 512
_BATCH = 256
_NO_LIMIT = (1 << 31) - 1

# First and last code point of what random texts are made of, and how often it is drawn.
_SCRIPTS = (
    ((0x20, 0x7E), 8),  # ASCII
    ((0x41, 0x5A), 3),  # capitals
    ((0xA0, 0x24F), 4),  # Latin with accents
    ((0x1E00, 0x1EFF), 2),
    ((0x300, 0x36F), 4),  # combining marks
    ((0x370, 0x3FF), 2),  # Greek, with its two small sigmas
    ((0x400, 0x4FF), 2),
    ((0x5D0, 0x6FF), 2),  # Hebrew and Arabic
    ((0x900, 0x97F), 2),  # Devanagari
    ((0xE00, 0xE7F), 1),
    ((0x1100, 0x11FF), 2),  # Hangul letters
    ((0xAC00, 0xD7A3), 2),  # Hangul syllables
    ((0x3000, 0x30FF), 2),  # Kana
    ((0x4E00, 0x9FFF), 2),
    ((0xF900, 0xFAFF), 1),  # compatibility ideographs
    ((0x2000, 0x206F), 2),  # spaces, joiners, punctuation
    ((0x20D0, 0x20FF), 1),
    ((0xFE00, 0xFE0F), 1),  # variation selectors
    ((0xFF00, 0xFFEF), 1),
    ((0x1, 0x1F), 1),  # controls
    ((0x7F, 0x9F), 1),
    ((0x1D100, 0x1D1FF), 1),  # musical symbols, some of which are marks
    ((0x1F300, 0x1FAFF), 2),  # emoji
    ((0x1, 0xD7FF), 1),
    ((0xE000, 0x10FFFF), 1),
)


def check_ids(compiled: Wordpiece, library: Tokenizer) -> None:
    """Raise BuildError, naming a text, unless both give the same ids for every text that is not the library's own.

    Texts: every entry of the vocabulary; every code point alone and between letters; words of the length at which they become unknown;
    `RANDOM_TEXTS` seeded random ones, whole and cut.
    """
    vocab = sorted(library.get_vocab())
    for batch in _batches(vocab):
        _compare(compiled, library, batch)
    every = [chr(i) for i in range(1, 0x110000) if not 0xD800 <= i < 0xE000]
    points = [char for char, asked in zip(every, compiled.encode_all(every, 1)[2].tolist(), strict=True) if not asked]
    parts = [points[i : i + _POINTS_IN_A_TEXT] for i in range(0, len(points), _POINTS_IN_A_TEXT)]
    for form in ("{}", "a{}b"):
        for parts_of_batch in (parts[i : i + _BATCH] for i in range(0, len(parts), _BATCH)):
            _compare(compiled, library, [" ".join(map(form.format, part)) for part in parts_of_batch])
    rng = random.Random(0)
    for batch in _batches([*_long_words(rng, vocab), *_texts(rng, vocab)]):
        _compare(compiled, library, batch, limit=rng.choice((_NO_LIMIT, 8, 32)))


def _compare(compiled: Wordpiece, library: Tokenizer, texts: Sequence[str], limit: int = _NO_LIMIT) -> None:
    ids, offsets, asked = compiled.encode_all(texts, limit)
    expected = library.encode_batch_fast(list(texts), add_special_tokens=False)
    for i, encoding in enumerate(expected):
        if not asked[i] and ids[offsets[i] : offsets[i + 1]].tolist() != encoding.ids[:limit]:
            raise BuildError(
                f"the compiled tokenizer gives other ids than the library for {_shortest(compiled, library, texts[i], limit)!r:.200}"
            )


def _shortest(compiled: Wordpiece, library: Tokenizer, text: str, limit: int) -> str:
    """One word of the text, where that is enough for a difference; for the message."""
    for word in text.split(" "):
        ids = compiled.encode(word, limit)
        if ids is not None and ids.tolist() != library.encode(word, add_special_tokens=False).ids[:limit]:
            return word
    return text


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[i : i + _BATCH] for i in range(0, len(texts), _BATCH))


def _long_words(rng: random.Random, vocab: Sequence[str]) -> Iterator[str]:
    """Words around every length that matters, of one letter, of letters with accents, and of pieces."""
    for length in (*range(90, 110), *range(250, 260), 1000, 5000):
        for letters in ("a", "e\u0301", "\xe9", "\u0431", "\uac01", "ab1"):
            yield f"x {letters * length} y"
            yield (letters * length)[:length]
        yield "".join(rng.choice(vocab).removeprefix("##") for _ in range(length))[:length]


def _texts(rng: random.Random, vocab: Sequence[str]) -> Iterator[str]:
    """Random texts: of one script or of many, of pieces, in any case."""
    scripts, weights = [script for script, _ in _SCRIPTS], [weight for _, weight in _SCRIPTS]
    marks = [char for char in map(chr, range(0x110000)) if unicodedata.combining(char)]
    for number in range(RANDOM_TEXTS):
        few = scripts if number % 3 == 0 else rng.choices(scripts, weights, k=1 + number % 3)
        words = []
        for _ in range(rng.randrange(1, 12)):
            if rng.random() < 0.5:
                word = "".join(rng.choice(vocab).removeprefix("##") for _ in range(rng.randrange(1, 4)))
                word = rng.choice((str, str.upper, str.title, str.swapcase))(word)
            else:
                chosen = rng.choices(few, weights if few is scripts else None, k=rng.randrange(1, 12))
                word = "".join(chr(rng.randint(*script)) for script in chosen)
            at = rng.randrange(len(word) + 1)
            put = "" if rng.random() < 0.7 else "".join(rng.choices(marks, k=rng.randrange(1, 4)))
            words.append(word[:at] + put + word[at:])
        yield rng.choice((" ", " ", "", "\n", "-")).join(words)
