"""Engines: one protocol, one file per backend. ``open_engine`` picks by the bundle's ``backend``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..bundle import BundleReader
from ..errors import BundleError, EngineError
from ..states import ItemStates, StateSpec
from ..types import Batch, RaggedBatch, RaggedItemBatch, RaggedStateBatch, StateBatch, StoredTable


@runtime_checkable
class Engine(Protocol):
    """Scores batches. Thread-safe; a row's logit does not depend on the other rows or on padding.

    One exception, measured by the builder and written to ``parity.json: batch_max_abs_diff``: ONNX Runtime's dynamic int8 picks one
    activation scale for a whole batch, so there a row's logit moves a little with its company.
    """

    backend: str
    precision: str

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, float32 [B]; NaN where the arithmetic gave NaN (ranking never selects those). Raises EngineError."""
        ...

    def close(self) -> None:
        """Release what the engine holds; ``run`` afterwards raises EngineError."""
        ...


@runtime_checkable
class RaggedEngine(Engine, Protocol):
    """An engine that computes nothing for padding, and so wants all rows of a query in one call, as they are."""

    def run_ragged(self, batch: RaggedBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Logits, float32 [B], the same as `run` of the rows padded.

        Parameters
        ----------
        batch : the rows.
        deadline_ns : the `time.monotonic_ns` after which no further block of rows is begun; 0: none. Rows left out have NaN.
        done : bool [B], is filled: whether a row was scored (its logit may be NaN by arithmetic).

        Raises
        ------
        EngineError : as `run`; never because of time.
        """
        ...


@runtime_checkable
class ItemEngine(RaggedEngine, Protocol):
    """A `RaggedEngine` that joins the query with its items itself."""

    def run_items(self, batch: RaggedItemBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Logits, float32 [B], the same as `run_ragged` of the rows. Parameters and errors as of it."""
        ...


@runtime_checkable
class MidEngine(Engine, Protocol):
    """An engine of a mid-fusion student. Items can be encoded once and scored often; `run` does both at once."""

    def encode_items(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """``item + suffix``, int32 [U, T] and [U] -> states [U, T, G * W] as they are stored, and their scales. Raises EngineError."""
        ...

    def encode_ragged(self, tokens: NDArray[np.int32], offsets: NDArray[np.int64]) -> ItemStates:
        """Any number of items, ``tokens[offsets[i]:offsets[i + 1]]`` each, without suffix. Raises EngineError."""
        ...

    def run_states(self, batch: StateBatch) -> NDArray[np.float32]:
        """Logits, float32 [B]. Raises EngineError."""
        ...


@runtime_checkable
class QueryEngine(MidEngine, Protocol):
    """A `MidEngine` whose layers that see the query alone can run once for many batches."""

    def encode_queries(self, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[Any] | None:
        """``prefix + query + middle``, int32 [Q, R] and [Q] -> `StateBatch.queries` [Q, R, H], in the backend's own type.

        None where the backend does not give them: it reads ``query_ids`` itself. Raises EngineError.
        """
        ...


@runtime_checkable
class RaggedMidEngine(MidEngine, Protocol):
    """A `MidEngine` that reads states where they lie, and wants all rows of a query in one call."""

    def run_ragged_states(
        self, batch: RaggedStateBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Logits, float32 [B], the same as `run_states` of the rows padded. Parameters and errors as of `RaggedEngine.run_ragged`."""
        ...


@runtime_checkable
class KeepingEngine(Engine, Protocol):
    """An engine that can have copies of a catalogue's tables where it works. The ``source`` of a batch says what lies in them.

    ``keeps`` names them: ``tokens`` or ``states``.
    """

    keeps: str

    def keep(self, tables: Sequence[StoredTable], *, wait: bool) -> None:
        """Hold these tables, as far as there is room, and no others. Never raises.

        Parameters
        ----------
        wait : return when they are there; else they are copied while the engine works.
        """
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a student accepts; checked before every run, because a backend may crash or read out of bounds on more.

    Attributes
    ----------
    vocab : token ids are in [0, vocab).
    tokens : the longest row, T, in tokens.
    buckets : feature ids are in [0, buckets); 0 if the student takes no features.
    types : token types are in [0, types).
    """

    vocab: int
    tokens: int
    buckets: int
    types: int = 2

    @classmethod
    def from_model(cls, model: object, what: str = "model.json") -> Limits:
        """Read the limits from a decoded ``model.json``. Raises BundleError."""
        try:
            student, text, features = _mapping(model)["student"], _mapping(model)["text"], _mapping(model)["features"]
            buckets = 0 if features is None else _positive(features, "buckets")
            tokens = _positive(text, "max_tokens")
            if "item_start" in student:  # a mid-fusion student's item is not cut to what the query leaves
                tokens += _positive(student, "item_start") - len(text["prefix"]) - len(text["middle"])
            return cls(vocab=_positive(student, "vocab"), tokens=tokens, buckets=buckets)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"{what}: student.vocab, text.max_tokens and features.buckets must be positive integers: {error!r}"
            ) from error

    def check(self, batch: Batch) -> None:
        """Raise EngineError unless the batch has the shapes, dtypes and ranges this student takes. Costs microseconds."""
        shape = _check_array("input_ids", batch.input_ids, np.int32, None)
        _check_array("attention_mask", batch.attention_mask, np.int32, shape)
        _check_array("token_type_ids", batch.token_type_ids, np.int32, shape)
        rows, tokens = shape
        self.check_features(batch.feature_ids, batch.feature_weights, rows)
        if rows and not 1 <= tokens <= self.tokens:
            raise EngineError(f"batch: rows have {tokens} tokens, expected 1 to {self.tokens}; cut the text when packing")
        check_range("input_ids", batch.input_ids, self.vocab)
        check_range("token_type_ids", batch.token_type_ids, self.types)
        check_range("attention_mask", batch.attention_mask, 2)

    def check_features(self, ids: NDArray[np.int32], weights: NDArray[np.float32], rows: int) -> None:
        """Raise EngineError unless these are the hashed features of so many rows, as this student takes them."""
        shape = _check_array("feature_ids", ids, np.int32, None)
        _check_array("feature_weights", weights, np.float32, shape)
        if shape[0] != rows:
            raise EngineError(f"batch: feature_ids has {shape[0]} rows, the batch has {rows}")
        if not self.buckets and shape[1]:
            raise EngineError(f"batch: feature_ids has {shape[1]} slots, this student takes no features; expected shape [{rows}, 0]")
        check_range("feature_ids", ids, self.buckets)

    def check_ragged(self, batch: RaggedBatch) -> None:
        """Raise EngineError unless the shapes fit together and no row is too long; the engine itself checks ids and places."""
        features = _check_array("feature_ids", batch.feature_ids, np.int32, None)
        _check_array("feature_weights", batch.feature_weights, np.float32, features)
        if features[0] != len(batch.lengths):
            raise EngineError(f"batch: feature_ids has {features[0]} rows, there are {len(batch.lengths)} lengths")
        if not self.buckets and features[1]:
            raise EngineError(f"batch: feature_ids has {features[1]} slots, this student takes no features; expected 0")
        if len(batch.lengths) and int(batch.lengths.max()) > self.tokens:
            raise EngineError(
                f"batch: a row has {int(batch.lengths.max())} tokens, at most {self.tokens} are taken; cut the text when packing"
            )


def open_engine(
    bundle: str | os.PathLike[str] | BundleReader,
    *,
    threads: int | None = None,
    spinning: bool = False,
    probe: bool = True,
    fallback: bool = True,
) -> Engine:
    """Load the engine of a bundle, verified.

    The engine file's hash is checked before the backend sees it; then the rows in ``probe.npz`` are scored and must give the logits
    the build machine recorded (another CPU, or another version of the runtime, may compute int8 wrongly without any error).

    Parameters
    ----------
    bundle : the bundle's folder, or its reader, where the caller has one.
    threads : threads inside one run; default: the cores this process may use.
    spinning : for ``ort``, let idle worker threads spin. Off, so that the host process keeps its cores; docs/build.md has the cost.
    probe : score the probe rows.
    fallback : for ``tensorrt``, let the bundle's CPU engine take over where no plan runs, and when the GPU fails; the engine's attribute
        ``note``, and every result, then say why.

    Raises
    ------
    BundleError : the bundle is damaged or was changed.
    EngineError : the backend is not available here, refuses the engine, or does not reproduce the probe.
    """
    files = bundle if isinstance(bundle, BundleReader) else BundleReader(bundle)
    engine = _load(files, threads=threads, spinning=spinning, fallback=fallback)
    if probe:
        from .probe import check_probe

        try:
            check_probe(engine, files)
        except BaseException:
            engine.close()
            raise
    return engine


def _load(files: BundleReader, *, threads: int | None, spinning: bool, fallback: bool) -> Engine:
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise EngineError(f"threads is {threads!r}, expected a positive integer or None")
    root, manifest, model = files.root, files.manifest, files.json("model.json")
    limits = Limits.from_model(model, f"{root}: model.json")
    if StateSpec.from_model(model, f"{root}: model.json") is not None:
        return _load_mid(files, limits, threads=threads, spinning=spinning, fallback=fallback)
    if manifest.backend == "ort":
        from .ort import OrtEngine

        return OrtEngine(root, manifest, limits, threads=threads, spinning=spinning)
    if manifest.backend == "native":
        from .native import NativeEngine

        return NativeEngine(root, manifest, limits, threads=threads, files=files)
    if manifest.backend == "tensorrt":
        from .trt import open_tensorrt

        return open_tensorrt(root, manifest, model, limits, threads=threads, fallback=fallback)
    if manifest.backend == "reference":
        from .reference import ReferenceEngine

        return ReferenceEngine(root, manifest, limits)
    raise EngineError(f"{root}: this edgerec has no engine for backend {manifest.backend!r}; build the bundle for ort, native or reference")


def _load_mid(files: BundleReader, limits: Limits, *, threads: int | None, spinning: bool, fallback: bool) -> MidEngine:
    root, manifest, model = files.root, files.manifest, files.json("model.json")
    if manifest.backend == "ort":
        from .mid_ort import open_mid_ort

        return open_mid_ort(root, manifest, model, limits, threads=threads, spinning=spinning)
    if manifest.backend == "native":
        from .mid_native import MidNativeEngine

        return MidNativeEngine(root, manifest, model, limits, threads=threads, files=files)
    if manifest.backend == "tensorrt":
        from .trt_mid import open_mid_tensorrt

        return open_mid_tensorrt(root, manifest, model, limits, threads=threads, fallback=fallback)
    if manifest.backend == "reference":
        from .mid_reference import open_mid_reference

        return open_mid_reference(root, manifest, model, limits)
    raise EngineError(f"{root}: this edgerec has no engine for backend {manifest.backend!r}; build the bundle for ort, native or reference")


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return value


def _positive(owner: object, key: str) -> int:
    value = _mapping(owner)[key]
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ValueError(f"{key} is {value!r:.80}")
    return value


def _check_array(name: str, value: object, dtype: type[np.generic], shape: tuple[int, int] | None) -> tuple[int, int]:
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 2:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise EngineError(f"batch: {name} is {found}, expected a two-dimensional {np.dtype(dtype)} array")
    if shape is not None and value.shape != shape:
        raise EngineError(f"batch: {name} has shape {list(value.shape)}, expected {list(shape)}")
    return int(value.shape[0]), int(value.shape[1])


def check_range(name: str, value: NDArray[np.int32], end: int) -> None:
    """Raise EngineError unless all values are from 0 to ``end - 1``."""
    # As unsigned numbers negative ids are huge: one pass finds both ends.
    if value.size and int(value.view(np.uint32).max()) >= end:
        raise EngineError(f"batch: {name} has values from {int(value.min())} to {int(value.max())}, expected 0 to {end - 1}")
