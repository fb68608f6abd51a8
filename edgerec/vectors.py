"""Retrieval vectors: one int8 vector an item and one a query, made by two linear maps from what a mid-fusion student computes anyway.

Shape letters: R items, H hidden, G states of a token, W width of a state, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .states import SMALLEST, ItemStates, StateSpec

VECTORS_FILE = "retrieve.npz"
MAX_WIDTH = 4096
_CHUNK_ITEMS = 1024
Int8Vectors = tuple[NDArray[np.int8], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """The ``retrieve`` object of ``model.json``, and ``vectors`` of ``catalog.json``.

    Attributes
    ----------
    width : D.
    sha256 : of ``retrieve.npz``: vectors of another one mean something else.
    """

    width: int
    sha256: str

    @classmethod
    def from_json(cls, found: object, what: str) -> VectorSpec | None:
        """Read it from a decoded object; None for none. Raises BundleError."""
        if found is None:
            return None
        if not isinstance(found, Mapping) or set(found) != set(cls.__dataclass_fields__):
            raise BundleError(f"{what} must be an object of {', '.join(cls.__dataclass_fields__)}; got {found!r:.200}")
        spec = cls(**found)
        if type(spec.width) is not int or not 1 <= spec.width <= MAX_WIDTH or not isinstance(spec.sha256, str):
            raise BundleError(f"{what}: expected a width from 1 to {MAX_WIDTH} and a sha256; got {found!r:.200}")
        return spec

    def to_json(self) -> dict[str, Any]:
        """The object `from_json` reads."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """Vectors of many items: the numbers of item i are ``values[i]`` times ``scales[i]``; its length is 1.

    Attributes
    ----------
    values : int8 [R, D]
    scales : float32 [R]
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RetrievalHead:
    """The two linear maps. Immutable.

    Attributes
    ----------
    query_weight, query_bias : float32 [D, H], [D], of the mean of the query's rows after the layers that see the query alone, which
        leave the first row, [CLS], all but the same for every query.
    item_weight, item_bias : float32 [D, G W], [D], of the mean of the item's states as they are stored.
    """

    query_weight: NDArray[np.float32]
    query_bias: NDArray[np.float32]
    item_weight: NDArray[np.float32]
    item_bias: NDArray[np.float32]

    @classmethod
    def from_bytes(cls, data: bytes, spec: VectorSpec, *, hidden: int, numbers: int, what: str) -> RetrievalHead:
        """Read ``retrieve.npz`` of a student of this hidden size and so many numbers a token. Raises BundleError."""
        if hashlib.sha256(data).hexdigest() != spec.sha256:
            raise BundleError(f"{what} is not the one that model.json names; export the student again")
        sides = {"query": hidden, "item": numbers}
        shapes = {f"{side}_weight": (spec.width, size) for side, size in sides.items()} | {f"{side}_bias": (spec.width,) for side in sides}
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: np.ascontiguousarray(file[name]) for name in shapes}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"{what} cannot be read: {error}; export the student again") from error
        for name, shape in shapes.items():
            if arrays[name].dtype != np.float32 or arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                found = f"{arrays[name].dtype} {list(arrays[name].shape)}"
                raise BundleError(f"{what}: {name} is {found}, expected finite float32 {list(shape)}; export the student again")
        return cls(**arrays)

    def to_bytes(self) -> bytes:
        """``retrieve.npz``; the same weights give the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, **{name: getattr(self, name) for name in self.__dataclass_fields__})
        return buffer.getvalue()

    @property
    def width(self) -> int:
        """D."""
        return len(self.query_bias)

    def query_vectors(self, rows: NDArray[Any]) -> Int8Vectors:
        """Query rows [Q, R, H] -> int8 [Q, D] and scales float32 [Q]. None of the R rows is padding."""
        return as_int8(unit(rows.mean(axis=1, dtype=np.float64) @ self.query_weight.T.astype(np.float64) + self.query_bias))

    def item_vectors(self, states: ItemStates, spec: StateSpec) -> Int8Vectors:
        """States of R items -> int8 [R, D] and scales float32 [R]."""
        count = len(states.offsets) - 1
        parts = [
            as_int8(unit(mean_states(states, spec, begin, min(begin + _CHUNK_ITEMS, count)) @ self.item_weight.T + self.item_bias))
            for begin in range(0, count, _CHUNK_ITEMS)
        ]
        if not parts:
            return np.zeros((0, self.width), np.int8), np.zeros(0, np.float32)
        return np.concatenate([values for values, _ in parts]), np.concatenate([scales for _, scales in parts])


def head_of_model(
    model: Mapping[str, Any], states: StateSpec | None, read: Callable[[str], bytes], what: str
) -> tuple[VectorSpec | None, RetrievalHead | None]:
    """The head of a bundle and its spec; None and None for a student without.

    Parameters
    ----------
    model : the decoded ``model.json``.
    states : what the student keeps of an item.
    read : gives a file of the bundle.
    what : the bundle, for messages; file names are put behind it.

    Raises
    ------
    BundleError : the two do not describe a head.
    """
    spec = VectorSpec.from_json(model.get("retrieve"), f"{what}model.json: retrieve")
    if spec is None:
        return None, None
    if states is None:
        raise BundleError(f"{what}model.json has retrieve and no states; build the bundle again")
    sizes = {"hidden": model["student"]["hidden"], "numbers": states.numbers}
    return spec, RetrievalHead.from_bytes(read(VECTORS_FILE), spec, **sizes, what=f"{what}{VECTORS_FILE}")


def mean_states(states: ItemStates, spec: StateSpec, begin: int, end: int) -> NDArray[np.float64]:
    """The mean over each item's tokens of its states as they are stored, float64 [end - begin, G W]."""
    offsets = states.offsets[begin : end + 1]
    values = states.values[offsets[0] : offsets[-1]].astype(np.float64)
    if spec.scales:
        scales = states.scales[offsets[0] : offsets[-1]]
        values = (values.reshape(len(values), spec.groups, spec.width) * scales[:, :, None]).reshape(len(values), spec.numbers)
    sums = np.add.reduceat(values, offsets[:-1] - offsets[0], axis=0)
    mean: NDArray[np.float64] = sums / np.diff(offsets)[:, None]
    return mean


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vectors [R, D] of length 1; one of zeros stays."""
    found: NDArray[np.float64] = vectors / np.maximum(np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)), SMALLEST)
    return found


def as_int8(vectors: NDArray[np.float64]) -> Int8Vectors:
    """Round vectors [R, D] to -127 .. 127, halves to even, and the scale of each, float32 [R]."""
    scales = (np.maximum(np.abs(vectors).max(axis=1), SMALLEST) / 127).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales
