"""When training computes in bf16 by itself: where the processor is faster in it, and nowhere else."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from edgerec.training.loop import autocast, has_fast_bf16


def computes_in(precision: str) -> torch.dtype:
    with autocast(precision):
        return (torch.ones(8, 8) @ torch.ones(8, 8)).dtype


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx512_bf16": False, "amx_bf16": False, "cpu_name": "AMD EPYC"}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
    ],
)
def test_auto_takes_bf16_where_the_processor_is_faster_in_it(
    flags: dict[str, bool | str], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **flags})
    assert computes_in("auto") == expected
    assert computes_in("fp32") == torch.float32
    assert computes_in("bf16") == torch.bfloat16


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="reads the flags of x86 Linux")
def test_this_processor_is_asked_and_not_the_library_that_imitates_it() -> None:
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert has_fast_bf16("cpu") == bool(flags & ({"amx_bf16"} if "GenuineIntel" in flags else {"avx512_bf16"}))
