"""What static int8 needs to know beforehand: the range of every channel of a product's input, over the calibration sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import BuildError
from ..types import Batch
from .parity import plain_session, split
from .quantize import Ranges, product_inputs

_ROWS = 32


def calibrate(graph: bytes, sample: Batch) -> Ranges:
    """Least and largest value, float32 [in] each, of every channel of the inputs of products, over the tokens (no padding) of a sample.

    Raises
    ------
    BuildError : the graph does not run on the sample, or gives values that are not finite.
    """
    names = product_inputs(graph)
    model = onnx.load_model_from_string(graph)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    try:
        session = plain_session(model.SerializeToString())
        inputs = [value.name for value in session.get_inputs()]
        for part in split(sample, _ROWS):
            values = session.run(names, {name: getattr(part, name) for name in inputs})
            for name, value in zip(names, values, strict=True):
                rows = _tokens(value, part)
                least, most = found.get(name, (rows[0], rows[0]))
                found[name] = (np.minimum(least, rows.min(axis=0)), np.maximum(most, rows.max(axis=0)))
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise BuildError(f"student.onnx does not run on the calibration rows: {error}") from error
    bad = [name for name, (least, most) in found.items() if not (np.isfinite(least).all() and np.isfinite(most).all())]
    if bad:
        raise BuildError(f"student.onnx gives values that are not finite on the calibration rows, at {', '.join(bad[:3])}")
    return found


def _tokens(value: Any, batch: Batch) -> NDArray[np.float32]:
    """[B, T, in] without padding, or [B, 1, in]: as [tokens, in]."""
    array = np.asarray(value, np.float32)
    whole = array.ndim == 3 and array.shape[1] == batch.attention_mask.shape[1]
    return array[batch.attention_mask.astype(bool)] if whole else array.reshape(-1, array.shape[-1])
