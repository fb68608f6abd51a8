"""The chunks of a catalogue that is being built: files in a folder beside it, so that a build that was killed can go on."""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .catalog_columns import TOMBSTONES, Columns, join, take
from .catalog_encoder import ItemEncoder, content_of, id_bytes, pack_ids
from .catalog_info import ID_SEED, VERSION
from .catalog_snapshot import Catalog
from .errors import BundleError
from .segment import SectionFile, write_sections
from .types import Item

RUN = ".run"
"""Added to the catalogue's name: the folder of a build that is under way, or was killed."""

_OPEN_FILES = 64


class ChunkFile(Mapping[str, NDArray[Any]]):
    """The columns of a chunk. The file is open only while it is among the last used: there may be more of them than can be open."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, name: str) -> NDArray[Any]:
        return _open_file(self.path).array(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_open_file(self.path).names)

    def __len__(self) -> int:
        return len(_open_file(self.path).names)


@lru_cache(_OPEN_FILES)
def _open_file(path: Path) -> SectionFile:
    return SectionFile(path)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some items one after the other, and how far they are.

    Attributes
    ----------
    path : where the columns go, or lie already.
    items : how many.
    done : the file is there and whole.
    missing : the items that must be encoded.
    identity : their ids and content.
    known : columns of the others, from an earlier catalogue.
    order : int64 [items], their places in `known` and `missing`, end to end.
    """

    path: Path
    items: int
    done: bool
    missing: Sequence[Item] = ()
    identity: Columns = field(default_factory=dict)
    known: Columns = field(default_factory=dict)
    order: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def write(self, computed: Columns | None) -> None:
        """Put what was computed of the missing items beside the known ones, and write the file. Raises OSError."""
        parts = [self.known] if self.known else []
        if computed is not None:
            parts.append({**self.identity, **computed})
        columns = take(join(parts), self.order) if self.known else parts[0]
        partial = self.path.with_suffix(".tmp")
        partial.unlink(missing_ok=True)
        write_sections(partial, columns)
        os.replace(partial, self.path)


def plan_chunks(items: Iterable[Item], encoder: ItemEncoder, run: Path, previous: Catalog | None) -> Iterator[Chunk]:
    """Cut the items into chunks, and find out what of each is there already. Raises InputError for what is no item."""
    source, first = iter(items), 1
    for number in itertools.count():
        chunk = list(itertools.islice(source, encoder.chunk_items))
        if not chunk:
            return
        ids = [id_bytes(item, place) for place, item in enumerate(chunk, first)]
        content = [content_of(item) for item in chunk]
        path = run / f"{number:06}-{_key(encoder, ids, content)}.seg"
        identity = {**pack_ids(ids), "content": _core.hash_strings(content, ID_SEED)}
        if _is_whole(path):
            yield Chunk(path, len(chunk), True)
        elif previous is None:
            yield Chunk(path, len(chunk), False, chunk, identity)
        else:
            yield _partly_known(path, chunk, identity, encoder, previous)
        first += len(chunk)


@contextmanager
def run_folder(target: Path, resume: bool) -> Iterator[Path]:
    """The folder ``TARGET.run``, for the chunks of a build of `target`; removed at the end, but kept when a build with `resume` fails.

    Raises
    ------
    BundleError : `target` exists; the folder exists and is not to be resumed, or another process builds in it.
    """
    if target.exists() or target.is_symlink():
        raise BundleError(f"{target} exists; give a new path for the catalogue")
    target.parent.mkdir(parents=True, exist_ok=True)
    run = target.with_name(target.name + RUN)
    try:
        run.mkdir(exist_ok=resume)
    except FileExistsError as e:
        raise BundleError(f"{run} exists: a build is under way, or was killed; go on with resume (--resume), or remove the folder") from e
    lock, done = os.open(run, os.O_RDONLY), False
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            resume = True  # the folder is not ours to remove
            raise BundleError(f"another process is building {target}; wait for it, or give another path") from e
        shutil.rmtree(run / "catalog", ignore_errors=True)  # of a build that was killed at its end
        yield run
        done = True
    finally:
        _open_file.cache_clear()
        if done or not resume:
            shutil.rmtree(run, ignore_errors=True)
        os.close(lock)


def _key(encoder: ItemEncoder, ids: Sequence[bytes], content: Sequence[str]) -> str:
    """What a chunk's columns depend on, as 32 hex digits: the model and all of its items."""
    states, vectors = (spec.to_json() if spec else None for spec in (encoder.states, encoder.vectors))
    digest = hashlib.sha256(json.dumps([VERSION, encoder.content_id, encoder.fields, states, vectors]).encode())
    for one, text in zip(ids, content, strict=True):
        for part in (one, text.encode()):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _is_whole(path: Path) -> bool:
    """Whether the file is there, with the right checksums; one that was damaged is made again."""
    if not path.exists():
        return False
    try:
        SectionFile(path).verify()
    except BundleError:
        return False
    return True


def _partly_known(path: Path, chunk: Sequence[Item], identity: Columns, encoder: ItemEncoder, previous: Catalog) -> Chunk:
    rows = previous.find([item.id for item in chunk])
    found = np.flatnonzero(rows >= 0)
    old = previous.columns(rows[found])
    same = old["content"] == identity["content"][found]
    known = take(old, np.flatnonzero(same))
    known.pop(TOMBSTONES, None)
    if previous.info.vectors != encoder.vectors:
        known = encoder.with_vectors(known)
    order = np.full(len(chunk), -1, np.int64)
    order[found[same]] = np.arange(same.sum())
    order[order < 0] = np.arange(same.sum(), len(chunk))
    new = np.flatnonzero(order >= same.sum())
    return Chunk(path, len(chunk), False, [chunk[i] for i in new.tolist()], take(identity, new), known, order)
