"""``config.pbtxt``: the configuration of a Triton model, as nested values and as protobuf's text.

Source: the protobuf schema of Triton's model configuration (model_config.proto), https://github.com/triton-inference-server/common.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL_FILE = "model.onnx"
TYPES = {"int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "float16": "TYPE_FP16", "float32": "TYPE_FP32"}

Samples = Mapping[str, NDArray[Any]]


class Word(str):
    """A name of the schema's enums, written without quotes."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    Attributes
    ----------
    dims : without the batch where the model has one; -1: any size.
    scalar : the graph has one number a row, where Triton, which knows no scalar, has a vector of one.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    scalar: bool = False

    def to_config(self) -> dict[str, Any]:
        """As the schema has it."""
        found: dict[str, Any] = {"name": self.name, "data_type": Word(TYPES[self.dtype]), "dims": list(self.dims)}
        return found | {"reshape": {"shape": []}} if self.scalar else found

    def whole(self) -> Tensor:
        """The same for a model without batches: the rows are a dimension like any other."""
        return Tensor(self.name, self.dtype, (-1, *self.dims))


@dataclass(frozen=True, slots=True)
class Model:
    """One folder of the repository that runs a graph.

    Attributes
    ----------
    max_batch : rows in one execution; 0: a request is an execution, and tensors are whole.
    samples : inputs of the warm-up; of one row, without the batch, where there are batches.
    """

    name: str
    graph: bytes
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    samples: Samples
    max_batch: int = 0
    instances: int = 1
    queue_delay_us: int = 0
    gpu: bool = False

    def config(self, model_version: str) -> dict[str, Any]:
        """``config.pbtxt`` as nested values."""
        message: dict[str, Any] = {
            "name": self.name,
            "backend": "onnxruntime",
            "default_model_filename": MODEL_FILE,
            "max_batch_size": self.max_batch,
            "input": [one.to_config() for one in self.inputs],
            "output": [one.to_config() for one in self.outputs],
            "instance_group": [{"count": self.instances, "kind": Word("KIND_GPU" if self.gpu else "KIND_CPU")}],
            "model_warmup": [_warmup(self.samples, rows) for rows in sorted({1, self.max_batch or 1})],
            "parameters": _parameters(model_version),
        }
        if self.max_batch:
            batching = {"preferred_batch_size": [self.max_batch], "max_queue_delay_microseconds": self.queue_delay_us}
            message["dynamic_batching"] = batching
        if self.gpu:
            message["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}}
        return message

    def whole(self) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs as an ensemble sees them."""
        sides = (self.inputs, self.outputs)
        inputs, outputs = ([one.whole() for one in side] if self.max_batch else list(side) for side in sides)
        return inputs, outputs


def ensemble(name: str, steps: Sequence[Model], outputs: Iterable[str], model_version: str) -> dict[str, Any]:
    """The configuration that runs models one after the other; what has one name is one tensor. What no step gives, the caller gives."""
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for step in steps:
        inputs, outs = step.whole()
        given |= {one.name: one for one in inputs if one.name not in made}
        made |= {one.name: one for one in outs}
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": [one.to_config() for one in given.values()],
        "output": [made[output].to_config() for output in outputs],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": step.name,
                    "model_version": -1,
                    "input_map": [{"key": one.name, "value": one.name} for one in step.inputs],
                    "output_map": [{"key": one.name, "value": one.name} for one in step.outputs],
                }
                for step in steps
            ]
        },
        "parameters": _parameters(model_version),
    }


def pbtxt(message: Mapping[str, Any]) -> str:
    """A message in protobuf's text format."""
    return "\n".join(_lines(message, "")) + "\n"


def _parameters(model_version: str) -> list[dict[str, Any]]:
    return [{"key": "edgerec_model_version", "value": {"string_value": model_version}}]


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in message.items():
        if isinstance(value, list) and not (value and isinstance(value[0], dict)):
            yield f"{indent}{key}: [{', '.join(map(_scalar, value))}]"
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield f"{indent}{key} {{"
                yield from _lines(each, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{key}: {_scalar(each)}"


def _scalar(value: object) -> str:
    return value if isinstance(value, Word) else json.dumps(value)


def _warmup(samples: Samples, rows: int) -> dict[str, Any]:
    inputs = [
        {"key": key, "value": {"data_type": Word(TYPES[str(np.dtype(value.dtype))]), "dims": list(value.shape), "input_data_file": key}}
        for key, value in samples.items()
    ]
    return {"name": f"{rows} rows", "batch_size": rows, "inputs": inputs}
