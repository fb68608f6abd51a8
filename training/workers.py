"""One run on several processes: torchrun starts them, and each takes its share of every step.

    torchrun --nproc-per-node 8 -m edgerec train ...

Everything else is as on one process: the first (rank 0) prepares, evaluates and writes; the others hear of it. All must see the same files.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

T = TypeVar("T")


def count() -> int:
    """How many processes share the run."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the group that torchrun announces in the environment; nothing without torchrun, or inside a group already.

    The group lives until the process ends: a second one after it would meet the first one's addresses in torchrun's store, and hang.
    """
    if not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(distributed.destroy_process_group)
    yield


def first(function: Callable[[], T]) -> T:
    """Call it on rank 0 alone; every process returns what it returned, or raises what it raised."""
    if count() == 1:
        return function()
    box: list[Any] = [None, None]
    if rank() == 0:
        try:
            box[0] = function()
        except Exception as e:  # raised below, on every process
            box[1] = e
    distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    result: T = box[0]
    return result


def share(rows: NDArray[np.int64], queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's part of a step: whole runs of one query, dealt out so that all have about as many rows; may be empty."""
    if count() == 1:
        return rows
    groups = np.split(rows, np.flatnonzero(queries[1:] != queries[:-1]) + 1)
    held: list[list[NDArray[np.int64]]] = [[rows[:0]] for _ in range(count())]
    for group in groups:
        min(held, key=lambda parts: sum(map(len, parts))).append(group)
    return np.concatenate(held[rank()])


def sum_gradients(model: nn.Module) -> None:
    """Add up the gradients of all processes, in one message."""
    if count() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    distributed.all_reduce(flat)
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def sum_terms(terms: dict[str, float]) -> dict[str, float]:
    """The sum of all processes' loss terms, by name."""
    if count() == 1:
        return terms
    every: list[dict[str, float]] = [{} for _ in range(count())]
    distributed.all_gather_object(every, terms)
    names = dict.fromkeys(name for one in every for name in one)
    return {name: sum(one.get(name, 0.0) for one in every) for name in names}
