"""The driver is asked first: what it answers, and that no answer crashes anything."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from edgerec.engine.gpu import Gpu, find_gpu

SOURCE = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorString(int status, const char **text) { *text = status == 100 ? "no CUDA-capable device is detected" : 0; return 0; }
int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Some GPU", size); return 0; }
"""


def driver(folder: Path, *, init: int, count: int) -> str:
    (folder / "cuda.c").write_text(SOURCE)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}", "cuda.c", "-o", "libcuda.so.1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return str(folder / "libcuda.so.1")


def test_no_driver_is_an_answer(tmp_path: Path) -> None:
    found = find_gpu(str(tmp_path / "libcuda.so.1"))
    assert (found.target, found.name) == ("", "")
    assert "no NVIDIA driver on this machine" in found.reason


@pytest.mark.parametrize(
    ("init", "count", "reason"),
    [
        (100, 0, "cuInit gives 100 (no CUDA-capable device is detected)"),
        (803, 0, "cuInit gives 803 (unknown error)"),
        (0, 0, "no device for this process"),
    ],
)
def test_a_driver_without_a_device_says_why(tmp_path: Path, init: int, count: int, reason: str) -> None:
    found = find_gpu(driver(tmp_path, init=init, count=count))
    assert reason in found.reason
    assert found.target == ""


def test_a_device_is_described(tmp_path: Path) -> None:
    assert find_gpu(driver(tmp_path, init=0, count=1)) == Gpu(target="sm_89", name="Some GPU", driver="13.1")
