"""Lanes: a few threads that run an engine on several batches at once.

For small batches this beats threads inside an engine call: nothing waits for anybody until all are done.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Lanes:
    """``count - 1`` sleeping threads and the caller. Safe to share between threads, and usable after a fork (with threads of its own).

    The threads start at the first call that needs them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._closed = False

    def map(self, run: Callable[[A], B], batches: Sequence[A]) -> list[B]:
        """``[run(b) for b in batches]``, on the caller and on whichever threads are free. The first exception is raised once all rest."""
        helpers = min(self.count, len(batches)) - 1
        if helpers < 1:
            return [run(batch) for batch in batches]
        results: dict[int, B] = {}
        places = itertools.count()  # taking the next number is one step, whoever does it

        def work() -> None:
            for place in places:
                if place >= len(batches):
                    return
                results[place] = run(batches[place])

        futures = self._start(work, helpers)
        try:
            work()
        finally:
            # One that did not start while the caller worked has nothing left to do; the others end with their batch.
            failures = [future.exception() for future in futures if not future.cancel()]
        for failure in failures:
            if failure is not None:
                raise failure
        return [results[place] for place in range(len(batches))]

    def close(self) -> None:
        """End the threads; later calls work on the caller's alone."""
        with self._lock:
            self._closed, pool, self._pool = True, self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.shutdown(wait=False)

    def _start(self, work: Callable[[], None], times: int) -> list[Future[None]]:
        """Hand the work to threads; none once closed. Under the lock, so that `close` cannot end the pool in between."""
        if self._pid != os.getpid():  # a forked child has none of its parent's threads, and may have found the lock taken
            self._pid, self._pool, self._lock = os.getpid(), None, threading.Lock()
        with self._lock:
            if self._pool is None and not self._closed:
                self._pool = ThreadPoolExecutor(self.count - 1, "edgerec-lane")
            return [self._pool.submit(work) for _ in range(times)] if self._pool is not None else []
