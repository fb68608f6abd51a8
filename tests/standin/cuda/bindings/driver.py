"""What edgerec uses of cuda.bindings.driver: calls return a status and their result, nothing is raised."""

from __future__ import annotations

import enum
from typing import Any

import standin_gpu as gpu


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_UNKNOWN = 999
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


def CUstream(handle: int) -> int:
    return handle


def cuStreamBeginCapture(stream: int, mode: CUstreamCaptureMode) -> tuple[Any, ...]:
    if not gpu.OPTIONS["capture"]:
        return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
    gpu.QUEUES[stream].captured = []
    return (CUresult.CUDA_SUCCESS,)


def cuStreamEndCapture(stream: int) -> tuple[Any, ...]:
    work, gpu.QUEUES[stream].captured = gpu.QUEUES[stream].captured, None
    return CUresult.CUDA_SUCCESS, work


def cuGraphInstantiate(graph: Any, flags: int) -> tuple[Any, ...]:
    gpu.COUNTS["graphs"] += 1
    return CUresult.CUDA_SUCCESS, list(graph)


def cuGraphDestroy(graph: Any) -> tuple[Any, ...]:
    graph.clear()
    return (CUresult.CUDA_SUCCESS,)


def cuGraphExecDestroy(executable: Any) -> tuple[Any, ...]:
    gpu.COUNTS["graphs"] -= 1
    executable.clear()
    return (CUresult.CUDA_SUCCESS,)


def cuGraphLaunch(executable: Any, stream: int) -> tuple[Any, ...]:
    if gpu.MEMORY.lost:
        return (CUresult.CUDA_ERROR_UNKNOWN,)
    gpu.COUNTS["launches"] += 1
    for work in executable:
        gpu.QUEUES[stream].put(work)
    return (CUresult.CUDA_SUCCESS,)
