"""The GPU, asked through the driver alone: what is there, before anything that would crash without it is touched."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first NVIDIA GPU that this process may use, or why there is none.

    Attributes
    ----------
    target : ``sm_89`` and the like; empty without a GPU.
    name, driver : as the driver gives them; driver is the CUDA version it supports, ``13.0``.
    reason : why there is no GPU; empty when there is.
    """

    target: str = ""
    name: str = ""
    driver: str = ""
    reason: str = ""


def find_gpu(library: str = "libcuda.so.1") -> Gpu:
    """Load the driver, initialise it (``cuInit``) and ask for device 0. Never raises: no GPU is an answer.

    TensorRT without a driver does not fail cleanly (8.6, and the lean and dispatch runtimes, crash the process), so this comes first.
    """
    try:
        driver: Any = ctypes.CDLL(library)
    except OSError:
        return Gpu(reason=f"no NVIDIA driver on this machine ({library} cannot be loaded)")
    if status := driver.cuInit(0):
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        return Gpu(reason=f"the NVIDIA driver does not start: cuInit gives {status} ({(text.value or b'unknown error').decode()})")
    device, count, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value or driver.cuDeviceGet(ctypes.byref(device), 0):
        return Gpu(reason="the NVIDIA driver has no device for this process")
    major, minor, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(128)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    driver.cuDeviceGetName(name, len(name), device)
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(target=f"sm_{major.value}{minor.value}", name=name.value.decode(errors="replace"), driver=cuda)
