"""The probe: a few real rows and the logits the build machine computed for them, scored again at every load."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Manifest, read_file, read_json
from ..errors import BundleError, EngineError
from ..types import Batch
from . import Engine

PROBE = "probe.npz"
_MAX_BYTES = 1 << 34


def check_probe(engine: Engine, root: Path, manifest: Manifest) -> None:
    """Score the probe rows and compare with the recorded logits.

    Raises
    ------
    BundleError : the probe is missing or damaged.
    EngineError : a logit is further off than ``parity.json: probe_tolerance``.
    """
    arrays = read_arrays(read_file(root, manifest, PROBE), f"{root}: {PROBE}")
    parity = read_json(root, manifest, "parity.json")
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
        flags = manifest.fingerprint.get("cpu_flags", [])
        raise EngineError(
            f"{root}: this machine does not compute the {manifest.precision} engine as the build machine did: a probe logit is off by "
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
