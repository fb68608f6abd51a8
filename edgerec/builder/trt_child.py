"""The process in which TensorRT builds one plan. A script of the standard library and TensorRT alone; `edgerec.builder.trt` starts it.

TensorRT may crash, hang, or take the whole memory of a GPU: none of that reaches the process that asked. The job is a JSON file; the
answer is another, with ``error`` when TensorRT refused; what TensorRT logs goes to stderr. One path for TensorRT 10.13 to 11 and TensorRT
for RTX: networks are strongly typed (a flag that 11 and RTX ignore), and what they lack is asked for by name.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Refused(Exception):
    """TensorRT said no; the message goes to the user."""


def build(trt: Any, job: dict[str, Any], log: Any) -> dict[str, Any]:
    """Parse, set up one profile a bucket, build, write the plan; returns what to tell the parent. Raises Refused."""
    builder = _made(trt.Builder(log), "a builder", log)
    network = _made(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), "a network", log)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job["onnx"]):
        raise Refused(
            "the ONNX parser refuses the graph: " + "; ".join(_parser_error(parser.get_error(i)) for i in range(parser.num_errors))
        )
    config = _made(builder.create_builder_config(), "a configuration", log)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    # The fp32 parity gate is far below what TF32 keeps.
    config.clear_flag(trt.BuilderFlag.TF32)
    for shapes in job["profiles"]:
        _add_profile(builder, config, network, shapes)
    _set_target(trt, config, job["target"])
    if job["hardware_compat"] != "none":
        name = {"ampere_plus": "AMPERE_PLUS", "same_cc": "SAME_COMPUTE_CAPABILITY"}[job["hardware_compat"]]
        config.hardware_compatibility_level = _named(trt.HardwareCompatibilityLevel, name, "hardware compatibility level")
    if job["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # RTX: without it a stream cannot be captured in a graph
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if job["inspect"]:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    cache = _timing_cache(config, job["timing_cache"])
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused("the engine could not be built" + log.errors())
    data = bytes(plan)
    _write(job["plan"], data)
    if cache is not None:
        _write(job["timing_cache"], bytes(config.get_timing_cache().serialize()))
    return {
        "version": trt.__version__,
        "seconds": time.perf_counter() - start,
        "inspector": _inspect(trt, data, log) if job["inspect"] else None,
    }


def _add_profile(builder: Any, config: Any, network: Any, shapes: dict[str, list[int]]) -> None:
    """Minimum, optimum and maximum are one shape: kernels are tuned for it, and memory is known beforehand."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        if name not in shapes:
            raise Refused(f"the graph has an input {name}, for which no shape was given")
        shape = tuple(shapes[name])
        profile.set_shape(name, shape, shape, shape)
    if config.add_optimization_profile(profile) < 0:
        told = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise Refused(f"{told} is no valid profile of this network; the graph's fixed sizes differ")


def _set_target(trt: Any, config: Any, target: str) -> None:
    if not target:
        if hasattr(config, "set_compute_capability"):
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
                raise Refused(f"{trt.__name__} {trt.__version__} refuses the GPU of this machine")
        return
    if not hasattr(config, "set_compute_capability"):
        raise Refused(f"{trt.__name__} {trt.__version__} builds for the GPU at hand alone; leave --target out, or install TensorRT for RTX")
    known = sorted(name.lower().replace("sm", "sm_") for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    if target not in known:
        raise Refused(f"{trt.__name__} {trt.__version__} does not build for {target}; it knows {', '.join(known)}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(getattr(trt.ComputeCapability, target.upper().replace("_", "")), 0):
        raise Refused(f"{trt.__name__} {trt.__version__} refuses the target {target}")


def _timing_cache(config: Any, path: str) -> Any:
    if not path:
        return None
    if not hasattr(config, "create_timing_cache"):
        raise Refused("this TensorRT has no timing cache; leave --timing-cache out")
    data = Path(path).read_bytes() if os.path.exists(path) else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise Refused(f"{path} is no timing cache of this TensorRT and GPU; delete it and it is made anew")
    return cache


def _inspect(trt: Any, plan: bytes, log: Any) -> Any:
    runtime = _made(trt.Runtime(log), "a runtime", log)
    engine = _made(runtime.deserialize_cuda_engine(plan), "an engine of the plan it just built", log)
    inspector = _made(engine.create_engine_inspector(), "an inspector", log)
    return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _made(value: Any, what: str, log: Any) -> Any:
    if value is None:
        raise Refused(f"TensorRT could not make {what}{log.errors()}")
    return value


def _named(owner: Any, name: str, what: str) -> Any:
    if not hasattr(owner, name):
        raise Refused(f"this TensorRT has no {what} {name}")
    return getattr(owner, name)


def _parser_error(error: Any) -> str:
    node = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
    kind = error.node_operator() if hasattr(error, "node_operator") else ""
    return f"operator {kind or '?'} (node {node!r}): {' '.join(error.desc().split())}"


def _write(path: str, data: bytes) -> None:
    partial = f"{path}.{os.getpid()}.partial"
    with open(partial, "wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())
    os.replace(partial, path)


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Everything from warnings on to stderr; errors are kept for the message."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.kept: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                sys.stderr.write(f"[{severity}] {message}\n")
            if severity <= trt.ILogger.ERROR:
                self.kept.append(" ".join(message.split()))

        def errors(self) -> str:
            """What it logged as errors, as the end of a sentence."""
            return f": {'; '.join(self.kept[-3:])}" if self.kept else ""

    return Log()


def main(job_file: str) -> None:
    """Do one job."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    sys.path[:] = job["sys_path"]
    trt = importlib.import_module(job["module"])
    try:
        answer = build(trt, job, _logger(trt))
    except Refused as error:
        answer = {"error": str(error), "version": trt.__version__}
    _write(job["answer"], json.dumps(answer).encode())


if __name__ == "__main__":
    main(sys.argv[1])
