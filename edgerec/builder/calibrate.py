"""What static int8 needs to know beforehand: the range of every channel of a product's input, over the calibration sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import BuildError
from ..types import Batch
from .parity import plain_session, split
from .quantize import Ranges, product_inputs

_ROWS = 32


Sample = tuple[Mapping[str, NDArray[Any]], Sequence[NDArray[np.bool_]]]
"""The inputs of one run by name, and masks, bool [B, T] each: a value with the sides of one counts where that is true."""


def calibrate(graph: bytes, sample: Batch) -> Ranges:
    """`channel_ranges` of a cross student over the tokens (no padding) of a sample. Raises BuildError."""
    parts = split(sample, _ROWS)
    return channel_ranges(
        graph, [({name: getattr(part, name) for name in Batch.__dataclass_fields__}, [part.attention_mask == 1]) for part in parts]
    )


def channel_ranges(graph: bytes, samples: Sequence[Sample], what: str = "student.onnx") -> Ranges:
    """Least and largest value, float32 [in] each, of every channel of the inputs of products, over some runs.

    Parameters
    ----------
    samples : inputs that the graph does not have are left out.
    what : the name of the graph, for messages.

    Raises
    ------
    BuildError : the graph does not run on the samples, or gives values that are not finite.
    """
    names = product_inputs(graph)
    model = onnx.load_model_from_string(graph)
    own = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    try:
        session = plain_session(model.SerializeToString())
        inputs, asked = [value.name for value in session.get_inputs()], [name for name in names if name not in own]
        for feeds, masks in samples:
            given = {name: feeds[name] for name in inputs}
            values = given | dict(zip(asked, session.run(asked, given) if asked else [], strict=True))
            for name in names:
                rows = _real(values[name], masks)
                least, most = found.get(name, (rows[0], rows[0]))
                found[name] = (np.minimum(least, rows.min(axis=0)), np.maximum(most, rows.max(axis=0)))
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise BuildError(f"{what} does not run on the calibration rows: {error}") from error
    bad = [name for name, (least, most) in found.items() if not (np.isfinite(least).all() and np.isfinite(most).all())]
    if bad:
        raise BuildError(f"{what} gives values that are not finite on the calibration rows, at {', '.join(bad[:3])}")
    return found


def _real(value: Any, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.float32]:
    """[B, T, in] where a mask of [B, T] is true, or [B, 1, in]: as [tokens, in]."""
    array = np.asarray(value, np.float32)
    mask = next((mask for mask in masks if array.ndim == 3 and array.shape[:2] == mask.shape), None)
    return array.reshape(-1, array.shape[-1]) if mask is None else array[mask]
