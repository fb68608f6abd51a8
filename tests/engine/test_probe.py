"""The probe's archive: read without zipfile where it is as `numpy.savez` writes it, and refused where it is damaged."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgerec.builder.pack import npz
from edgerec.engine import probe
from edgerec.engine.probe import read_arrays
from edgerec.errors import BundleError

DTYPES = [np.dtype(name) for name in ("int32", "float32", "float64", "uint8", "bool")]
ARRAYS = st.dictionaries(
    st.text("abcxyz_", min_size=1, max_size=8),
    st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))),
    max_size=5,
)


def assert_same(found: dict[str, NDArray[np.generic]], wanted: dict[str, NDArray[np.generic]]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(arrays=ARRAYS)
def test_an_archive_reads_back(arrays: dict[str, NDArray[np.generic]]) -> None:
    data = npz(arrays)
    assert probe._stored_members(data) is not None
    assert_same(read_arrays(data, "x"), arrays)


@given(arrays=ARRAYS)
def test_a_compressed_archive_is_read_by_zipfile(arrays: dict[str, NDArray[np.generic]]) -> None:
    room = io.BytesIO()
    np.savez_compressed(room, allow_pickle=False, **arrays)
    if arrays:
        assert probe._stored_members(room.getvalue()) is None
    assert_same(read_arrays(room.getvalue(), "x"), arrays)


@given(data=st.data())
def test_a_damaged_archive_is_refused_or_gives_what_zipfile_gives(data: st.DataObject) -> None:
    whole = npz({"a": np.arange(12, dtype=np.int32).reshape(3, 4), "b": np.ones(3, np.float32)})
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for _ in range(data.draw(st.integers(0, 3))):
        if broken:
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read_arrays(bytes(broken), "x")
    except BundleError:
        return
    with np.load(io.BytesIO(bytes(broken)), allow_pickle=False) as archive:
        assert_same(found, {name: archive[name] for name in archive.files})


def test_members_that_share_their_bytes_are_not_unpacked() -> None:
    """A small archive whose directory names one member a thousand times."""
    room = io.BytesIO()
    with zipfile.ZipFile(room, "w") as archive:
        archive.writestr("a.npy", bytes(50_000))
    data = room.getvalue()
    end = data[-22:]
    start = int.from_bytes(end[16:20], "little")
    entry = data[start:-22]
    entries = b"".join(
        entry.replace(b"a.npy", b"%c%c%c%c%c.npy" % tuple(b"%05d" % i)).replace(b"\x05\0\0\0\0\0", b"\x09\0\0\0\0\0", 1)
        for i in range(1000)
    )
    crafted = data[:start] + entries + end[:8] + (1000).to_bytes(2, "little") * 2 + len(entries).to_bytes(4, "little") + end[16:]
    assert probe._stored_members(crafted) is None
    with pytest.raises(BundleError):
        read_arrays(crafted, "x")
