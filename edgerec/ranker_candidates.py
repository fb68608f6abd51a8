"""The first step of ranking: what the caller listed becomes catalogue rows, whole items, and what is skipped, with the reason."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .catalog import Catalog
from .corpus import item_from_record
from .errors import InputError
from .types import Item

Candidate = str | Item | Mapping[str, Any]
"""An id of the catalogue, an item, or a mapping with the keys of a line of `corpus.jsonl` (``id`` is taken for ``_id``)."""

UNKNOWN, DUPLICATE = "unknown id", "duplicate"
NOWHERE: NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The caller's list, sorted out. Positions are places in that list.

    Attributes
    ----------
    ids : the id of every candidate.
    row_positions, rows : int64 [n], those found in the catalogue (None: all, in order), and their rows.
    item_positions, items : int64 [m], those given whole.
    skipped : (position, reason) of the rest.
    duplicates : position of a duplicate -> position of the first candidate with that id.
    catalog : whose rows these are.
    """

    ids: tuple[str, ...]
    row_positions: NDArray[np.int64] | None
    rows: NDArray[np.int64]
    item_positions: NDArray[np.int64]
    items: tuple[Item, ...]
    skipped: tuple[tuple[int, str], ...] = ()
    duplicates: Mapping[int, int] = field(default_factory=dict)
    catalog: Catalog | None = None

    @property
    def count(self) -> int:
        """How many can be ranked."""
        return len(self.rows) + len(self.items)

    def left_out(self, scored: Iterable[NDArray[np.int64]]) -> list[int]:
        """The positions, in order, of those that can be ranked and are not among the `scored`, int64 [B] each."""
        missing = np.zeros(len(self.ids), np.bool_)
        missing[slice(None) if self.row_positions is None else self.row_positions] = True
        missing[self.item_positions] = True
        for positions in scored:
            missing[positions] = False
        return list(map(int, np.flatnonzero(missing)))


def sort_out(candidates: Iterable[Candidate], catalog: Catalog | None) -> Candidates:
    """Find every candidate, in the catalogue or in itself.

    Of several candidates with one id the first that can be scored is kept. A whole item hides the catalogue's item of the same id.

    Raises
    ------
    InputError : `candidates` is a single str or mapping, or holds something else than candidates, or an id without a catalogue.
    """
    if isinstance(candidates, str | bytes | Mapping) or not isinstance(candidates, Iterable):
        raise InputError(f"candidates must be a sequence of ids or items, got one {type(candidates).__name__}; put it in a list")
    listed = tuple(candidates)
    plain = set(map(type, listed)) <= {str}
    given = {} if plain else {i: _whole_item(c, i) for i, c in enumerate(listed) if not isinstance(c, str)}
    ids = tuple(c if isinstance(c, str) else given[i].id for i, c in enumerate(listed)) if given else cast("tuple[str, ...]", listed)
    named = [name for i, name in enumerate(ids) if i not in given] if given else list(ids)
    if named and catalog is None:
        place = next(i for i in range(len(ids)) if i not in given)
        raise InputError(
            f"candidate {place} is the id {named[0]!r:.80}, but there is no catalogue to look it up in; "
            "open the ranker with catalog=, or give whole items"
        )
    rows = catalog.find(named) if catalog is not None else np.empty(0, np.int64)
    repeated = len(set(ids)) < len(ids)
    if named and not given and not repeated and rows[rows.argmin()] >= 0:  # the common case: nothing to sort out
        return Candidates(ids, None, rows, NOWHERE, (), catalog=catalog)
    by_id = np.array([i for i in range(len(ids)) if i not in given], np.int64) if given else np.arange(len(ids))
    skipped = [(i, UNKNOWN) for i in by_id[rows < 0].tolist()]
    duplicates: dict[int, int] = {}
    if repeated:
        unknown = {i for i, _ in skipped}
        first: dict[str, int] = {}
        for i, name in enumerate(ids):
            if i not in unknown and first.setdefault(name, i) != i:
                duplicates[i] = first[name]
        skipped += [(i, DUPLICATE) for i in duplicates]
    keep = rows >= 0
    if duplicates:
        keep &= [i not in duplicates for i in by_id.tolist()]
    whole = [i for i in given if i not in duplicates]
    return Candidates(
        ids=ids,
        row_positions=by_id[keep],
        rows=rows[keep],
        item_positions=np.array(whole, np.int64),
        items=tuple(given[i] for i in whole),
        skipped=tuple(sorted(skipped)),
        duplicates=duplicates,
        catalog=catalog,
    )


def at_least_one(name: str, value: object) -> int:
    """The argument as an int from 1 on. Raises InputError that names it."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as e:
        raise InputError(f"{name} must be an int, got {type(value).__name__}") from e
    if number < 1:
        raise InputError(f"{name} is {number}; expected at least 1")
    return number


def _whole_item(candidate: object, position: int) -> Item:
    """The candidate as an Item whose fields have the types they must have."""
    if isinstance(candidate, Mapping):
        record = {**candidate, "_id": candidate["id"]} if "id" in candidate and "_id" not in candidate else dict(candidate)
        item = item_from_record(record, f"candidate {position}")
    elif isinstance(candidate, Item):
        item = candidate
    else:
        raise InputError(f"candidate {position} is a {type(candidate).__name__}; expected an id (str), an Item or a mapping")
    for name in ("id", "title", "text", "brand", "category"):
        if not isinstance(getattr(item, name), str):
            raise InputError(f"candidate {position}: {name} is a {type(getattr(item, name)).__name__}; expected a str")
    if not isinstance(item.attributes, Mapping) or not all(isinstance(v, str) for pair in item.attributes.items() for v in pair):
        raise InputError(f"candidate {position}: attributes must map str to str")
    return item
