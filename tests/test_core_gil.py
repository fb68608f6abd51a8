"""The GIL is released: another thread gets on while a function works."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgerec._core import FeaturePlan, PairFrame, TopK, hash_packed, index_build, project, sort_unique, topk

N = 400_000
hashes = np.random.default_rng(0).integers(0, 2**64, N, dtype=np.uint64)
scores = np.arange(N, dtype=np.float32)
places = np.arange(N, dtype=np.int64)
ones = np.ones(1, np.int32)


def encode() -> object:
    plan = FeaturePlan(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.uint64), buckets=1000, slots=4)
    return plan.encode([(hashes, None, np.arange(N + 1, dtype=np.int64))], places)


def pack() -> object:
    frame = PairFrame(ones, ones, ones, pad_id=0, query_type=0, item_type=1, max_tokens=16)
    return frame.pack(ones, np.zeros(N, np.int32), np.arange(N + 1, dtype=np.int64), places)


CALLS: dict[str, Callable[[], object]] = {
    "topk": lambda: topk(scores, 200_000),
    "topk, small k": lambda: topk(scores, 100),
    "TopK.push": lambda: TopK(50_000).push(scores),
    "TopK.push_at": lambda: TopK(50_000).push_at(scores, places),
    "hash_packed": lambda: hash_packed(np.zeros(N, np.uint8), np.arange(N + 1, dtype=np.int64)),
    "project": lambda: project(hashes, 1000),
    "sort_unique": lambda: sort_unique(hashes, scores),
    "index_build": lambda: index_build(hashes),
    "FeaturePlan.encode": encode,
    "PairFrame.pack": pack,
}


@pytest.fixture
def nobody_is_interrupted() -> Iterator[None]:
    """From here on a thread gives the GIL away only when it wants to: by sleeping, or inside a function that releases it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("nobody_is_interrupted")
def test_another_thread_runs_during_the_call(name: str) -> None:
    steps = 0
    done = False

    def work() -> None:
        nonlocal steps
        while not done:
            steps += 1
            time.sleep(0)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        during = 0
        for _ in range(500):  # on a loaded machine the thread may not be scheduled within one call
            before = steps
            CALLS[name]()
            during = steps - before
            if during > 0:
                break
    finally:
        done = True
        time.sleep(0)
        thread.join()
    assert during > 0
