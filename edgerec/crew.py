"""Who does the work of a bulk job, task by task: this process, several, or (`crew_ray`) the machines of a cluster."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import EngineError, InputError

Task = TypeVar("Task")
Result = TypeVar("Result")
Key = TypeVar("Key")

Open = Callable[[Path], Callable[[Task], Result]]
"""What each worker does first, once: opens a bundle, and returns what does a task with it. It must be picklable, and so must tasks be.

Of the bundle's folder nothing is read after the first task: on a cluster it is gone by then.
"""


@dataclass(frozen=True, slots=True)
class Crew(Generic[Task, Result]):
    """Those who work.

    Attributes
    ----------
    submit : starts a task; what it returns waits for the result.
    ahead : tasks to hand over before the result of the first is asked for.
    """

    submit: Callable[[Task], Callable[[], Result]]
    ahead: int

    def map(self, tasks: Iterable[tuple[Key, Task | None]]) -> Iterator[tuple[Key, Result | None]]:
        """The results, in the order of the tasks, each with its key; those that are None are not handed over."""
        waiting: deque[tuple[Key, Callable[[], Result] | None]] = deque()
        source = iter(tasks)
        while True:
            while len(waiting) < self.ahead and (given := next(source, None)) is not None:
                key, task = given
                waiting.append((key, None if task is None else self.submit(task)))
            if not waiting:
                return
            key, wait = waiting.popleft()
            yield key, None if wait is None else wait()


def check_crew(workers: int, engine: str) -> None:
    """Raise InputError unless a crew can be of these."""
    if workers < 1 or engine not in ("local", "ray"):
        raise InputError(f"workers is {workers} and engine {engine!r:.80}; expected at least 1, and 'local' or 'ray'")


@contextmanager
def work_here(work: Callable[[Task], Result]) -> Iterator[Crew[Task, Result]]:
    """Work in this process, when the results are asked for."""
    yield Crew(lambda task: partial(work, task), 1)


def work_elsewhere(
    open_work: Open[Task, Result], bundle: Path, *, engine: str, workers: int, threads: int, what: str
) -> AbstractContextManager[Crew[Task, Result]]:
    """Processes of this machine (`engine` ``local``), or a Ray cluster. Errors as of `work_in_processes` and `crew_ray.work_on_ray`."""
    if engine == "ray":
        from .crew_ray import work_on_ray

        return work_on_ray(open_work, bundle, threads, what=what)
    return work_in_processes(partial(open_work, bundle), workers, what=what)


@contextmanager
def work_in_processes(open_work: Callable[[], Callable[[Task], Result]], workers: int, *, what: str) -> Iterator[Crew[Task, Result]]:
    """Work in processes of their own; `what` they do stands in the error's message.

    Raises
    ------
    EngineError : a process died, as one does that the system kills for memory.
    """
    # Spawned, not forked: a fork would take over locks of threads that it does not have.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare, initargs=(open_work,))
    try:
        yield Crew(lambda task: pool.submit(_work, task).result, 2 * workers)
    except BrokenProcessPool as e:
        raise EngineError(f"one of {workers} processes that {what} died: {e}; try fewer, and go on with resume") from e
    finally:
        pool.shutdown(cancel_futures=True)


_open_work: Callable[[], Callable[[Any], Any]]
_opened: Callable[[Any], Any] | None = None


def _prepare(open_work: Callable[[], Callable[[Any], Any]]) -> None:
    global _open_work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    _open_work = open_work
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A first process that is killed cannot end the others, and they hold each other's queue open: none would ever see its end.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: Any) -> Any:
    global _opened
    if _opened is None:  # here, not in _prepare: its errors must reach the caller
        _opened = _open_work()
    return _opened(task)
