"""TensorRT 8.6, for gpu_suite.py alone: an adapter beside the product's path, which is strongly typed and takes 10.13 or later.

8.6 is the last full TensorRT that can be had without NVIDIA's own index. It wants Python 3.10 at most, and its networks are weakly typed:
precision is a wish (a flag), not part of the graph. So nothing of it is in edgerec; this program runs in an interpreter of its own, with
numpy, PyCUDA and TensorRT alone, and prints one JSON object a line.

    trtpy benchmarks/trt86.py build student.onnx student.plan --shapes shapes.json --precision fp16 --version-compatible
    trtpy benchmarks/trt86.py run student.plan --feeds feeds.npz --logits logits.npz --calls 300
    trtpy312 benchmarks/trt86.py run student.plan --module tensorrt_dispatch ...      # the same plan in the dispatch runtime of TensorRT 10

`shapes.json` has one object of input names and shapes a bucket; `feeds.npz` the arrays ``BUCKET/INPUT``; `logits.npz` gets ``BUCKET``.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

REFUSED = 3
"""Exit code where TensorRT or the machine says no; the last line says why."""
WORKSPACE_BYTES = 2 << 30
WARM_UP = 20


class Refused(Exception):
    """TensorRT or the driver does not do this."""


def ask_driver() -> None:
    """Before anything of TensorRT is touched: without a GPU 8.6 crashes the process. Raises Refused."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Refused(f"no NVIDIA driver on this machine ({error})") from error
    if code := driver.cuInit(0):
        raise Refused(f"cuInit gives {code}: no GPU that can be used")


def build(trt: Any, graph: Path, shapes: list[dict[str, list[int]]], precision: str, version_compatible: bool) -> bytes:
    """A plan with one profile for each bucket. Raises Refused."""
    log = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        raise Refused("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.set_tactic_sources(0)  # no cuBLAS, no cuDNN: they need not be installed
    config.set_preview_feature(trt.PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805, True)
    if precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    for bucket in shapes:
        profile = builder.create_optimization_profile()
        for name, shape in bucket.items():
            profile.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(profile) < 0:
            raise Refused(f"the profile {bucket} does not fit the network")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused("TensorRT built no engine; its log is above")
    return bytes(plan)


class Bucket:
    """One profile of a plan, ready to run: a context, a stream, buffers of the profile's sizes."""

    def __init__(self, trt: Any, cuda: Any, engine: Any, number: int, feeds: dict[str, np.ndarray]) -> None:
        self._cuda, self.stream, self._context = cuda, cuda.Stream(), engine.create_execution_context()
        if not self._context.set_optimization_profile_async(number, self.stream.handle):
            raise Refused(f"profile {number} cannot be chosen")
        self.stream.synchronize()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in inputs:
            if not self._context.set_input_shape(name, tuple(feeds[name].shape)):
                raise Refused(f"{name}: shape {feeds[name].shape} does not fit profile {number}")
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[str, Any] = {}
        for name in names:
            shape = tuple(self._context.get_tensor_shape(name))
            self._host[name] = cuda.pagelocked_empty(shape, np.dtype(trt.nptype(engine.get_tensor_dtype(name))))
            self._device[name] = cuda.mem_alloc(max(1, self._host[name].nbytes))
            self._context.set_tensor_address(name, int(self._device[name]))
        self._inputs, self._outputs = inputs, [name for name in names if name not in inputs]
        for name in inputs:
            self._host[name][...] = feeds[name]

    def enqueue(self) -> None:
        """Copy there, run, copy back."""
        for name in self._inputs:
            self._cuda.memcpy_htod_async(self._device[name], self._host[name], self.stream)
        if not self._context.execute_async_v3(self.stream.handle):
            raise Refused("execute_async_v3 failed")
        for name in self._outputs:
            self._cuda.memcpy_dtoh_async(self._host[name], self._device[name], self.stream)

    def logits(self) -> np.ndarray:
        """Of one plain launch."""
        self.enqueue()
        self.stream.synchronize()
        return self._host["logits"].copy()

    def graph(self) -> Callable[[], object]:
        """The same as one CUDA graph. Raises Refused where it cannot be captured."""
        try:
            driver = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise Refused(f"cuda.bindings is not installed: {error}") from error
        stream = driver.CUstream(int(self.stream.handle))
        _status(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
        try:
            self.enqueue()
        finally:
            captured = _status(driver.cuStreamEndCapture(stream))
        executable = _status(driver.cuGraphInstantiate(captured, 0))
        return lambda: _status(driver.cuGraphLaunch(executable, stream))


def run(trt: Any, plan: bytes, feeds: dict[str, dict[str, np.ndarray]], calls: int) -> dict[str, np.ndarray]:
    """Print each bucket's times by CUDA events, launched plainly and as a graph; return its logits. Raises Refused."""
    cuda = importlib.import_module("pycuda.driver")
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    context.push()
    try:
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        runtime.engine_host_code_allowed = True  # a version-compatible plan brings a lean runtime along; these plans are our own
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise Refused("the plan was refused: another version of TensorRT, another GPU, or a damaged file")
        found = {}
        for number, (name, arrays) in enumerate(feeds.items()):
            bucket = Bucket(trt, cuda, engine, number, arrays)
            found[name] = bucket.logits()
            report({"bucket": name, "launch": "plain", **_times(cuda, bucket.stream, bucket.enqueue, calls)})
            try:
                report({"bucket": name, "launch": "graph", **_times(cuda, bucket.stream, bucket.graph(), calls)})
            except Refused as error:
                report({"bucket": name, "launch": "graph", "note": str(error)})
        return found
    finally:
        context.pop()


def _times(cuda: Any, stream: Any, launch: Callable[[], object], calls: int) -> dict[str, float]:
    start, stop, times = cuda.Event(), cuda.Event(), []
    for call in range(calls + WARM_UP):
        start.record(stream)
        launch()
        stop.record(stream)
        stop.synchronize()
        if call >= WARM_UP:
            times.append(stop.time_since(start))
    return {f"p{q} ms": float(np.percentile(times, q)) for q in (50, 95, 99)}


def _status(result: tuple[Any, ...]) -> Any:
    if int(result[0]):
        raise Refused(f"the driver says {result[0]!r}")
    return result[1] if len(result) > 1 else None


def report(row: dict[str, Any]) -> None:
    """One line of JSON, at once: what came before a crash counts."""
    print(json.dumps(row), flush=True)


def main(arguments: list[str]) -> int:
    """0; `REFUSED` with a last line that says why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", default="tensorrt")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("build")
    one.add_argument("graph", type=Path)
    one.add_argument("plan", type=Path)
    one.add_argument("--shapes", type=Path, required=True)
    one.add_argument("--precision", choices=["fp32", "fp16"], default="fp16")
    one.add_argument("--version-compatible", action="store_true")
    two = commands.add_parser("run")
    two.add_argument("plan", type=Path)
    two.add_argument("--feeds", type=Path, required=True)
    two.add_argument("--logits", type=Path, required=True)
    two.add_argument("--calls", type=int, default=300)
    args = parser.parse_args(arguments)
    try:
        ask_driver()
        try:
            trt = importlib.import_module(args.module)
        except ImportError as error:
            raise Refused(f"{args.module} cannot be imported: {error}") from error
        if args.command == "build":
            if not trt.__version__.startswith("8."):
                raise Refused(f"{args.module} is {trt.__version__}; this adapter builds with 8.6, edgerec itself with 10.13 or later")
            began = perf_counter()
            plan = build(trt, args.graph, json.loads(args.shapes.read_text()), args.precision, args.version_compatible)
            args.plan.write_bytes(plan)
            report({"version": trt.__version__, "build s": perf_counter() - began, "MB": len(plan) / 1e6})
        else:
            feeds: dict[str, dict[str, np.ndarray]] = {}
            with np.load(args.feeds) as arrays:
                for key in arrays.files:
                    bucket, _, name = key.partition("/")
                    feeds.setdefault(bucket, {})[name] = arrays[key]
            report({"version": trt.__version__})
            np.savez(args.logits, **run(trt, args.plan.read_bytes(), feeds, args.calls))
    except Refused as error:
        report({"refused": " ".join(str(error).split())})
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
