"""``catalog.json``: what a catalogue is, with every key, type and range checked."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import BundleError
from .manifest import json_object, parse_json
from .states import StateSpec
from .vectors import VectorSpec

CATALOG = "catalog.json"
FORMAT, VERSION = "edgerec-catalog", 3
ID_SEED = 0
"""Of the hashes in the id index and of the content column."""

_MAX_JSON_BYTES = 1 << 20
_SEGMENT_FILE = re.compile(r"segments/[0-9]{6}\.seg", re.ASCII)


@dataclass(frozen=True, slots=True)
class Segment:
    """One section file: its path in the folder, how many items it holds, its size."""

    file: str
    items: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CatalogInfo:
    """What ``catalog.json`` says.

    Attributes
    ----------
    items : how many items.
    content_id : of the bundle it was built for; every bundle with the same one can use this catalogue.
    model_version : of that bundle, for people to read.
    fields : the item fields of the feature spec, in the order of an item's sets in ``features``; empty without features.
    states : what is kept of an item for a mid-fusion student; None for others.
    vectors : what is kept of an item for retrieval; None for a student without it.
    segments : the section files; one, in this version.
    created : UTC time, ``YYYY-MM-DDTHH:MM:SSZ``.
    """

    items: int
    content_id: str
    model_version: str
    fields: tuple[str, ...]
    segments: tuple[Segment, ...]
    created: str
    states: StateSpec | None = None
    vectors: VectorSpec | None = None

    @property
    def bytes_per_item(self) -> float:
        """Bytes on disk for one item, all columns together."""
        return sum(segment.bytes for segment in self.segments) / self.items

    def to_json(self) -> dict[str, Any]:
        """The object of ``catalog.json``."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: object) -> CatalogInfo:
        """Check a decoded ``catalog.json``. Raises BundleError."""
        top = json_object(value, CATALOG)
        if top.get("format") != FORMAT:
            raise BundleError(f"{CATALOG}: format is {top.get('format')!r:.80}, expected {FORMAT!r}; this is no catalogue")
        if top.get("version") != VERSION:
            raise BundleError(f"{CATALOG}: version is {top.get('version')!r:.80}, this edgerec reads {VERSION}; build the catalogue again")
        fields, listed = top.get("fields"), top.get("segments")
        if not isinstance(fields, list) or not all(isinstance(name, str) for name in fields):
            raise BundleError(f"{CATALOG}: fields must be a list of names")
        if not isinstance(listed, list) or len(listed) != 1:
            found = len(listed) if isinstance(listed, list) else "no list of"
            raise BundleError(f"{CATALOG}: {found} segments, this edgerec reads catalogues of one; build the catalogue again")
        entry = json_object(listed[0], f"{CATALOG}: segments")
        file = _text(entry, "file")
        if not _SEGMENT_FILE.fullmatch(file):
            raise BundleError(f"{CATALOG}: {file!r:.80} is no segment; expected {_SEGMENT_FILE.pattern}")
        segment = Segment(file, _count(entry, "items"), _count(entry, "bytes"))
        info = cls(
            items=_count(top, "items"),
            content_id=_text(top, "content_id"),
            model_version=_text(top, "model_version"),
            fields=tuple(fields),
            segments=(segment,),
            created=_text(top, "created"),
            states=StateSpec.from_model(top, CATALOG),
            vectors=VectorSpec.from_json(top.get("vectors"), f"{CATALOG}: vectors"),
        )
        if info.items != segment.items:
            raise BundleError(f"{CATALOG}: {info.items} items, but its segment has {segment.items}")
        return info


def read_info(root: Path) -> CatalogInfo:
    """Read and check a catalogue's ``catalog.json``. Raises BundleError."""
    path = root / CATALOG
    try:
        with open(path, "rb") as f:
            data = f.read(_MAX_JSON_BYTES + 1)
    except OSError as e:
        raise BundleError(f"{path} cannot be read: {e}; expected a folder written by `edgerec build-catalog`") from e
    if len(data) > _MAX_JSON_BYTES:
        raise BundleError(f"{path} has more than {_MAX_JSON_BYTES} bytes; this is no catalogue")
    try:
        return CatalogInfo.from_json(parse_json(data, CATALOG))
    except BundleError as e:
        raise BundleError(f"{root}: {e}") from e


def _text(owner: dict[str, Any], key: str) -> str:
    value = owner.get(key)
    if not isinstance(value, str) or not value:
        raise BundleError(f"{CATALOG}: {key} is {value!r:.80}, expected text")
    return value


def _count(owner: dict[str, Any], key: str) -> int:
    value = owner.get(key)
    if type(value) is not int or not 1 <= value < 2**63:
        raise BundleError(f"{CATALOG}: {key} is {value!r:.80}, expected an integer above 0")
    return value
