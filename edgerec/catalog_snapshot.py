"""An open catalogue: one generation of it, and the way to the next.

Opening costs the same for a thousand items and for ten million: no column is read.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .catalog_columns import EVERY, join, take
from .catalog_info import CATALOG, CatalogInfo, Stamp, read_info, read_stamp
from .catalog_segment import CatalogSegment, newest
from .errors import BundleError
from .features import NO_FEATURES, ItemFeatures
from .states import ItemStates
from .types import TableSource
from .vectors import ItemVectors

_TRIES = 100
"""Generations that may come and go while one is opened."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows that `Catalog.take` gave lie in the segments, which never change.

    Attributes
    ----------
    segments : of the catalogue.
    copied : owners, rows and places, int64 [N] each: of every row that was copied its segment, its row there, and its place in the copy;
        None: the arrays are those of the one segment.
    """

    segments: tuple[CatalogSegment, ...]
    copied: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None

    def of(self, name: str, rows: NDArray[np.int64]) -> TableSource:
        """Of rows of the arrays, int64 [N]: where their ``tokens`` or ``states`` are."""
        keys, offsets = tuple(one.entry.sha256 for one in self.segments), [one.columns[f"{name}.offsets"] for one in self.segments]
        if self.copied is None:
            return TableSource(keys, np.zeros(len(rows), np.int64), offsets[0][rows])
        owners, there, places = self.copied
        chosen = np.argsort(places)[rows]
        owners, there = owners[chosen], there[chosen]
        starts = np.empty(len(rows), np.int64)
        for number in set(owners.tolist()):
            mine = owners == number
            starts[mine] = offsets[number][there[mine]]
        return TableSource(keys, owners, starts)


class Catalog:
    """One generation of a catalogue: read-only, never changing, and safe to share between threads.

    A row is a place in all segments laid end to end; rows that were replaced or deleted keep their places until they are merged away.

    Attributes
    ----------
    info : what ``catalog.json`` said.
    segments : the open segments, oldest first; of those that know an id the last counts.
    """

    def __init__(self, info: CatalogInfo, segments: tuple[CatalogSegment, ...], folder: _Folder, stamp: Stamp) -> None:
        self.info = info
        self.segments = segments
        self._folder, self._stamp = folder, stamp
        self._starts = np.cumsum([0, *map(len, segments)]).tolist()
        self._single = len(segments) == 1 and segments[0].tombstones is None
        self._alive: tuple[NDArray[np.bool_], ...] = ()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Catalog:
        """Memory-map a catalogue folder.

        Parameters
        ----------
        path : the folder `build_catalog` wrote. Nothing but a `CatalogWriter` may change it while it is open.
        verify : read everything and compare checksums and offsets; takes as long as reading the files.

        Raises
        ------
        BundleError : the folder is missing, damaged, or of another version.
        """
        folder = _Folder(Path(path))
        catalog = folder.latest = _load(folder, None)
        if verify:
            for segment in catalog.segments:
                segment.verify()
        return catalog

    def refresh(self) -> Catalog:
        """The newest generation: this very object, unless a writer has published another. Costs one look at ``catalog.json``'s time.

        Where the whole folder is gone, the generation that is open stays: there is nothing newer.

        Raises
        ------
        BundleError : another catalogue was put in this one's place, or the new generation is damaged.
        """
        folder = self._folder
        stamp, latest = read_stamp(folder.file), folder.latest
        if latest is None or stamp in (None, latest._stamp):
            return latest or self
        with folder.lock:
            if read_stamp(folder.file) != folder.latest._stamp:  # type: ignore[union-attr]  # set once, never unset
                folder.latest = _load(folder, folder.latest)
            return folder.latest  # type: ignore[return-value]

    def pin(self) -> Catalog:
        """This generation for good: `refresh` of what is returned gives itself, whatever a writer publishes."""
        return Catalog(self.info, self.segments, _Folder(self._folder.root), self._stamp)

    def __len__(self) -> int:
        return self.info.items

    def ids(self) -> list[str]:
        """Every id, in row order: reads the whole column. Raises BundleError when it is damaged."""
        if self._single:
            return self.segments[0].ids()
        listed = [one for segment in self.segments for one in segment.ids()]
        return [listed[row] for row in self.rows().tolist()]

    def rows(self) -> NDArray[np.int64]:
        """The rows of all items, int64 [items], ascending: those that are neither replaced nor deleted. Raises BundleError as `find`."""
        if self._single:
            return np.arange(len(self.segments[0]))
        alive = self.alive()
        assert alive is not None
        return np.flatnonzero(np.concatenate(alive))

    def alive(self) -> tuple[NDArray[np.bool_], ...] | None:
        """For each segment, bool [R]: its rows that are neither replaced nor deleted; not to be written into. None: all rows are alive.

        Made once a generation, of the ids of the segments that came since one whose masks were asked for. Raises BundleError as `find`.
        """
        if self._single:
            return None
        masks = self._alive  # read once: another thread may set it
        if len(masks) < len(self.segments):
            masks = tuple(newest(self.segments, masks))
            for segment, rows in zip(self.segments, masks, strict=True):
                if segment.tombstones is not None:
                    rows[segment.tombstones != 0] = False
            self._alive = masks
        return masks

    def names(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids of some rows, in this order. Raises BundleError when one is damaged."""
        owners = np.searchsorted(self._starts, rows, "right") - 1
        listed = np.empty(len(rows), object)
        for number in sorted(set(owners.tolist())):
            chosen = np.flatnonzero(owners == number)
            listed[chosen] = self.segments[number].names(rows[chosen] - self._starts[number])
        return list(listed)

    @property
    def vectors(self) -> tuple[ItemVectors, ...]:
        """For a student that retrieves, the vectors of each segment's rows, also of those that are not `alive`; else none."""
        return tuple(segment.vectors for segment in self.segments if segment.vectors is not None)

    def find(self, ids: list[str]) -> NDArray[np.int64]:
        """Rows of the ids, int64 [N]; -1 where the id is not in the catalogue.

        Raises
        ------
        InputError : `ids` is not a list of str.
        BundleError : the index is damaged.
        """
        rows = self.segments[0].find(ids)
        if self._single:
            return rows
        for number, (segment, start) in enumerate(zip(self.segments, self._starts, strict=False)):
            found = segment.find(ids) if number else rows.copy()
            known = (found >= 0).nonzero()[0]
            if len(known):
                here = found[known]
                dead = segment.tombstones is not None and segment.tombstones[here] != 0
                rows[known] = np.where(dead, -1, here + start)
        return rows

    def take(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], ItemFeatures, ItemStates | None, Origin]:
        """Arrays in which the given rows lie, to rank them.

        Where all are of one segment these are its own, memory-mapped; else copies of the rows alone.

        Parameters
        ----------
        rows : int64 [N], from `find`, each once.

        Returns
        -------
        rows : int64 [N], where they are in the following: tokens int32 [total] and offsets int64 [R + 1], features and states of R items;
        and whence these arrays come.

        Raises
        ------
        BundleError : a row's offsets are damaged. They are checked where rows are copied; else whoever reads the arrays does.
        """
        if len(self.segments) == 1:
            first = self.segments[0]
            return rows, *first.item_tokens, first.features, first.states, Origin(self.segments)
        owners = np.searchsorted(self._starts, rows, "right") - 1
        if len(rows) and (owners == owners[0]).all():
            one = self.segments[owners[0]]
            return rows - self._starts[owners[0]], *one.item_tokens, one.features, one.states, Origin((one,))
        places, columns = self._gather(rows, owners, ("tokens", "features", "states"))
        features, states = NO_FEATURES, None
        if "features" in columns:
            features = ItemFeatures(columns["features"], columns["features.offsets"], len(self.info.fields))
        if "states" in columns:
            scales = columns.get("states.scales", np.zeros((len(columns["states"]), 0), np.float32))
            states = ItemStates(columns["states"], scales, columns["states.offsets"])
        origin = Origin(self.segments, (owners, rows - np.take(self._starts, owners), places))
        return places, columns["tokens"], columns["tokens.offsets"], features, states, origin

    def columns(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """All columns of the given rows, each once, copied, in this order. Raises BundleError when their offsets are damaged."""
        places, columns = self._gather(rows, np.searchsorted(self._starts, rows, "right") - 1, EVERY)
        return take(columns, places)

    def _gather(
        self, rows: NDArray[np.int64], owners: NDArray[np.int64], names: tuple[str, ...]
    ) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
        """The rows' columns, segment by segment, and the place of each row in them."""
        places, parts, end = np.empty(len(rows), np.int64), [], 0
        for number in sorted(set(owners.tolist())) or [0]:
            chosen = (owners == number).nonzero()[0]
            parts.append(take(self.segments[number].columns, rows[chosen] - self._starts[number], names))
            places[chosen] = np.arange(end, end + len(chosen))
            end += len(chosen)
        return places, join(parts)


class _Folder:
    """What the open generations of one folder share: the newest of them, opened once for all threads."""

    __slots__ = ("file", "latest", "lock", "root")

    def __init__(self, root: Path) -> None:
        self.root, self.file = root, os.fspath(root / CATALOG)
        self.lock = threading.Lock()
        self.latest: Catalog | None = None


def _load(folder: _Folder, open_one: Catalog | None) -> Catalog:
    """Open the folder's generation of this moment; segments of the one that is open are taken over."""
    root = folder.root
    ready = {} if open_one is None else {segment.entry: segment for segment in open_one.segments}
    for left in reversed(range(_TRIES)):
        info, stamp = read_info(root)
        if open_one is not None:
            _check_successor(root, open_one.info, info)
        try:
            segments = tuple(ready.get(entry) or CatalogSegment(root / entry.file, entry, info) for entry in info.segments)
        except BundleError:
            # A writer may have merged the segments away in between; then there is a newer list.
            if left and read_stamp(folder.file) not in (None, stamp):
                continue
            raise
        catalog = Catalog(info, segments, folder, stamp)
        if open_one is not None:
            kept = next((i for i, (new, old) in enumerate(zip(segments, open_one.segments, strict=False)) if new is not old), None)
            catalog._alive = open_one._alive[:kept]  # what was replaced or deleted stays so
        return catalog
    raise AssertionError("the last try returns or raises")


def _check_successor(root: Path, old: CatalogInfo, new: CatalogInfo) -> None:
    if any(getattr(new, name) != getattr(old, name) for name in ("content_id", "fields", "states", "vectors", "created")):
        raise BundleError(f"{root}: another catalogue was put in the place of the one that is open; open it again")
    if new.generation <= old.generation:
        raise BundleError(
            f"{root}: generation {new.generation} came after generation {old.generation}; an old copy was put back: open it again"
        )
