"""The probe: a few real rows and the logits the build machine computed for them, scored again at every load."""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.format import read_array
from numpy.typing import NDArray

from ..bundle import BundleReader
from ..errors import BundleError, EngineError
from ..types import Batch
from . import Engine

PROBE = "probe.npz"
_MAX_BYTES = 1 << 34

# Of a zip archive: its end, an entry of its directory, and what precedes a member; fields that say nothing here are left out.
_END = struct.Struct("<4s4HIIH")
_ENTRY = struct.Struct("<4s2xBxHH4xIIIHHH8xI")
_LOCAL = struct.Struct("<4s22xHH")
_NEWEST = 63
"""The version of the format, times ten, up to which zipfile reads."""


def check_probe(engine: Engine, files: BundleReader) -> None:
    """Score the probe rows and compare with the recorded logits.

    Raises
    ------
    BundleError : the probe is missing or damaged.
    EngineError : a logit is further off than ``parity.json: probe_tolerance``.
    """
    root = files.root
    arrays = read_arrays(files.read(PROBE), f"{root}: {PROBE}")
    parity = files.json("parity.json")
    tolerance = parity.get("probe_tolerance") if isinstance(parity, dict) else None
    if not isinstance(tolerance, (int, float)) or isinstance(tolerance, bool) or not 0 < tolerance < math.inf:
        raise BundleError(f"{root}: parity.json: probe_tolerance is {tolerance!r:.80}, expected a positive number")
    expected = arrays.get("logits")
    batch = batch_from(arrays, f"{root}: {PROBE}")
    if expected is None or expected.dtype != np.float32 or expected.shape != (batch.size,):
        raise BundleError(f"{root}: {PROBE}: logits must be float32 [{batch.size}]")
    found = engine.run(batch)
    worst = float(np.max(np.abs(found - expected), initial=0.0))
    if not worst <= tolerance:
        precision, flags = files.manifest.precision, files.manifest.fingerprint.get("cpu_flags", [])
        raise EngineError(
            f"{root}: this machine does not compute the {precision} engine as the build machine did: a probe logit is off by "
            f"{worst:.3g}, allowed {tolerance:.3g} (built on a CPU with {', '.join(flags) or 'unknown flags'}); "
            "build the bundle on this machine, or with precision fp32"
        )


def batch_from(arrays: Mapping[str, NDArray[Any]], what: str) -> Batch:
    """The batch in a decoded ``.npz`` (probe or calibration sample); feature arrays may be absent. Raises BundleError."""
    missing = {"input_ids", "attention_mask", "token_type_ids"} - arrays.keys()
    if missing:
        raise BundleError(f"{what} lacks {', '.join(sorted(missing))}")
    if arrays["input_ids"].ndim != 2:
        raise BundleError(f"{what}: input_ids has {arrays['input_ids'].ndim} dimensions, expected 2")
    rows = arrays["input_ids"].shape[0]
    return Batch(
        input_ids=arrays["input_ids"],
        attention_mask=arrays["attention_mask"],
        token_type_ids=arrays["token_type_ids"],
        feature_ids=arrays.get("feature_ids", np.zeros((rows, 0), np.int32)),
        feature_weights=arrays.get("feature_weights", np.zeros((rows, 0), np.float32)),
    )


def read_arrays(data: bytes, what: str) -> dict[str, NDArray[Any]]:
    """Decode an ``.npz`` without pickle, refusing one that unpacks to more than 16 GiB or far more than its size. Raises BundleError."""
    try:
        stored = _stored_members(data)
        if stored is not None:
            return {name: read_array(io.BytesIO(member), allow_pickle=False) for name, member in stored.items()}
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > min(_MAX_BYTES, 1000 * len(data)):
                raise BundleError(f"{what} would unpack to {total} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    # numpy and zipfile report damage with half a dozen unrelated exceptions (BadZipFile, zlib.error, EOFError, KeyError, SyntaxError...).
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{what} is not a readable .npz file: {error}") from error


def _stored_members(data: bytes) -> dict[str, bytes] | None:
    """The arrays of an archive as `numpy.savez` writes it, nothing compressed; None: it is of another kind, or damaged, and for zipfile.

    The probe is read whenever a server starts, and zipfile takes longer for it than its rows take to be scored.
    Source: PKWARE's APPNOTE.TXT, 4.3.
    """
    if len(data) < _END.size:
        return None
    magic, *disks, count, total, size, start, comment = _END.unpack_from(data, len(data) - _END.size)
    if magic != b"PK\x05\x06" or any(disks) or comment or count != total or start + size != len(data) - _END.size:
        return None
    members: dict[str, bytes] = {}
    for _ in range(count):
        if start + _ENTRY.size > len(data):
            return None
        magic, needs, flags, method, checksum, packed, plain, name_size, extra, comment, place = _ENTRY.unpack_from(data, start)
        name = data[start + _ENTRY.size : start + _ENTRY.size + name_size]
        start += _ENTRY.size + name_size + extra + comment
        if magic != b"PK\x01\x02" or needs > _NEWEST or flags or method or packed != plain:
            return None
        if not name.isascii() or not name.endswith(b".npy"):
            return None
        if place + _LOCAL.size > len(data):
            return None
        magic, local_name_size, local_extra = _LOCAL.unpack_from(data, place)
        begin = place + _LOCAL.size + local_name_size + local_extra
        member = data[begin : begin + plain]
        if magic != b"PK\x03\x04" or len(member) != plain or zlib.crc32(member) != checksum or name.decode()[:-4] in members:
            return None
        members[name.decode()[:-4]] = member
    return members if sum(map(len, members.values())) <= len(data) else None
