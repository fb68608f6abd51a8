"""Engines: one protocol, one file per backend. ``open_engine`` picks by the bundle's ``backend``."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..types import Batch


@runtime_checkable
class Engine(Protocol):
    """Scores batches. Thread-safe; a row's logit does not depend on the other rows or on padding."""

    backend: str
    precision: str

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Logits, float32 [B]. Raises EngineError."""
        ...

    def close(self) -> None:
        """Release what the engine holds; ``run`` afterwards raises EngineError."""
        ...
