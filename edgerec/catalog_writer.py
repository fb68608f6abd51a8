"""Builds a catalogue: items are tokenised and hashed once, streamed to disk, and the folder appears whole or not at all."""

from __future__ import annotations

import itertools
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .bundle import read_file, read_json, read_manifest
from .catalog_info import CATALOG, ID_SEED, CatalogInfo, Segment
from .errors import BundleError, InputError
from .features import FeatureEncoder, FeatureSpec
from .segment import Column, write_sections
from .states import ItemStates, StateSpec
from .text import TextEncoder, TextSpec
from .types import Item
from .vectors import VECTORS_FILE, Int8Vectors, RetrievalHead, VectorSpec
from .words import clean_text

Encode = Callable[[NDArray[np.int32], NDArray[np.int64]], ItemStates]
SEGMENT_FILE = "segments/000000.seg"

_CHUNK_ITEMS = 4096
_ENCODED_ITEMS = 512
"""Items of a chunk where an engine encodes them: seconds, not minutes, between two reports of progress."""
_COPY_ROWS = 1 << 19


def build_catalog(
    items: Iterable[Item],
    bundle: str | os.PathLike[str],
    catalog: str | os.PathLike[str],
    *,
    progress: Callable[[int], None] | None = None,
    threads: int | None = None,
) -> CatalogInfo:
    """Tokenise and hash every item for one bundle, and write the catalogue folder. For a mid-fusion student, items are encoded too.

    Memory is bounded by a chunk of items and about 100 bytes an item; the disk holds the catalogue twice for a moment.

    Parameters
    ----------
    items : read once; ids must be different.
    bundle : the bundle whose tokenizer, text layout and feature spec are used.
    catalog : the folder to create; it must not exist.
    progress : called with the number of items done, after every chunk.
    threads : of the engine that encodes items; None: the cores this process may use.

    Raises
    ------
    InputError : no item, an item of a wrong type, an empty id, or an id that came before (the message names it).
    BundleError : the bundle is damaged, or the folder exists or cannot be written.
    EngineError : the engine that encodes items cannot be loaded on this machine, or fails.
    """
    root, target = Path(bundle), Path(catalog)
    manifest = read_manifest(root)
    model = read_json(root, manifest, "model.json")
    states = StateSpec.from_model(model, f"{root}: model.json")
    vectors = VectorSpec.from_json(model.get("retrieve"), f"{root}: model.json: retrieve")
    head = None
    if vectors is not None and states is not None:
        sizes = {"hidden": model["student"]["hidden"], "numbers": states.numbers}
        head = RetrievalHead.from_bytes(read_file(root, manifest, VECTORS_FILE), vectors, **sizes, what=f"{root}: {VECTORS_FILE}")
    features = read_json(root, manifest, "features.json")
    read_file(root, manifest, "tokenizer.json")  # for its hash: the encoder below reads the file itself
    text_encoder = TextEncoder(root / "tokenizer.json", TextSpec.from_json(model.get("text")))
    feature_encoder = FeatureEncoder(FeatureSpec.from_json(features)) if features is not None else None
    try:
        with _new_folder(target) as folder:
            (folder / "segments").mkdir()
            pool = partial(head.item_vectors, spec=states) if head is not None and states is not None else None
            with _Spool(folder) as spool, _item_encoder(root, states, threads) as encode:
                hashes = list(_encode_chunks(items, text_encoder, feature_encoder, encode, pool, spool, progress))
                if not hashes:
                    raise InputError("there are no items to build a catalogue from")
                id_hashes = np.concatenate(hashes)
                _refuse_duplicates(id_hashes, spool)
                keys, slots = _core.index_build(id_hashes)
                columns: dict[str, Column | NDArray[Any]] = {**spool.columns(), "ids.index.keys": keys, "ids.index.slots": slots}
                size = write_sections(folder / SEGMENT_FILE, columns)
            info = CatalogInfo(
                items=len(id_hashes),
                content_id=manifest.content_id,
                model_version=manifest.model_version,
                fields=feature_encoder.item_fields if feature_encoder else (),
                segments=(Segment(SEGMENT_FILE, len(id_hashes), size),),
                created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                states=states,
                vectors=vectors,
            )
            with open(folder / CATALOG, "w", encoding="utf-8") as f:
                json.dump(info.to_json(), f, indent=1)
                f.flush()
                os.fsync(f.fileno())
    except OSError as e:
        raise BundleError(f"{target}: the catalogue could not be written: {e}") from e
    return info


def _encode_chunks(
    items: Iterable[Item],
    text: TextEncoder,
    features: FeatureEncoder | None,
    states: Encode | None,
    pool: Callable[[ItemStates], Int8Vectors] | None,
    spool: _Spool,
    progress: Callable[[int], None] | None,
) -> Iterator[NDArray[np.uint64]]:
    """Append every chunk's columns to the spool; yields the hashes of its ids, uint64 [chunk]."""
    source, done = iter(items), 0
    while chunk := list(itertools.islice(source, _CHUNK_ITEMS if states is None else _ENCODED_ITEMS)):
        ids = [_id_bytes(item, done + i) for i, item in enumerate(chunk, 1)]
        id_offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(value) for value in ids], out=id_offsets[1:])
        id_data = np.frombuffer(b"".join(ids), np.uint8)
        spool.append_ragged("ids", id_data, id_offsets)
        tokens = text.encode_items([text.item_text(item) for item in chunk])
        spool.append_ragged("tokens", *tokens)
        if states is not None:
            encoded_items = states(*tokens)
            spool.append_ragged("states", encoded_items.values, encoded_items.offsets)
            if encoded_items.scales.shape[1]:
                spool.append("states.scales", encoded_items.scales)
            if pool is not None:
                vectors, scales = pool(encoded_items)
                spool.append("vectors", vectors)
                spool.append("vectors.scale", scales)
        if features is not None:
            encoded = features.encode_items(chunk)
            if encoded.fields:
                spool.append_ragged("features", encoded.hashes, encoded.offsets)
        spool.append("content", _core.hash_strings([_content(item) for item in chunk], ID_SEED))
        done += len(chunk)
        if progress is not None:
            progress(done)
        yield _core.hash_packed(id_data, id_offsets, ID_SEED)


@contextmanager
def _item_encoder(root: Path, states: StateSpec | None, threads: int | None) -> Iterator[Encode | None]:
    """What makes states of tokens and offsets; None where the model keeps none."""
    if states is None:
        yield None
        return
    from .engine import MidEngine, open_engine

    with closing(open_engine(root, threads=threads)) as engine:
        if not isinstance(engine, MidEngine):
            raise BundleError(f"{root}: its engine cannot encode items, though model.json has states; build the bundle again")
        yield engine.encode_ragged


def _id_bytes(item: Item, number: int) -> bytes:
    if not isinstance(item, Item):
        raise InputError(f"item {number} is a {type(item).__name__}; expected edgerec.Item")
    if not isinstance(item.id, str) or not item.id or clean_text(item.id) != item.id:
        raise InputError(f"item {number} has the id {item.id!r}; expected a non-empty str without NUL and lone surrogates")
    return item.id.encode()


def _content(item: Item) -> str:
    """All of an item but its id, as one string: equal strings need no new row when a catalogue is rebuilt."""
    price = item.price if isinstance(item.price, int | float) else None
    parts = [item.title, item.text, item.brand, item.category, "" if price is None else repr(float(price))]
    parts += [part for key in sorted(item.attributes) for part in (key, item.attributes[key])]
    return "\x1f".join(clean_text(part) for part in parts)


def _refuse_duplicates(id_hashes: NDArray[np.uint64], spool: _Spool) -> None:
    """Raise InputError naming an id that two items have. Ids are compared only where their hashes agree."""
    order = np.argsort(id_hashes, kind="stable")
    ordered = id_hashes[order]
    seen: dict[bytes, int] = {}
    for i in np.flatnonzero(ordered[1:] == ordered[:-1]):
        if i and ordered[i] != ordered[i - 1]:
            seen.clear()
        for row in order[i : i + 2].tolist():
            value = spool.read_row("ids", row)
            if seen.setdefault(value, row) != row:
                raise InputError(f"items {seen[value] + 1} and {row + 1} both have the id {value.decode()!r}; ids must be different")


class _Spool:
    """Columns that grow, each in a file of its own, until their sizes are known and they can be laid one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "spool"
        self._folder.mkdir()
        self._files: dict[str, Any] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._counts: dict[str, int] = {}
        self._sides: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._folder)

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Add values to the end of a column; the first call fixes its dtype."""
        if name not in self._files:
            self._files[name] = open(self._folder / name, "w+b")  # noqa: SIM115  closed by __exit__
            self._dtypes[name], self._counts[name], self._sides[name] = values.dtype, 0, values.shape[1:]
        self._files[name].write(np.ascontiguousarray(values, self._dtypes[name]).reshape(-1).view(np.uint8))
        self._counts[name] += len(values)

    def append_ragged(self, name: str, values: NDArray[Any], offsets: NDArray[np.int64]) -> None:
        """Add the rows ``values[offsets[i]:offsets[i + 1]]``, of numbers or of vectors, to the columns `name` and `name`.offsets."""
        ends = f"{name}.offsets"
        if name not in self._files:
            self.append(ends, np.zeros(1, np.int64))
        self.append(ends, offsets[1:] + self._counts.get(name, 0))
        self.append(name, values)

    def read_row(self, name: str, row: int) -> bytes:
        """One row of a ragged uint8 column."""
        start, end = self._read(f"{name}.offsets", row, 2).tolist()
        return self._read(name, start, end - start).tobytes()

    def columns(self) -> dict[str, Column]:
        """Every column, to be read back in pieces."""
        return {name: Column(self._dtypes[name], (self._counts[name], *self._sides[name]), self._pieces(name)) for name in self._files}

    def _pieces(self, name: str) -> Iterator[NDArray[Any]]:
        step = max(1, _COPY_ROWS // math.prod(self._sides[name]))
        for start in range(0, self._counts[name], step):
            yield self._read(name, start, min(step, self._counts[name] - start))

    def _read(self, name: str, start: int, count: int) -> NDArray[Any]:
        file, dtype = self._files[name], self._dtypes[name]
        row_bytes = dtype.itemsize * math.prod(self._sides[name])
        file.flush()
        return np.frombuffer(os.pread(file.fileno(), count * row_bytes, start * row_bytes), dtype)


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` at the end, or is removed when the block fails."""
    if target.exists() or target.is_symlink():
        raise BundleError(f"{target} exists; give a new path for the catalogue")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    folder.mkdir()
    try:
        yield folder
        for path in (folder / "segments", folder):
            _sync(path)
        os.rename(folder, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
