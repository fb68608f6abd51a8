"""Hashed features of query x item x user x context: the encoder that carries out a FeatureSpec.

Training and serving run this same code over the same C core, and golden vectors in the spec prove it at load.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .corpus import item_from_record
from .errors import FeatureError, InputError
from .feature_spec import OPS, FeatureSpec, Field, Template, default_spec
from .types import Item, UserProfile
from .words import clean_text, normalize, split_words

__all__ = [
    "NO_FEATURES",
    "FeatureEncoder",
    "FeatureSpec",
    "Field",
    "ItemFeatures",
    "QueryFeatures",
    "Template",
    "add_golden",
    "check_golden",
    "default_spec",
]

MISSING = "<missing>"
_EMPTY: NDArray[np.uint64] = np.empty(0, np.uint64)  # nothing in it that a caller could change
_NOTHING: tuple[NDArray[np.float32] | None, NDArray[np.float32]] = (None, np.empty(0, np.float32))
"""The weights of an absent field: of one whose values have no weights, and of one whose values have."""
_ONE_SET = itertools.repeat(None)
Rows = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Feature ids int32 [N, F] and weights float32 [N, F]."""


@dataclass(frozen=True, slots=True)
class QueryFeatures:
    """The hashes of all that is not the item. One entry per field that is not of the item, in spec order.

    Attributes
    ----------
    hashes : uint64, ascending, no duplicates.
    weights : float32 of the same length, or None where every weight is 1.
    """

    hashes: tuple[NDArray[np.uint64], ...]
    weights: tuple[NDArray[np.float32] | None, ...]


@dataclass(frozen=True, slots=True)
class ItemFeatures:
    """The hashes of R items, item by item, so that one item's C fields lie side by side in memory.

    Attributes
    ----------
    hashes : uint64 [total]; field c of item i, in spec order, has ``hashes[offsets[i * C + c]:offsets[i * C + c + 1]]``, ascending, no
        duplicates.
    offsets : int64 [R * C + 1]
    fields : C
    """

    hashes: NDArray[np.uint64] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    fields: int
    sets: tuple[tuple[NDArray[np.uint64], None, NDArray[np.int64], int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = (self.offsets[c:] if len(self.offsets) > c else self.offsets for c in range(self.fields))
        object.__setattr__(self, "sets", tuple((self.hashes, None, offsets, self.fields - 1) for offsets in starts))


NO_FEATURES = ItemFeatures(_EMPTY, np.zeros(1, np.int64), 0)
"""Of items whose model has no features."""


class FeatureEncoder:
    """Carries out a FeatureSpec. Immutable, and safe to share between threads."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        places = {entry.name: i for i, entry in enumerate(spec.fields)}
        templates = spec.templates
        self._plan = _core.FeaturePlan(
            np.array([OPS[t.op] for t in templates], np.int32),
            np.array([places[t.left] for t in templates], np.int32),
            np.array([places[t.right] if t.right else -1 for t in templates], np.int32),
            np.array([_core.hash64(clean_text(t.name).encode(), spec.seed) for t in templates], np.uint64),
            buckets=spec.buckets,
            slots=spec.slots,
        )
        self._prefixes = {entry.name: f"{clean_text(entry.namespace)}=".encode() for entry in spec.fields}
        self._item_fields = tuple(entry for entry in spec.fields if entry.side == "item")
        self._query_fields = tuple(entry for entry in spec.fields if entry.side != "item")

    @property
    def item_fields(self) -> tuple[str, ...]:
        """The names of the fields that read the item, in the order of the columns of `ItemFeatures`."""
        return tuple(entry.name for entry in self._item_fields)

    def encode_query(self, text: str, user: UserProfile | None = None, context: Mapping[str, str] | None = None) -> QueryFeatures:
        """Hash the query, the user and the context, once per request.

        Raises
        ------
        InputError : `text`, `user` or a value in `context` is of another type, or a user's weight is not a finite number.
        """
        if not isinstance(text, str):
            raise InputError(f"the query must be a str, got {type(text).__name__}")
        if user is not None and not isinstance(user, UserProfile):
            raise InputError(f"user must be a UserProfile, got {type(user).__name__}")
        if context is not None and not isinstance(context, Mapping):
            raise InputError(f"context must be a mapping of str to str, got {type(context).__name__}")
        hashes, weights = [], []
        words = split_words(text)
        for entry in self._query_fields:
            given: Any = text
            if entry.side == "user":
                given = getattr(user, entry.source) if user is not None else ""
            elif entry.side == "context":
                given = context.get(entry.source, "") if context is not None else ""
            weighted = entry.kind == "weights"
            found, summed = _EMPTY, _NOTHING[weighted]
            if weighted and given:
                values, numbers = _weighted_values(given)
                found, summed = _core.sort_unique(self._hash(entry, values), numbers)
            elif given != "" and entry.kind == "value":
                found, summed = _core.sort_unique(self._hash(entry, _values(given)))
            elif given != "" and not weighted:
                found, summed = _core.sort_unique(self._hash_words(entry, [words if entry.side == "query" else _words(given)])[0])
            hashes.append(found)
            weights.append(summed)
        return QueryFeatures(tuple(hashes), tuple(weights))

    def encode_items(self, items: Sequence[Item]) -> ItemFeatures:
        """Hash many items, one column at a time. Raises InputError for a value of another type."""
        columns, sizes = [], np.empty((len(items), len(self._item_fields)), np.int64)
        words: dict[str, list[list[str]]] = {}  # by source: two kinds may read one
        for c, entry in enumerate(self._item_fields):
            given = [getattr(item, entry.source) for item in items]
            if entry.kind in ("words", "trigrams"):
                if entry.source not in words:
                    words[entry.source] = [_words(value) for value in given]
                hashes, counts = self._hash_words(entry, words[entry.source])
            else:
                read = _log2_bucket if entry.kind == "log2" else _values
                values = [read(value) or [MISSING] for value in given]
                hashes, counts = self._hash(entry, [*itertools.chain(*values)]), _lengths(values)
            column, sizes[:, c] = _core.sort_unique_rows(hashes, counts)
            columns.append(column)
        offsets = np.zeros(sizes.size + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        hashes = np.empty(int(offsets[-1]), np.uint64)
        for c, column in enumerate(columns):
            starts = np.cumsum(sizes[:, c]) - sizes[:, c]
            hashes[np.arange(len(column)) + np.repeat(offsets[c : -1 : len(columns)] - starts, sizes[:, c])] = column
        return ItemFeatures(hashes, offsets, len(columns))

    def encode_rows(self, query: QueryFeatures, items: ItemFeatures, rows: NDArray[np.int64]) -> Rows:
        """Features of the query with each of the chosen items.

        Parameters
        ----------
        query, items : from `encode_query` and `encode_items` (or a catalogue), of this same spec.
        rows : int64 [N], the items to take, in this order.

        Returns
        -------
        ids : int32 [N, F]. weights : float32 [N, F], 0 in unused slots.
        """
        on_query = zip(query.hashes, query.weights, _ONE_SET, strict=False)
        on_item = iter(items.sets)
        sets: list[Any] = [next(on_item if entry.side == "item" else on_query) for entry in self.spec.fields]
        return self._plan.encode(sets, rows)

    def _hash(self, entry: Field, values: list[str]) -> NDArray[np.uint64]:
        return _core.hash_strings(values, self.spec.seed, self._prefixes[entry.name])

    def _hash_words(self, entry: Field, words: list[list[str]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Hashes of a field of kind words or trigrams, repeats kept, and how many there are for each list of words."""
        if entry.kind == "trigrams":
            return _core.hash_trigrams([" ".join(one) for one in words], self.spec.seed, self._prefixes[entry.name])
        return self._hash(entry, [*itertools.chain(*words)]), _lengths(words)


def _lengths(lists: list[list[str]]) -> NDArray[np.int64]:
    return np.fromiter(map(len, lists), np.int64, len(lists))


def _words(given: Any) -> list[str]:
    """The words of a source, repeats kept."""
    return split_words(" ".join(clean_text(value) for value in given.values()) if isinstance(given, Mapping) else given)


def _values(given: Any) -> list[str]:
    """The values of a source, without empty ones: one, or those of a mapping with their keys."""
    if isinstance(given, Mapping):
        return [f"{normalize(key)}:{normal}" for key, value in given.items() if (normal := normalize(value))]
    return [normal] if (normal := normalize(given)) else []


def _log2_bucket(price: Any) -> list[str]:
    if price is None or price == "":
        return []
    if not isinstance(price, int | float | np.integer | np.floating):
        raise InputError(f"a price must be a number, None or '', got {price!r}")
    return [str(math.floor(4 * math.log2(max(float(price), 0.01))))] if math.isfinite(price) else []


def _weighted_values(given: Mapping[str, float]) -> tuple[list[str], NDArray[np.float32]]:
    if not isinstance(given, Mapping):
        raise InputError(f"brands and categories of a user are mappings of str to a weight, got {type(given).__name__}")
    pairs = [(normal, weight) for value, weight in given.items() if (normal := normalize(value))]
    try:
        weights = np.array([weight for _, weight in pairs], np.float32)
    except (TypeError, ValueError) as e:
        raise InputError(f"a user's weights must be numbers: {e}") from e
    if not np.isfinite(weights).all():
        raise InputError("a user's weights must be finite")
    return [value for value, _ in pairs], weights


def add_golden(spec: FeatureSpec, examples: Sequence[tuple[str, Item, UserProfile | None]]) -> FeatureSpec:
    """The spec with the features of some examples written into it, for `check_golden` to reproduce at every load."""
    encoder = FeatureEncoder(spec)
    golden = []
    for query, item, user in examples:
        ids, weights = _encode_one(encoder, query, item, user)
        golden.append({"query": query, "item": _item_json(item), "user": _user_json(user), "ids": ids, "weights": weights})
    return replace(spec, golden=(*spec.golden, *golden))


def check_golden(spec: FeatureSpec) -> None:
    """Compute every golden example again. Raises FeatureError at the first that differs."""
    encoder = FeatureEncoder(spec)
    for number, example in enumerate(spec.golden, 1):
        try:
            item = item_from_record({"_id": example["item"]["id"], **example["item"]}, f"golden example {number}")
            user = UserProfile(**example["user"]) if example.get("user") else None
            ids, weights = _encode_one(encoder, example["query"], item, user)
            wanted = np.array(example["weights"], np.float32)
            same = ids == example["ids"] and bool((np.abs(weights - wanted) <= 1e-6 * np.abs(wanted)).all())
        except (InputError, KeyError, TypeError, ValueError) as e:
            raise FeatureError(f"golden example {number} of the feature spec cannot be read: {e}") from e
        if not same:
            raise FeatureError(
                f"golden example {number} (query {example['query']!r}) gives the features {ids} {weights}, the spec says "
                f"{example['ids']} {example['weights']}; this edgerec or Python does not compute what the model was trained with"
            )


def _encode_one(encoder: FeatureEncoder, query: str, item: Item, user: UserProfile | None) -> tuple[list[int], list[float]]:
    """Ids and weights of one pair, without the unused slots at the end."""
    ids, weights = encoder.encode_rows(encoder.encode_query(query, user), encoder.encode_items([item]), np.zeros(1, np.int64))
    used = np.flatnonzero((ids[0] != 0) | (weights[0] != 0))
    count = int(used[-1]) + 1 if len(used) else 0
    return ids[0, :count].tolist(), weights[0, :count].tolist()


def _item_json(item: Item) -> dict[str, Any]:
    body = {name: getattr(item, name) for name in ("id", "title", "text", "brand", "category", "price")}
    return {**body, "attributes": dict(item.attributes)}


def _user_json(user: UserProfile | None) -> dict[str, Any] | None:
    return None if user is None else {"id": user.id, "brands": dict(user.brands), "categories": dict(user.categories)}
