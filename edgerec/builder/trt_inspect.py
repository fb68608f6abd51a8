"""What TensorRT made of the graph: the engine inspector's answer, cut to what a person asks first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

_ATTENTION = ("mha", "attention", "fmha")


def summarise(information: Any) -> dict[str, Any]:
    """Layers by precision and by type, and whether attention was fused.

    Parameters
    ----------
    information : the inspector's JSON, decoded: ``{"Layers": [...]}``, where a layer is an object, or a name when the plan has no details.

    Returns
    -------
    dict : ``layers``, ``by_precision`` and ``by_type`` (counts), ``fused_attention`` (layers), ``detailed``: false when all that is known
    are names, and the counts by precision are empty.
    """
    layers = information.get("Layers", []) if isinstance(information, Mapping) else []
    known = [layer for layer in layers if isinstance(layer, Mapping)]
    names = [str(layer.get("Name", "")) + str(layer.get("LayerType", "")) if isinstance(layer, Mapping) else str(layer) for layer in layers]
    return {
        "layers": len(layers),
        "by_precision": dict(sorted(Counter(_precision(layer) for layer in known).items())),
        "by_type": dict(sorted(Counter(str(layer.get("LayerType", "unknown")) for layer in known).items())),
        "fused_attention": sum(any(word in name.lower() for word in _ATTENTION) for name in names),
        "detailed": bool(known),
    }


def _precision(layer: Mapping[str, Any]) -> str:
    """Of its first output, ``Half`` of ``Row major linear FP16 format`` and the like."""
    outputs = layer.get("Outputs")
    first = outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], Mapping) else {}
    text = str(first.get("Format/Datatype", first.get("Datatype", ""))).lower()
    for word, name in (("bf16", "bf16"), ("fp16", "fp16"), ("half", "fp16"), ("int8", "int8"), ("fp8", "fp8"), ("int32", "int32")):
        if word in text:
            return name
    return "fp32" if "fp32" in text or "float" in text else "unknown"
