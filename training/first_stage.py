"""The first stage that a reranker has to beat: BM25 over the items of a data folder.

Chosen to be a strong baseline, not a convenient one. Words are cut as everywhere else (:func:`edgerec.words.split_words`), plural and
singular are folded together, no stop words are dropped. docs/evaluation.md has the comparison behind these choices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerec._core import topk
from edgerec.errors import InputError, MissingExtraError
from edgerec.types import Item
from edgerec.words import split_words

from .data import Dataset

FIELDS = ("title", "text", "brand", "category")


class Bm25:
    """BM25 (Lucene's variant) over chosen text fields of a data set. Immutable after construction; safe to share between threads.

    Parameters
    ----------
    dataset : gives the items; their order decides ties.
    fields : item fields joined to one text; any of ``title text brand category``.
    k1, b : term saturation and length normalisation. Product titles are short and hardly repeat a word, so mild values serve best.
    fold_plurals : treat English plural and singular as one word, in queries and items alike.

    Raises
    ------
    InputError : an unknown field, ``k1 < 0``, or ``b`` outside [0, 1].
    MissingExtraError : bm25s is not installed.

    Source: Robertson and Zaragoza, The probabilistic relevance framework: BM25 and beyond, 2009; Lù, BM25S (arXiv 2407.03618).
    """

    def __init__(
        self, dataset: Dataset, *, fields: Sequence[str] = ("title",), k1: float = 0.9, b: float = 0.4, fold_plurals: bool = True
    ) -> None:
        unknown = [name for name in fields if name not in FIELDS]
        if unknown or not fields:
            raise InputError(f"fields {list(fields)}: expected one or more of {list(FIELDS)}")
        if k1 < 0 or not 0 <= b <= 1:
            raise InputError(f"k1 must be at least 0 and b in [0, 1]; got k1={k1}, b={b}")
        try:
            import bm25s
        except ImportError as e:
            raise MissingExtraError("bm25s", "train") from e
        self.fields, self.k1, self.b, self.fold_plurals = tuple(fields), k1, b, fold_plurals
        self._ids = list(dataset.items)
        self._rows = {item_id: row for row, item_id in enumerate(self._ids)}
        words = [self._words(" ".join(filter(None, (getattr(item, name) for name in fields)))) for item in dataset.items.values()]
        self._index: Any = None
        if any(words):  # bm25s cannot index a vocabulary of no words
            self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
            self._index.index(words, show_progress=False)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        """The best ``k`` items that share a word with the query, ``(item id, score)``, best first, ties in corpus order.

        Fewer than ``k`` where fewer items match; none for a query without known words.

        Raises
        ------
        InputError : ``k < 1``.
        """
        if k < 1:
            raise InputError(f"k must be at least 1; got {k}")
        scores = self._all_scores(query)
        rows, best = topk(scores, min(k, len(scores)))
        return [(self._ids[row], score) for row, score in zip(rows.tolist(), best.tolist(), strict=True) if score > 0]

    def search_many(self, queries: Iterable[str], k: int) -> list[list[tuple[str, float]]]:
        """:meth:`search` for each query, in order."""
        return [self.search(query, k) for query in queries]

    def score(self, query: str, items: Sequence[Item]) -> NDArray[np.float32]:
        """BM25 scores of given items of the data set, float32 [N]; 0 where no word is shared.

        Raises
        ------
        InputError : an item is not in the data set.
        """
        missing = [item.id for item in items if item.id not in self._rows]
        if missing:
            raise InputError(f"items {missing[:3]} are not in the data set that this BM25 index was built from")
        return self._all_scores(query)[[self._rows[item.id] for item in items]]

    def _all_scores(self, query: str) -> NDArray[np.float32]:
        words = self._words(query)
        if self._index is None or not words:
            return np.zeros(len(self._ids), np.float32)
        return np.asarray(self._index.get_scores(words), np.float32)

    def _words(self, text: str) -> list[str]:
        words = split_words(text)
        return [fold_plural(word) for word in words] if self.fold_plurals else words


def fold_plural(word: str) -> str:
    """The word without its English plural ending: ``lamps lamp``, ``batteries battery``, ``shelves shelve``, ``glass glass``.

    Source: Harman, How effective is suffixing?, JASIS 1991 (the S stemmer).
    """
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    return word if word.endswith(("us", "ss")) else word[:-1]
