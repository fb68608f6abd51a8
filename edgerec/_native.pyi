"""The native engine (csrc/edr_engine.h): a model in engine.bin, scored on the threads of a small pool.

Arrays must have exactly the stated dtype, be C-contiguous and, unless stated, of one dimension.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

def row_lengths(mask: NDArray[np.int32]) -> NDArray[np.int64]:
    """The number of ones of each row of `mask`, int32 [B, T]. Raises InputError unless a row is ones, at least one, then zeros."""

def gather_states(
    tables: Sequence[tuple[NDArray[Any], NDArray[np.float32]]],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int32],
    *,
    tokens: int,
    groups: int,
    width: int,
    number: str,
) -> NDArray[Any]:
    """Rows of item states [B, T, G W], widened, with zeros behind their ends: csrc/gather.h, what the CUDA kernel does, on the CPU.

    Parameters
    ----------
    tables : two of (values [total G W], all float32, int8 or float16; scales float32 [total G], of no entry but for int8).
    starts, lengths : int64 [B] and int32 [B]: row i begins at token ``starts[i]`` of the first table; a negative one at ``~starts[i]`` of
        the second.
    tokens, groups, width : T, G, W.
    number : ``fp32``: the result is float32; ``fp16`` or ``bf16``: uint16, their bits.

    Raises
    ------
    InputError : a row is outside its table, or longer than T; arrays of other types or sizes.
    """

def gather_pairs(
    tables: Sequence[NDArray[np.int32]], starts: NDArray[np.int64], lengths: NDArray[np.int32], frame: NDArray[np.int32], *, tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Rows of tokens ``head + item + suffix``: ids, mask and types, int32 [B, T]: csrc/gather.h, what the CUDA kernel does, on the CPU.

    Parameters
    ----------
    tables : two of int32 [total].
    starts, lengths : as of `gather_states`; a length of -1 is no row.
    frame : int32, sizes of head and suffix, token types of head and of the rest, padding, head, suffix.
    tokens : T.

    Raises
    ------
    InputError : as `gather_states`; or a frame whose sizes are not its own.
    """

@final
class Encoder:
    """A model and the threads that run it. Safe to share between threads, and usable after a fork (with threads of its own).

    Parameters
    ----------
    data : the bytes of engine.bin, at an address that is a multiple of 64, as a mapping is; kept, and must not change.
    isa : a name from `edgerec._core.isas`.
    threads : how many threads work on one call, the caller included, 1 .. 1024.

    Raises
    ------
    InputError : the file is damaged or not one that this engine runs.
    """

    def __new__(cls, data: object, *, isa: str, threads: int) -> Encoder: ...
    @property
    def vocab(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def types(self) -> int: ...
    @property
    def buckets(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def states(self) -> tuple[int, int, str] | None:
        """Of a mid-fusion student: G, W, and the precision of stored states. None for a cross student."""

    @property
    def sides(self) -> tuple[int, int, int]:
        """Of a mid-fusion student: the position of an item's first token, and the token types of query and item."""

    def score(
        self,
        ids: NDArray[np.int32],
        types: NDArray[np.int32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        feature_ids: NDArray[np.int32],
        feature_weights: NDArray[np.float32],
        *,
        deadline_ns: int = 0,
        done: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Logits, float32 [B], of ragged rows; releases the GIL.

        Parameters
        ----------
        ids, types : int32 [total], tokens and their types.
        starts, lengths : int64 [B]; row i is ``ids[starts[i] : starts[i] + lengths[i]]``. Rows may overlap.
        feature_ids, feature_weights : int32 and float32 [B * F], row after row; empty for a student without features.
        deadline_ns : the `time.monotonic_ns` after which no further block of rows is begun; 0: none. Rows left out have NaN.
        done : bool [B], is filled: whether a row was scored.

        Raises
        ------
        InputError : a row is empty, too long or outside ``ids``; an id is outside its table.
        MemoryError : no memory for a workspace, or, in a forked child, no threads.
        """

    def encode(
        self,
        ids: NDArray[np.int32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        values: NDArray[np.generic],
        scales: NDArray[np.float32],
    ) -> None:
        """Write the states of items, as they are stored; releases the GIL.

        Parameters
        ----------
        ids : int32 [total], tokens of item and suffix.
        starts, lengths : int64 [U]; item i is ``ids[starts[i] : starts[i] + lengths[i]]``, and may be empty.
        values : [total * G * W], of the model's kind, written where ``ids`` has a token of an item.
        scales : float32 [total * G] for int8, else empty; written likewise.

        Raises
        ------
        InputError : an item is too long or outside ``ids``, an id outside its table, or the model is a cross student's.
        MemoryError : as `score`.
        """

    def rank(
        self,
        query: NDArray[np.int32],
        values: NDArray[np.generic],
        scales: NDArray[np.float32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        feature_ids: NDArray[np.int32],
        feature_weights: NDArray[np.float32],
        *,
        deadline_ns: int = 0,
        done: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float32]:
        """Logits, float32 [B], of one query with items whose states lie in a table; releases the GIL.

        Parameters
        ----------
        query : int32 [R], the query's tokens with what stands before and behind them.
        values, scales : the table, as `encode` writes it; read where the items lie, never copied.
        starts, lengths : int64 [B]; item i has the tokens ``starts[i]`` to ``starts[i] + lengths[i]`` of the table.
        feature_ids, feature_weights, deadline_ns, done : as of `score`.

        Raises
        ------
        InputError : a query is empty or too long, an item lies outside the table or is too long, an id is outside its table, or the model
            is a cross student's.
        MemoryError : as `score`.
        """

    def query_rows(self, query: NDArray[np.int32]) -> NDArray[np.float32]:
        """The rows of a query after the layers that see it alone, float32 [R, H]: what `rank` makes of it first; releases the GIL.

        Parameters
        ----------
        query : as of `rank`.

        Raises
        ------
        InputError : the query is empty or too long, an id is outside its table, or the model is a cross student's.
        MemoryError : as `score`.
        """
