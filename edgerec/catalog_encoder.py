"""What a bundle makes of items: the columns of a catalogue, for building one and for changing one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .bundle import BundleReader
from .catalog_columns import TOMBSTONES, VECTORS, Columns
from .catalog_info import ID_SEED, CatalogInfo
from .errors import BundleError, InputError
from .features import FeatureEncoder, FeatureSpec
from .manifest import COMPILED_TOKENIZER
from .states import PRECISIONS, ItemStates, StateSpec
from .text import TextEncoder, TextSpec
from .types import Item
from .vectors import head_of_model
from .words import clean_text

if TYPE_CHECKING:
    from .engine import MidEngine

CHUNK_ITEMS = 4096
ENCODED_ITEMS = 512
"""Items of a chunk where an engine encodes them: seconds, not minutes, between two reports of progress."""


class ItemEncoder:
    """Makes columns of items with one bundle. Opens the engine when the first item of a mid-fusion student comes; `close` releases it.

    Parameters
    ----------
    bundle : the bundle whose tokenizer, text layout, feature spec and item encoder are used.
    threads : of the engine that encodes items; None: the cores this process may use.

    Attributes
    ----------
    content_id, model_version, fields, states, vectors : as in `CatalogInfo`.
    chunk_items : how many items to encode at once.

    Raises
    ------
    BundleError : the bundle is damaged.
    """

    def __init__(self, bundle: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self._root, self._threads = Path(bundle), threads
        files = BundleReader(self._root)
        manifest, model, features = files.manifest, files.json("model.json"), files.json("features.json")
        tokenizer = files.map("tokenizer.json")
        compiled = files.map(COMPILED_TOKENIZER) if COMPILED_TOKENIZER in manifest.files else None
        self.content_id, self.model_version = manifest.content_id, manifest.model_version
        self.states = StateSpec.from_model(model, f"{self._root}: model.json")
        what = f"{self._root}: "
        self.vectors, self._head = head_of_model(model, self.states, files.read, what)
        text = TextSpec.from_json(model.get("text"))
        self._text = TextEncoder(self._root / "tokenizer.json", text, compiled=compiled, content=tokenizer)
        self._features = FeatureEncoder(FeatureSpec.from_json(features)) if features is not None else None
        self.fields = self._features.item_fields if self._features else ()
        self.chunk_items = CHUNK_ITEMS if self.states is None else ENCODED_ITEMS
        self._engine: MidEngine | None = None

    def encode(self, items: Sequence[Item], first: int = 1) -> dict[str, NDArray[Any]]:
        """Columns of the items, in order.

        Parameters
        ----------
        first : the number of the first item in the caller's list, for messages.

        Raises
        ------
        InputError : an item or a part of it is of a wrong type, or an id is empty or has NUL or lone surrogates.
        EngineError : the engine that encodes items cannot be loaded on this machine, or fails.
        """
        return identify(items, first) | self.compute(items)

    def compute(self, items: Sequence[Item]) -> dict[str, NDArray[Any]]:
        """What `encode` gives but ids and content: the work that can be done elsewhere. Errors as `encode`."""
        tokens, offsets = self._text.encode_items([self._text.item_text(item) for item in items])
        columns: dict[str, NDArray[Any]] = {"tokens": tokens, "tokens.offsets": offsets}
        if self.states is not None:
            states = self._open_engine().encode_ragged(tokens, offsets)
            columns |= {"states": states.values, "states.offsets": states.offsets}
            if self.states.scales:
                columns["states.scales"] = states.scales
            columns = self.with_vectors(columns)
        if self._features is not None and self.fields:
            encoded = self._features.encode_items(items)
            columns |= {"features": encoded.hashes, "features.offsets": encoded.offsets}
        return columns

    def with_vectors(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """The columns of some items with this bundle's vectors, made of their states, in the place of other ones or none.

        Raises
        ------
        BundleError : an item has no states, as in a damaged catalogue.
        """
        others = {name: column for name, column in columns.items() if name not in VECTORS}
        if self._head is None or self.states is None:
            return others
        states, offsets = columns["states"], columns["states.offsets"]
        if (np.diff(offsets) < 1).any():
            raise BundleError("the catalogue is damaged: an item has no states; build it again, without previous")
        scales = columns["states.scales"] if self.states.scales else np.zeros((len(states), 0), np.float32)
        return others | dict(zip(VECTORS, self._head.item_vectors(ItemStates(states, scales, offsets), self.states), strict=True))

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> ItemEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_engine(self) -> MidEngine:
        from .engine import MidEngine, open_engine

        if self._engine is None:
            engine = open_engine(self._root, threads=self._threads)
            if not isinstance(engine, MidEngine):
                engine.close()
                raise BundleError(f"{self._root}: its engine cannot encode items, though model.json has states; build the bundle again")
            self._engine = engine
        return self._engine


def identify(items: Sequence[Item], first: int = 1) -> dict[str, NDArray[Any]]:
    """The columns ``ids``, ``ids.offsets`` and ``content``. Parameters and errors as `ItemEncoder.encode`."""
    columns = pack_ids([id_bytes(item, number) for number, item in enumerate(items, first)])
    return columns | {"content": _core.hash_strings([content_of(item) for item in items], ID_SEED)}


def tombstones(ids: Sequence[str], info: CatalogInfo) -> dict[str, NDArray[Any]]:
    """Columns of deleted items: their ids, and nothing else; the catalogue says which there are."""
    states, fields = info.states, len(info.fields)
    none = np.zeros(len(ids) + 1, np.int64)
    columns: dict[str, NDArray[Any]] = pack_ids([one.encode() for one in ids])
    columns |= {"tokens": np.empty(0, np.int32), "tokens.offsets": none}
    if states is not None:
        columns |= {"states": np.empty((0, states.numbers), PRECISIONS[states.precision]), "states.offsets": none}
        if states.scales:
            columns["states.scales"] = np.empty((0, states.scales), np.float32)
    if fields:
        columns |= {"features": np.empty(0, np.uint64), "features.offsets": np.zeros(len(ids) * fields + 1, np.int64)}
    if info.vectors:
        columns |= {"vectors": np.zeros((len(ids), info.vectors.width), np.int8), "vectors.scale": np.zeros(len(ids), np.float32)}
    return columns | {"content": np.zeros(len(ids), np.uint64), TOMBSTONES: np.ones(len(ids), np.uint8)}


def pack_ids(ids: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    """The columns ``ids`` and ``ids.offsets``."""
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(one) for one in ids], out=offsets[1:])
    return {"ids": np.frombuffer(b"".join(ids), np.uint8), "ids.offsets": offsets}


def id_bytes(item: object, number: int) -> bytes:
    """The id of the item, UTF-8. Raises InputError naming the number for what is no item or has no usable id."""
    if not isinstance(item, Item):
        raise InputError(f"item {number} is a {type(item).__name__}; expected edgerec.Item")
    if not isinstance(item.id, str) or not item.id or clean_text(item.id) != item.id:
        raise InputError(f"item {number} has the id {item.id!r}; expected a non-empty str without NUL and lone surrogates")
    return item.id.encode()


def content_of(item: Item) -> str:
    """All of an item but its id, as one string: equal strings need no new row when a catalogue is rebuilt."""
    price = item.price if isinstance(item.price, int | float) else None
    parts = [item.title, item.text, item.brand, item.category, "" if price is None else repr(float(price))]
    parts += [part for key in sorted(item.attributes) for part in (key, item.attributes[key])]
    try:
        return clean_text("\x1f".join(parts))
    except TypeError:
        return "\x1f".join(map(clean_text, parts))  # which says what is no text
