"""Pairs: tokenised (query, item) rows of several data sets, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgerec.errors import InputError
from edgerec.features import FeatureEncoder
from edgerec.text import TextEncoder
from edgerec.types import Item

from .config import FitSettings
from .data import Dataset

Rows = NDArray[np.int64]
PASS = 96
"""What a forward and backward pass costs beside its tokens, counted in tokens: it touches every weight's gradient once more."""
MOST_ROWS = 64
"""Of a pass."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """P rows over shared tables of queries and items.

    Attributes
    ----------
    query, item : int64 [P], positions in the tables.
    label : float32 [P] in [0, 1]; NaN where nobody judged.
    grade : float32 [P], the judgement itself; NaN where nobody judged.
    dataset : int64 [P], position in ``names``.
    query_texts, items : the tables.
    """

    query: Rows
    item: Rows
    label: NDArray[np.float32]
    grade: NDArray[np.float32]
    dataset: Rows
    names: tuple[str, ...]
    grade_min: tuple[float, ...]
    query_texts: tuple[str, ...]
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.query)


@dataclass(frozen=True, slots=True)
class HashedRows:
    """Hashed features of every row of some Pairs: ids int32 [P, F], weights float32 [P, F]."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]

    @classmethod
    def of(cls, pairs: Pairs, encoder: FeatureEncoder) -> HashedRows:
        """Encode with the code that serves: skew is impossible."""
        items = encoder.encode_items(pairs.items)
        starts = np.flatnonzero(np.r_[True, pairs.query[1:] != pairs.query[:-1]])
        parts = [
            encoder.encode_rows(encoder.encode_query(pairs.query_texts[pairs.query[rows[0]]]), items, pairs.item[rows])
            for rows in np.split(np.arange(len(pairs)), starts[1:])
        ]
        return cls(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def query_pairs(query: str, items: Sequence[Item]) -> Pairs:
    """One query with each of N items, nobody's judgement: what scoring text needs."""
    n = len(items)
    zeros, unknown = np.zeros(n, np.int64), np.full(n, np.nan, np.float32)
    return Pairs(zeros, np.arange(n), unknown, unknown, zeros, ("query",), (0.0,), (query,), tuple(items))


def judged_pairs(datasets: Sequence[Dataset], split: str) -> Pairs:
    """All rows of a split, in file order. A grade of NaN is no judgement (see `edgerec.training.unjudged`).

    Raises
    ------
    InputError : no data set has the split, or it is empty.
    """
    query: list[int] = []
    item: list[int] = []
    label: list[float] = []
    grade: list[float] = []
    origin: list[int] = []
    texts: list[str] = []
    items: list[Item] = []
    for number, dataset in enumerate(datasets):
        place: dict[str, int] = {}
        for query_id, grades in dataset.qrels.get(split, {}).items():
            texts.append(dataset.queries[query_id])
            for item_id, g in grades.items():
                if item_id not in place:
                    place[item_id] = len(items)
                    items.append(dataset.items[item_id])
                query.append(len(texts) - 1)
                item.append(place[item_id])
                grade.append(g)
                label.append(dataset.label(g))
                origin.append(number)
    if not query:
        raise InputError(f"no judged pair in split {split!r} of {[d.name for d in datasets]}; expected qrels/{split}.tsv with rows")
    return Pairs(
        np.array(query, np.int64),
        np.array(item, np.int64),
        np.array(label, np.float32),
        np.array(grade, np.float32),
        np.array(origin, np.int64),
        tuple(d.name for d in datasets),
        tuple(d.grade_min for d in datasets),
        tuple(texts),
        tuple(items),
    )


def epoch_batches(pairs: Pairs, settings: FitSettings, *, seed: int, epoch: int, only: Sequence[str] = ()) -> list[Rows]:
    """Row numbers of each step of one epoch: chunks of up to ``group_size`` rows of one query, shuffled, packed to ``batch_size`` rows.

    ``only`` names the data sets that take part; empty: all. Those of ``settings.curriculum`` come one after the other, in its order.

    Raises
    ------
    InputError : ``passes`` or ``curriculum`` name a data set that is not there, the latter leaves one out, or no row takes part.
    """
    wanted, order = list(only or pairs.names), list(settings.curriculum)
    unknown = sorted({*settings.passes, *order} - set(pairs.names))
    if unknown:
        raise InputError(f"fit.passes or fit.curriculum name {unknown}, but the data sets are {list(pairs.names)}")
    if order and not set(wanted) & set(order):
        order = []  # none of these is judged data: a warm-up
    elif order and sorted(order) != sorted(wanted):
        raise InputError(f"fit.curriculum is {order}; expected each of {wanted} once")
    rng = np.random.default_rng([seed, epoch])
    stages = [[name] for name in order] or [wanted]
    batches = [rows for names in stages for rows in _mixed_batches(pairs, settings, names, rng)]
    if not batches:
        raise InputError(f"fit.passes = {dict(settings.passes)} leaves no training pair")
    return batches


def _mixed_batches(pairs: Pairs, settings: FitSettings, names: Sequence[str], rng: np.random.Generator) -> list[Rows]:
    starts = np.flatnonzero(np.r_[True, pairs.query[1:] != pairs.query[:-1]])
    chunks: list[Rows] = []
    for rows in np.split(np.arange(len(pairs)), starts[1:]):
        name = pairs.names[pairs.dataset[rows[0]]]
        for _ in range(settings.passes.get(name, 1) if name in names else 0):
            shuffled = rng.permutation(rows)
            parts = -(-len(rows) // settings.group_size)
            chunks += np.array_split(shuffled, parts)
    batches: list[Rows] = []
    pending: list[Rows] = []
    for number in rng.permutation(len(chunks)):
        if pending and sum(map(len, pending)) + len(chunks[number]) > settings.batch_size:
            batches.append(np.concatenate(pending))
            pending = []
        pending.append(chunks[number])
    if pending:
        batches.append(np.concatenate(pending))
    return batches


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Token rows of one forward pass: int64 [B, T] each; ``rows`` are the positions, in the batch they came from, of its first rows."""

    rows: Rows
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]


class TokenTable:
    """Tokens of every query and item of some Pairs, computed once; rows come out packed by length."""

    def __init__(self, pairs: Pairs, encoder: TextEncoder) -> None:
        self.pairs = pairs
        self.spec = encoder.spec
        self._queries = [encoder.encode_query(text) for text in pairs.query_texts]
        self._tokens, self._offsets = encoder.encode_items([encoder.item_text(i) for i in pairs.items])

    def query_row(self, number: np.int64) -> NDArray[np.int32]:
        """The query's side of a row: ``prefix + query + middle``."""
        return np.concatenate([self.spec.prefix, self._queries[number], self.spec.middle]).astype(np.int32)

    def item_row(self, number: np.int64) -> NDArray[np.int32]:
        """The item's side of a row when it does not depend on the query: ``item + suffix``, cut as beside an empty query."""
        return np.concatenate([self._tokens[self._offsets[number] : self._offsets[number + 1]], self.spec.suffix]).astype(np.int32)

    def padded(self, rows: Sequence[NDArray[np.int32]], *, multiple: int = 8) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token rows as one batch: ids int64 [B, T] and lengths int64 [B].

        Both sides are rounded up to a multiple, as in `forward_batches`; the extra rows are the first ones again.
        """
        held = [rows[i % len(rows)] for i in range(round_up(len(rows), multiple))]
        lengths = np.array([len(row) for row in held], np.int64)
        ids = np.full((len(held), round_up(int(lengths.max()), multiple)), self.spec.pad_id, np.int64)
        for place, row in enumerate(held):
            ids[place, : len(row)] = row
        return ids, lengths

    def forward_batches(self, rows: Rows, *, size: int = 32, few_shapes: bool = True) -> list[TokenRows]:
        """Cut ``rows`` into forward passes of rows of similar length (see `starts`), so that little is computed for padding.

        With ``few_shapes`` both sides of a pass are rounded up to multiples of 8; the extra rows are copies of its last one, to be ignored.
        """
        tokens = [self._row(r) for r in rows]
        lengths = np.array([len(ids) for ids, _ in tokens], np.int64)
        order = np.argsort(lengths, kind="stable")
        multiple = 8 if few_shapes else 1
        out = []
        for chosen in np.split(order, starts(lengths[order], size=size, few_shapes=few_shapes)[1:]):
            width = round_up(int(lengths[chosen[-1]]), multiple)
            height = round_up(len(chosen), multiple)
            ids = np.full((height, width), self.spec.pad_id, np.int64)
            mask = np.zeros((height, width), np.int64)
            types = np.zeros((height, width), np.int64)
            for place, j in enumerate([*chosen, *[chosen[-1]] * (height - len(chosen))]):
                row_ids, query_side = tokens[j]
                ids[place, : len(row_ids)] = row_ids
                mask[place, : len(row_ids)] = 1
                types[place, :query_side] = self.spec.query_type
                types[place, query_side : len(row_ids)] = self.spec.item_type
            out.append(TokenRows(chosen, ids, mask, types))
        return out

    def _row(self, r: np.int64) -> tuple[NDArray[np.int32], int]:
        spec, head, i = self.spec, self.query_row(self.pairs.query[r]), self.pairs.item[r]
        room = max(spec.max_tokens - len(head) - len(spec.suffix), 0)
        item = self._tokens[self._offsets[i] : self._offsets[i + 1]][:room]
        return np.concatenate([head, item, spec.suffix]).astype(np.int32), len(head)


def starts(lengths: Rows, *, size: int, few_shapes: bool) -> list[int]:
    """Where the forward passes of rows with such lengths, int64 [P] ascending, begin.

    With ``few_shapes`` a pass has ``size`` rows: oneDNN compiles its bf16 kernels anew for every shape, seconds each. Else tokens, padding
    and `PASS` for each pass are fewest in all.
    """
    if few_shapes:
        return list(range(0, len(lengths), size))
    cost = np.zeros(len(lengths) + 1)
    before = np.zeros(len(lengths) + 1, np.int64)
    for end in range(1, len(lengths) + 1):
        first = np.arange(max(0, end - MOST_ROWS), end)
        total = cost[first] + (end - first) * lengths[end - 1] + PASS
        best = int(np.argmin(total))
        cost[end], before[end] = total[best], first[best]
    found = [int(before[-1])]
    while found[-1]:
        found.append(int(before[found[-1]]))
    return found[::-1]


def round_up(n: int, multiple: int = 8) -> int:
    """The next multiple from ``n`` on."""
    return -(-n // multiple) * multiple
