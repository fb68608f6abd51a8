"""What is special to the native engine: hostile files, forks, threads, several engines, bits that depend on nothing but the row."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from fixtures_export import make_export
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerec._core import isas
from edgerec._native import Encoder
from edgerec.builder import build_engine
from edgerec.engine import open_engine
from edgerec.errors import BundleError, EngineError, InputError
from edgerec.types import Batch

from .native_bundle import PRECISIONS, native_bundle, part, rows

# The parent forks while another of its threads is scoring; child and grandchild score with threads of their own.
FORK = """
import os, sys, threading
import numpy as np
from edgerec.engine import open_engine
from edgerec.types import Batch

engine = open_engine(sys.argv[1], threads=4)
batch = Batch(**np.load(sys.argv[2]))
expected = engine.run(batch)
done = threading.Event()
def keep_busy():
    while not done.is_set():
        engine.run(batch)
busy = threading.Thread(target=keep_busy)
busy.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(engine.run(batch), expected) for _ in range(3))
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if np.array_equal(engine.run(batch), expected) else 7)
        os._exit(0 if same and os.waitpid(grandchild, 0)[1] == 0 else 3)
    if os.waitpid(child, 0)[1] != 0 or not np.array_equal(engine.run(batch), expected):
        done.set()
        sys.exit(4)
done.set()
busy.join()
child = os.fork()
if child == 0:  # leaves in the ordinary way, through finalisation
    sys.exit(0 if np.array_equal(engine.run(batch), expected) else 5)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_bundle(tmp_path_factory.mktemp("native"), request.param)


def forge(bundle: Path, target: Path, data: bytes) -> Path:
    """A bundle whose manifest vouches for `data` as its engine file."""
    copy = Path(shutil.copytree(bundle, target))
    (copy / "engine.bin").write_bytes(data)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["engine.bin"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def entries(data: bytes) -> Iterator[tuple[int, str, int, int]]:
    """Place of the entry, name, offset and bytes of each section."""
    for i in range(struct.unpack_from("<I", data, 12)[0]):
        place = 64 + 128 * i
        yield place, data[place : place + 32].rstrip(b"\0").decode(), *struct.unpack_from("<QQ", data, place + 72)


def entry(data: bytes, wanted: str) -> int:
    return next(place for place, name, _, _ in entries(data) if name == wanted)


def sized(data: bytes) -> bytes:
    """With a header that agrees with the size."""
    return data[:16] + struct.pack("<Q", len(data)) + data[24:]


def changed(data: bytes, place: int, new: bytes) -> bytes:
    return data[:place] + new + data[place + len(new) :]


def aligned(data: bytes) -> NDArray[np.uint8]:
    """A copy at a multiple of 64, as a mapping is."""
    room = np.empty(len(data) + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return room[start : start + len(data)]


HOSTILE = {
    "zero bytes": lambda d: b"",
    "one byte": lambda d: d[:1],
    "half a header": lambda d: d[:32],
    "a header alone": lambda d: sized(d[:64]),
    "half a table": lambda d: sized(d[: 64 + 128 * 3 + 17]),
    "a byte less": lambda d: d[:-1],
    "a byte less, and a header that agrees": lambda d: sized(d[:-1]),
    "a byte more": lambda d: d + b"\0",
    "another magic": lambda d: changed(d, 0, b"EDRSECT2"),
    "a newer version": lambda d: changed(d, 8, struct.pack("<I", 2)),
    "a version of zero": lambda d: changed(d, 8, struct.pack("<I", 0)),
    "no section": lambda d: changed(d, 12, struct.pack("<I", 0)),
    "more sections than fit": lambda d: changed(d, 12, struct.pack("<I", 4096)),
    "absurdly many sections": lambda d: changed(d, 12, b"\xff\xff\xff\xff"),
    "an absurd size": lambda d: changed(d, 16, b"\xff" * 8),
    "a size of zero": lambda d: changed(d, 16, b"\0" * 8),
    "a name that is not there": lambda d: changed(d, entry(d, "word"), b"w0rd"),
    "a name twice": lambda d: changed(d, entry(d, "type"), b"word\0"),
    "another dtype": lambda d: changed(d, entry(d, "layer00.qkv.bias") + 32, struct.pack("<I", 5)),
    "an unknown dtype": lambda d: changed(d, entry(d, "layer00.qkv.bias") + 32, struct.pack("<I", 99)),
    "a rank of five": lambda d: changed(d, entry(d, "word") + 36, struct.pack("<I", 5)),
    "an absurd shape": lambda d: changed(d, entry(d, "word") + 40, b"\xff" * 8),
    "a shape whose product overflows": lambda d: changed(d, entry(d, "word") + 40, struct.pack("<4Q", 2**32, 2**32, 1, 1)),
    "another shape": lambda d: changed(d, entry(d, "position") + 40, struct.pack("<Q", 63)),
    "an offset in the table": lambda d: changed(d, entry(d, "head") + 72, struct.pack("<Q", 64)),
    "an offset that is not aligned": lambda d: changed(d, entry(d, "head") + 72, struct.pack("<Q", 65)),
    "an offset past the end": lambda d: changed(d, entry(d, "head") + 72, struct.pack("<Q", len(d) // 64 * 64 + 64)),
    "an absurd offset": lambda d: changed(d, entry(d, "head") + 72, struct.pack("<Q", 2**64 - 64)),
    "absurdly many bytes": lambda d: changed(d, entry(d, "head") + 80, b"\xff" * 8),
    "no bytes": lambda d: changed(d, entry(d, "head") + 80, b"\0" * 8),
    "overlapping sections": lambda d: changed(d, entry(d, "layer00.up.weight") + 72, d[entry(d, "layer00.qkv.weight") + 72 :][:8]),
    "only zeros": lambda d: bytes(len(d)),
    "another file": lambda d: b"#!/bin/sh\nexit 1\n" * 100,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_what_to_do(bundle: Path, tmp_path: Path, name: str) -> None:
    copy = forge(bundle, tmp_path / "copy", HOSTILE[name]((bundle / "engine.bin").read_bytes()))
    with pytest.raises(BundleError, match=r"engine\.bin .*build"):
        open_engine(copy, probe=False)


@pytest.mark.parametrize("place", range(11))
@pytest.mark.parametrize("value", [-(2**31), -1, 0, 3, 33, 2**20 + 32, 2**31 - 1])
def test_every_size_of_the_model_is_checked(bundle: Path, tmp_path: Path, place: int, value: int) -> None:
    if place in (6, 10) and value == 0:
        return  # a model without pooler, or fp32: what the size says may be so
    data = (bundle / "engine.bin").read_bytes()
    start = next(offset for _, name, offset, _ in entries(data) if name == "config")
    copy = forge(bundle, tmp_path / "copy", changed(data, start + 4 * place, struct.pack("<i", value)))
    with pytest.raises(BundleError, match="build"):
        open_engine(copy, probe=False)


def test_a_file_cut_at_any_section_is_refused(bundle: Path) -> None:
    data = (bundle / "engine.bin").read_bytes()
    edges = {edge + near for _, _, offset, size in entries(data) for edge in (offset, offset + size) for near in (-1, 0, 1)}
    for end in sorted(edge for edge in edges if edge < len(data)):
        for cut in (data[:end], sized(data[:end])):
            with pytest.raises(InputError):
                Encoder(aligned(cut), isa="scalar", threads=1)


def test_bit_flips_in_header_and_table_are_refused_or_harmless(bundle: Path) -> None:
    data = (bundle / "engine.bin").read_bytes()
    room, rng, refused = aligned(data), np.random.default_rng(3), 0
    end = 64 + 128 * struct.unpack_from("<I", data, 12)[0]
    batch = rows(3)
    given = (np.ones(3, np.int32), np.zeros(3, np.int32), np.array([0], np.int64), np.array([3], np.int64))
    features = (batch.feature_ids[0].copy(), batch.feature_weights[0].copy())
    expected = Encoder(room, isa="scalar", threads=1).score(*given, *features)
    for place in rng.integers(0, end, 1500).tolist():
        bit = np.uint8(1 << rng.integers(8))
        room[place] ^= bit
        try:
            np.testing.assert_array_equal(Encoder(room, isa="scalar", threads=1).score(*given, *features), expected)
        except InputError:
            refused += 1
        room[place] ^= bit
    # A checksum and the reserved bytes are not looked at when a model is opened: their flips change nothing.
    assert 300 < refused < 1500


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400), header=st.booleans())
def test_random_bytes_are_refused(data: bytes, header: bool) -> None:
    if header:
        data = b"EDRSECT1" + struct.pack("<IIQ", 1, 2, len(data) + 64) + bytes(40) + data
    with pytest.raises(InputError):
        Encoder(aligned(data), isa="scalar", threads=1)


def test_an_engine_of_another_student_is_refused(bundle: Path, tmp_path: Path) -> None:
    build_engine(make_export(tmp_path / "export", features=False), tmp_path / "other", backend="native")
    copy = forge(bundle, tmp_path / "copy", (tmp_path / "other" / "engine.bin").read_bytes())
    with pytest.raises(BundleError, match="buckets"):
        open_engine(copy, probe=False)


def test_threads_company_and_order_change_no_bit(bundle: Path) -> None:
    batch = rows(70, seed=5)
    engines = [open_engine(bundle, threads=count) for count in (1, 2, 4)]
    expected = engines[0].run(batch)
    rng = np.random.default_rng(6)
    for engine in engines:
        np.testing.assert_array_equal(engine.run(batch), expected)
        for _ in range(10):
            places = rng.permutation(batch.size)[: rng.integers(1, batch.size)]
            np.testing.assert_array_equal(engine.run(part(batch, places)), expected[places])


def test_instruction_sets_agree(bundle: Path) -> None:
    batch, data = rows(20, seed=8), aligned((bundle / "engine.bin").read_bytes())
    lengths = batch.attention_mask.sum(axis=1)
    given = (batch.input_ids.reshape(-1), batch.token_type_ids.reshape(-1), np.arange(20) * 32, lengths)
    features = (batch.feature_ids.reshape(-1), batch.feature_weights.reshape(-1))
    expected = Encoder(data, isa="scalar", threads=1).score(*given, *features)
    exact = json.loads((bundle / "manifest.json").read_text())["precision"] == "fp32"
    for name in isas():
        found = Encoder(data, isa=name, threads=2).score(*given, *features)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if exact else 0.02, err_msg=name)


def test_many_threads_share_two_engines(bundle: Path) -> None:
    batches = [rows(1 + seed % 40, seed=seed) for seed in range(30)]
    with closing(open_engine(bundle, threads=3)) as first, closing(open_engine(bundle, threads=2)) as second:
        engines = (first, second)
        expected = [first.run(batch) for batch in batches]

        def run(place: int) -> bool:
            return np.array_equal(engines[place % 2].run(batches[place % 30]), expected[place % 30])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(run, range(300)))


def test_a_forked_child_has_threads_of_its_own(bundle: Path, tmp_path: Path) -> None:
    batch = rows(60, seed=2)
    np.savez(tmp_path / "batch.npz", **{name: getattr(batch, name) for name in Batch.__dataclass_fields__})
    # From 3.12 on Python warns of any fork beside threads, which is what this is about.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(bundle), str(tmp_path / "batch.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell a process its threads and its size")
def test_opening_and_closing_leaves_nothing_behind(bundle: Path) -> None:
    batch = rows(40)

    def state() -> tuple[int, int, int]:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), resident

    def cycle(count: int) -> None:
        for _ in range(count):
            engine = open_engine(bundle, threads=3)
            engine.run(batch)
            engine.close()

    cycle(20)
    threads, files, resident = state()
    cycle(150)
    after = state()
    assert after[0] <= threads  # fewer, when an engine of another test was collected meanwhile
    assert after[1] <= files
    assert after[2] < resident + (4 << 20)


def test_too_many_threads_are_an_engine_error(bundle: Path) -> None:
    with pytest.raises(EngineError, match="threads is 1025"):
        open_engine(bundle, threads=1025)
