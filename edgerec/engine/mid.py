"""Running a mid-fusion student: what every backend shares is here, a backend gives two functions.

Shape letters: B rows, U items, Q queries, R query tokens, T tokens, G states of a token, W width of a state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, EngineError
from ..states import PRECISIONS, ItemStates, StateSpec
from ..types import Batch, StateBatch
from . import Limits

Ints = NDArray[np.int32]
Encode = Callable[[Ints, Ints], NDArray[np.float32]]
Rank = Callable[[StateBatch], NDArray[np.float32]]
Ask = Callable[[Ints, Ints], NDArray[Any]]
ENCODE_ITEMS = 32
"""Items of one pass of the encoder; they are sorted by length first."""


@dataclass(frozen=True, slots=True)
class MidLayout:
    """Where the tokens of the two sides stand.

    Attributes
    ----------
    item_start : the position of an item's first token, and the most tokens that the query's side can have.
    item_tokens : the most tokens of ``item + suffix``.
    suffix, pad_id, query_type : as in the text spec.
    """

    item_start: int
    item_tokens: int
    suffix: tuple[int, ...]
    pad_id: int
    query_type: int

    @classmethod
    def from_model(cls, model: Any, limits: Limits, what: str = "model.json") -> MidLayout:
        """Read it from a decoded ``model.json``. Raises BundleError."""
        try:
            text, start = model["text"], model["student"]["item_start"]
            layout = cls(start, limits.tokens - start, tuple(text["suffix"]), text["pad_id"], text["query_type"])
            if layout.item_tokens < 1 or not layout.suffix or text["query_type"] == text["item_type"]:
                raise ValueError(f"item_start {start}, suffix {layout.suffix}, token types {text['query_type']} and {text['item_type']}")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{what}: student.item_start and text do not describe a mid-fusion student: {error!r}") from error
        return layout


class MidRunner:
    """A `edgerec.engine.QueryEngine` made of two or three functions, which get checked input only.

    Parameters
    ----------
    encode : ids int32 [U, T], lengths int32 [U] -> states float32 [U, T, G * W], not rounded. None: the backend has an `encode_items` of
        its own, which rounds too.
    rank : a `StateBatch` of at least one row -> logits float32 [B]. Its ``queries`` are there when there is an `ask`.
    ask : query tokens int32 [Q, R], lengths int32 [Q] -> what the layers that see the query alone make of them, [Q, R, H]; None: `rank`
        computes it.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        limits: Limits,
        encode: Encode | None,
        rank: Rank,
        *,
        backend: str,
        precision: str,
        close: Callable[[], None],
        ask: Ask | None = None,
    ) -> None:
        spec = StateSpec.from_model(model)
        assert spec is not None
        self.backend, self.precision = backend, precision
        self._limits, self._layout, self._spec = limits, MidLayout.from_model(model, limits), spec
        self._hidden = int(model["student"]["hidden"])
        self._encode, self._rank, self._ask, self._close = encode, rank, ask, close

    def encode_items(self, ids: Ints, lengths: Ints) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """See `edgerec.engine.MidEngine`."""
        assert self._encode is not None
        self._check_tokens("item_ids", ids, lengths, self._layout.item_tokens)
        if not len(ids):
            return self._spec.store(np.zeros((*ids.shape, self._spec.numbers), np.float32))
        with np.errstate(over="ignore"):
            return self._spec.store(self._encode(ids, lengths))

    def encode_queries(self, ids: Ints, lengths: Ints) -> NDArray[Any] | None:
        """See `edgerec.engine.QueryEngine`."""
        self._check_tokens("query_ids", ids, lengths, self._layout.item_start)
        return self._ask(ids, lengths) if self._ask is not None and len(ids) else None

    def run_states(self, batch: StateBatch) -> NDArray[np.float32]:
        """See `edgerec.engine.MidEngine`."""
        self._check(batch)
        if not batch.size:
            return np.zeros(0, np.float32)
        if self._ask is not None and batch.queries is None:
            batch = replace(batch, queries=self._ask(batch.query_ids, batch.query_lengths))
        return self._rank(batch)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """See `edgerec.engine.Engine`: the rows come apart at their token types, items are encoded, rounded and scored."""
        self._limits.check(batch)
        if not batch.size:
            return np.zeros(0, np.float32)
        real, asking = batch.attention_mask == 1, batch.token_type_ids == self._layout.query_type
        (query_ids, query_lengths), item = _compact(batch.input_ids, real & asking), _compact(batch.input_ids, real & ~asking)
        states, scales = self.encode_items(*item)
        index = np.arange(batch.size, dtype=np.int32)
        return self.run_states(
            StateBatch(query_ids, query_lengths, index, states, scales, item[1], batch.feature_ids, batch.feature_weights)
        )

    def encode_ragged(self, tokens: Ints, offsets: NDArray[np.int64]) -> ItemStates:
        """See `edgerec.engine.MidEngine`."""
        spec, suffix = self._spec, np.array(self._layout.suffix, np.int32)
        lengths = (np.diff(offsets) + len(suffix)).astype(np.int32)
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        values, scales = np.zeros((ends[-1], spec.numbers), PRECISIONS[spec.precision]), np.zeros((ends[-1], spec.scales), np.float32)
        for chosen in self._passes(lengths):
            ids = np.full((len(chosen), int(lengths[chosen].max())), self._layout.pad_id, np.int32)
            for place, item in enumerate(chosen):
                own = tokens[offsets[item] : offsets[item + 1]]
                ids[place, : len(own)], ids[place, len(own) : lengths[item]] = own, suffix
            found, sizes = self.encode_items(ids, lengths[chosen])
            for place, item in enumerate(chosen):
                rows = slice(ends[item], ends[item + 1])
                values[rows], scales[rows] = found[place, : lengths[item]], sizes[place, : lengths[item]]
        return ItemStates(values, scales, ends)

    def close(self) -> None:
        """See `edgerec.engine.Engine`."""
        self._close()

    def _passes(self, lengths: Ints) -> Iterator[NDArray[np.intp]]:
        """Which items are encoded together: those of like length."""
        order = np.argsort(lengths, kind="stable")
        return (order[begin : begin + ENCODE_ITEMS] for begin in range(0, len(order), ENCODE_ITEMS))

    def _check(self, batch: StateBatch) -> None:
        self._check_tokens("query_ids", batch.query_ids, batch.query_lengths, self._layout.item_start)
        asked = (*batch.query_ids.shape, self._hidden)
        if batch.queries is not None and batch.queries.shape != asked:
            raise EngineError(f"batch: queries is {list(batch.queries.shape)}, expected {list(asked)}: what encode_queries made of them")
        rows, spec = batch.size, self._spec
        index = batch.query_index
        if index.dtype != np.int32 or (rows and not 0 <= int(index.min()) <= int(index.max()) < len(batch.query_ids)):
            raise EngineError(f"batch: query_index must be int32 below the {len(batch.query_ids)} queries")
        tokens = batch.states.shape[1] if batch.states.ndim == 3 else -1
        for name, array, kind, size in (
            ("states", batch.states, PRECISIONS[spec.precision], spec.numbers),
            ("scales", batch.scales, np.float32, spec.scales),
        ):
            if array.dtype != kind or array.shape != (rows, tokens, size):
                raise EngineError(f"batch: {name} is {array.dtype} {list(array.shape)}, expected {np.dtype(kind)} [{rows}, T, {size}]")
        lengths = batch.item_lengths
        if lengths.dtype != np.int32 or lengths.shape != (rows,) or (rows and not 0 <= int(lengths.min()) <= int(lengths.max()) <= tokens):
            raise EngineError(f"batch: item_lengths must be int32 [{rows}] from 0 to the {tokens} tokens of the states")
        self._limits.check_features(batch.feature_ids, batch.feature_weights, rows)

    def _check_tokens(self, name: str, ids: Ints, lengths: Ints, most: int) -> None:
        if ids.dtype != np.int32 or ids.ndim != 2 or lengths.dtype != np.int32 or lengths.shape != ids.shape[:1]:
            raise EngineError(f"batch: {name} and its lengths must be int32 [rows, tokens] and int32 [rows]")
        if len(ids) and not 1 <= ids.shape[1] <= most:
            raise EngineError(f"batch: {name} has {ids.shape[1]} tokens a row, expected 1 to {most}; cut the text when packing")
        # As unsigned numbers negative ids are huge: one pass finds both ends.
        if ids.size and int(np.ascontiguousarray(ids).view(np.uint32).max()) >= self._limits.vocab:
            raise EngineError(f"batch: {name} has values from {ids.min()} to {ids.max()}, expected 0 to {self._limits.vocab - 1}")
        if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= ids.shape[1]:
            raise EngineError(f"batch: {name} has lengths from {lengths.min()} to {lengths.max()}, expected 0 to {ids.shape[1]}")


def _compact(ids: Ints, chosen: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """The chosen tokens of each row, moved to its start; at least one column."""
    lengths = chosen.sum(axis=1, dtype=np.int32)
    order = np.argsort(~chosen, axis=1, kind="stable")[:, : max(1, int(lengths.max()))]
    return np.take_along_axis(ids, order, axis=1), lengths
