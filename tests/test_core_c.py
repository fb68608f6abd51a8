"""The C tests under AddressSanitizer, UBSan and ThreadSanitizer, and NEON under emulation where its tools are installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
C_TESTS = ROOT / "tests" / "csrc"
FUZZERS = {"fuzz_core", "fuzz_engine", "fuzz_wordpiece"}


def make(target: str, out: Path, rounds: int, *variables: str) -> dict[str, int]:
    """Run a target of tests/csrc/Makefile; the number of checks by program."""
    env = {key: value for key, value in os.environ.items() if key not in ("CFLAGS", "LDFLAGS", "LD_PRELOAD")}
    command = ["make", "-j2", "-C", str(C_TESTS), target, f"OUT={out}", f"ROUNDS={rounds}", *variables]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    programs = re.findall(r"^== (\w+)", done.stdout, re.MULTILINE)
    counts = [(int(passed), int(failed)) for passed, failed in re.findall(r"^(\d+) passed, (\d+) failed$", done.stdout, re.MULTILINE)]
    assert len(counts) == len(programs)
    assert all(failed == 0 for _, failed in counts)
    return {program: passed for program, (passed, _) in zip(programs, counts, strict=True)}


def test_every_c_source_has_a_test_and_every_test_says_how_to_compile_it() -> None:
    tests = sorted(C_TESTS.glob("test_*.c"))
    tested = {path.stem.removeprefix("test_") for path in tests}
    assert {path.stem for path in (ROOT / "csrc").glob("*.c")} <= tested
    for path in [*tests, *C_TESTS.glob("fuzz_*.c")]:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert first.startswith("/* cc -std=c11 -g"), path
        assert "-fsanitize=address,undefined" in first, path


def test_the_c_suite_passes_under_sanitizers(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    counts = make("test", tmp_path, 6000)
    assert set(counts) == {path.stem.removeprefix("test_") for path in C_TESTS.glob("test_*.c")} | FUZZERS
    assert all(count > 0 for count in counts.values())
    record_property("c_checks", sum(counts.values()))


def test_the_threads_of_the_engine_race_for_nothing(tmp_path: Path) -> None:
    assert set(make("tsan", tmp_path, 0, "TSAN=pool engine")) == {"pool", "engine"}


@pytest.mark.slow
def test_the_threads_of_mid_fusion_race_for_nothing(tmp_path: Path) -> None:
    assert set(make("tsan", tmp_path, 0, "TSAN=items mid")) == {"items", "mid"}


@pytest.mark.slow
def test_the_c_suite_passes_on_arm(tmp_path: Path) -> None:
    missing = [tool for tool in ("aarch64-linux-gnu-gcc", "qemu-aarch64") if shutil.which(tool) is None]
    assert missing == [], f"install them: {missing} (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)"
    assert min(make("test-arm", tmp_path, 6000).values()) > 0


def test_the_header_is_a_manual() -> None:
    """At least 30 % of edgerec.h is comment, and every function has one before it or in its section."""
    header = (ROOT / "csrc" / "edgerec.h").read_text(encoding="utf-8")
    comments = "".join(re.findall(r"/\*.*?\*/", header, re.DOTALL))
    assert len(comments) >= 0.3 * len(header)


def test_the_library_needs_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    """No allocation, no input or output, no environment, no locale, no clock, no state: read off the compiled objects."""
    allowed = {
        "memcpy",
        "memset",
        "memcmp",
        "memmove",
        "floor",
        "sqrtf",
        "getauxval",
        "__cpu_model",
        "__cpu_features2",
        "__cpu_indicator_init",
    }
    for path in sorted((ROOT / "csrc").glob("*.c")):
        out = tmp_path / f"{path.stem}.o"
        flags = ["-std=c11", "-O0", "-fno-pic", "-fno-stack-protector"]
        subprocess.run([os.environ.get("CC", "cc"), *flags, "-I", str(path.parent), "-c", str(path), "-o", str(out)], check=True)
        symbols = subprocess.run(["nm", str(out)], capture_output=True, text=True, check=True).stdout.splitlines()
        kinds = [(line.split()[-2], line.split()[-1]) for line in symbols]
        needed = {name for kind, name in kinds if kind == "U" and not name.startswith("edr_")}
        # The pool alone has threads, memory for them, the cores they may use, and the clock; isa alone asks the system for tiles.
        needed = {name for name in needed if path.stem != "pool" or not name.startswith(("pthread_", "sig"))}
        cores = {"sched_getaffinity", "sched_getcpu", "__sched_cpucount"}
        own = {"pool": {"calloc", "free", "clock_gettime", *cores}, "isa": {"syscall"}}.get(path.stem, set())
        assert needed <= allowed | own, path
        assert [name for kind, name in kinds if kind in "bBdDcC"] == [], f"{path} has writable data"
