"""The ONNX Runtime backend: fp32 and int8 on the CPU.

The one place that imports onnxruntime; the builder takes it from here, so that the import happens as the host would want it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest, read_file
from ..errors import EngineError, MissingExtraError
from ..types import Batch
from . import Limits
from .machine import usable_cores

# From version 1.29 on, importing onnxruntime starts a thread that sends usage data to its maker and keeps a device id on disk, unless this
# is set before the import. A search server must not do that unasked; and a forked child that exits would wait for that thread for ever.
# A host that wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime as ort
except ModuleNotFoundError as error:
    raise MissingExtraError("onnxruntime", "ort") from error

__all__ = ["Graph", "OrtEngine", "ort"]

_reopen_lock = threading.Lock()


def _renew_lock() -> None:
    global _reopen_lock
    _reopen_lock = threading.Lock()


# A thread of the parent may hold the lock at the moment of the fork; it does not exist in the child and would never release it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class Graph:
    """One graph of a bundle, in a session that all threads share.

    A session's worker threads do not survive a fork, so a child process gets a session of its own at its first run.

    Parameters
    ----------
    root, manifest, file : the bundle and the name of the graph in it; it is verified against the manifest before a session is made of it.
    threads : worker threads of one run; None: the cores this process may use.
    spinning : let idle workers spin.

    Raises
    ------
    BundleError : the file is damaged. EngineError : ONNX Runtime refuses it.
    """

    def __init__(self, root: Path, manifest: Manifest, file: str, *, threads: int | None = None, spinning: bool = False) -> None:
        self._root, self._manifest, self._file = root, manifest, file
        self._threads, self._spinning = threads, spinning
        self._pid = os.getpid()
        self._session: ort.InferenceSession | None = self._open()

    def run(self, output: str, inputs: dict[str, NDArray[Any]], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The output, float32 of a shape in which -1 may be anything. Raises EngineError."""
        session = self.open_session()
        try:
            found = session.run([output], inputs)[0]
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as error:
            sizes = " x ".join(map(str, next(iter(inputs.values())).shape))
            raise EngineError(f"onnxruntime failed on a batch of {sizes}: {error}") from error
        given = tuple(getattr(found, "shape", ()))
        if len(given) != len(shape) or any(b not in (-1, a) for a, b in zip(given, shape, strict=True)) or found.dtype != np.float32:
            raise EngineError(f"{self._file} gave {given} for {shape[0]} rows, expected float32 {list(shape)}")
        result: NDArray[np.float32] = found
        return result

    def close(self) -> None:
        """Release the session; runs in flight finish first."""
        self._session = None

    def open_session(self) -> ort.InferenceSession:
        """This process's session. Raises EngineError when closed."""
        session = self._session
        if session is not None and self._pid != os.getpid():
            with _reopen_lock:
                session = self._session
                if session is not None and self._pid != os.getpid():
                    # Destroying the parent's session would wait for threads that this process does not have: never release it.
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
                    self._session, self._pid = self._open(), os.getpid()
                session = self._session
        if session is None:
            raise EngineError("the engine is closed; open the bundle again")
        return session

    def _open(self) -> ort.InferenceSession:
        model = read_file(self._root, self._manifest, self._file)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads or usable_cores()
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spinning else "0")
        # A pattern is kept for every shape ever seen; batches of many shapes make that a leak.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        # The builder saved the graph optimised: doing it again costs load time and can change nothing for the better.
        optimised = self._manifest.fingerprint.get("graph") == "optimised"
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL if optimised else level.ORT_ENABLE_EXTENDED
        try:
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            built_with = self._manifest.fingerprint.get("onnxruntime", "an unknown version")
            raise EngineError(
                f"{self._root}: onnxruntime {ort.__version__} refuses {self._file} (built with {built_with}): {error}; "
                "build the bundle again with this version"
            ) from error


class OrtEngine:
    """Runs ``engine.onnx``. See `edgerec.engine.Engine` and `Graph`; open the engine after forking where you can.

    Parameters
    ----------
    limits : what the student accepts. The others are `Graph`'s.
    """

    backend = "ort"

    def __init__(self, root: Path, manifest: Manifest, limits: Limits, *, threads: int | None = None, spinning: bool = False) -> None:
        self.precision, self._limits = manifest.precision, limits
        self._graph = Graph(root, manifest, manifest.engine_file, threads=threads, spinning=spinning)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, float32 [B]. Raises EngineError."""
        self._graph.open_session()
        self._limits.check(batch)
        if not batch.size:
            return np.zeros(0, np.float32)
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "token_type_ids": batch.token_type_ids,
        }
        if self._limits.buckets:
            inputs["feature_ids"], inputs["feature_weights"] = batch.feature_ids, batch.feature_weights
        return self._graph.run("logits", inputs, (batch.size,))

    def close(self) -> None:
        """Release the session; runs in flight finish first."""
        self._graph.close()
