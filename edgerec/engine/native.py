"""The native backend: ``engine.bin``, run by the C engine in csrc/. No runtime of others, no padding, no copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import _core, _native
from ..bundle import BundleReader, Manifest, map_file
from ..errors import BundleError, EngineError, InputError
from ..segment import SectionFile
from ..types import Batch, RaggedBatch
from . import Limits
from .machine import usable_cores

MAX_THREADS = 1024


class EngineFile:
    """An ``engine.bin``, mapped, and its threads, for both kinds of student. Parameters and errors as of `NativeEngine`."""

    def __init__(self, root: Path, manifest: Manifest, limits: Limits, *, threads: int | None, files: BundleReader | None = None) -> None:
        self.what = f"{root}: {manifest.engine_file}"
        count = threads or min(usable_cores(), MAX_THREADS)
        if count > MAX_THREADS:
            raise EngineError(f"threads is {threads}; the native engine takes at most {MAX_THREADS}")
        try:
            data = files.map(manifest.engine_file) if files else map_file(root, manifest, manifest.engine_file)
        except BundleError as error:
            raise BundleError(f"{error}{_section_at_fault(root / manifest.engine_file)}") from error
        try:
            encoder = _native.Encoder(data, isa=_core.isa(), threads=count)
        except InputError as error:
            raise BundleError(f"{self.what} is damaged or not an engine this version runs: {error}; build the bundle again") from error
        except MemoryError as error:
            raise EngineError(f"{root}: the engine cannot be opened: {error}; open it with fewer threads") from error
        # Batches are checked against model.json: the engine's own tables must be at least as large.
        small = [name for name in ("vocab", "types", "buckets") if getattr(encoder, name) != getattr(limits, name)]
        if encoder.positions < limits.tokens:
            small.append("positions")
        if small:
            raise self.other_student(", ".join(small))
        self._encoder: _native.Encoder | None = encoder

    def other_student(self, differ: str) -> BundleError:
        """The error of a file that is right and of another student."""
        return BundleError(f"{self.what} does not hold the student of model.json: {differ} differ; build it again")

    def encoder(self) -> _native.Encoder:
        """What runs it. Raises EngineError: it is closed."""
        encoder = self._encoder
        if encoder is None:
            raise EngineError("the engine is closed; open the bundle again")
        return encoder

    def close(self) -> None:
        """Release the model and its threads; runs in flight finish first."""
        self._encoder = None


@contextmanager
def engine_errors() -> Iterator[None]:
    """What the library raises, as the errors of an engine."""
    try:
        yield
    except InputError as error:
        raise EngineError(f"batch: {error}") from error
    except MemoryError as error:
        raise EngineError(f"the engine cannot run: {error}; open it with fewer threads, or rank fewer queries at once") from error


def flat_features(ids: NDArray[np.int32], weights: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Row after row, as the library wants them."""
    return np.ascontiguousarray(ids).reshape(-1), np.ascontiguousarray(weights).reshape(-1)


def _section_at_fault(path: Path) -> str:
    """For the message: which section of a file that is not the manifest's is damaged; nothing when the file itself does not know."""
    try:
        SectionFile(path).verify()
    except BundleError as error:
        return f"; {error}" if path.is_file() else ""
    return ""


class NativeEngine:
    """Runs ``engine.bin``. See `edgerec.engine.Engine`.

    The file is mapped, so processes that open one bundle share its memory. A row's logit is the same bits in any batch and on any number
    of threads. The instruction set is `edgerec._core.isa` at the time of opening.

    Parameters
    ----------
    root, manifest : the bundle; the engine file is verified against the manifest.
    limits : what the student accepts.
    threads : threads that work on one run, the caller's included; None: the cores this process may use.
    files : of this bundle, where the caller has it: who may have begun to read the file.

    Raises
    ------
    BundleError : the engine file is damaged, or is not that of the model in ``model.json``.
    EngineError : too many threads, for the engine or for the system.
    """

    backend = "native"

    def __init__(
        self, root: Path, manifest: Manifest, limits: Limits, *, threads: int | None = None, files: BundleReader | None = None
    ) -> None:
        self.precision = manifest.precision
        self._limits = limits
        self._file = EngineFile(root, manifest, limits, threads=threads, files=files)
        if self._file.encoder().states is not None:
            raise self._file.other_student("item states")

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, float32 [B]. Raises EngineError."""
        encoder = self._file.encoder()
        self._limits.check(batch)
        rows, width = batch.input_ids.shape
        if not rows:
            return np.zeros(0, np.float32)
        try:
            lengths = _native.row_lengths(np.ascontiguousarray(batch.attention_mask))
        except InputError as error:
            raise EngineError(f"batch: {error}") from error
        starts = np.arange(0, rows * width, width, dtype=np.int64)
        ids, types = (np.ascontiguousarray(array).reshape(-1) for array in (batch.input_ids, batch.token_type_ids))
        return self._score(encoder, RaggedBatch(ids, types, starts, lengths, batch.feature_ids, batch.feature_weights))

    def run_ragged(self, batch: RaggedBatch, *, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
        """Logits, float32 [B], of the rows there was time for. See `edgerec.engine.RaggedEngine`. Raises EngineError."""
        encoder = self._file.encoder()
        self._limits.check_ragged(batch)
        return self._score(encoder, batch, deadline_ns, done)

    def close(self) -> None:
        """Release the model and its threads; runs in flight finish first."""
        self._file.close()

    @staticmethod
    def _score(
        encoder: _native.Encoder, batch: RaggedBatch, deadline_ns: int = 0, done: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        features = flat_features(batch.feature_ids, batch.feature_weights)
        with engine_errors():
            return encoder.score(batch.ids, batch.types, batch.starts, batch.lengths, *features, deadline_ns=deadline_ns, done=done)
