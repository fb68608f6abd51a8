"""What a BERT tokenizer makes of each code point: asked of the library itself, so that its version of Unicode is the one that counts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import BuildError

# As in csrc/wordpiece.c.
DROPPED, SPACE, ASK, LETTER, ALONE, RUN = range(6)
_RUN_BYTES = 31
_POINTS = 0x110000
_BATCH = 2048
# The library makes "0" of this alone, and nothing that stands beside it changes it: digits are no marks, and no other code point has a
# canonical decomposition or a lower case with it.
_FENCE = "0"


@dataclass(frozen=True, slots=True)
class Points:
    """The table of code points.

    Attributes
    ----------
    codes : uint32 [0x110000], as csrc/wordpiece.c reads them.
    runs : the bytes that codes point into.
    splits : the characters of normalised text that end a word.
    """

    codes: NDArray[np.uint32]
    runs: bytes
    splits: frozenset[str]

    def is_word(self, text: str) -> bool:
        """Whether a word of the pre-tokenizer can have this part: text without white space and punctuation, or one punctuation mark."""
        return len(text) == 1 or self.splits.isdisjoint(text)


@lru_cache(maxsize=4)  # more than a million questions; many vocabularies share the answers
def ask_points(normalizer: str, pre_tokenizer: str) -> Points:
    """Ask the library about every code point, for a `BertNormalizer` and a `BertPreTokenizer` as a ``tokenizer.json`` has them, as JSON.

    Raises
    ------
    BuildError : they do not take texts apart as expected.
    """
    model = {"type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"u": 0}}
    parts = {"normalizer": json.loads(normalizer), "pre_tokenizer": json.loads(pre_tokenizer), "model": model}
    nothing = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    library = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **nothing, **parts}))
    codes = np.full(_POINTS, LETTER, np.uint32)
    runs: dict[bytes, int] = {}
    content = bytearray()
    kinds = _Kinds(library)
    marks = _marks(library)
    for chunk in _chunks():
        became = _normalized(library, chunk)
        plain = became == chunk and kinds.are_letters(chunk)
        for char, text in () if plain else zip(chunk, became, strict=True):
            if text == char == kinds[char] != " ":
                continue
            run = "".join(map(kinds.__getitem__, text))
            while "  " in run:
                run = run.replace("  ", " ")
            data = run.encode()
            if not run:
                code = DROPPED
            elif run == " ":
                code = SPACE
            elif run == f" {char} ":
                code = ALONE
            elif len(data) > _RUN_BYTES:
                code = ASK
            else:
                if data not in runs:
                    runs[data] = len(content)
                    content += data
                code = RUN | len(data) << 3 | runs[data] << 8
            codes[ord(char)] = code
        # A mark that outlives the stripping of accents is put in order among its like: what it becomes depends on them.
        if marks is not None:
            for char in _disordered(library, *marks, [(char, text) for char, text in zip(chunk, became, strict=True) if text]):
                codes[ord(char)] = ASK
    return Points(codes, bytes(content), frozenset(char for char, kind in kinds.items() if kind != char))


def _chunks() -> Iterator[list[str]]:
    points = [chr(point) for point in range(_POINTS) if not 0xD800 <= point < 0xE000]
    return (points[i : i + _BATCH] for i in range(0, len(points), _BATCH))


def _normalized(library: Tokenizer, chunk: list[str]) -> list[str]:
    """What the normalizer makes of each character alone."""
    normalize, fenced = library.normalizer.normalize_str, _fenced(chunk)
    found: str = normalize(fenced)
    # The fence itself is in one of the chunks, which has one part more for it than others.
    if _FENCE not in chunk:
        if found == fenced:
            return chunk
        parts = found.split(_FENCE)
        if len(parts) == len(chunk) + 2:
            return parts[1:-1]
    return [normalize(char) for char in chunk]


def _fenced(chars: Sequence[str]) -> str:
    return _FENCE + _FENCE.join(chars) + _FENCE


class _Kinds(dict[str, str]):
    """What the pre-tokenizer makes of a character of normalised text: itself, a space, or itself between spaces. Asked when wanted."""

    def __init__(self, library: Tokenizer) -> None:
        self._split = library.pre_tokenizer.pre_tokenize_str

    def are_letters(self, chars: Sequence[str]) -> bool:
        """Whether it makes all of them of themselves."""
        text = _fenced(chars)
        return [part for part, _ in self._split(text)] == [text]

    def __missing__(self, char: str) -> str:
        texts = [text for text, _ in self._split(f"1{char}1")]
        kinds = {(f"1{char}1",): char, ("1", char, "1"): f" {char} ", ("1", "1"): " "}
        if (kind := kinds.get(tuple(texts))) is None:
            raise BuildError(f"the pre-tokenizer makes {texts} of {f'1{char}1'!r}")
        self[char] = kind
        return kind


def _disordered(library: Tokenizer, low: str, high: str, kept: Sequence[tuple[str, str]]) -> list[str]:
    """The characters, given with what they become alone, that become something else between a mark of a high and one of a low class."""
    between = low + high
    given, expected = (high + between.join(texts) + low for texts in ([char for char, _ in kept], [text for _, text in kept]))
    if not kept or library.normalizer.normalize_str(given) == expected:
        return []
    if len(kept) == 1:
        return [kept[0][0]]
    half = len(kept) // 2
    return _disordered(library, low, high, kept[:half]) + _disordered(library, low, high, kept[half:])


def _marks(library: Tokenizer) -> tuple[str, str] | None:
    """Two marks that the normalizer keeps and puts in order, the lower class first; every other mark changes places with one of them.

    None where it puts none in order. Which marks there may be, and which two of a class are asked, is Python's word; what becomes of them
    is the library's.
    """
    normalize = library.normalizer.normalize_str
    classes: dict[int, list[str]] = {}
    for char in map(chr, range(_POINTS)):
        if (number := unicodedata.combining(char)) and normalize(char) == char:
            classes.setdefault(number, []).append(char)
    known = [char for _, chars in sorted(classes.items()) for char in dict.fromkeys((chars[0], chars[-1]))]
    pairs = ((low, high) for low in known for high in reversed(known) if normalize(high + low) == low + high != high + low)
    return next(pairs, None)
