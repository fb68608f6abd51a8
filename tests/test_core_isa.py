"""EDGEREC_ISA and set_isa: every instruction set of this machine gives the same answers; others are refused clearly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from edgerec import InputError
from edgerec._core import isa, isas, set_isa, topk

NAMES = ["scalar", "avx2", "avx512", "neon", "avx512_vnni", "avx_vnni", "neon_dotprod", "neon_i8mm", "avx512_bf16", "amx"]

# Prints the set in use and a digest of selections over inputs that reach every branch of the kernels.
PROGRAM = """
import hashlib
import numpy as np
from edgerec._core import isa, topk
rng = np.random.default_rng(7)
digest = hashlib.sha256()
for n in (1, 63, 64, 65, 1000, 5000, 70_000):
    for scores in (rng.standard_normal(n), np.arange(n), rng.integers(0, 4, n), np.where(rng.random(n) < 0.3, np.nan, rng.random(n))):
        for k in (1, 10, 100, 1000):
            for array in topk(scores.astype(np.float32), k, rng.random(n) < 0.1):
                digest.update(array.tobytes())
print(isa(), digest.hexdigest())
"""

# An alternate signal stack of 8 KB, on which the state of AMX tiles would not fit: Linux grants a process that has one no tiles.
CRAMPED = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(room), 0, 8192)), None) == 0
"""


def run(name: str | None, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "EDGEREC_ISA"}
    if name is not None:
        env["EDGEREC_ISA"] = name
    return subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    before = isa()
    yield
    set_isa(before)


@pytest.fixture(scope="module")
def unforced() -> list[str]:
    done = run(None)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_scalar_is_always_there_and_the_fastest_is_the_default(unforced: list[str]) -> None:
    assert isas()[0] == "scalar"
    set_isa("auto")
    assert unforced[0] == isa()
    assert isa() in isas()


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_variable_forces_a_set_or_fails_clearly(name: str, unforced: list[str]) -> None:
    done = run(name)
    if name in isas():
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [name, unforced[1]]
    else:
        assert done.returncode != 0
        assert f"InputError: instruction set '{name}' is not supported by this CPU or build; supported: scalar" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="AMX is asked for on Linux alone")
def test_a_process_that_is_refused_tiles_takes_the_next_set_and_says_so_when_they_are_forced(unforced: list[str]) -> None:
    refused = run(None, CRAMPED + PROGRAM)
    assert refused.returncode == 0, refused.stderr
    assert refused.stdout.split() == [next(name for name in (unforced[0], "avx512_bf16") if name != "amx"), unforced[1]]
    forced = run("amx", CRAMPED + PROGRAM)
    assert forced.returncode != 0
    assert "InputError: instruction set 'amx' is not supported by this CPU or build; supported: scalar" in forced.stderr


def test_an_unknown_name_in_the_environment_fails_clearly() -> None:
    done = run("sse9")
    assert done.returncode != 0
    assert "InputError: unknown instruction set 'sse9'; expected auto or one of: scalar" in done.stderr


def test_an_empty_variable_means_auto(unforced: list[str]) -> None:
    assert run("").stdout.split() == unforced


@pytest.mark.parametrize("name", ["", "AVX2", "sse9", None, 2])
def test_set_isa_refuses_what_is_no_name(name: str) -> None:
    with pytest.raises(InputError, match="unknown instruction set"):
        set_isa(name)


def test_set_isa_takes_effect_at_once() -> None:
    scores = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    answers = []
    for name in isas():
        set_isa(name)
        assert isa() == name
        answers.append(topk(scores, 50)[0].tolist())
    assert all(answer == answers[0] for answer in answers)
