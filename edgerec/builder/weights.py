"""The reference backend's engine file: the student's weights by name, read from ``student.safetensors`` without torch."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ..errors import BuildError, BundleError
from ..manifest import parse_json
from .contract import Export, read_bytes
from .pack import npz

_MAX_HEADER_BYTES = 100 << 20


def reference_engine(export: Export) -> bytes:
    """``engine.npz`` made of ``student.safetensors``. Raises BuildError."""
    path = export.folder / "student.safetensors"
    return npz(read_safetensors(read_bytes(path), str(path)))


def read_safetensors(data: bytes, what: str) -> dict[str, NDArray[np.float32]]:
    """Decode a safetensors file that holds float32 tensors only.

    Parameters
    ----------
    data : the file: u64 header length, JSON header ``{name: {dtype, shape, data_offsets}}``, the tensors, little-endian.
    what : its name, for the message.

    Raises
    ------
    BuildError : a length, an offset or a type does not fit.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER_BYTES):
        raise BuildError(f"{what}: the header of {length} bytes does not fit in a file of {len(data)}; it was cut short")
    try:
        header = parse_json(data[8 : 8 + length], f"{what}: header")
    except BundleError as error:
        raise BuildError(str(error)) from error
    if not isinstance(header, dict):
        raise BuildError(f"{what}: the header is not an object")
    body = memoryview(data)[8 + length :]
    return {name: _tensor(body, entry, f"{what}: {name!r:.80}") for name, entry in header.items() if name != "__metadata__"}


def _tensor(body: memoryview, entry: Any, what: str) -> NDArray[np.float32]:
    if not isinstance(entry, dict) or entry.get("dtype") != "F32":
        raise BuildError(f"{what} has dtype {entry.get('dtype') if isinstance(entry, dict) else entry!r:.80}, expected F32")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise BuildError(f"{what}: shape and data_offsets must be lists of non-negative integers")
    start, end = offsets
    if not start <= end <= len(body) or end - start != 4 * math.prod(shape):
        raise BuildError(f"{what}: bytes {start} to {end} of {len(body)} do not hold float32 {shape}")
    return np.frombuffer(body[start:end], dtype="<f4").astype(np.float32).reshape(shape)


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
