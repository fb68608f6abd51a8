"""safetensors without torch: what is written is read, and no damaged file is."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from fixtures_export import write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgerec.builder.weights import read_safetensors
from edgerec.errors import BuildError

tensors = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=10).filter(lambda name: name != "__metadata__"),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    max_size=4,
)


def raw(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@settings(max_examples=50, deadline=None)
@given(tensors)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, expected: dict[str, np.ndarray]) -> None:
    path = tmp_path_factory.mktemp("safetensors") / "x"
    write_safetensors(path, expected, {"format": "x"})
    found = read_safetensors(path.read_bytes(), "x")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 100) + b"{}",
        raw(b"{"),
        raw(b"\xff"),
        raw(b"[" * 5000),
        raw([]),
        raw({"a": None}),
        raw({"a": []}),
        raw(entry(dtype="F16"), bytes(8)),
        raw(entry(dtype=None), bytes(8)),
        raw(entry(shape="2"), bytes(8)),
        raw(entry(shape=[-2]), bytes(8)),
        raw(entry(shape=[True, 2]), bytes(8)),
        raw(entry(shape=[2**40, 2**40]), bytes(8)),
        raw(entry(shape=[3]), bytes(8)),
        raw(entry(data_offsets=[0]), bytes(8)),
        raw(entry(data_offsets=[8, 0]), bytes(8)),
        raw(entry(data_offsets=[0, 16], shape=[4]), bytes(8)),
        raw(entry(data_offsets=[-8, 0]), bytes(8)),
        raw(b'{"a": {}, "a": {}}'),
    ],
)
def test_a_damaged_file_is_a_build_error(data: bytes) -> None:
    with pytest.raises(BuildError, match="x"):
        read_safetensors(data, "x")


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 40))
def test_any_byte_changed_or_cut_gives_tensors_or_a_build_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: int
) -> None:
    path: Path = tmp_path_factory.mktemp("flip") / "x"
    write_safetensors(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)}, {})
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    try:
        found = read_safetensors(bytes(data[: len(data) - cut]), "x")
    except BuildError:
        return
    assert all(value.dtype == np.float32 for value in found.values())
