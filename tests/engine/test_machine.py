"""Cores and CPU flags, read from the system's files as they are in the wild."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgerec.engine.machine import cpu_flags, int8_saturates, usable_cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def system(root: Path, group: str, quotas: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for folder, quota in quotas.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / folder / "cpu.max").write_text(quota)
    return root


def test_affinity_counts_where_there_is_no_control_group(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1),
        ("50000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("0 0\n", 8),
        ("nonsense", 8),
        ("", 8),
    ],
)
def test_the_quota_of_the_group_is_kept(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(system(tmp_path, "0::/\n", {"": quota})) == cores


def test_the_tightest_group_on_the_way_up_counts(tmp_path: Path) -> None:
    quotas = {"a": "300000 100000", "a/b": "max 100000", "a/b/c": "500000 100000", "other": "100000 100000"}
    assert usable_cores(system(tmp_path, "1:name=systemd:/x\n0::/a/b/c\n", quotas)) == 3


def test_a_group_that_the_container_does_not_see_is_no_fault(tmp_path: Path) -> None:
    assert usable_cores(system(tmp_path, "0::/../../docker/abc\n", {"": "400000 100000"})) == 4


def test_flags_are_the_relevant_ones_sorted(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse2 fma avx2 avx512_vnni\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu_flags(tmp_path / "cpuinfo") == ["avx2", "avx512_vnni", "fma"]
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert cpu_flags(tmp_path / "cpuinfo") == ["asimd", "asimddp", "i8mm"]
    assert cpu_flags(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("flags", "machine", "saturates"),
    [
        (["avx2"], "x86_64", True),
        (["avx2", "avx512f"], "AMD64", True),
        (["avx2", "avx512_vnni"], "x86_64", False),
        (["avx2", "avx_vnni"], "x86_64", False),
        ([], "x86_64", True),
        (["asimd"], "aarch64", False),
        ([], "arm64", False),
    ],
)
def test_only_x86_without_vnni_saturates(flags: list[str], machine: str, saturates: bool) -> None:
    assert int8_saturates(flags, machine) is saturates
