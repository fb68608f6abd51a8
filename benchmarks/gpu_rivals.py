"""PyTorch on the GPU, as rivals in gpu_suite.py: the same student, eager and compiled, and what its matrix products reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def torch_rows(torch: Any, suite: Any) -> Iterator[dict[str, Any]]:
    """For each student 100 rows of 64 tokens in fp16, by CUDA events; first the roofline's rate of products."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    best = min(_times(torch, lambda: a @ b, 20))
    yield {"fp16 matmul TFLOP/s": 2 * side**3 / best / 1e9}
    from edgerec.training.student import Student, StudentShape

    for name, (layers, hidden, heads) in suite.args.students.items():
        torch.manual_seed(0)
        shape = StudentShape(layers, hidden, heads, 4 * hidden, 30522, 512, True, 32768, 16, 32)
        student = Student(shape).eval().cuda().half()
        ids = torch.randint(5, 30000, (100, 64), device="cuda", dtype=torch.int32)
        features = torch.randint(0, 32768, (100, 32), device="cuda", dtype=torch.int32)
        inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids), features, torch.rand(100, 32, device="cuda", dtype=torch.float16))
        compiled = torch.compile(student, mode="reduce-overhead")
        for how, model in (("eager", student), ("torch.compile", compiled)):
            try:
                times = _times(torch, lambda model=model, inputs=inputs: model(*inputs), suite.args.calls)
            except Exception as error:  # a compiler that is missing must not hide eager's figure
                yield {"student": name, "rival": how, "failed": f"{type(error).__name__}: {str(error)[:200]}"}
                continue
            yield {"student": name, "rival": how, "precision": "fp16", **{f"p{q} ms": float(np.percentile(times, q)) for q in (50, 95, 99)}}


def _times(torch: Any, run: Callable[[], object], calls: int) -> list[float]:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found = []
    with torch.inference_mode():
        for call in range(calls + 20):
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            if call >= 20:
                found.append(start.elapsed_time(stop))
    return found
