"""Puts the stand-in GPU of tests/standin in place of the real one."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgerec.engine import trt_plans
from edgerec.engine.gpu import Gpu
from edgerec.errors import EngineError

FOLDER = Path(__file__).resolve().parent / "standin"
GPU = Gpu(target="sm_90", name="Stand-in GPU", driver="13.0")
NAMES = ("tensorrt", "pycuda", "pycuda.driver", "cuda", "cuda.bindings", "cuda.bindings.driver", "standin_gpu")


@contextmanager
def standin(gpu: Gpu = GPU) -> Iterator[Any]:
    """Inside: a GPU, TensorRT 11, PyCUDA and cuda.bindings. Yields the device, module ``standin_gpu``."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        patch.syspath_prepend(str(FOLDER))
        patch.setattr(trt_plans, "find_gpu", lambda: gpu)
        device = importlib.import_module("standin_gpu")
        device.reset()
        try:
            yield device
        finally:
            for name in NAMES:
                sys.modules.pop(name, None)


def left_by_a_failed_opening(gpu: Any, share: float, opened: Callable[[], Any]) -> None:
    """An engine that finds this share of the memory it needs leaves none of it taken, though its error lives and nothing is collected."""
    engine = opened()
    needed = sum(map(len, gpu.MEMORY.blocks.values()))
    engine.close()
    gpu.MEMORY.limit = int(share * needed)
    gc.disable()
    try:
        with pytest.raises(EngineError, match="out of memory") as failed:
            opened()
        assert gpu.MEMORY.blocks == {}
        assert gpu.COUNTS["graphs"] == 0
        del failed
    finally:
        gc.enable()


def steps_of(gpu: Any, call: Callable[[], object]) -> tuple[int, int]:
    """Steps and launches of a call."""
    before = dict(gpu.COUNTS)
    call()
    return gpu.COUNTS["steps"] - before["steps"], gpu.COUNTS["launches"] - before["launches"]
