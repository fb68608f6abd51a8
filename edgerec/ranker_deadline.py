"""The time a request has: what is asked for, and what the kinds of engine do when it is over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, ItemEngine, MidEngine, RaggedEngine, RaggedMidEngine
from .errors import InputError
from .types import Batch, RaggedBatch, RaggedItemBatch, RaggedStateBatch, StateBatch

_LATEST = (1 << 63) - 1
Scored = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Logits, float32 [B], and whether each row was scored, bool [B]."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of `time.monotonic_ns`; 0 is none. ``ms`` is how it was asked for."""

    ns: int = 0
    ms: float = 0.0

    @classmethod
    def after(cls, deadline_ms: object) -> Deadline:
        """That many milliseconds from now; None: none. Raises InputError."""
        if deadline_ms is None:
            return cls()
        if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float | np.integer | np.floating):
            raise InputError(f"deadline_ms must be a number of milliseconds or None, got {type(deadline_ms).__name__}")
        if not 0 <= deadline_ms < math.inf:
            raise InputError(f"deadline_ms is {deadline_ms}; expected a finite number of milliseconds, at least 0, or None")
        return cls(min(monotonic_ns() + int(float(deadline_ms) * 1e6), _LATEST), float(deadline_ms))

    @property
    def over(self) -> bool:
        """Whether the moment has come."""
        return self.ns != 0 and monotonic_ns() >= self.ns


def score_ragged(engine: RaggedEngine, deadline: Deadline, batch: RaggedBatch) -> Scored:
    """Rows as they are: the engine itself stops between blocks of rows."""
    done = np.ones(batch.size, np.bool_)
    return engine.run_ragged(batch, deadline_ns=deadline.ns, done=done), done


def score_items(engine: ItemEngine, deadline: Deadline, batch: RaggedItemBatch) -> Scored:
    """The same for rows that the engine itself joins."""
    done = np.ones(batch.size, np.bool_)
    return engine.run_items(batch, deadline_ns=deadline.ns, done=done), done


def score_ragged_states(engine: RaggedMidEngine, deadline: Deadline, batch: RaggedStateBatch) -> Scored:
    """The same for rows whose items are states."""
    done = np.ones(batch.size, np.bool_)
    return engine.run_ragged_states(batch, deadline_ns=deadline.ns, done=done), done


def score_rows(engine: Engine, deadline: Deadline, batch: Batch) -> Scored:
    """A batch is scored whole, or not at all once the time is over."""
    return _whole(engine.run, deadline, batch)


def score_states(engine: MidEngine, deadline: Deadline, batch: StateBatch) -> Scored:
    """The same for rows whose items are states."""
    return _whole(engine.run_states, deadline, batch)


def _whole(score: Callable[[Any], NDArray[np.float32]], deadline: Deadline, batch: Batch | StateBatch) -> Scored:
    if deadline.over:
        return np.full(batch.size, np.nan, np.float32), np.zeros(batch.size, np.bool_)
    return score(batch), np.ones(batch.size, np.bool_)
