"""``catalog.json``: what a catalogue is, with every key, type and range checked."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import BundleError
from .manifest import json_object, parse_json
from .states import StateSpec
from .vectors import VectorSpec

CATALOG = "catalog.json"
FORMAT, VERSION, OLDEST = "edgerec-catalog", 4, 3
ID_SEED = 0
"""Of the hashes in the id index and of the content column."""

_MAX_JSON_BYTES = 1 << 20
MAX_SEGMENTS = 1024
_SEGMENT_FILE = re.compile(r"segments/[0-9]{6,12}\.seg", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


Stamp = tuple[int, int, int]
"""Time, inode and size of a ``catalog.json``: another one has another stamp."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One section file: its path in the folder, how many rows it holds, its size, and the SHA-256 of its header and table.

    Version 3 has no SHA-256: it is empty, and not compared.
    """

    file: str
    items: int
    bytes: int
    sha256: str = ""

    @property
    def number(self) -> int:
        """Of its file; later files have higher ones."""
        return int(Path(self.file).stem)


@dataclass(frozen=True, slots=True)
class CatalogInfo:
    """What ``catalog.json`` says.

    Attributes
    ----------
    items : how many items, without what was replaced or deleted.
    content_id : of the bundle it was built for; every bundle with the same one can use this catalogue.
    model_version : of that bundle, for people to read.
    fields : the item fields of the feature spec, in the order of an item's sets in ``features``; empty without features.
    states : what is kept of an item for a mid-fusion student; None for others.
    vectors : what is kept of an item for retrieval; None for a student without it.
    segments : the section files, at least one; of several that know an id the last counts.
    created : UTC time of its building, ``YYYY-MM-DDTHH:MM:SSZ``.
    generation : 0 as built, and one more with every change.
    """

    items: int
    content_id: str
    model_version: str
    fields: tuple[str, ...]
    segments: tuple[Segment, ...]
    created: str
    states: StateSpec | None = None
    generation: int = 0
    vectors: VectorSpec | None = None

    @property
    def bytes_per_item(self) -> float:
        """Bytes on disk for one item, all columns together; what was replaced and not yet merged away counts too."""
        return sum(segment.bytes for segment in self.segments) / max(1, self.items)

    def to_json(self) -> dict[str, Any]:
        """The object of ``catalog.json``."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: object) -> CatalogInfo:
        """Check a decoded ``catalog.json``. Raises BundleError."""
        top = json_object(value, CATALOG)
        if top.get("format") != FORMAT:
            raise BundleError(f"{CATALOG}: format is {top.get('format')!r:.80}, expected {FORMAT!r}; this is no catalogue")
        version = top.get("version")
        if type(version) is not int or not OLDEST <= version <= VERSION:
            raise BundleError(f"{CATALOG}: version is {version!r:.80}, this edgerec reads {OLDEST} to {VERSION}; build the catalogue again")
        fields, listed = top.get("fields"), top.get("segments")
        if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
            raise BundleError(f"{CATALOG}: fields must be a list of names")
        most = 1 if version == OLDEST else MAX_SEGMENTS
        if not isinstance(listed, list) or not 1 <= len(listed) <= most:
            found = len(listed) if isinstance(listed, list) else "no list of"
            raise BundleError(f"{CATALOG}: {found} segments, expected 1 to {most} in version {version}; build the catalogue again")
        info = cls(
            items=_count(top, "items", 0),
            content_id=_text(top, "content_id"),
            model_version=_text(top, "model_version"),
            fields=tuple(fields),
            segments=tuple(_segment(entry, version) for entry in listed),
            created=_text(top, "created"),
            states=StateSpec.from_model(top, CATALOG),
            generation=0 if version == OLDEST else _count(top, "generation", 0),
            vectors=VectorSpec.from_json(top.get("vectors"), f"{CATALOG}: vectors"),
        )
        rows = sum(segment.items for segment in info.segments)
        if info.items > rows or (not info.generation and info.items != rows):
            raise BundleError(f"{CATALOG}: {info.items} items, but its segments have {rows}")
        if len({segment.file for segment in info.segments}) < len(info.segments):
            raise BundleError(f"{CATALOG}: a segment is listed twice; build the catalogue again")
        return info


def read_info(root: Path) -> tuple[CatalogInfo, Stamp]:
    """Read and check a catalogue's ``catalog.json``; also returns the file's stamp. Raises BundleError."""
    path = root / CATALOG
    try:
        with open(path, "rb") as f:
            data, stamp = f.read(_MAX_JSON_BYTES + 1), _stamp(os.fstat(f.fileno()))
    except OSError as e:
        raise BundleError(f"{path} cannot be read: {e}; expected a folder written by `edgerec build-catalog`") from e
    if len(data) > _MAX_JSON_BYTES:
        raise BundleError(f"{path} has more than {_MAX_JSON_BYTES} bytes; this is no catalogue")
    try:
        return CatalogInfo.from_json(parse_json(data, CATALOG)), stamp
    except BundleError as e:
        raise BundleError(f"{root}: {e}") from e


def read_stamp(file: str | Path) -> Stamp | None:
    """What tells one ``catalog.json`` from the next without reading it; None where there is none."""
    try:
        return _stamp(os.stat(file))
    except FileNotFoundError:
        return None


def write_info(root: Path, info: CatalogInfo) -> None:
    """Put a new ``catalog.json`` in the place of the old one, and sync it and the folder. Raises OSError."""
    path, partial = root / CATALOG, root / f"{CATALOG}.tmp"
    old = read_stamp(path)
    with open(partial, "w", encoding="utf-8") as f:
        json.dump(info.to_json(), f, indent=1)
        f.flush()
        # Clocks of file systems are coarse, and inode numbers come again: a time that always grows is what a stamp needs.
        now = max(time.time_ns(), old[0] + 1000 if old else 0)
        os.utime(f.fileno(), ns=(now, now))
        os.fsync(f.fileno())
    os.replace(partial, path)
    sync_folder(root)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_ino, status.st_size


def _segment(value: object, version: int) -> Segment:
    entry = json_object(value, f"{CATALOG}: segments")
    file, sha256 = _text(entry, "file"), "" if version == OLDEST else _text(entry, "sha256")
    if not _SEGMENT_FILE.fullmatch(file):
        raise BundleError(f"{CATALOG}: {file!r:.80} is no segment; expected {_SEGMENT_FILE.pattern}")
    if sha256 and not _SHA256.fullmatch(sha256):
        raise BundleError(f"{CATALOG}: sha256 of {file} is {sha256!r:.80}, expected 64 hex digits")
    return Segment(file, _count(entry, "items", 1 if version == OLDEST else 0), _count(entry, "bytes", 1), sha256)


def _text(owner: dict[str, Any], key: str) -> str:
    value = owner.get(key)
    if not isinstance(value, str) or not value:
        raise BundleError(f"{CATALOG}: {key} is {value!r:.80}, expected text")
    return value


def _count(owner: dict[str, Any], key: str, least: int) -> int:
    value = owner.get(key)
    if type(value) is not int or not least <= value < 2**63:
        raise BundleError(f"{CATALOG}: {key} is {value!r:.80}, expected an integer from {least}")
    return value
