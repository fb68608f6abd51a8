"""The catalogue: everything about an item that does not need the query, computed once and memory-mapped.

Opening costs the same for a thousand items and for ten million: no column is read. Layout: docs/formats.md, "Catalogue".
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .catalog_info import ID_SEED, CatalogInfo, read_info
from .catalog_writer import build_catalog
from .errors import BundleError, InputError
from .features import NO_FEATURES, ItemFeatures
from .segment import SectionFile
from .states import PRECISIONS, ItemStates, StateSpec
from .vectors import ItemVectors, VectorSpec

__all__ = ["Catalog", "CatalogInfo", "build_catalog"]


class Catalog:
    """An open catalogue: read-only, and safe to share between threads.

    Attributes
    ----------
    info : what ``catalog.json`` says.
    item_tokens : (tokens int32 [total], offsets int64 [R + 1]); item i is ``tokens[offsets[i]:offsets[i + 1]]``.
    features : the hashes of the items' fields; no fields for a bundle without features.
    states : for a mid-fusion student, the states of every item; else None.
    vectors : for a student that retrieves, one vector of every item; else None.
    content : uint64 [R], a hash of each item's content, to tell what changed when the catalogue is rebuilt.
    """

    def __init__(self, info: CatalogInfo, sections: SectionFile) -> None:
        self.info = info
        self._sections = sections
        self._ids = self._ragged("ids", np.uint8)
        self._keys = sections.column("ids.index.keys", np.uint64)
        self._slots = sections.column("ids.index.slots", np.int32)
        self.item_tokens: tuple[NDArray[np.int32], NDArray[np.int64]] = self._ragged("tokens", np.int32)
        self.content: NDArray[np.uint64] = sections.column("content", np.uint64)
        self.features = NO_FEATURES
        if info.fields:
            self.features = ItemFeatures(*self._ragged("features", np.uint64, len(info.fields)), len(info.fields))
        self.states = self._item_states(info.states) if info.states else None
        self.vectors = self._item_vectors(info.vectors) if info.vectors else None
        capacity = len(self._keys)
        if len(self._slots) != capacity or capacity & (capacity - 1) or capacity <= info.items or len(self.content) != info.items:
            raise BundleError(
                f"{sections.path}: the index or the content column does not fit {info.items} items; build the catalogue again"
            )

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Catalog:
        """Memory-map a catalogue folder.

        Parameters
        ----------
        path : the folder `build_catalog` wrote. It must not be changed while it is open.
        verify : read everything and compare checksums and offsets; takes as long as reading the files.

        Raises
        ------
        BundleError : the folder is missing, damaged, or of another version.
        """
        root = Path(path)
        info = read_info(root)
        catalog = cls(info, SectionFile(root / info.segments[0].file))
        if verify:
            catalog._verify()
        return catalog

    def __len__(self) -> int:
        return self.info.items

    def ids(self) -> list[str]:
        """Every id, in row order: reads the whole column. Raises BundleError when it is damaged."""
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

    def find(self, ids: list[str]) -> NDArray[np.int64]:
        """Rows of the ids, int64 [N]; -1 where the id is not in the catalogue.

        Raises
        ------
        InputError : `ids` is not a list of str.
        BundleError : the index is damaged.
        """
        try:
            return _core.index_find(self._keys, self._slots, *self._ids, ids, ID_SEED)
        except InputError as e:
            if isinstance(ids, list) and all(isinstance(one, str) for one in ids):
                raise BundleError(f"{self._sections.path}: {e}; build the catalogue again") from e
            raise

    def _item_states(self, spec: StateSpec) -> ItemStates:
        values, offsets = self._ragged("states", PRECISIONS[spec.precision], rank=2)
        scales = np.zeros((len(values), 0), np.float32)
        if spec.scales:
            scales = self._sections.column("states.scales", np.float32, 2)
        if values.shape[1] != spec.numbers or scales.shape != (len(values), spec.scales):
            raise BundleError(
                f"{self._sections.path}: states {list(values.shape)} and scales {list(scales.shape)} are not those of "
                f"{spec.groups} x {spec.width} {spec.precision} a token; build the catalogue again"
            )
        return ItemStates(values, scales, offsets)

    def _item_vectors(self, spec: VectorSpec) -> ItemVectors:
        values, scales = self._sections.column("vectors", np.int8, 2), self._sections.column("vectors.scale", np.float32)
        if values.shape != (self.info.items, spec.width) or len(scales) != self.info.items:
            raise BundleError(
                f"{self._sections.path}: vectors {list(values.shape)} and {len(scales)} scales are not those of {self.info.items} items "
                f"of {spec.width} numbers; build the catalogue again"
            )
        return ItemVectors(values, scales)

    def _ragged(self, name: str, dtype: Any, rows_per_item: int = 1, rank: int = 1) -> tuple[NDArray[Any], NDArray[np.int64]]:
        values = self._sections.column(name, dtype, rank)
        offsets = self._sections.column(f"{name}.offsets", np.int64)
        # Two reads of eight bytes; the offsets between are checked row by row where they are used, and all by `verify`.
        if len(offsets) != self.info.items * rows_per_item + 1 or offsets[0] != 0 or offsets[-1] != len(values):
            raise BundleError(
                f"{self._sections.path}: the offsets of {name!r} do not fit its {len(values)} values; build the catalogue again"
            )
        return values, offsets

    def _verify(self) -> None:
        self._sections.verify()
        states = [self.states.offsets] if self.states else []
        for offsets in (self._ids[1], self.item_tokens[1], self.features.offsets, *states):
            if (np.diff(offsets) < 0).any():
                raise BundleError(f"{self._sections.path}: offsets go backwards; build the catalogue again")
