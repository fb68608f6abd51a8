"""Lanes: every batch once and in order, whatever fails, forks or closes meanwhile."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgerec.ranker_lanes import Lanes


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("batches", [0, 1, 2, 7, 50])
def test_results_come_in_order_and_each_batch_runs_once(count: int, batches: int) -> None:
    lanes, ran = Lanes(count), []

    def run(batch: int) -> int:
        ran.append(batch)
        return batch * batch

    assert lanes.map(run, range(batches)) == [i * i for i in range(batches)]
    assert sorted(ran) == list(range(batches))
    lanes.close()


def test_batches_do_run_at_once() -> None:
    lanes, both = Lanes(2), threading.Barrier(2)
    assert lanes.map(lambda _: both.wait(timeout=20), range(2)) in ([0, 1], [1, 0])
    lanes.close()


def test_one_lane_starts_no_thread() -> None:
    lanes = Lanes(1)
    assert set(lanes.map(lambda _: threading.get_ident(), range(5))) == {threading.get_ident()}
    assert lanes._pool is None


@pytest.mark.parametrize("where", ["caller", "thread"])
def test_an_exception_reaches_the_caller_after_all_have_ended(where: str) -> None:
    lanes, me, running = Lanes(2), threading.get_ident(), []
    both = threading.Barrier(2)

    def run(batch: int) -> int:
        if batch < 2:
            both.wait(timeout=20)  # one is the caller's, one the thread's
        running.append(batch)
        try:
            if (threading.get_ident() == me) == (where == "caller"):
                raise ValueError(where)
            time.sleep(0.02)
            return batch
        finally:
            running.remove(batch)

    with pytest.raises(ValueError, match=where):
        lanes.map(run, range(4))
    assert running == []
    assert lanes.map(abs, [-1, -2, -3]) == [1, 2, 3]
    lanes.close()


def test_many_callers_share_the_threads() -> None:
    lanes = Lanes(3)
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda n: lanes.map(lambda b: (n, b), range(9)), range(40)))
    assert answers == [[(n, b) for b in range(9)] for n in range(40)]
    lanes.close()


def test_closed_lanes_work_on_the_caller() -> None:
    lanes = Lanes(2)
    lanes.map(abs, [1, 2])
    lanes.close()
    lanes.close()
    assert set(lanes.map(lambda _: threading.get_ident(), range(4))) == {threading.get_ident()}


def test_closing_while_others_call_fails_nobody() -> None:
    for _ in range(30):
        lanes = Lanes(3)
        with ThreadPoolExecutor(5) as callers:
            answers = [callers.submit(lanes.map, abs, range(-6, 0)) for _ in range(20)]
            lanes.close()
        assert [answer.result() for answer in answers] == [[6, 5, 4, 3, 2, 1]] * 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_has_lanes_of_its_own() -> None:
    lanes = Lanes(2)
    lanes.map(abs, [1, 2])
    child = os.fork()
    if child == 0:
        both, ok = threading.Barrier(2), False
        try:
            ok = sorted(lanes.map(lambda _: both.wait(timeout=20), range(2))) == [0, 1]
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lanes.map(abs, [-1, -2]) == [1, 2]
    lanes.close()
