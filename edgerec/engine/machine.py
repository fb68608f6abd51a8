"""The machine an engine runs on: how many cores this process may use, which instructions the CPU has."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

# The flags that decide which kernels an engine picks, by the kernel's own names in /proc/cpuinfo.
_X86 = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "avx512_bf16", "amx_int8", "amx_bf16")
_ARM = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")
_DOT_PRODUCT = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: its CPU affinity, cut by the CPU quota of its control group (v2) and of the groups above.

    A container limited to 1.5 cores gets 1: a second thread would be throttled for half of its time, in the middle of a request.

    Parameters
    ----------
    root : where ``/proc`` and ``/sys`` are looked for.

    Returns
    -------
    int, at least 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group = re.search(r"^0::(/.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    mount = root / "sys/fs/cgroup"
    folder = mount / (group.group(1).lstrip("/") if group else "")
    for level in (folder, *folder.parents):
        quota = re.fullmatch(r"(\d+) (\d+)\s*", _text(level / "cpu.max"))
        if quota and int(quota.group(2)):
            cores = min(cores, int(quota.group(1)) // int(quota.group(2)))
        if level == mount:
            break
    return max(1, cores)


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """The instruction sets that matter to an engine, sorted; empty where the system does not tell (not Linux)."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(cpuinfo), re.MULTILINE)
    return sorted({*_X86, *_ARM}.intersection(line.group(1).split())) if line else []


def int8_saturates(flags: list[str], machine: str = "") -> bool:
    """True if 8-bit products may saturate: x86 without VNNI adds pairs of u8 x s8 products in 16 bits.

    Such a CPU needs 7-bit weights (``reduce_range``). A CPU that does not tell its flags is taken to be one.

    Source: ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8 or reduce_range".
    """
    is_x86 = (machine or platform.machine()).lower() in ("x86_64", "amd64", "i686", "i386")
    return is_x86 and _DOT_PRODUCT.isdisjoint(flags)


def _text(path: Path) -> str:
    """A small system file, or nothing where there is none: absence is an answer here, not a fault."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
