"""``tokenizer.bin``: a BERT tokenizer, compiled into the tables of csrc/wordpiece.c and compared with the library before it is used."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .._wordpiece import Wordpiece
from ..errors import BuildError, InputError
from ..segment import write_sections
from .wordpiece_check import check_ids
from .wordpiece_points import Points, ask_points

COMPILED = "compiled, and gives the library's ids"

# As in csrc/wordpiece.c.
_BASE, _MIX, _CONTINUES = 0x9E3779B185EBCA87, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD_CHARS, _PIECE_BYTES, _MAX_PROBES, _MAX_PIECES = 255, 255, 64, (1 << 20) - 2
_U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class CompiledTokenizer:
    """What became of a tokenizer.

    Attributes
    ----------
    data : the bytes of ``tokenizer.bin``; empty where there is none and the library does all the work.
    reason : `COMPILED`, or why there is none.
    """

    data: bytes
    reason: str


@lru_cache(maxsize=8)  # seconds of work, and a process often builds one student in several precisions
def compile_tokenizer(tokenizer: bytes) -> CompiledTokenizer:
    """Compile the bytes of a ``tokenizer.json``, and compare the result with the library.

    There is a file only for a `WordPiece` model with `BertNormalizer` and `BertPreTokenizer`, and only if it gave the library's ids for
    every vocabulary entry, every code point and some thousand random texts. The same bytes and library give the same file.
    """
    library = Tokenizer.from_buffer(tokenizer)
    library.no_padding()
    library.no_truncation()
    try:
        data = _sections(json.loads(tokenizer), library)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.bin"
            write_sections(path, data)
            content = path.read_bytes()
        try:
            compiled = Wordpiece(aligned(content))
        except InputError as error:
            raise BuildError(f"the compiled tokenizer cannot be read: {error}") from error
        check_ids(compiled, library)
    except BuildError as error:
        return CompiledTokenizer(b"", " ".join(str(error).split()))
    return CompiledTokenizer(content, COMPILED)


def aligned(content: bytes) -> NDArray[np.uint8]:
    """A copy at an address that is a multiple of 64, as that of a mapped file is."""
    room = np.empty(len(content) + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + len(content)] = np.frombuffer(content, np.uint8)
    return room[start : start + len(content)]


def _sections(data: Mapping[str, Any], library: Tokenizer) -> dict[str, NDArray[Any]]:
    """The sections of the file. Raises BuildError: the tokenizer is not of the kind that is compiled."""
    for part, wanted in (("model", "WordPiece"), ("normalizer", "BertNormalizer"), ("pre_tokenizer", "BertPreTokenizer")):
        found = (data.get(part) or {}).get("type", "absent")
        if found != wanted:
            raise BuildError(f"its {part} is {found}; {wanted} is compiled")
    model = data["model"]
    vocab, unknown, chars = library.get_vocab(with_added_tokens=False), model["unk_token"], model["max_input_chars_per_word"]
    if unknown not in vocab:
        raise BuildError(f"its vocabulary lacks the unknown token {unknown!r}")
    if not 1 <= chars <= _WORD_CHARS:
        raise BuildError(f"max_input_chars_per_word is {chars}; 1 to {_WORD_CHARS} are compiled")
    added = []
    for token in library.get_added_tokens_decoder().values():
        # One of those is looked for in the text as it is normalised, where letters lie elsewhere.
        if token.normalized or not token.content:
            raise BuildError(
                f"its added token {token.content!r} is matched in normalised text; added tokens with normalized=false are compiled"
            )
        added.append(token.content.encode())
    points = ask_points(*(json.dumps(data[part], sort_keys=True) for part in ("normalizer", "pre_tokenizer")))
    firsts, continuing = _pieces(vocab, model["continuing_subword_prefix"], points)
    pieces = [text.encode() for text, _ in (*firsts, *continuing)]
    longest = max(map(len, pieces), default=0)
    if not 1 <= longest <= _PIECE_BYTES or len(pieces) > _MAX_PIECES:
        raise BuildError(f"its vocabulary has {len(pieces)} pieces of up to {longest} bytes; at most {_PIECE_BYTES} bytes are compiled")
    slots, probes = _hash_table(pieces, len(firsts))
    blocks, described = _blocks(points.codes)
    return {
        "config": np.array([chars, vocab[unknown], len(firsts), longest, probes], np.int32),
        "blocks": blocks,
        "points": described,
        "runs": np.frombuffer(points.runs, np.uint8),
        "slots": slots,
        "places": _places(pieces),
        "letters": np.frombuffer(b"".join(pieces), np.uint8),
        "ids": np.array([number for _, number in (*firsts, *continuing)], np.int32),
        "added.places": _places(added),
        "added": np.frombuffer(b"".join(added), np.uint8),
    }


def _pieces(vocab: Mapping[str, int], prefix: str, points: Points) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Pieces that begin a word and pieces that continue one, with their ids; those that no word can have are left out."""
    entries = sorted(vocab.items(), key=lambda entry: entry[1])
    firsts = [(text, number) for text, number in entries if points.is_word(text)]
    continuing = [(text[len(prefix) :], number) for text, number in entries if text.startswith(prefix) and text != prefix]
    return firsts, [entry for entry in continuing if points.is_word(entry[0])]


def _places(strings: Sequence[bytes]) -> NDArray[np.uint32]:
    return np.cumsum([0, *map(len, strings)]).astype(np.uint32)


def _blocks(codes: NDArray[np.uint32]) -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """The codes of all code points as a number for every 128, and the different ones among those."""
    kinds: dict[bytes, int] = {}
    numbers = [kinds.setdefault(block.tobytes(), len(kinds)) for block in codes.reshape(-1, 128)]
    return np.array(numbers, np.uint16), np.frombuffer(b"".join(kinds), np.uint32).reshape(-1, 128)


def _hash_table(pieces: Sequence[bytes], firsts: int) -> tuple[NDArray[np.uint32], int]:
    """Slots, and how many of them a look-up reads at most."""
    hashes = [_hash(piece, number >= firsts) for number, piece in enumerate(pieces)]
    size = 1 << (len(pieces) * 3 // 2).bit_length()
    while True:
        slots, probes = [0] * size, 0
        for number, value in enumerate(hashes):
            slot = start = value & (size - 1)
            while slots[slot]:
                slot = (slot + 1) & (size - 1)
            slots[slot] = (value >> 52) << 20 | (number + 1)
            probes = max(probes, ((slot - start) & (size - 1)) + 1)
        if probes <= _MAX_PROBES:
            return np.array(slots, np.uint32), probes
        size *= 2


def _hash(piece: bytes, continues: bool) -> int:
    value = 0
    for byte in piece:
        value = (value * _BASE + byte + 1) & _U64
    if continues:
        value ^= _CONTINUES
    value = (value ^ value >> 32) * _MIX & _U64
    return value ^ value >> 29
