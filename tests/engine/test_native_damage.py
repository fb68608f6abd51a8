"""Bit flips and cuts of a real engine.bin: refused with the name of the section, or answered as before; never a crash."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from fixtures_export import random_rows
from numpy.typing import NDArray

from edgerec._native import Encoder
from edgerec.engine import open_engine
from edgerec.errors import BundleError, InputError
from edgerec.segment import SectionFile
from edgerec.types import Batch

from .native_bundle import PRECISIONS, native_bundle

BATCH = Batch(**random_rows(np.random.default_rng(1), 3, vocab=110, features=True))
LENGTHS = BATCH.attention_mask.sum(axis=1, dtype=np.int64)
STARTS = np.arange(BATCH.size, dtype=np.int64) * BATCH.input_ids.shape[1]


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_bundle(tmp_path_factory.mktemp("native"), request.param)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bits flipped, or a cut, or a cut with a header that agrees."""
    kind = rng.integers(4)
    if kind < 2:
        cut = data[: rng.integers(len(data))]
        return cut if kind or len(cut) < 24 else cut[:16] + struct.pack("<Q", len(cut)) + cut[24:]
    new = bytearray(data)
    # The header and the table are a small part of the file: half of the flips are theirs.
    end = 64 + 128 * struct.unpack_from("<I", data, 12)[0] if kind == 2 else len(data)
    for place in rng.choice(end, rng.integers(1, 9), replace=False).tolist():
        new[place] ^= 1 << rng.integers(8)
    return bytes(new)


def score(data: bytes) -> NDArray[np.float32]:
    """Logits, whatever the hash of the bytes is."""
    room = np.empty(len(data) + 64, np.uint8)
    aligned = room[-room.ctypes.data % 64 :][: len(data)]
    aligned[:] = np.frombuffer(data, np.uint8)
    tokens = BATCH.input_ids.reshape(-1), BATCH.token_type_ids.reshape(-1), STARTS, LENGTHS
    return Encoder(aligned, isa="scalar", threads=1).score(*tokens, BATCH.feature_ids.reshape(-1), BATCH.feature_weights.reshape(-1))


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_refused_or_answers_as_before(bundle: Path, tmp_path: Path, count: int) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    data, rng = (bundle / "engine.bin").read_bytes(), np.random.default_rng(count)
    expected = open_engine(bundle, threads=1).run(BATCH)
    refused = same = without_hash = 0
    for _ in range(count):
        broken = damaged(data, rng)
        (copy / "engine.bin").write_bytes(broken)
        try:
            same += np.array_equal(open_engine(copy, threads=1, probe=False).run(BATCH), expected)
        except BundleError as error:
            refused += "engine.bin" in str(error)
        # Were the manifest to vouch for it, the engine by itself reads nothing outside: it refuses, or gives some number.
        try:
            without_hash += score(broken).shape == (BATCH.size,)
        except InputError:
            without_hash += 1
    assert (refused + same, without_hash) == (count, count)
    assert refused == count  # no damage has the hash of the whole


def test_the_message_names_the_section(bundle: Path, tmp_path: Path) -> None:
    data = (bundle / "engine.bin").read_bytes()
    file = SectionFile(bundle / "engine.bin")
    for wanted in ("layer01.up.weight", "word", "head"):
        place = 64 + 128 * file.names.index(wanted)
        copy = Path(shutil.copytree(bundle, tmp_path / wanted))
        new = bytearray(data)
        new[struct.unpack_from("<Q", data, place + 72)[0]] ^= 1
        (copy / "engine.bin").write_bytes(new)
        with pytest.raises(BundleError, match=f"section '{wanted}' is damaged"):
            open_engine(copy)
    renamed = data.replace(b"layer01.up.weight", b"layer01.up.we1ght", 1)
    with pytest.raises(InputError, match=r"weights of layer 1: section 'layer01\.up\.weight': "):
        score(renamed)
    with pytest.raises(InputError, match="header or table of sections: "):
        score(data[:-1])
