"""The items nearest to a query, where there is no first stage: one pass over the vectors of the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from . import _core
from .catalog import Catalog
from .errors import EngineError, InputError
from .ranker_candidates import NOWHERE, Candidates
from .ranker_states import Asked
from .vectors import ItemVectors, RetrievalHead

SCAN_ROWS = 1 << 16
"""Items scored before the best are picked out: their scores (256 KiB) stay in the processor's cache."""
FOUND = 200
"""Items that `Ranker.retrieve` ranks unless it is told another number."""

_NEEDED = "export, build-engine and build-catalog then give what retrieval needs"


class Retriever:
    """Finds the nearest items of a catalogue. Immutable, and safe to share between threads.

    Parameters
    ----------
    head : what makes vectors, of a student that retrieves; else None.
    ask : query tokens int32 [T] -> what the layers that see the query alone make of them.
    backend : of the engine, for messages.
    """

    def __init__(self, head: RetrievalHead | None, ask: Callable[[NDArray[np.int32]], Asked], backend: str) -> None:
        self._head, self._ask, self._backend = head, ask, backend

    def find(self, query_tokens: NDArray[np.int32], n: int, catalog: Catalog | None) -> tuple[Candidates, NDArray[np.float32]]:
        """The `n` nearest items of the catalogue, nearest first, and their scores, float32 [K], about cosines.

        Raises
        ------
        InputError : a student or catalogue without vectors. EngineError : the engine failed, or does not give the query's rows.
        """
        if self._head is None:
            raise InputError(f"the student has no retrieval head: `edgerec add-retrieval`; {_NEEDED}")
        if catalog is None or catalog.info.vectors is None:
            raise InputError(f"there is no catalogue with vectors; {_NEEDED}")
        rows = self._ask(query_tokens).queries
        if rows is None:
            raise EngineError(f"backend {self._backend!r} does not give the query's rows; build the bundle with --backend native or ort")
        values, scales = self._head.query_vectors(rows)
        found, scores = nearest(values[0], float(scales[0]), catalog.vectors, n, catalog.alive())
        return Candidates(tuple(catalog.names(found)), None, found, NOWHERE, (), catalog=catalog), scores


def nearest(
    query: NDArray[np.int8], scale: float, vectors: Sequence[ItemVectors], n: int, alive: Sequence[NDArray[np.bool_]] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `n` items whose vectors have the largest product with the query's, best first; ties in catalogue order.

    Parameters
    ----------
    query : int8 [D].
    vectors : of each segment.
    alive : for each segment bool [R], the rows that may be found; None: all.

    Returns
    -------
    rows : int64 [K], places in all segments end to end. scores : float32 [K], cosines but for rounding; K is at most `n`.
    """
    top, start = _core.TopK(min(n, sum(len(part.scales) for part in vectors))), 0
    for number, part in enumerate(vectors):
        for begin in range(0, len(part.scales), SCAN_ROWS):
            block = slice(begin, begin + SCAN_ROWS)
            scores = _core.scan(query, scale, part.values[block].reshape(-1), part.scales[block])
            top.push(scores, start + begin, None if alive is None else ~alive[number][block])
        start += len(part.scales)
    return top.finish()
