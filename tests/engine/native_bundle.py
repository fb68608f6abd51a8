"""A small native bundle in each precision, and rows for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fixtures_export import make_export, random_rows
from numpy.typing import NDArray

from edgerec.builder import build_engine
from edgerec.types import Batch

PRECISIONS = ("fp32", "bf16", "int8")


def native_bundle(root: Path, precision: str) -> Path:
    """A student with pooler and features, built under ``root``."""
    build_engine(make_export(root / "export", pooler=True), root / "bundle", backend="native", precision=precision)
    return root / "bundle"


def rows(count: int, seed: int = 0, width: int = 32) -> Batch:
    return Batch(**random_rows(np.random.default_rng(seed), count, vocab=110, features=True, width=width))


def part(batch: Batch, places: NDArray[np.intp]) -> Batch:
    return Batch(*(np.ascontiguousarray(getattr(batch, name)[places]) for name in Batch.__dataclass_fields__))
