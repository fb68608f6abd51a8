"""The section file: what is written is read, and no damaged file is."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgerec.errors import BundleError
from edgerec.segment import ALIGNMENT, DTYPES, Column, SectionFile, write_sections

HEADER, ENTRY = 64, 128
SECTIONS = {"ids": np.arange(7, dtype=np.uint8), "rows": np.arange(6, dtype=np.int64).reshape(2, 3), "empty": np.empty(0, np.float32)}


@pytest.fixture
def path(tmp_path):
    write_sections(tmp_path / "a.seg", SECTIONS)
    return tmp_path / "a.seg"


arrays = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@settings(max_examples=50)
@given(sections=st.dictionaries(st.text("abcXYZ09._", min_size=1, max_size=32), arrays, max_size=6))
def test_what_is_written_is_read(tmp_path_factory, sections):
    path = tmp_path_factory.mktemp("segment") / "a.seg"
    size = write_sections(path, sections)
    assert path.stat().st_size == size
    opened = SectionFile(path)
    opened.verify()
    assert opened.names == tuple(sections)
    for name, array in sections.items():
        found = opened.column(name, array.dtype, array.ndim)
        np.testing.assert_array_equal(found.view(np.uint8) if array.ndim else found, array.view(np.uint8) if array.ndim else array)
        assert found.shape == array.shape
        assert not found.flags.writeable
        assert found.ctypes.data % ALIGNMENT == 0 or not found.size


def test_layout_is_the_documented_one(path):
    data = path.read_bytes()
    assert data[:8] == b"EDRSECT1"
    assert struct.unpack_from("<IIQ", data, 8) == (1, 3, len(data))
    name, dtype, rank, *rest = struct.unpack_from("<32sII4QQQ32sQ", data, HEADER + ENTRY)
    shape, (offset, length, _, zero) = rest[:4], rest[4:]
    assert (name.rstrip(b"\0"), dtype, rank, shape, length, zero) == (b"rows", 8, 2, [2, 3, 1, 1], 48, 0)
    assert np.frombuffer(data, "<i8", 6, offset).tolist() == list(range(6))


def test_chunks_are_laid_end_to_end(tmp_path):
    chunks = (np.arange(start, start + 3, dtype=np.int32) for start in (0, 3))
    write_sections(tmp_path / "a.seg", {"x": Column(np.dtype(np.int32), (6,), chunks)})
    assert SectionFile(tmp_path / "a.seg").column("x", np.int32).tolist() == list(range(6))


@pytest.mark.parametrize(
    "sections",
    [
        {"": np.zeros(1, np.int32)},
        {"x" * 33: np.zeros(1, np.int32)},
        {"x": np.zeros(1, np.complex64)},
        {"x": np.zeros((1,) * 5, np.int32)},
        {"x": Column(np.dtype(np.int32), (3,), [np.zeros(2, np.int32)])},
    ],
)
def test_what_does_not_fit_the_format_is_not_written(tmp_path, sections):
    with pytest.raises(ValueError, match="section"):
        write_sections(tmp_path / "a.seg", sections)


def test_an_existing_file_is_not_overwritten(path):
    with pytest.raises(FileExistsError):
        write_sections(path, SECTIONS)


@pytest.mark.parametrize(
    ("name", "dtype", "rank"), [("none", np.uint8, 1), ("ids", np.int32, 1), ("ids", np.uint8, 2), ("rows", np.int64, 1)]
)
def test_a_section_of_another_name_dtype_or_rank_is_refused(path, name, dtype, rank):
    with pytest.raises(BundleError, match=f"section '{name}' is"):
        SectionFile(path).column(name, dtype, rank)


def entry(i, field):
    """File offset of a field of section i."""
    return HEADER + ENTRY * i + {"name": 0, "dtype": 32, "rank": 36, "shape": 40, "offset": 72, "bytes": 80, "zero": 120}[field]


HOSTILE = {
    "magic": (0, b"EDRSECT2", "it begins with"),
    "version": (8, struct.pack("<I", 2), "of version 2"),
    "too many sections": (12, struct.pack("<I", 5000), "5000 sections do not fit"),
    "more sections than the file holds": (12, struct.pack("<I", 40), "sections do not fit"),
    "file size": (16, struct.pack("<Q", 2**63), "its header says"),
    "empty name": (entry(0, "name"), bytes(32), "has the name"),
    "name not ascii": (entry(0, "name"), b"\xff\xfe", "has the name"),
    "control character in a name": (entry(0, "name"), b"a\nb", "has the name"),
    "name of another section": (entry(1, "name"), b"ids\0", "has the name"),
    "unknown dtype": (entry(0, "dtype"), struct.pack("<I", 99), "has dtype 99"),
    "rank 5": (entry(0, "rank"), struct.pack("<I", 5), "rank 5"),
    "shape beyond its rank": (entry(0, "shape") + 8, struct.pack("<Q", 2), "shape"),
    "shape of 2^63": (entry(0, "shape"), struct.pack("<Q", 2**63), "shape"),
    "huge shape with an empty side": (entry(1, "shape"), struct.pack("<QQ", 2**62, 0), "shape"),
    "shape and bytes disagree": (entry(0, "shape"), struct.pack("<Q", 6), "has 7 bytes for shape"),
    "bytes and shape disagree": (entry(0, "bytes"), struct.pack("<Q", 8), "has 8 bytes for shape"),
    "offset past the end": (entry(0, "offset"), struct.pack("<Q", 2**20), "is at 1048576"),
    "offset that would overflow": (entry(0, "offset"), struct.pack("<Q", 2**64 - 64), "is at 18446744073709551552"),
    "misaligned": (entry(0, "offset"), struct.pack("<Q", HEADER + 3 * ENTRY + 1), "is at 449"),
    "over the table": (entry(0, "offset"), struct.pack("<Q", 0), "is at 0"),
    "over another section": (entry(1, "offset"), struct.pack("<Q", HEADER + 3 * ENTRY), "is at 448"),
    "reserved bytes": (entry(0, "zero"), b"\1", "has dtype"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_table_is_a_bundle_error(path, case):
    place, value, message = HOSTILE[case]
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(BundleError, match=message):
        SectionFile(path)


def test_every_truncation_is_a_bundle_error(path):
    data = path.read_bytes()
    for size in {*range(0, len(data), 37), HEADER - 1, HEADER, len(data) - 1}:
        path.write_bytes(data[:size])
        with pytest.raises(BundleError):
            SectionFile(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(BundleError, match="its header says"):
        SectionFile(path)


@settings(max_examples=200)
@given(data=st.data())
def test_a_flipped_byte_never_reads_outside_and_verify_finds_it_in_a_section(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "a.seg"
    write_sections(path, SECTIONS)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        opened = SectionFile(path)
    except BundleError:
        return
    for name in opened.names:
        for dtype in DTYPES.values():
            for rank in range(5):
                try:
                    column = opened.column(name, dtype, rank)
                except BundleError:
                    continue
                assert int(column.view(np.uint8).sum() if rank else column) >= 0  # reads every byte
    covered = any(start <= place < start + size for start, size in ((448, 7), (512, 48)))
    if covered:
        with pytest.raises(BundleError, match="is damaged"):
            opened.verify()


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"")], ids=["missing", "folder", "empty"])
def test_what_is_no_file_is_a_bundle_error(tmp_path, make):
    make(tmp_path / "b.seg")
    with pytest.raises(BundleError, match=r"b\.seg"):
        SectionFile(tmp_path / "b.seg")
