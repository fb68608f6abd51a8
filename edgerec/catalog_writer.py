"""Changing a catalogue while it is served: each change is a small segment, published by a new ``catalog.json``; they are merged later."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .catalog_columns import TOMBSTONES, Columns, Rows, write_segment
from .catalog_encoder import ItemEncoder, tombstones
from .catalog_info import CATALOG, MAX_SEGMENTS, Segment, sync_folder, write_info
from .catalog_segment import CatalogSegment, newest
from .catalog_snapshot import Catalog
from .errors import BundleError, InputError
from .types import Item

LOCK = "writer.lock"
MOST_SEGMENTS = 8
"""More segments than these are merged in the background. Every look-up goes through all of them."""

_WAIT_SEGMENTS = 64
"""With so many a change first waits for the merge that is under way."""


class CatalogWriter:
    """The one writer of a catalogue folder; its threads may share it. Made by `CatalogWriter.open`, closed by `close` or a ``with`` block.

    A change is there, whole, for every reader that looks after the call has returned, and survives a crash of process or machine; one whose
    call has not returned is there whole or not at all. Readers are never blocked.
    """

    def __init__(self, root: Path, catalog: Catalog, encoder: ItemEncoder, lock: int) -> None:
        self._root, self._catalog, self._encoder, self._lock_file = root, catalog, encoder, lock
        self._next = 1 + max(segment.entry.number for segment in catalog.segments)
        self._process = os.getpid()
        self._changing, self._merging = threading.RLock(), threading.Lock()
        self._encoding = threading.Lock()
        self._merger: threading.Thread | None = None
        self._merge_error: Exception | None = None
        self._closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], bundle: str | os.PathLike[str], *, threads: int | None = None) -> CatalogWriter:
        """Take the lock of a catalogue folder, and clear away what a writer that died has left.

        Parameters
        ----------
        path : the folder `build_catalog` wrote.
        bundle : a bundle of the same ``content_id``; it encodes the items that come.
        threads : of the engine that encodes items of a mid-fusion student; None: the cores this process may use.

        Raises
        ------
        BundleError : the folder or the bundle is damaged, they do not belong together, or another writer has the folder open.
        """
        root, encoder = Path(path), ItemEncoder(bundle, threads=threads)
        Catalog.open(root)  # before a lock file is put into what may be no catalogue
        lock = _take_lock(root)
        try:
            catalog = Catalog.open(root)
            info = catalog.info
            if (info.content_id, info.fields, info.states) != (encoder.content_id, encoder.fields, encoder.states):
                raise BundleError(
                    f"{root} was built for content_id {info.content_id} (model {info.model_version}), but {bundle} has content_id "
                    f"{encoder.content_id} (model {encoder.model_version}); open it with a bundle of that model, or build it again"
                )
            if info.vectors != encoder.vectors:
                raise BundleError(
                    f"{root} has the vectors of another retrieval head than {bundle}, or only one of the two has any; open it with the "
                    "bundle that it was built with, or build it again (previous saves the encoding)"
                )
            _clear(root, catalog)
            return cls(root, catalog, encoder, lock)
        except BaseException:
            os.close(lock)
            raise

    @property
    def catalog(self) -> Catalog:
        """The catalogue as the last change left it."""
        return self._catalog

    def upsert(self, items: Iterable[Item]) -> int:
        """Add items, or put them in the place of those with their ids: all of them at one moment.

        Meant for up to some thousands at once, which are held in memory. For more, build the catalogue again with ``previous``.

        Returns
        -------
        int : the generation that has them (`CatalogInfo.generation`).

        Raises
        ------
        InputError : as `build_catalog`; nothing was changed. An empty list changes nothing.
        BundleError : the files cannot be written, or the writer is closed.
        EngineError : the items cannot be encoded; nothing was changed.
        """
        listed, size = list(items), self._encoder.chunk_items
        self._wait()
        with self._encoding:
            self._check_open()
            parts = [self._encoder.encode(listed[i : i + size], i + 1) for i in range(0, len(listed), size)]
        ids = [item.id for item in listed]
        if len(set(ids)) < len(ids):
            twice = next(one for place, one in enumerate(ids) if one in ids[:place])
            raise InputError(f"two of the items have the id {twice!r}; ids must be different")
        with self._changing:
            new = int((self._catalog.find(ids) < 0).sum())
            return self._append([(part, range(len(part["content"]))) for part in parts], new)

    def delete(self, ids: Iterable[str]) -> int:
        """Take items out; unknown ids are passed over. Returns and raises as `upsert`."""
        listed = list(dict.fromkeys(ids)) if not isinstance(ids, str) else ids
        self._wait()
        with self._changing:
            known = [one for one, row in zip(listed, self._catalog.find(listed).tolist(), strict=True) if row >= 0]  # type: ignore[arg-type]
            info = self._catalog.info
            return self._append([(tombstones(known, info), range(len(known)))], -len(known))

    def compact(self) -> int:
        """Merge all segments into one, without what was replaced or deleted. Takes as long as copying it; changes go on.

        Returns and raises as `upsert`.
        """
        self._check_open()
        self._merge(lambda rows: 0 if len(rows) > 1 or self._catalog.segments[0].tombstones is not None else None)
        return self._catalog.info.generation

    def close(self) -> None:
        """Wait for the merge that is under way, and release the lock and the engine. Raises BundleError when that merge failed."""
        with self._encoding, self._changing:
            if self._closed:
                return
            self._closed = True
        try:
            if self._merger is not None:
                self._merger.join()
        finally:
            with self._merging:
                self._encoder.close()
                os.close(self._lock_file)
                self._lock_file = -1
        self._raise_merge_error()

    def __enter__(self) -> CatalogWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed or os.getpid() != self._process:
            raise BundleError(f"the writer of {self._root} is closed, or was opened before a fork; open another")
        self._raise_merge_error()

    def _raise_merge_error(self) -> None:
        error, self._merge_error = self._merge_error, None
        if error is not None:
            raise BundleError(
                f"{self._root}: merging segments in the background failed: {error}; no earlier change is lost, make this one again"
            ) from error

    def _append(self, pieces: Sequence[tuple[Columns, Rows]], more: int) -> int:
        """Write one segment of the pieces and publish it; `more` items are there than before."""
        self._check_open()
        if not sum(len(rows) for _, rows in pieces):
            return self._catalog.info.generation
        before = tuple(segment.entry for segment in self._catalog.segments)
        if len(before) >= MAX_SEGMENTS:
            raise BundleError(f"{self._root} has {len(before)} segments, the most there may be; merge them: call compact")
        self._publish((*before, self._write(pieces)), self._catalog.info.items + more)
        self._start_merger()
        return self._catalog.info.generation

    def _write(self, pieces: Sequence[tuple[Columns, Rows]]) -> Segment:
        with self._changing:
            file = f"segments/{self._next:06}.seg"
            self._next += 1
        try:
            segment = write_segment(self._root, file, pieces)
            sync_folder(self._root / "segments")
        except OSError as e:
            (self._root / file).unlink(missing_ok=True)
            raise BundleError(f"{self._root}: a segment could not be written: {e}; nothing was changed") from e
        return segment

    def _publish(self, segments: tuple[Segment, ...], items: int) -> None:
        info = self._catalog.info
        try:
            write_info(self._root, replace(info, segments=segments, items=items, generation=info.generation + 1))
        except OSError as e:
            raise BundleError(
                f"{self._root}: {CATALOG} could not be written: {e}; whether the change is there, a new look will tell"
            ) from e
        finally:
            self._catalog = self._catalog.refresh()
            for segment in set(segments) - {one.entry for one in self._catalog.segments}:
                (self._root / segment.file).unlink(missing_ok=True)

    def _start_merger(self) -> None:
        running = self._merger is not None and self._merger.is_alive()
        if not running and merge_start([len(segment) for segment in self._catalog.segments]) is not None:
            self._merger = threading.Thread(target=self._merge_in_background, name="edgerec-catalog-merge")
            self._merger.start()

    def _wait(self) -> None:
        """Let the merger catch up. The caller must not hold the lock that it needs."""
        merger = self._merger
        if merger is not None and len(self._catalog.segments) >= _WAIT_SEGMENTS:
            merger.join()

    def _merge_in_background(self) -> None:
        try:
            while self._merge(merge_start):
                pass
        except Exception as e:  # told to the caller of the next change
            self._merge_error = e

    def _merge(self, start_of: Callable[[Sequence[int]], int | None]) -> bool:
        """Make one segment of all from a chosen one on; False when none was chosen. Changes go on meanwhile."""
        with self._merging:
            if self._lock_file < 0:
                raise BundleError(f"the writer of {self._root} is closed; open another")
            segments = self._catalog.segments
            start = start_of([len(segment) for segment in segments])
            if start is None:
                return False
            run = segments[start:]
            merged = self._write([_survivors(segment, rows, forget=not start) for segment, rows in zip(run, newest(run), strict=True)])
            with self._changing:
                now = [segment.entry for segment in self._catalog.segments]
                self._publish((*now[:start], merged, *now[start + len(run) :]), self._catalog.info.items)
            for segment in run:  # readers that have them mapped keep them
                (self._root / segment.entry.file).unlink(missing_ok=True)
            return True


def merge_start(rows: Sequence[int]) -> int | None:
    """From which segment on to merge, by the rows of each; None while there are few enough.

    A segment joins those after it when it is not much larger than they are together: a row is copied a few times, not once a change.
    """
    if len(rows) <= MOST_SEGMENTS:
        return None
    start, together = len(rows) - 2, rows[-1] + rows[-2]
    while start and rows[start - 1] <= 2 * together:
        start -= 1
        together += rows[start]
    return start


def _survivors(segment: CatalogSegment, rows: NDArray[np.bool_], *, forget: bool) -> tuple[Columns, Rows]:
    """What a merge keeps of a segment; with `forget`, where nothing older is left, no tombstones."""
    columns = segment.columns
    if forget and segment.tombstones is not None:
        rows = rows & (segment.tombstones == 0)
        columns = {name: column for name, column in columns.items() if name != TOMBSTONES}
    return columns, range(len(rows)) if rows.all() else np.flatnonzero(rows)


def _take_lock(root: Path) -> int:
    try:
        lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        raise BundleError(f"{root / LOCK} cannot be opened: {e}; a writer must be allowed to write into the folder") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise BundleError(f"{root} has a writer already (process {holder}); send the changes to it, or close it first") from e
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _clear(root: Path, catalog: Catalog) -> None:
    """Remove segments that no generation lists: written by a writer that died before it published them, or merged away."""
    (root / f"{CATALOG}.tmp").unlink(missing_ok=True)
    listed = {segment.entry.file for segment in catalog.segments}
    for path in (root / "segments").iterdir():
        if path.name.endswith((".seg", ".seg.tmp")) and f"segments/{path.name}" not in listed:
            path.unlink()
