"""Text to token ids: the layout of a row (TextSpec) and the tokenizer that fills it (TextEncoder), fixed after load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from mmap import mmap
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ._wordpiece import Wordpiece
from .errors import BundleError, InputError
from .types import Item
from .words import clean_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARS_PER_TOKEN = 32
"""Text longer than this many characters per token that may be kept is cut before it is tokenised, so that a
100 kB query costs what a short one does. Ordinary text has 3 to 8 characters a token and never meets the cut."""

ITEM_FIELDS = ("title", "text", "brand", "category")


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How a query and an item become one row of tokens: ``prefix + query + middle + item + suffix``.

    Attributes
    ----------
    max_tokens : the longest row T; the item is cut to fit.
    max_query_tokens : the query is cut to this.
    item_fields : the `Item` fields joined into the item's text.
    prefix, middle, suffix : the special tokens around query and item.
    pad_id : the token of the padding on the right.
    query_type, item_type : token type of prefix, query and middle; of item and suffix.
    """

    max_tokens: int
    max_query_tokens: int
    item_fields: tuple[str, ...]
    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    query_type: int
    item_type: int

    def __post_init__(self) -> None:
        unknown = [name for name in self.item_fields if name not in ITEM_FIELDS]
        if unknown or not self.item_fields or len(set(self.item_fields)) != len(self.item_fields):
            raise InputError(f"item_fields is {list(self.item_fields)}; expected one or more different names of {list(ITEM_FIELDS)}")
        numbers = (self.max_tokens, self.max_query_tokens, self.pad_id, self.query_type, self.item_type)
        for number in (*numbers, *self.prefix, *self.middle, *self.suffix):
            if type(number) is not int or not 0 <= number < 2**31:
                raise InputError(f"a text spec holds {number!r}; every number in it must be an integer from 0 to 2^31 - 1")
        if self.max_query_tokens < 1 or self.max_item_tokens - self.max_query_tokens < 1:
            raise InputError(
                f"max_tokens {self.max_tokens} leaves no room for an item beside max_query_tokens {self.max_query_tokens} "
                f"and {self.special_tokens} special tokens; make max_tokens larger"
            )

    @property
    def special_tokens(self) -> int:
        """How many tokens of a row belong to neither query nor item."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @property
    def max_item_tokens(self) -> int:
        """The most tokens of an item that any row can hold: beside an empty query."""
        return self.max_tokens - self.special_tokens

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TextSpec:
        """The ``text`` object of `model.json`. Raises InputError naming what is missing, unknown or wrong."""
        names = set(cls.__dataclass_fields__)
        if not isinstance(data, Mapping) or set(data) != names:
            given = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise InputError(f"a text spec has the keys {sorted(names)}; got {given}")
        lists = ("item_fields", "prefix", "middle", "suffix")
        if not all(isinstance(data[name], list | tuple) for name in lists):
            raise InputError(f"{', '.join(lists)} of a text spec must be lists")
        values: dict[str, Any] = {name: tuple(data[name]) if name in lists else data[name] for name in names}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The object `from_json` reads."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class TextEncoder:
    """Token ids of queries and items, without special tokens. Immutable, and safe to share between threads.

    With a compiled tokenizer (``tokenizer.bin`` of a bundle) the tokenizers library is neither imported nor asked, but for the few texts
    that need it: those with an added token such as ``[SEP]`` or a rare combining mark. The ids are the same.

    Parameters
    ----------
    tokenizer_file : a `tokenizer.json` of the tokenizers library; padding and truncation in it are ignored.
    spec : where query and item are cut.
    compiled : the mapped ``tokenizer.bin`` that was built from it; None: the library tokenises everything.
    content : what `tokenizer_file` holds, where the caller has it mapped; it is read when the library is needed. None: the file is read.

    Raises
    ------
    BundleError : a file is missing or is not a tokenizer. With `compiled` the library's file is read, and so refused, when it is needed.
    """

    def __init__(
        self,
        tokenizer_file: str | os.PathLike[str],
        spec: TextSpec,
        *,
        compiled: bytes | mmap | None = None,
        content: bytes | mmap | None = None,
    ) -> None:
        self.spec = spec
        self._path, self._content = Path(tokenizer_file), content
        self._library: Tokenizer | None = None
        self._loading = Lock()
        self._compiled = None if compiled is None else _open_compiled(compiled, self._path)
        if self._compiled is None:
            self._load()

    def encode_query(self, text: str) -> NDArray[np.int32]:
        """Ids of the query, int32 [q], q <= max_query_tokens. Raises InputError when `text` is not a str."""
        limit = self.spec.max_query_tokens
        text = clean_text(text, limit * CHARS_PER_TOKEN)
        ids = self._compiled.encode(text, limit) if self._compiled is not None else None
        if ids is None:
            ids = np.array(self._load().encode(text, add_special_tokens=False).ids[:limit], np.int32)
        return ids

    def encode_items(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids of many item texts, one after the other.

        Returns
        -------
        tokens : int32 [total]; item i is ``tokens[offsets[i]:offsets[i + 1]]``, at most `TextSpec.max_item_tokens` long.
        offsets : int64 [n + 1]
        """
        limit = self.spec.max_item_tokens
        cut = [clean_text(text, limit * CHARS_PER_TOKEN) for text in texts]
        if self._compiled is None:
            return _joined(self._ask(cut, limit))
        ids, offsets, asked = self._compiled.encode_all(cut, limit)
        if not asked.any():
            return ids, offsets
        rows = np.split(ids, offsets[1:-1])
        places = np.flatnonzero(asked).tolist()
        for place, row in zip(places, self._ask([cut[place] for place in places], limit), strict=True):
            rows[place] = row
        return _joined(rows)

    def _ask(self, texts: list[str], limit: int) -> list[NDArray[np.int32]]:
        """Rows of ids from the library."""
        # encode_batch_fast leaves out the character offsets, which nobody reads here.
        found = self._load().encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids[:limit], np.int32) for encoding in found]

    def _load(self) -> Tokenizer:
        """The library's tokenizer, made once."""
        if self._library is None:
            with self._loading:
                if self._library is None:
                    loaded = load_tokenizer(self._path, self._content)
                    # Once, here: set per call, they make concurrent calls fail with "Already borrowed".
                    loaded.no_padding()
                    loaded.no_truncation()
                    self._library = loaded
        return self._library

    def item_text(self, item: Item) -> str:
        """The item's text as the model reads it: its non-empty `item_fields`, joined by one space."""
        return " ".join(value for name in self.spec.item_fields if (value := getattr(item, name)))


def _open_compiled(compiled: bytes | mmap, path: Path) -> Wordpiece:
    try:
        return Wordpiece(compiled)
    except InputError as e:
        raise BundleError(f"the compiled tokenizer beside {path} is damaged or of another version: {e}; build the bundle again") from e


def _joined(rows: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate([*rows, np.zeros(0, np.int32)]), offsets


def load_tokenizer(path: Path, content: bytes | mmap | None = None) -> Tokenizer:
    """Read a `tokenizer.json`, or its content. Raises BundleError when it is missing or not readable as one."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(path.read_bytes() if content is None else bytes(content))
    except Exception as e:  # the library raises a bare Exception for a file it cannot read
        raise BundleError(f"{path} is not a tokenizer file of the tokenizers library: {e}") from e


def text_spec_from_tokenizer(
    tokenizer_file: str | os.PathLike[str], *, max_tokens: int, max_query_tokens: int, item_fields: Sequence[str]
) -> TextSpec:
    """Find a tokenizer's special tokens, token types and padding by encoding a pair with it.

    Works for BERT (``[CLS] A [SEP] B [SEP]``, types 0 and 1) and for MPNet and RoBERTa (``<s> A </s></s> B </s>``, pad id 1).

    Raises
    ------
    InputError : the tokenizer does not build pairs of that form, or has no padding token.
    """
    path = Path(tokenizer_file)
    tokenizer = load_tokenizer(path)
    padding = tokenizer.padding
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pair = tokenizer.encode("red lamp", "lamp", add_special_tokens=True)
    sides, ids, types = pair.sequence_ids, pair.ids, pair.type_ids
    if 0 not in sides or 1 not in sides:
        raise InputError(f"{path}: the tokenizer finds no words in 'red lamp' and 'lamp'; its vocabulary does not fit")
    query_end = len(sides) - sides[::-1].index(0)
    item_start = sides.index(1)
    item_end = len(sides) - sides[::-1].index(1)
    prefix, middle, suffix = ids[: sides.index(0)], ids[query_end:item_start], ids[item_end:]
    query, item = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("red lamp", "lamp"))
    if [*prefix, *query, *middle, *item, *suffix] != ids:
        raise InputError(f"{path}: a pair is not prefix + query + middle + item + suffix of parts tokenised apart; got {pair.tokens}")
    if len({*types[:item_start]}) != 1 or len({*types[item_start:]}) != 1:
        raise InputError(f"{path}: token types change inside the query or the item ({types}); this layout is not supported")
    pad_id = padding["pad_id"] if padding else next((i for t in ("[PAD]", "<pad>") if (i := tokenizer.token_to_id(t)) is not None), None)
    if pad_id is None:
        raise InputError(f"{path}: no padding section and neither [PAD] nor <pad> in the vocabulary; add one to the tokenizer file")
    return TextSpec(
        max_tokens=max_tokens,
        max_query_tokens=max_query_tokens,
        item_fields=tuple(item_fields),
        prefix=tuple(prefix),
        middle=tuple(middle),
        suffix=tuple(suffix),
        pad_id=pad_id,
        query_type=types[0],
        item_type=types[item_start],
    )
