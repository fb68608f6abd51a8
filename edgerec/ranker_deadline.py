"""The time a request has: what is asked for, and an engine that stops when it is over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .engine import Engine, MidEngine, RaggedEngine
from .errors import InputError

_LATEST = (1 << 63) - 1
Scored = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Logits, float32 [B], and whether each row was scored, bool [B]."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment of `time.monotonic_ns`; 0 is none."""

    ns: int = 0

    @classmethod
    def after(cls, deadline_ms: object) -> Deadline:
        """That many milliseconds from now; None: none. Raises InputError."""
        if deadline_ms is None:
            return cls()
        if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, int | float | np.integer | np.floating):
            raise InputError(f"deadline_ms must be a number of milliseconds or None, got {type(deadline_ms).__name__}")
        if not 0 <= deadline_ms < math.inf:
            raise InputError(f"deadline_ms is {deadline_ms}; expected a finite number of milliseconds, at least 0, or None")
        return cls(min(monotonic_ns() + int(float(deadline_ms) * 1e6), _LATEST))

    @property
    def over(self) -> bool:
        """Whether the moment has come."""
        return self.ns != 0 and monotonic_ns() >= self.ns


def runner(engine: Engine, deadline: Deadline) -> Callable[[Any], Scored]:
    """What scores a batch: a ragged engine stops between blocks of rows, any other is not begun once the time is over."""
    if isinstance(engine, RaggedEngine):

        def run_ragged(batch: Any) -> Scored:
            done = np.ones(batch.size, np.bool_)
            return engine.run_ragged(batch, deadline_ns=deadline.ns, done=done), done

        return run_ragged

    score: Callable[[Any], NDArray[np.float32]] = engine.run_states if isinstance(engine, MidEngine) else engine.run

    def run(batch: Any) -> Scored:
        if deadline.over:
            return np.full(batch.size, np.nan, np.float32), np.zeros(batch.size, np.bool_)
        return score(batch), np.ones(batch.size, np.bool_)

    return run
