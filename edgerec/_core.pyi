"""The C core (csrc/edgerec.h): hashing, feature rows, token rows, identifier look-up, top-k, scan.

Arrays must have exactly the stated dtype, one dimension, and be C-contiguous; nothing is converted silently and no
argument is changed. Read-only arrays and memory maps are fine. Every function raises InputError for wrong types, dtypes,
shapes and values. All but ``hash_strings``, ``hash_trigrams`` and ``index_find``, which read Python strings, release the GIL while they
work; no other thread may write an array that is in use. Sets of hashes are ascending, without duplicates.

Shape letters: N candidates, B batch, T tokens, F feature slots, V buckets, K returned; n and m any count.
"""

from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

_U64: TypeAlias = NDArray[np.uint64]
_I64: TypeAlias = NDArray[np.int64]
_I32: TypeAlias = NDArray[np.int32]
_U8: TypeAlias = NDArray[np.uint8]
_F32: TypeAlias = NDArray[np.float32]
_Mask: TypeAlias = NDArray[np.uint8] | NDArray[np.bool_]
_Field: TypeAlias = tuple[_U64, _F32 | None, _I64 | None]

def isa() -> str:
    """The instruction set that kernels use, e.g. ``scalar``, ``avx512_vnni`` or ``amx``."""

def isas() -> list[str]:
    """The instruction sets that this CPU and this build have."""

def set_isa(name: str) -> None:
    """Choose the instruction set of selections started from now on; ``auto`` takes the fastest.

    The environment variable ``EDGEREC_ISA`` does the same at import. Results do not depend on it.

    Raises
    ------
    InputError : unknown, or not supported here.
    """

def hash64(data: bytes, seed: int = 0) -> int:
    """XXH64 of `data`. Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md"""

def hash_strings(values: list[str], seed: int = 0, prefix: bytes = b"") -> _U64:
    """XXH64 of ``prefix + value.encode()`` for each value, uint64 [n]. Lone surrogates raise InputError."""

def hash_trigrams(texts: list[str], seed: int = 0, prefix: bytes = b"") -> tuple[_U64, _I64]:
    """XXH64 of ``prefix`` and each three code points in a row of ``^word$``, for the words between a text's spaces.

    Returns
    -------
    uint64 [total], text by text; and how many each text has, int64 [n]: a word gives as many as it has code points. Lone surrogates raise
    InputError.
    """

def hash_packed(data: _U8, offsets: _I64, seed: int = 0) -> _U64:
    """XXH64 of strings that lie end to end: string i is ``data[offsets[i]:offsets[i + 1]]``, as in an Arrow array.

    Parameters
    ----------
    data : uint8 [size]
    offsets : int64 [m + 1], not descending, within 0 .. size

    Returns
    -------
    uint64 [m]
    """

def project(hashes: _U64, buckets: int) -> tuple[_I32, _F32]:
    """Feature ids ``((h >> 32) * buckets) >> 32``, int32 [n], and signs by the lowest bit, float32 [n] of +1 and -1.

    Source: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, 2009 (the sign).
    """

def sort_unique(hashes: _U64, weights: _F32 | None = None) -> tuple[_U64, _F32 | None]:
    """The set of `hashes`: ascending, each once; weights of equal hashes are added (float32, in the order given).

    A weight that is NaN or infinite raises InputError.
    """

def sort_unique_rows(hashes: _U64, counts: _I64) -> tuple[_U64, _I64]:
    """The sets of rows of hashes that lie end to end, each ascending and without repeats.

    Parameters
    ----------
    hashes : uint64 [total]
    counts : int64 [rows], how many each row has. Anything else than a partition of `hashes` raises InputError.

    Returns
    -------
    uint64 [left], and how many each row has left, int64 [rows].
    """

@final
class FeaturePlan:
    """Templates, checked once; encodes rows of hashed features as docs/formats.md ("Feature spec") says.

    Parameters
    ----------
    ops : int32 [m], at most 128: 0 emit, 1 common, 2 left_only, 3 match, 4 cross
    lefts, rights : int32 [m], positions in the `fields` of `encode`; the right of an emit is not read
    seeds : uint64 [m], the hashes of the templates' names
    buckets : V, 1 .. 2**31 - 1
    slots : F, 0 .. 2**31 - 1
    """

    def __init__(self, ops: _I32, lefts: _I32, rights: _I32, seeds: _U64, *, buckets: int, slots: int) -> None: ...
    @property
    def fields(self) -> int:
        """How many fields `encode` needs at least."""

    def encode(self, fields: Sequence[_Field | tuple[_U64, _F32 | None, _I64, int]], rows: _I64) -> tuple[_I32, _F32]:
        """Feature ids, int32 [N, F], and weights, float32 [N, F], of N rows; 0 in unused slots.

        Parameters
        ----------
        fields : at most 256 tuples of
            hashes : uint64 [n]; ascending within a set (else the row is unspecified, but nothing breaks);
            weights : float32 [n], or None: all 1;
            offsets : int64 [R + 1], the set of row r being ``hashes[offsets[r]:offsets[r + 1]]``, or None: one set for all rows;
            gap : optional; G > 0 takes ``offsets[r * (1 + G)]`` and the next for row r: one of 1 + G fields that share `hashes`.
        rows : int64 [N], row i of the result takes the sets of ``rows[i]``
        """

def longest_first(offsets: _I64, rows: _I64, cap: int) -> tuple[_I64, _I64]:
    """Order rows by the length of their items, longest first; equal ones stay as they were.

    Parameters
    ----------
    offsets : int64 [R + 1]; item r has ``offsets[r + 1] - offsets[r]`` tokens
    rows : int64 [N], items
    cap : 0 to 2^31 - 1; a longer item counts as one of this length

    Returns
    -------
    order : int64 [N], positions in `rows`. lengths : int64 [N], descending, at most `cap`: that of ``rows[order]``.

    Raises
    ------
    InputError : a row outside the table, or offsets that go backwards or beyond the last one.
    """

@final
class PairFrame:
    """The parts that all token rows of a model share, checked once. Immutable, and safe to share between threads.

    Parameters
    ----------
    prefix, middle, suffix : int32, special tokens of a row ``prefix + query + middle + item + suffix``
    pad_id : fills a row on the right
    query_type, item_type : token types of ``prefix + query + middle`` and of ``item + suffix``
    max_tokens : the item is cut so that no row is longer
    """

    def __init__(
        self, prefix: _I32, middle: _I32, suffix: _I32, *, pad_id: int, query_type: int, item_type: int, max_tokens: int
    ) -> None: ...
    def pack(self, query: _I32, tokens: _I32, offsets: _I64, rows: _I64, width: int | None = None) -> tuple[_I32, _I32, _I32]:
        """Token rows of one query with B items.

        Parameters
        ----------
        query : int32 [q], already cut to the query's limit; InputError when it leaves no room for the special tokens
        tokens, offsets : int32 [n], int64 [R + 1]: item r is ``tokens[offsets[r]:offsets[r + 1]]``
        rows : int64 [B], the items to pack
        width : T; None takes the longest row. InputError when a row is longer.

        Returns
        -------
        input_ids, attention_mask, token_type_ids : int32 [B, T]
        """

    def pack_ragged(self, query: _I32, tokens: _I32, offsets: _I64, rows: _I64) -> tuple[_I32, _I32, _I64, _I64]:
        """The same rows end to end, in the order of ``rows``, without padding; a row without any token is one ``pad_id`` of type 0.

        Returns
        -------
        ids, types : int32 [total]
        starts, lengths : int64 [B]; row i is ``ids[starts[i] : starts[i] + lengths[i]]``
        """

def index_build(hashes: _U64) -> tuple[_U64, _I32]:
    """A hash table of n <= 2**30 identifiers, by their XXH64: keys uint64 [cap], slots int32 [cap], -1 where empty.

    cap is the power of two at or above 2 n, at least 8. The arrays can lie in a file. Of equal identifiers the first is found.
    """

def index_find(keys: _U64, slots: _I32, id_bytes: _U8, id_offsets: _I64, ids: list[str], seed: int = 0) -> _I64:
    """The numbers of `ids` in a table of `index_build`, int64 [N]; -1 for what is not there.

    Identifier i is ``id_bytes[id_offsets[i]:id_offsets[i + 1]]``; bytes are compared, so equal hashes do no harm. A
    damaged table gives -1 or InputError, never a wrong read. A string with lone surrogates is not there.
    """

def topk(scores: _F32, k: int, mask: _Mask | None = None) -> tuple[_I64, _F32]:
    """The k best scores: higher first, then lower index.

    NaN is never selected, nor is a score whose mask is not 0 (True means skip, as in ``numpy.ma``). Infinities are scores.

    Returns
    -------
    indices : int64 [K]
    scores : float32 [K], K = min(k, scores that can be selected)
    """

@final
class TopK:
    """The k best of a stream, for one thread. Same order as `topk`, the same answer however the stream is cut."""

    def __init__(self, k: int) -> None: ...
    def push(self, scores: _F32, start: int = 0, mask: _Mask | None = None) -> None:
        """Offer scores with the indices start, start + 1, ... (start at most 2**62)."""

    def push_at(self, scores: _F32, indices: _I64) -> int:
        """Offer scores with any indices; one that is offered twice may be returned twice. Returns how many are NaN (never selected)."""

    def finish(self) -> tuple[_I64, _F32]:
        """What `topk` returns, of all that was offered. More may be pushed afterwards."""

def scan(query: NDArray[np.int8], query_scale: float, vectors: NDArray[np.int8], scales: _F32) -> _F32:
    """Scores of N int8 vectors against one, float32 [N]: the exact integer dot product times ``query_scale * scales[i]``, as float32.

    Parameters
    ----------
    query : int8 [W], W from 1 to 65536
    vectors : int8 [N * W], end to end
    scales : float32 [N]; NaN and infinity go through
    """
