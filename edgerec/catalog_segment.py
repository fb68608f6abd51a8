"""One open segment of a catalogue: its columns, memory-mapped, and the index that finds an id in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .catalog_columns import RAGGED, TOMBSTONES, VECTORS
from .catalog_info import ID_SEED, CatalogInfo, Segment
from .errors import BundleError, InputError
from .features import NO_FEATURES, ItemFeatures
from .segment import SectionFile
from .states import PRECISIONS, ItemStates, StateSpec
from .types import StoredTable
from .vectors import ItemVectors, VectorSpec


class CatalogSegment:
    """Read-only, and safe to share between threads. A row is one of its items, or what is left of a deleted one.

    Attributes
    ----------
    entry : what ``catalog.json`` says of it; with the SHA-256 that version 3 lacks.
    item_tokens : (tokens int32 [total], offsets int64 [R + 1]); item i is ``tokens[offsets[i]:offsets[i + 1]]``.
    features : the hashes of the items' fields; no fields for a bundle without features.
    states : for a mid-fusion student, the states of every item; else None.
    vectors : for a student that retrieves, one vector of every row, zeros where it is a tombstone; else None.
    content : uint64 [R], a hash of each item's content.
    tombstones : uint8 [R], 1 where the row says that its id was deleted; None: nowhere.
    columns : all of them by section name, to take rows from.
    """

    def __init__(self, path: Path, entry: Segment, info: CatalogInfo) -> None:
        """Map the file. Raises BundleError when it is not the one that the catalogue lists, or its sections do not fit each other."""
        self._sections = sections = SectionFile(path)
        if entry.sha256 and (sections.size != entry.bytes or sections.table_sha256 != entry.sha256):
            raise BundleError(f"{path} is not the file that catalog.json lists: damaged, or of another catalogue; build it again")
        self.entry = entry if entry.sha256 else replace(entry, sha256=sections.table_sha256)
        self.columns: dict[str, NDArray[Any]] = {}
        self._ids = self._ragged("ids", np.uint8)
        self._keys = sections.column("ids.index.keys", np.uint64)
        self._slots = sections.column("ids.index.slots", np.int32)
        self.item_tokens: tuple[NDArray[np.int32], NDArray[np.int64]] = self._ragged("tokens", np.int32)
        self.content: NDArray[np.uint64] = self._keep("content", sections.column("content", np.uint64))
        self.features = NO_FEATURES
        if info.fields:
            self.features = ItemFeatures(*self._ragged("features", np.uint64, len(info.fields)), len(info.fields))
        self.states = self._item_states(info.states) if info.states else None
        self.vectors = self._item_vectors(info.vectors) if info.vectors else None
        self.tombstones: NDArray[np.uint8] | None = None
        if TOMBSTONES in sections:
            self.tombstones = self._keep(TOMBSTONES, sections.column(TOMBSTONES, np.uint8))
        capacity = len(self._keys)
        if len(self._slots) != capacity or capacity & (capacity - 1) or capacity <= entry.items:
            raise BundleError(f"{path}: the index does not fit {entry.items} items; build the catalogue again")
        for column in (self.content, self.tombstones):
            if column is not None and len(column) != entry.items:
                raise BundleError(f"{path}: a column of {len(column)} numbers does not fit {entry.items} items; build the catalogue again")

    def __len__(self) -> int:
        return self.entry.items

    def find(self, ids: list[str]) -> NDArray[np.int64]:
        """Rows of the ids, also of deleted ones, int64 [N]; -1 where the segment does not know the id. Errors as `Catalog.find`."""
        try:
            return _core.index_find(self._keys, self._slots, *self._ids, ids, ID_SEED)
        except InputError as e:
            if isinstance(ids, list) and all(isinstance(one, str) for one in ids):
                raise BundleError(f"{self._sections.path}: {e}; build the catalogue again") from e
            raise

    def ids(self) -> list[str]:
        """The id of every row: reads the whole column. Raises BundleError when it is damaged."""
        data, offsets = self._ids[0].tobytes(), self._ids[1].tolist()
        try:
            return [data[start:end].decode() for start, end in itertools.pairwise(offsets)]
        except UnicodeDecodeError as e:
            raise BundleError(f"{self._sections.path}: an id is not UTF-8 ({e}); build the catalogue again") from e

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids of some rows. Raises BundleError when one is damaged."""
        data, offsets = self._ids
        try:
            return [data[offsets[row] : offsets[row + 1]].tobytes().decode() for row in rows.tolist()]
        except UnicodeDecodeError as e:
            raise BundleError(f"{self._sections.path}: an id is not UTF-8 ({e}); build the catalogue again") from e

    def table(self, name: str) -> StoredTable:
        """``tokens`` or ``states`` of all rows; states are their numbers and their scales."""
        if name == "states" and self.states is not None:
            return StoredTable(self.entry.sha256, (self.states.values, self.states.scales))
        return StoredTable(self.entry.sha256, (self.columns[name],))

    def verify(self) -> None:
        """Read everything and compare checksums and offsets. Raises BundleError."""
        self._sections.verify()
        for name in RAGGED:
            if f"{name}.offsets" in self.columns and (np.diff(self.columns[f"{name}.offsets"]) < 0).any():
                raise BundleError(f"{self._sections.path}: offsets go backwards; build the catalogue again")

    def _item_states(self, spec: StateSpec) -> ItemStates:
        values, offsets = self._ragged("states", PRECISIONS[spec.precision], rank=2)
        scales = np.zeros((len(values), 0), np.float32)
        if spec.scales:
            scales = self._keep("states.scales", self._sections.column("states.scales", np.float32, 2))
        if values.shape[1] != spec.numbers or scales.shape != (len(values), spec.scales):
            raise BundleError(
                f"{self._sections.path}: states {list(values.shape)} and scales {list(scales.shape)} are not those of "
                f"{spec.groups} x {spec.width} {spec.precision} a token; build the catalogue again"
            )
        return ItemStates(values, scales, offsets)

    def _item_vectors(self, spec: VectorSpec) -> ItemVectors:
        values = self._keep(VECTORS[0], self._sections.column(VECTORS[0], np.int8, 2))
        scales = self._keep(VECTORS[1], self._sections.column(VECTORS[1], np.float32))
        if values.shape != (self.entry.items, spec.width) or len(scales) != self.entry.items:
            raise BundleError(
                f"{self._sections.path}: vectors {list(values.shape)} and {len(scales)} scales are not those of {self.entry.items} items "
                f"of {spec.width} numbers; build the catalogue again"
            )
        return ItemVectors(values, scales)

    def _ragged(self, name: str, dtype: Any, rows_per_item: int = 1, rank: int = 1) -> tuple[NDArray[Any], NDArray[np.int64]]:
        values = self._keep(name, self._sections.column(name, dtype, rank))
        offsets: NDArray[np.int64] = self._keep(f"{name}.offsets", self._sections.column(f"{name}.offsets", np.int64))
        # Two reads of eight bytes; the offsets between are checked row by row where they are used, and all by `verify`.
        if len(offsets) != self.entry.items * rows_per_item + 1 or offsets[0] != 0 or offsets[-1] != len(values):
            raise BundleError(
                f"{self._sections.path}: the offsets of {name!r} do not fit its {len(values)} values; build the catalogue again"
            )
        return values, offsets

    def _keep(self, name: str, column: NDArray[Any]) -> NDArray[Any]:
        self.columns[name] = column
        return column


def newest(segments: Sequence[CatalogSegment], known: Sequence[NDArray[np.bool_]] = ()) -> list[NDArray[np.bool_]]:
    """For each segment, bool [R]: which rows no later segment of these knows another row for.

    `known` is the answer for the first of them without the others, and is not changed: their ids are not read again.
    """
    alive = [*(rows.copy() for rows in known), *(np.ones(len(segment), np.bool_) for segment in segments[len(known) :])]
    for place in range(max(1, len(known)), len(segments)):
        ids = segments[place].ids()
        for segment, rows in zip(segments[:place], alive, strict=False):
            found = segment.find(ids)
            rows[found[found >= 0]] = False
    return alive
