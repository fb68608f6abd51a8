"""The TensorRT engine on a stand-in GPU that forgives nothing: bindings, order, waiting, errors, the way back to the CPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
import pytest
from fixtures_export import MAX_TOKENS, make_export, random_rows
from fixtures_standin import GPU, left_by_a_failed_opening, standin

from edgerec import Item, Ranker
from edgerec.builder import GpuOptions, build_engine
from edgerec.engine import open_engine, trt_device
from edgerec.engine.gpu import Gpu
from edgerec.engine.trt import TensorRtEngine
from edgerec.engine.trt_work import Work
from edgerec.errors import BundleError, EngineError, MissingExtraError
from edgerec.types import Batch, RaggedBatch

BUCKETS = ((4, 16), (16, 16), (4, 32), (16, 32))
GRAPHS = [True, False]


@dataclass
class Served:
    bundle: Path
    exact: Any
    gpu: Any

    def open(self, **options: Any) -> TensorRtEngine:
        engine = open_engine(self.bundle, **{"threads": 2, **options})
        assert isinstance(engine, TensorRtEngine)
        return engine


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trt")
    export = make_export(root / "export")
    build_engine(export, root / "exact", backend="reference")
    with standin():
        build_engine(export, root / "plan", backend="tensorrt", gpu=GpuOptions(buckets=BUCKETS))
    return root


@pytest.fixture
def served(bundles: Path) -> Iterator[Served]:
    with standin() as gpu:
        yield Served(bundles / "plan", open_engine(bundles / "exact"), gpu)


def rows(count: int, seed: int = 0, width: int = MAX_TOKENS) -> Batch:
    return Batch(**random_rows(np.random.default_rng(seed), count, vocab=110, features=True, width=width))


def ragged(batch: Batch) -> RaggedBatch:
    lengths = batch.attention_mask.sum(axis=1).astype(np.int64)
    starts = np.arange(0, batch.input_ids.size, batch.input_ids.shape[1], dtype=np.int64)
    ids, types = batch.input_ids.reshape(-1), batch.token_type_ids.reshape(-1)
    return RaggedBatch(ids, types, starts, lengths, batch.feature_ids, batch.feature_weights)


@pytest.mark.parametrize("capture", GRAPHS)
def test_logits_are_those_of_the_student_however_the_rows_are_shared_out(served: Served, capture: bool) -> None:
    served.gpu.OPTIONS["capture"] = capture
    engine = served.open()
    assert engine.launches == ("CUDA graphs" if capture else "plain launches: the GPU failed: 900")
    for count in (1, 4, 5, 16, 17, 61):
        batch = rows(count, seed=count)
        np.testing.assert_allclose(engine.run(batch), served.exact.run(batch), rtol=0, atol=2e-5)
        np.testing.assert_array_equal(engine.run_ragged(ragged(batch)), engine.run(batch))


def test_without_cuda_bindings_it_launches_plainly_and_says_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trt_device.importlib.import_module

    def missing(name: str) -> Any:
        if name.startswith("cuda"):
            raise ImportError("No module named 'cuda'")
        return real(name)

    monkeypatch.setattr(trt_device.importlib, "import_module", missing)
    engine = served.open()
    assert engine.launches == "plain launches: cuda.bindings cannot be imported (No module named 'cuda')"
    np.testing.assert_allclose(engine.run(rows(3)), served.exact.run(rows(3)), rtol=0, atol=2e-5)


def test_a_request_allocates_nothing_and_makes_no_context(served: Served) -> None:
    engine = served.open()
    before = dict(served.gpu.COUNTS)
    for count in (1, 5, 40):
        engine.run(rows(count))
    after = served.gpu.COUNTS
    assert [after[name] for name in ("contexts", "allocations", "graphs")] == [
        before[name] for name in ("contexts", "allocations", "graphs")
    ]


def test_a_bucket_is_one_copy_there_one_run_and_one_copy_back(served: Served) -> None:
    engine = served.open()
    before = served.gpu.COUNTS["steps"]
    engine.run(rows(3, width=16))
    assert served.gpu.COUNTS["steps"] - before == 3


def test_concurrent_callers_have_lanes_of_their_own(served: Served) -> None:
    engine = served.open()
    batches = [rows(1 + seed % 20, seed=seed) for seed in range(40)]
    expected = [served.exact.run(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for found, exact in zip(pool.map(engine.run, batches), expected, strict=True):
            np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5)


def test_what_an_earlier_request_left_in_the_buffers_does_not_matter(served: Served) -> None:
    engine = served.open(threads=1)
    engine.run(rows(16, seed=1))
    batch = rows(2, seed=2, width=16)
    few = Batch(
        *(getattr(batch, name) for name in ("input_ids", "attention_mask", "token_type_ids")),
        batch.feature_ids[:, :3],
        batch.feature_weights[:, :3],
    )
    np.testing.assert_allclose(engine.run(few), served.exact.run(few), rtol=0, atol=2e-5)


def test_rows_after_the_deadline_are_left_out(served: Served) -> None:
    engine = served.open()
    batch, done = ragged(rows(40)), np.ones(40, np.bool_)
    assert np.isnan(engine.run_ragged(batch, deadline_ns=1, done=done)).all()
    assert not done.any()
    engine.run_ragged(batch, deadline_ns=monotonic_ns() + 10**12, done=done)
    assert done.all()


# What a mistake in the runner would be; each must be seen by comparing logits, or end in an error. This tests the tests. Rows travel whole.
def _steps(work: Work) -> tuple[Any, Any, Any]:
    """Copy there, the plan's run, copy back."""
    cuda = work._cuda
    return (
        lambda: cuda.memcpy_htod_async(*work._sent, work.stream),
        work._steps[-1],
        lambda: cuda.memcpy_dtoh_async(*work._back, work.stream),  # type: ignore[misc]
    )


def _no_wait(work: Work) -> None:
    work.start()


def _no_copy(work: Work) -> None:
    _, run, back = _steps(work)
    run()
    back()
    work.stream.synchronize()


def _back_before_run(work: Work) -> None:
    there, run, back = _steps(work)
    there()
    back()
    run()
    work.stream.synchronize()


def _other_stream(work: Work) -> None:
    there, run, back = _steps(work)
    mine, work.stream = work.stream, work._cuda.Stream()
    there()
    work.stream = mine
    run()
    back()
    mine.synchronize()


def _half(work: Work) -> None:
    address, sent = work._sent
    work._sent = (address, sent[: len(sent) // 2])
    work.enqueue()
    work.stream.synchronize()
    work._sent = (address, sent)


def _elsewhere(work: Work) -> None:
    address, sent = work._sent
    work._sent = (address + 256, sent[256:])
    work.enqueue()
    work.stream.synchronize()
    work._sent = (address, sent)


def _wild(work: Work) -> None:
    work._sent = (0xDEAD0000, work._sent[1])
    work.enqueue()
    work.stream.synchronize()


MISTAKES: list[Callable[[Work], None]] = [_no_wait, _no_copy, _back_before_run, _other_stream, _half, _elsewhere, _wild]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_in_the_runner_would_be_seen(served: Served, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Work], None]) -> None:
    engine = served.open(fallback=False)
    batch = rows(9, seed=3)
    expected = served.exact.run(batch)
    np.testing.assert_allclose(engine.run(rows(9, seed=4)), served.exact.run(rows(9, seed=4)), rtol=0, atol=2e-5)
    monkeypatch.setattr(Work, "run", mistake)
    try:
        found = engine.run(batch)
    except EngineError:
        return
    assert not np.allclose(found, expected, rtol=0, atol=2e-5)


def test_a_call_without_a_context_would_be_seen(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.open(fallback=False)
    monkeypatch.setattr(trt_device.Device, "current", trt_device.Device.guard)
    with pytest.raises(EngineError, match="no currently active context"):
        engine.run(rows(2))


def test_a_lost_device_hands_over_to_the_cpu_for_good(served: Served) -> None:
    engine = served.open()
    engine.run(rows(5))
    served.gpu.MEMORY.lost = "unspecified launch failure"
    found = engine.run(rows(5))
    np.testing.assert_allclose(found, served.exact.run(rows(5)), rtol=0, atol=2e-5)
    assert engine.note.startswith("the CPU engine (native fp32) has taken over from the GPU: the GPU failed:")
    served.gpu.MEMORY.lost = ""
    steps = served.gpu.COUNTS["steps"]
    engine.run(rows(5))
    assert served.gpu.COUNTS["steps"] == steps


def test_a_lost_device_is_an_engine_error_where_the_cpu_may_not_take_over(served: Served) -> None:
    engine = served.open(fallback=False)
    served.gpu.MEMORY.lost = "unspecified launch failure"
    for _ in range(2):
        with pytest.raises(EngineError, match="the GPU failed"):
            engine.run(rows(5))
    engine.close()


@pytest.mark.parametrize("capture", GRAPHS)
def test_opening_and_closing_leaves_nothing_on_the_device(served: Served, capture: bool) -> None:
    served.gpu.OPTIONS["capture"] = capture
    for _ in range(3):
        engine = served.open()
        engine.run(rows(5))
        engine.close()
        assert served.gpu.MEMORY.blocks == {}
        assert served.gpu.COUNTS["graphs"] == 0


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_a_failed_opening_leaves_nothing_on_the_device(served: Served, share: float) -> None:
    left_by_a_failed_opening(served.gpu, share, lambda: open_engine(served.bundle, threads=2, fallback=False))


def test_too_little_memory_is_known_at_opening(served: Served) -> None:
    served.gpu.MEMORY.limit = 20_000
    with pytest.raises(EngineError, match="out of memory"):
        open_engine(served.bundle, threads=2, fallback=False)
    engine: Any = open_engine(served.bundle, threads=2)
    assert (engine.backend, "out of memory" in engine.note) == ("native", True)


def test_a_wrong_batch_does_not_hand_over(served: Served) -> None:
    engine = served.open()
    with pytest.raises(EngineError, match="batch"):
        engine.run_ragged(
            RaggedBatch(*(getattr(ragged(rows(2)), n) + (9999 if n == "ids" else 0) for n in RaggedBatch.__dataclass_fields__))
        )
    assert engine.note == ""


@pytest.mark.parametrize("where", ["starts", "lengths"])
@pytest.mark.parametrize("value", [-1, 1 << 40])
def test_a_row_outside_of_the_tokens_is_refused(served: Served, where: str, value: int) -> None:
    batch = ragged(rows(3))
    getattr(batch, where)[1] = value
    with pytest.raises(EngineError, match="batch"):
        served.open().run_ragged(batch)


def test_where_no_plan_fits_the_cpu_engine_scores_and_every_result_says_so(bundles: Path) -> None:
    with standin(Gpu("sm_75", "Old GPU", "12.0")), Ranker.open(bundles / "plan") as ranker:
        result = ranker.rank("red lamp", [Item("a", "red lamp"), Item("b", "blue sofa")])
    assert result.degraded
    assert "the CPU engine (native fp32) scores instead of the GPU: no TensorRT plan of tiny-l2-fp32" in result.reason
    assert "it was built for sm_90, this GPU (Old GPU) is sm_75; build one with: edgerec build-engine" in result.reason
    assert len(result.ids) == 2


def test_on_the_gpu_nothing_is_said(bundles: Path) -> None:
    items = [Item(str(i), f"red lamp {i}") for i in range(60)]
    with standin(), Ranker.open(bundles / "plan") as ranker:
        result = ranker.rank("red lamp", items, top_k=60)
    with Ranker.open(bundles / "exact") as ranker:
        expected = ranker.rank("red lamp", items, top_k=60)
    assert (result.degraded, result.reason) == (False, "")
    np.testing.assert_allclose(result.scores, expected.scores, rtol=0, atol=2e-5)


def test_no_plan_and_no_leave_to_fall_back_is_an_engine_error(bundles: Path) -> None:
    with standin(Gpu(reason="no NVIDIA driver on this machine")), pytest.raises(EngineError, match=r"no NVIDIA driver.*build one with"):
        open_engine(bundles / "plan", fallback=False)


def test_a_missing_pycuda_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trt_device.importlib.import_module

    def missing(name: str) -> Any:
        if name == "pycuda.driver":
            raise ModuleNotFoundError("No module named 'pycuda'", name="pycuda")
        return real(name)

    monkeypatch.setattr(trt_device.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgerec\[tensorrt\]'"):
        open_engine(served.bundle, fallback=False)
    engine: Any = open_engine(served.bundle)
    assert "pycuda is not installed" in engine.note


def test_a_plan_that_tensorrt_refuses_falls_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt.Runtime, "deserialize_cuda_engine", lambda self, data: None)
    with pytest.raises(EngineError, match=r"refuses engine.sm_90.plan, though it fits"):
        open_engine(served.bundle, fallback=False)


def test_a_plan_of_other_shapes_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt.Engine, "get_tensor_profile_shape", lambda self, name, index: [(1, 1)] * 3)
    with pytest.raises(EngineError, match=r"profile 0 is of \[1, 1\], plans.json says \[4, 16\]"):
        open_engine(served.bundle, fallback=False)


def test_a_forked_child_uses_the_cpu_engine(served: Served) -> None:
    engine = served.open()
    expected = engine.run(rows(4))
    pid = os.fork()
    if not pid:
        good = False
        try:
            good = np.allclose(engine.run(rows(4)), expected, atol=1e-4) and "before a fork" in engine.note
            engine.close()
        finally:
            os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    np.testing.assert_array_equal(engine.run(rows(4)), expected)


def test_a_bundle_without_a_cpu_engine_needs_the_gpu(bundles: Path, tmp_path: Path) -> None:
    with standin():
        build_engine(bundles / "export", tmp_path / "bundle", backend="tensorrt", gpu=GpuOptions(buckets=BUCKETS, fallback="none"))
        open_engine(tmp_path / "bundle").close()
    assert not (tmp_path / "bundle" / "engine.bin").exists()
    with standin(Gpu(reason="no driver")), pytest.raises(EngineError, match="no driver"):
        open_engine(tmp_path / "bundle")


def test_a_student_that_the_native_engine_does_not_run_falls_back_to_onnxruntime(tmp_path: Path) -> None:
    export = make_export(tmp_path / "export", hidden=48)
    build_engine(export, tmp_path / "exact", backend="reference")
    with standin():
        build_engine(export, tmp_path / "bundle", backend="tensorrt", gpu=GpuOptions(buckets=BUCKETS))
    batch = rows(40)
    expected = open_engine(tmp_path / "exact").run(batch)
    with standin(Gpu(reason="no driver")):
        engine: Any = open_engine(tmp_path / "bundle")
        assert engine.note.startswith("the CPU engine (ort fp32) scores instead of the GPU")
        np.testing.assert_allclose(engine.run_ragged(ragged(batch)), expected, rtol=0, atol=2e-5)
        np.testing.assert_allclose(engine.run(batch), expected, rtol=0, atol=2e-5)
        done = np.ones(40, np.bool_)
        assert np.isnan(engine.run_ragged(ragged(batch), deadline_ns=1, done=done)).all()
        assert not done.any()


def test_a_damaged_plan_is_never_given_to_tensorrt(bundles: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles / "plan", tmp_path / "copy"))
    data = bytearray((copy / f"engine.{GPU.target}.plan").read_bytes())
    data[100] ^= 1
    (copy / f"engine.{GPU.target}.plan").write_bytes(data)
    with standin(), pytest.raises(BundleError, match="sha256"):
        open_engine(copy)
