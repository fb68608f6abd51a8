"""sentence-transformers: ``CrossEncoder.predict`` on torch, fp32, its default batch of 32 (sorted by length inside)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Setup

NAME = "sentence-transformers"
PACKAGE = "sentence-transformers"


def prepare(setup: Setup) -> None:
    """Nothing: it reads the folder as it is."""


def load(setup: Setup) -> Any:
    """The cross-encoder on the CPU."""
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(setup.weights), max_length=setup.max_tokens, device="cpu", local_files_only=True)


def rank(model: Any, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
    """Probabilities of the pairs."""
    return np.asarray(model.predict([(query, title) for title in titles], show_progress_bar=False), np.float32)
