"""A mid-fusion student's plans on a stand-in GPU that forgives nothing: what travels, what is widened there, the way back to the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_export import random_rows
from fixtures_mid_export import STUDENTS, mid_export
from fixtures_standin import GPU, left_by_a_failed_opening, standin

from edgerec import CatalogWriter, Item, Ranker
from edgerec.builder import GpuOptions, build_engine
from edgerec.catalog import Catalog, build_catalog
from edgerec.engine import QueryEngine, RaggedMidEngine, open_engine, trt_mid_device
from edgerec.engine.gpu import Gpu
from edgerec.engine.trt_mid import TensorRtMidEngine
from edgerec.engine.trt_mid_fallback import CpuMidEngine
from edgerec.errors import BundleError, EngineError
from edgerec.types import Batch, RaggedStateBatch

BUCKETS = ((4, 12), (16, 12), (8, 30))
CLOSE = 0.02  # a number between two int8 steps may be rounded to either


@dataclass
class Served:
    bundle: Path
    exact: Any
    gpu: Any

    def open(self, **options: Any) -> Any:
        return open_engine(self.bundle, **{"threads": 2, **options})


@pytest.fixture(scope="module", params=STUDENTS)
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trt-mid")
    export = mid_export(request.param)
    build_engine(export, root / "exact", backend="reference")
    with standin():
        build_engine(export, root / "plan", backend="tensorrt", gpu=GpuOptions(buckets=BUCKETS))
    return root


@pytest.fixture
def served(bundles: Path) -> Iterator[Served]:
    with standin() as gpu:
        yield Served(bundles / "plan", open_engine(bundles / "exact"), gpu)


def batch_of(exact: Any, count: int, seed: int = 0, query: int = 6) -> RaggedStateBatch:
    """One query and so many items, of whose states there are more in the table."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, count + 3)
    states = exact.encode_ragged(rng.integers(5, 110, lengths.sum()).astype(np.int32), np.r_[0, np.cumsum(lengths)])
    chosen = rng.permutation(count + 3)[:count]
    given = random_rows(rng, max(1, count), vocab=110, features=True)
    starts, ends = states.offsets[chosen], states.offsets[chosen + 1]
    ids = rng.integers(5, 110, query).astype(np.int32)
    features = (given[name][:count] for name in ("feature_ids", "feature_weights"))
    return RaggedStateBatch(ids, states.values, states.scales, starts, ends - starts, *features)


def expected_of(exact: Any, batch: RaggedStateBatch) -> Any:
    return CpuMidEngine(exact).run_ragged_states(batch)


@pytest.mark.parametrize("capture", [True, False])
def test_logits_are_those_of_the_student_however_the_rows_are_shared_out(served: Served, capture: bool) -> None:
    served.gpu.OPTIONS["capture"] = capture
    engine = served.open()
    assert isinstance(engine, RaggedMidEngine)
    assert isinstance(engine, QueryEngine)
    assert engine.launches.startswith("CUDA graphs" if capture else "plain launches")
    for count, query in ((1, 1), (4, 8), (5, 9), (17, 14), (61, 3)):
        batch = batch_of(served.exact, count, seed=count, query=query)
        np.testing.assert_allclose(engine.run_ragged_states(batch), expected_of(served.exact, batch), rtol=0, atol=5e-5)
    engine.close()


def test_a_call_asks_once_and_allocates_nothing(served: Served) -> None:
    engine = served.open()
    batch = batch_of(served.exact, 40)
    before = dict(served.gpu.COUNTS)
    engine.run_ragged_states(batch)
    after = served.gpu.COUNTS
    assert all(after[name] == before[name] for name in ("contexts", "allocations", "graphs"))
    scales = served.exact._spec.scales > 0
    buckets = after["launches"] - before["launches"] - 1  # the query's rows, once
    assert 3 <= buckets <= 10
    # The query: there, run. A bucket: stored states there (numbers, and scales), rows there, widen, run, back.
    assert after["steps"] - before["steps"] == 2 + buckets * (5 + scales)


def test_states_that_do_not_fit_the_room_of_a_launch_go_in_several(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_mid_device, "STAGED_BYTES", 1)
    engine, batch = served.open(), batch_of(served.exact, 30)
    np.testing.assert_allclose(engine.run_ragged_states(batch), expected_of(served.exact, batch), rtol=0, atol=5e-5)


def test_items_and_queries_are_encoded_as_the_reference_does(served: Served) -> None:
    engine, rng = served.open(), np.random.default_rng(1)
    lengths = np.array([3, 29, 0, 11, 7] * 30)
    tokens, offsets = rng.integers(5, 110, lengths.sum()).astype(np.int32), np.r_[0, np.cumsum(lengths)]
    found, exact = engine.encode_ragged(tokens, offsets), served.exact.encode_ragged(tokens, offsets)
    spec = served.exact._spec
    np.testing.assert_array_equal(found.offsets, exact.offsets)
    np.testing.assert_allclose(spec.restore(found.values, found.scales), spec.restore(exact.values, exact.scales), atol=0.05)
    alone = engine.encode_ragged(tokens[offsets[3] : offsets[4]], np.array([0, lengths[3]]))
    np.testing.assert_array_equal(alone.values, found.values[found.offsets[3] : found.offsets[4]])
    ids, sizes = rng.integers(5, 110, (3, 9)).astype(np.int32), np.array([9, 2, 5], np.int32)
    for query, size in enumerate(sizes):
        expected = served.exact.encode_queries(ids, sizes)[query, :size]
        np.testing.assert_allclose(engine.encode_queries(ids, sizes)[query, :size], expected, atol=1e-4)


def test_a_row_after_the_deadline_is_left_out(served: Served) -> None:
    engine, batch, done = served.open(), batch_of(served.exact, 9), np.ones(9, np.bool_)
    assert np.isnan(engine.run_ragged_states(batch, deadline_ns=1, done=done)).all()
    assert not done.any()


WRONG: dict[str, Callable[[RaggedStateBatch], dict[str, Any]]] = {
    "a start below 0": lambda b: {"starts": b.starts - 1000},
    "an item past the end": lambda b: {"starts": b.starts + len(b.states)},
    "an item too long": lambda b: {"lengths": b.lengths + 31},
    "int32 starts": lambda b: {"starts": b.starts.astype(np.int32)},
    "states of another type": lambda b: {"states": b.states.astype(np.float64)},
    "no query": lambda b: {"query_ids": b.query_ids[:0]},
    "a token out of range": lambda b: {"query_ids": b.query_ids + 1000},
    "too many slots": lambda b: {
        "feature_ids": np.zeros((b.size, 13), np.int32),
        "feature_weights": np.zeros((b.size, 13), np.float32),
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_batch_is_refused_and_does_not_hand_over(served: Served, name: str) -> None:
    engine, batch = served.open(), batch_of(served.exact, 4)
    with pytest.raises(EngineError, match="batch: "):
        engine.run_ragged_states(replace(batch, **WRONG[name](batch)))
    assert engine.note == ""


# What a mistake in the runner would be; each must be seen by comparing logits, or end in an error. This tests the tests.
def _no_wait(work: Any) -> None:
    work.start()


def _no_gather(work: Any) -> None:
    if len(work._steps) > 1:
        work._steps = work._steps[1:]
    work.graph = None
    work.start()
    work.stream.synchronize()


def _gather_last(work: Any) -> None:
    work._steps, work.graph = list(work._steps)[::-1], None
    work.start()
    work.stream.synchronize()


def _no_copy(work: Any) -> None:
    for step in work._steps:
        step()
    work._cuda.memcpy_dtoh_async(*work._back, work.stream)
    work.stream.synchronize()


def _wild(work: Any) -> None:
    work.inputs.views["tables"][2] = 0xDEAD0000
    work.start()
    work.stream.synchronize()


def _other_rows(work: Any) -> None:
    work.inputs.views["starts"][:] = work.inputs.views["starts"][::-1].copy()
    work.start()
    work.stream.synchronize()


MISTAKES = [_no_wait, _no_gather, _gather_last, _no_copy, _wild, _other_rows]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_in_the_runner_would_be_seen(served: Served, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Any], None]) -> None:
    engine = served.open(fallback=False, threads=1)
    engine.run_ragged_states(batch_of(served.exact, 9, seed=5))
    batch = batch_of(served.exact, 9, seed=3)
    monkeypatch.setattr(trt_mid_device.Work, "run", mistake)
    try:
        found = engine.run_ragged_states(batch)
    except EngineError:
        return
    assert not np.allclose(found, expected_of(served.exact, batch), rtol=0, atol=5e-5)


def test_a_lost_device_hands_over_to_the_cpu_for_good(served: Served) -> None:
    engine, batch = served.open(), batch_of(served.exact, 5)
    served.gpu.MEMORY.lost = "unspecified launch failure"
    np.testing.assert_allclose(engine.run_ragged_states(batch), expected_of(served.exact, batch), rtol=0, atol=5e-5)
    assert engine.note.startswith("the CPU engine (native fp32) has taken over from the GPU: the GPU failed:")
    served.gpu.MEMORY.lost = ""
    steps = served.gpu.COUNTS["steps"]
    rows = Batch(**random_rows(np.random.default_rng(0), 3, vocab=110, features=True))
    np.testing.assert_allclose(engine.run(rows), served.exact.run(rows), rtol=0, atol=CLOSE)
    assert served.gpu.COUNTS["steps"] == steps


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.99])
def test_a_failed_opening_leaves_nothing_on_the_device(served: Served, share: float) -> None:
    left_by_a_failed_opening(served.gpu, share, lambda: served.open(fallback=False))


def test_too_little_memory_is_known_at_opening(served: Served) -> None:
    served.gpu.MEMORY.limit = 20_000
    with pytest.raises(EngineError, match="out of memory"):
        served.open(fallback=False)
    engine = served.open()
    assert (engine.backend, "out of memory" in engine.note) == ("native", True)


@pytest.mark.parametrize("capture", [True, False])
def test_opening_and_closing_leaves_nothing_on_the_device(served: Served, capture: bool) -> None:
    served.gpu.OPTIONS["capture"] = capture
    for _ in range(2):
        engine = served.open()
        engine.run_ragged_states(batch_of(served.exact, 5))
        engine.close()
        assert (served.gpu.MEMORY.blocks, served.gpu.COUNTS["graphs"]) == ({}, 0)


def test_plans_of_other_shapes_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt

    monkeypatch.setattr(tensorrt.Engine, "num_optimization_profiles", 1)
    with pytest.raises(EngineError, match=r"engine.sm_90.plan has .* and 1 profiles, expected others"):
        served.open(fallback=False)


def test_a_damaged_part_is_never_given_to_tensorrt(bundles: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundles / "plan", tmp_path / "copy"))
    data = bytearray((copy / f"items.{GPU.target}.plan").read_bytes())
    data[100] ^= 1
    (copy / f"items.{GPU.target}.plan").write_bytes(data)
    with standin(), pytest.raises(BundleError, match="sha256"):
        open_engine(copy)


ITEMS = [
    Item(str(i), " ".join(["red lamp", "blue sofa", "green wood chair with steel"][i % 3 : i % 3 + 1] * (1 + i % 4))) for i in range(40)
]


def test_a_catalogue_is_built_ranked_over_and_changed(bundles: Path, tmp_path: Path) -> None:
    with standin() as gpu:
        steps = gpu.COUNTS["steps"]
        build_catalog(iter(ITEMS), bundles / "plan", tmp_path / "catalog", threads=1)
        assert gpu.COUNTS["steps"] > steps
        with Ranker.open(bundles / "plan", catalog=tmp_path / "catalog", threads=1) as ranker:
            assert isinstance(ranker._engine, TensorRtMidEngine)
            result = ranker.rank("red lamp", [item.id for item in ITEMS], top_k=40)
            assert (result.degraded, result.reason) == (False, "")
            with CatalogWriter.open(tmp_path / "catalog", bundle=bundles / "plan") as writer:
                writer.upsert([Item("3", "black glass table"), Item("new", "red lamp")])
            found = ranker.score("red lamp", ["3", "new", "5"])
    with Ranker.open(bundles / "exact", catalog=tmp_path / "catalog") as ranker:
        np.testing.assert_allclose(found, ranker.score("red lamp", ["3", "new", "5"]), atol=CLOSE)
        before = [item for item in result.ids if item != "3"]
        order = np.array([result.ids.index(item) for item in before])
        np.testing.assert_allclose(result.scores[order], ranker.score("red lamp", before), atol=CLOSE)
    assert len(Catalog.open(tmp_path / "catalog")) == 41


def test_where_no_plan_fits_every_result_says_so(bundles: Path) -> None:
    with standin(Gpu("sm_75", "Old GPU", "12.0")), Ranker.open(bundles / "plan") as ranker:
        result = ranker.rank("red lamp", ITEMS[:3])
    assert result.degraded
    assert "scores instead of the GPU: no TensorRT plan of" in result.reason
    assert len(result.ids) == 3
