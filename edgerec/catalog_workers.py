"""Who encodes the items of a build: this process, or several."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

from .catalog_columns import Columns
from .catalog_encoder import ItemEncoder
from .errors import EngineError
from .types import Item


@dataclass(frozen=True, slots=True)
class Crew:
    """Those who encode.

    Attributes
    ----------
    submit : starts to compute the columns of items (`ItemEncoder.compute`); what it returns waits for them.
    ahead : chunks to hand over before the columns of the first are asked for.
    """

    submit: Callable[[Sequence[Item]], Callable[[], Columns]]
    ahead: int


@contextmanager
def encode_here(encoder: ItemEncoder) -> Iterator[Crew]:
    """Encode in this process, when the columns are asked for."""
    yield Crew(lambda items: lambda: encoder.compute(items), 1)


@contextmanager
def encode_in_processes(bundle: str | os.PathLike[str], workers: int, threads: int) -> Iterator[Crew]:
    """Encode in processes of their own, each with an encoder of `bundle` on `threads` threads.

    Raises
    ------
    EngineError : a process died, as one does that the system kills for memory.
    """
    # Spawned, not forked: a fork would take over locks of threads that it does not have.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_prepare, initargs=(os.fspath(bundle), threads))
    try:
        yield Crew(lambda items: pool.submit(_encode, items).result, 2 * workers)
    except BrokenProcessPool as e:
        raise EngineError(f"one of {workers} processes that encode items died: {e}; try fewer, and go on with resume") from e
    finally:
        pool.shutdown(cancel_futures=True)


_bundle, _threads = "", 1
_encoder: ItemEncoder | None = None


def _prepare(bundle: str, threads: int) -> None:
    global _bundle, _threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    _bundle, _threads = bundle, threads


def _encode(items: Sequence[Item]) -> Columns:
    global _encoder
    if _encoder is None:  # here, not in _prepare: its errors must reach the caller
        _encoder = ItemEncoder(_bundle, threads=_threads)
    return _encoder.compute(items)
