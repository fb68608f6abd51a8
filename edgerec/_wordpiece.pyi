"""WordPiece over a compiled table (csrc/edr_wordpiece.h): the ids of the tokenizers library, or word that it has to be asked."""

from collections.abc import Iterable
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

SECTIONS: Final[tuple[str, ...]]
"""The sections of tokenizer.bin, in the order of docs/formats.md."""

@final
class Wordpiece:
    """A tokenizer, open. Immutable, and safe to share between threads and with forked children.

    Parameters
    ----------
    data : the bytes of tokenizer.bin, at an address that is a multiple of 64, as a mapping is; kept, and must not change.

    Raises
    ------
    InputError : the file is damaged or not one that this version reads.
    """

    def __new__(cls, data: object) -> Wordpiece: ...
    def encode(self, text: str, limit: int) -> NDArray[np.int32] | None:
        """The first `limit` ids of a text, int32 [t], without special tokens; None: ask the library.

        Raises
        ------
        InputError : `text` is not a str, or has lone surrogates.
        """

    def encode_all(self, texts: Iterable[str], limit: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
        """The first `limit` ids of each of n texts; releases the GIL.

        Returns
        -------
        ids : int32 [total]; text i has ``ids[offsets[i]:offsets[i + 1]]``.
        offsets : int64 [n + 1]
        asked : bool [n]: the library has to be asked for this text; it has no ids here.

        Raises
        ------
        InputError : as `encode`.
        MemoryError : no memory for so many ids.
        """
