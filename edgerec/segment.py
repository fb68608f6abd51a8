"""The section file: named arrays in one file that is memory-mapped, never parsed. Readable from C with one struct.

Layout (little-endian; docs/formats.md has the same table)::

    header, 64 bytes    magic "EDRSECT1" | u32 version = 1 | u32 sections | u64 file bytes | 40 bytes of zero
    table, 128 bytes    name[32], ASCII, zero-padded | u32 dtype | u32 rank | u64 shape[4], unused are 1
      a section         | u64 offset | u64 bytes | sha256[32] of the section's bytes | u64 zero
    sections            in table order, each at a multiple of 64, zeros between them

Opening checks every number against the file's size and reads no section; `SectionFile.verify` reads them all.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

MAGIC = b"EDRSECT1"
VERSION = 1
ALIGNMENT = 64
MAX_SECTIONS = 4096
DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in enumerate(("uint8", "int8", "uint16", "float16", "int32", "uint32", "float32", "int64", "uint64"), 1)
}

_HEADER = struct.Struct("<8sIIQ40x")
_ENTRY = struct.Struct("<32sII4QQQ32sQ")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Column:
    """One array to be written: its dtype and shape are known, its content may come in pieces."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: Iterable[NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    length: int
    sha256: bytes


def write_sections(path: Path, columns: Mapping[str, Column | NDArray[Any]]) -> int:
    """Write a section file and sync it. The caller renames it, or the folder it is in, into place.

    Returns
    -------
    int : the file's size in bytes.

    Raises
    ------
    ValueError : a name, dtype or rank does not fit the format, or the chunks do not add up to the shape.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    position = _align(_HEADER.size + _ENTRY.size * len(columns))
    table = b""
    with open(path, "xb") as f:
        for name, given in columns.items():
            column = given if isinstance(given, Column) else Column(given.dtype, given.shape, (given,))
            label = name.encode("ascii")
            dtype = np.dtype(column.dtype).newbyteorder("<")
            if not 1 <= len(label) <= 32 or dtype not in codes or len(column.shape) > 4 or len(columns) > MAX_SECTIONS:
                raise ValueError(f"section {name!r} of {column.dtype} {column.shape} does not fit a section file")
            digest, written = hashlib.sha256(), 0
            f.seek(position)
            for chunk in column.chunks:
                data = np.ascontiguousarray(chunk, dtype).reshape(-1).view(np.uint8).data
                digest.update(data)
                written += f.write(data)
            if written != math.prod(column.shape) * dtype.itemsize:
                raise ValueError(f"section {name!r}: {written} bytes came for shape {column.shape} of {dtype}")
            shape = (*column.shape, 1, 1, 1, 1)[:4]
            table += _ENTRY.pack(label, codes[dtype], len(column.shape), *shape, position, written, digest.digest(), 0)
            end = position + written
            position = _align(end)
        size = max(end, _HEADER.size) if columns else _HEADER.size
        f.truncate(size)
        f.seek(0)
        f.write(_HEADER.pack(MAGIC, VERSION, len(columns), size) + table)
        f.flush()
        os.fsync(f.fileno())
    return size


class SectionFile:
    """A section file, memory-mapped and read-only.

    The file must not change while it is open: write a new one beside it and rename.

    Raises
    ------
    BundleError : the file is missing, is none, is of another version, or a number in it does not fit its size.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except (OSError, ValueError) as e:
            raise BundleError(f"{self.path} cannot be opened: {e}") from e
        self._entries = {entry.name: entry for entry in self._read_table(size)}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> tuple[str, ...]:
        """The sections, in file order."""
        return tuple(self._entries)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._map)

    @property
    def table_sha256(self) -> str:
        """SHA-256 of header and table, hex. The table has the SHA-256 of every section: it stands for the whole file."""
        return hashlib.sha256(self._map[: _HEADER.size + _ENTRY.size * len(self._entries)]).hexdigest()

    def column(self, name: str, dtype: Any, rank: int = 1) -> NDArray[Any]:
        """A read-only view of a section. Raises BundleError when it is absent or of another dtype or rank."""
        entry = self._entries.get(name)
        if entry is None or entry.dtype != np.dtype(dtype) or len(entry.shape) != rank:
            found = f"{entry.dtype} of rank {len(entry.shape)}" if entry else "absent"
            raise BundleError(f"{self.path}: section {name!r} is {found}; expected {np.dtype(dtype)} of rank {rank}; build the file again")
        return self.array(name)

    def array(self, name: str) -> NDArray[Any]:
        """A read-only view of a section, as it is. Raises KeyError when it is absent."""
        entry = self._entries[name]
        return np.frombuffer(self._map, entry.dtype, math.prod(entry.shape), entry.offset).reshape(entry.shape)

    def verify(self) -> None:
        """Read every section and compare its SHA-256. Raises BundleError naming the first that differs."""
        for entry in self._entries.values():
            digest = hashlib.sha256()
            for start in range(entry.offset, entry.offset + entry.length, _CHUNK_BYTES):
                digest.update(self._map[start : min(start + _CHUNK_BYTES, entry.offset + entry.length)])
            if digest.digest() != entry.sha256:
                raise BundleError(f"{self.path}: section {entry.name!r} is damaged (its SHA-256 differs); build the file again")

    def _read_table(self, size: int) -> list[_Entry]:
        if size < _HEADER.size:
            raise self._damaged(f"{size} bytes are fewer than a header's {_HEADER.size}")
        magic, version, count, file_bytes = _HEADER.unpack_from(self._map)
        if magic != MAGIC:
            raise self._damaged(f"it begins with {magic!r}, not {MAGIC!r}")
        if version != VERSION:
            raise BundleError(f"{self.path} is a section file of version {version}; this edgerec reads version {VERSION}")
        if file_bytes != size:
            raise self._damaged(f"its header says {file_bytes} bytes, the file has {size}")
        end = _HEADER.size + _ENTRY.size * count
        if count > MAX_SECTIONS or end > size:
            raise self._damaged(f"{count} sections do not fit {size} bytes")
        entries: list[_Entry] = []
        for i in range(count):
            label, code, rank, *rest = _ENTRY.unpack_from(self._map, _HEADER.size + i * _ENTRY.size)
            shape, (offset, length, sha256, zero) = tuple(rest[:4]), rest[4:]
            name = label.rstrip(b"\0").decode("ascii", "replace")
            dtype = DTYPES.get(code)
            if not name.isprintable() or not name or "\ufffd" in name or any(name == other.name for other in entries):
                raise self._damaged(f"section {i} has the name {label!r}")
            if dtype is None or rank > 4 or zero or max(shape) > size or shape[rank:] != (1,) * (4 - rank):
                raise self._damaged(f"section {name!r} has dtype {code}, rank {rank}, shape {shape}")
            if length != math.prod(shape) * dtype.itemsize:
                raise self._damaged(f"section {name!r} has {length} bytes for shape {shape[:rank]} of {dtype}")
            if offset % ALIGNMENT or offset < end or offset + length > size:
                raise self._damaged(f"section {name!r} is at {offset}, {length} bytes, in a file of {size}")
            entries.append(_Entry(name, dtype, shape[:rank], offset, length, sha256))
            end = offset + length
        return entries

    def _damaged(self, how: str) -> BundleError:
        return BundleError(f"{self.path} is damaged or not a section file: {how}; build it again")


def _align(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT
