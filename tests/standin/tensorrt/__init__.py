"""What edgerec uses of TensorRT 11: the builder keeps the graph, the runtime computes it with ONNX Runtime."""

from __future__ import annotations

import enum
import json
import struct
from math import prod
from typing import Any

import numpy as np
import standin_gpu as gpu

__version__ = "11.0.0"
MAGIC = b"STANDIN1"


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, severity: int = ILogger.WARNING) -> None:
        self.severity = severity

    def log(self, severity: int, message: str) -> None:
        pass


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class BuilderFlag(enum.IntEnum):
    TF32, VERSION_COMPATIBLE = range(2)


class HardwareCompatibilityLevel(enum.IntEnum):
    NONE, AMPERE_PLUS, SAME_COMPUTE_CAPABILITY = range(3)


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY, NONE, DETAILED = range(3)


class LayerInformationFormat(enum.IntEnum):
    ONELINE, JSON = range(2)


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class _Tensor:
    def __init__(self, name: str) -> None:
        self.name = name


class _Network:
    def __init__(self) -> None:
        self.graph, self.inputs = b"", []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> _Tensor:
        return self.inputs[index]


class _ParserError:
    def __init__(self, text: str) -> None:
        self.text = text

    def desc(self) -> str:
        return self.text

    def node(self) -> int:
        return -1

    def node_name(self) -> str:
        return "?"

    def node_operator(self) -> str:
        return "?"


class OnnxParser:
    def __init__(self, network: _Network, log: ILogger) -> None:
        self._network, self.errors = network, []

    def parse_from_file(self, path: str) -> bool:
        import onnx

        try:
            model = onnx.load(path)
        except Exception as error:
            self.errors = [str(error)]
            return False
        self._network.graph = model.SerializeToString()
        self._network.inputs = [_Tensor(value.name) for value in model.graph.input]
        return True

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> _ParserError:
        return _ParserError(self.errors[index])


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.shapes[name] = tuple(most)


class _Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"timed"


class _Config:
    def __init__(self) -> None:
        self.profiles: list[_Profile] = []
        self.cache = None
        self.hardware_compatibility_level: Any = None
        self.profiling_verbosity: Any = None

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        assert size > 0

    def clear_flag(self, flag: Any) -> None:
        pass

    def set_flag(self, flag: Any) -> None:
        pass

    def add_optimization_profile(self, profile: _Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> _Cache | None:
        return _Cache(data) if not data or data.endswith(b"timed") else None

    def set_timing_cache(self, cache: _Cache, ignore: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> _Cache:
        return self.cache


class Builder:
    def __init__(self, log: ILogger) -> None:
        pass

    def create_network(self, flags: int) -> _Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        head = json.dumps([profile.shapes for profile in config.profiles]).encode()
        return MAGIC + struct.pack("<I", len(head)) + head + network.graph


class Runtime:
    def __init__(self, log: ILogger) -> None:
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
        return Engine(data) if data.startswith(MAGIC) else None


class _Inspector:
    def get_engine_information(self, kind: Any) -> str:
        layer = {"Name": "fused_mha", "LayerType": "kgen", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]}
        return json.dumps({"Layers": [layer]})


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, data: bytes) -> None:
        from edgerec.engine.ort import ort

        (size,) = struct.unpack_from("<I", data, len(MAGIC))
        start = len(MAGIC) + 4
        self.profiles = [{name: tuple(shape) for name, shape in p.items()} for p in json.loads(data[start : start + size])]
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(data[start + size :], options, providers=["CPUExecutionProvider"])
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}
        self.inputs = {i.name: kinds[i.type] for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        self.names = [*self.inputs, *self.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [self.profiles[index][name]] * 3

    def create_engine_inspector(self) -> _Inspector:
        return _Inspector()

    def create_execution_context(self, strategy: Any) -> Context:
        gpu.need_context()
        gpu.COUNTS["contexts"] += 1
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.profile = engine, -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return 0 <= index < len(self.engine.profiles) and stream in gpu.QUEUES

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile < 0 or self.engine.profiles[self.profile].get(name) != tuple(shape):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def execute_async_v3(self, stream: int) -> bool:
        if self.scratch[1] < self.engine.device_memory_size_v2 or set(self.addresses) != set(self.engine.names) or self.infer_shapes():
            return False
        addresses, shapes, engine, scratch = dict(self.addresses), dict(self.shapes), self.engine, self.scratch

        def work() -> None:
            gpu.MEMORY.view(*scratch)[:] = gpu.GARBAGE
            sizes = {n: np.dtype(kind).itemsize * prod(shapes[n]) for n, kind in engine.inputs.items()}
            feeds = {n: gpu.MEMORY.view(addresses[n], sizes[n]).view(kind) for n, kind in engine.inputs.items()}
            try:
                found = engine.session.run(engine.outputs, {n: feeds[n].reshape(shapes[n]).copy() for n in feeds})
            except Exception as error:  # a GPU would read whatever lies where an id points
                raise gpu.Failure(f"an illegal memory access was encountered: {error}") from error
            for name, value in zip(engine.outputs, found, strict=True):
                gpu.MEMORY.view(addresses[name], value.nbytes)[:] = value.reshape(-1).view(np.uint8)

        gpu.QUEUES[stream].put(work)
        return True
