"""Columns of items, in memory or mapped: how rows are taken from them, laid end to end, and written as a segment.

Shape letters: N rows taken, R items, C feature fields. Names, dtypes and shapes: docs/formats.md, "Catalogue".
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .catalog_info import ID_SEED, Segment
from .errors import BundleError
from .segment import Column, SectionFile, write_sections

Columns = Mapping[str, NDArray[Any]]
"""Sections of R items by name, without the index."""
Rows = NDArray[np.int64] | range
"""Rows to take: any, each at most once, or consecutive ones, which are not copied."""

RAGGED: Mapping[str, tuple[str, ...]] = {
    "ids": ("ids",),
    "tokens": ("tokens",),
    "features": ("features",),
    "states": ("states", "states.scales"),
}
"""Ragged columns, and the sections that their offsets divide."""
TOMBSTONES = "tombstones"
VECTORS = ("vectors", "vectors.scale")
FLAT = ("content", *VECTORS, TOMBSTONES)
"""Columns of one entry a row."""
EVERY = (*RAGGED, *FLAT)

_COPY_ROWS = 4096
"""Rows copied at once: bounds the memory of writing a segment."""


def count_items(columns: Columns) -> int:
    """R"""
    return len(columns["content"])


def take(columns: Columns, rows: Rows, names: Sequence[str] = EVERY) -> dict[str, NDArray[Any]]:
    """The given rows of the columns of these names, as far as there are such.

    Raises
    ------
    BundleError : offsets do not fit their values, as those of a damaged catalogue do.
    """
    taken: dict[str, NDArray[Any]] = {}
    for name in names:
        if name in FLAT and name in columns:
            taken[name] = columns[name][_index(rows)]
        elif f"{name}.offsets" in columns:
            places, taken[f"{name}.offsets"] = _places(columns, name, rows)
            taken.update({section: columns[section][places] for section in RAGGED[name] if section in columns})
    return taken


def join(parts: Sequence[Columns]) -> dict[str, NDArray[Any]]:
    """The rows of all parts, which have the same columns, end to end. `TOMBSTONES` may be absent where there are none."""
    first, *others = parts
    if not others:
        return dict(first)
    joined = {
        name: np.concatenate([part[name] for part in parts]) for name in first if name != TOMBSTONES and not name.endswith(".offsets")
    }
    for name in RAGGED:
        if (ends := f"{name}.offsets") in first:
            bases = np.cumsum([len(part[name]) for part in parts])
            joined[ends] = np.concatenate([first[ends], *(part[ends][1:] + base for part, base in zip(others, bases, strict=False))])
    if any(TOMBSTONES in part for part in parts):
        joined[TOMBSTONES] = np.concatenate([_tombstones(part, range(count_items(part))) for part in parts])
    return joined


def lay_out(pieces: Sequence[tuple[Columns, Rows]]) -> dict[str, Column]:
    """The chosen rows of all pieces, end to end, to be written chunk by chunk. Raises BundleError as `take`."""
    some = [(columns, part) for columns, rows in pieces for part in _split(rows)] or [(columns, range(0)) for columns, _ in pieces[:1]]
    items = sum(len(rows) for _, rows in some)
    first = some[0][0]
    out: dict[str, Column] = {}
    for name, sections in RAGGED.items():
        if f"{name}.offsets" not in first:
            continue
        sizes = [int(_places(columns, name, rows)[1][-1]) for columns, rows in some]
        count = sum(sizes)
        divided = 1 + sum(len(_places(columns, name, rows)[1]) - 1 for columns, rows in some)
        out[f"{name}.offsets"] = Column(np.dtype(np.int64), (divided,), _offsets(some, name))
        for section in sections:
            if section in first:
                out[section] = Column(first[section].dtype, (count, *first[section].shape[1:]), _values(some, name, section))
    for name in FLAT:
        if name in first and name != TOMBSTONES:
            out[name] = Column(first[name].dtype, (items, *first[name].shape[1:]), _flat(some, name))
    if any(TOMBSTONES in columns for columns, _ in some):
        out[TOMBSTONES] = Column(np.dtype(np.uint8), (items,), (_tombstones(columns, rows) for columns, rows in some))
    return out


def write_segment(root: Path, file: str, pieces: Sequence[tuple[Columns, Rows]]) -> Segment:
    """Write the chosen rows of all pieces and their index as one segment of the catalogue folder `root`, and sync it.

    Raises
    ------
    BundleError : a piece is damaged. OSError : the file cannot be written; nothing is left of it.
    """
    hashes = [hash_ids(columns, part) for columns, rows in pieces for part in _split(rows)]
    keys, slots = _core.index_build(np.concatenate([np.empty(0, np.uint64), *hashes]))
    partial = root / f"{file}.tmp"
    try:
        size = write_sections(partial, {**lay_out(pieces), "ids.index.keys": keys, "ids.index.slots": slots})
        digest = SectionFile(partial).table_sha256
        os.rename(partial, root / file)
    finally:
        partial.unlink(missing_ok=True)
    return Segment(file, sum(len(rows) for _, rows in pieces), size, digest)


def hash_ids(columns: Columns, rows: Rows) -> NDArray[np.uint64]:
    """XXH64 of the rows' ids, as the index has it, uint64 [N]."""
    places, offsets = _places(columns, "ids", rows)
    return _core.hash_packed(np.ascontiguousarray(columns["ids"][places]), offsets, ID_SEED)


def _split(rows: Rows) -> Iterator[Rows]:
    return (rows[start : start + _COPY_ROWS] for start in range(0, len(rows), _COPY_ROWS))


def _index(rows: Rows) -> Any:
    return slice(rows.start, rows.stop) if isinstance(rows, range) else rows


def _places(columns: Columns, name: str, rows: Rows) -> tuple[Any, NDArray[np.int64]]:
    """Which values of a ragged column belong to the rows, and the offsets of these alone, int64 [N * C + 1]; C is 1 but for features."""
    if not len(rows):
        return slice(0, 0), np.zeros(1, np.int64)
    offsets, size = columns[f"{name}.offsets"], len(columns[name])
    each = (len(offsets) - 1) // count_items(columns) if name == "features" else 1
    if isinstance(rows, range):
        inside = offsets[rows.start * each : rows.stop * each + 1]
        start, end = int(inside[0]), int(inside[-1])
        if not 0 <= start <= end <= size:
            raise _damaged(name)
        return slice(start, end), inside - start
    first = rows * each if each > 1 else rows
    starts, ends = offsets[first], offsets[first + each]
    lengths = ends - starts
    stops = lengths.cumsum()
    # One of three negative numbers makes the whole negative. Each row is taken once: together they have no more values than there are, and
    # a damaged file must not ask for all the memory.
    if np.bitwise_or.reduce(starts | lengths | (size - ends)) < 0 or stops[-1] > size:
        raise _damaged(name)
    moved = stops - lengths - starts
    inner = np.zeros(len(rows) * each + 1, np.int64)
    inner[1:] = stops if each == 1 else (offsets[first[:, None] + np.arange(1, each + 1)] + moved[:, None]).reshape(-1)
    return np.arange(stops[-1]) - moved.repeat(lengths), inner


def _damaged(name: str) -> BundleError:
    return BundleError(
        f"the catalogue is damaged: the offsets of {name!r} do not fit its values; open it with verify=True to see where, or build it again"
    )


def _values(some: Sequence[tuple[Columns, Rows]], name: str, section: str) -> Iterator[NDArray[Any]]:
    return (columns[section][_places(columns, name, rows)[0]] for columns, rows in some)


def _flat(some: Sequence[tuple[Columns, Rows]], name: str) -> Iterator[NDArray[Any]]:
    return (columns[name][_index(rows)] for columns, rows in some)


def _offsets(some: Sequence[tuple[Columns, Rows]], name: str) -> Iterator[NDArray[np.int64]]:
    end = 0
    yield np.zeros(1, np.int64)
    for columns, rows in some:
        offsets = _places(columns, name, rows)[1]
        yield offsets[1:] + end
        end += int(offsets[-1])


def _tombstones(columns: Columns, rows: Rows) -> NDArray[np.uint8]:
    return columns[TOMBSTONES][_index(rows)] if TOMBSTONES in columns else np.zeros(len(rows), np.uint8)
