"""What benchmarks/trt86.py uses of TensorRT 8.6, made of the stand-in for TensorRT 11: the names that differ, and what 8.6 insists on."""

from __future__ import annotations

import enum
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import standin_gpu as gpu

_path = Path(__file__).resolve().parents[2] / "standin" / "tensorrt" / "__init__.py"
_spec = importlib.util.spec_from_file_location("standin_tensorrt11", _path)
assert _spec is not None
assert _spec.loader is not None
new = importlib.util.module_from_spec(_spec)
sys.modules["standin_tensorrt11"] = new
_spec.loader.exec_module(new)

__version__ = "8.6.0"
Logger, OnnxParser, MemoryPoolType, TensorIOMode = new.Logger, new.OnnxParser, new.MemoryPoolType, new.TensorIOMode


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, EXPLICIT_PRECISION = range(2)


class BuilderFlag(enum.IntEnum):
    FP16, VERSION_COMPATIBLE = range(2)


class PreviewFeature(enum.IntEnum):
    DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805 = 1


class DataType(enum.Enum):
    FLOAT, INT32 = np.float32, np.int32


def nptype(kind: DataType) -> Any:
    return kind.value


class _Config(new._Config):
    def __init__(self) -> None:
        super().__init__()
        self.flags: set[BuilderFlag] = set()
        self.sources: int | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(BuilderFlag(flag))

    def set_tactic_sources(self, sources: int) -> None:
        self.sources = sources

    def set_preview_feature(self, feature: PreviewFeature, on: bool) -> None:
        assert PreviewFeature(feature)
        assert on


class Builder(new.Builder):
    def create_network(self, flags: int) -> Any:
        assert flags == 1 << NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        return new._Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def build_serialized_network(self, network: Any, config: _Config) -> bytes | None:
        if config.sources != 0 or any(set(profile.shapes) != {one.name for one in network.inputs} for profile in config.profiles):
            return None  # cuBLAS is not there; an input without a shape
        lean = b"lean" if BuilderFlag.VERSION_COMPATIBLE in config.flags else b"only"
        return lean + super().build_serialized_network(network, config)


class Runtime(new.Runtime):
    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        lean, plan = data[:4] == b"lean", data[4:]
        return Engine(plan) if plan.startswith(new.MAGIC) and (self.engine_host_code_allowed or not lean) else None


class Engine(new.Engine):
    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.inputs.get(name, np.float32))

    def create_execution_context(self) -> Any:
        gpu.need_context()
        return Context(self)


class Context(new.Context):
    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        size = engine.device_memory_size_v2
        self.set_device_memory(gpu.MEMORY.allocate(size), size)  # its own, of a context that was asked for without a strategy

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name] if name in self.shapes else (next(iter(self.shapes.values()))[0],)
