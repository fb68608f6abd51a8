"""A cross student's items on a stand-in GPU: the query is joined with them there, those of a catalogue never travel, and what comes along
is checked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic_ns
from typing import Any

import numpy as np
import pytest
from fixtures_export import MAX_TOKENS, make_export
from fixtures_standin import standin, steps_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgerec import CatalogWriter, Item, Ranker
from edgerec.builder import GpuOptions, build_engine
from edgerec.catalog import build_catalog
from edgerec.engine import ItemEngine, KeepingEngine, open_engine, trt_kept
from edgerec.engine.trt import TensorRtEngine
from edgerec.errors import BundleError, EngineError
from edgerec.types import RaggedItemBatch, StoredTable, TableSource

CLOSE = 2e-5
BUCKETS = ((4, 16), (16, 32))
TEXTS = ("red lamp", "blue sofa", "green wood chair with steel")
ITEMS = [Item(str(i), " ".join(TEXTS[i % 3 : i % 3 + 1] * (1 + i % 4))) for i in range(40)]
IDS = [item.id for item in ITEMS]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("items")
    export = make_export(root / "export")
    build_engine(export, root / "exact", backend="reference")
    with standin():
        build_engine(export, root / "plan", backend="tensorrt", gpu=GpuOptions(buckets=BUCKETS))
    build_catalog(iter(ITEMS), root / "exact", root / "catalog", threads=1)
    return root


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin() as device:
        yield device


@pytest.fixture
def catalog(shop: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop / "catalog", tmp_path / "catalog"))


def opened(shop: Path, catalog: Path | None = None, **options: Any) -> tuple[Ranker, TensorRtEngine]:
    ranker = Ranker.open(shop / "plan", catalog=catalog, **{"threads": 1, **options})
    engine = ranker._engine
    assert isinstance(engine, TensorRtEngine)
    assert isinstance(engine, ItemEngine)
    assert isinstance(engine, KeepingEngine)
    return ranker, engine


def exact(shop: Path, catalog: Path, candidates: list[Any]) -> Any:
    with Ranker.open(shop / "exact", catalog=catalog) as ranker:
        return ranker.score("red lamp", candidates)


def tokens_of(ranker: Ranker) -> int:
    assert ranker.catalog is not None
    return sum(len(segment.item_tokens[0]) for segment in ranker.catalog.segments)


def copied(engine: TensorRtEngine) -> int:
    """Tokens on the GPU, once nothing is on its way."""
    assert engine._device is not None
    if (thread := engine._device.kept._thread) is not None:
        thread.join(10)
    return int(engine.kept.split()[0])


def batch(seed: int, rows: int, total: int = 60, query: int = 3) -> RaggedItemBatch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, MAX_TOKENS - query - 2, rows)
    starts = np.array([rng.integers(0, total - length + 1) for length in lengths], np.int64)
    ids, weights = rng.integers(0, 64, (rows, 4)).astype(np.int32), rng.random((rows, 4)).astype(np.float32)
    tokens = rng.integers(0, 110, total).astype(np.int32)
    return RaggedItemBatch(rng.integers(0, 110, query + 1).astype(np.int32), tokens, starts, lengths, ids, weights)


@pytest.mark.parametrize("capture", [True, False])
def test_a_request_brings_no_token_of_the_catalogue(shop: Path, catalog: Path, gpu: Any, capture: bool) -> None:
    gpu.OPTIONS["capture"] = capture
    ranker, engine = opened(shop, catalog)
    with ranker:
        assert copied(engine) == tokens_of(ranker) > 0
        np.testing.assert_allclose(ranker.score("red lamp", IDS), exact(shop, catalog, IDS), atol=CLOSE)
        steps, launches = steps_of(gpu, lambda: ranker.score("red lamp", IDS))
        if capture:
            assert steps == 4 * launches > 0  # places there, join, run, back
        mixed = ["3", Item("whole", "red lamp red lamp"), "5"]
        np.testing.assert_allclose(ranker.score("red lamp", mixed), exact(shop, catalog, mixed), atol=CLOSE)
    assert gpu.MEMORY.blocks == {}


def test_changes_of_the_catalogue_are_copied_while_it_serves(shop: Path, catalog: Path, gpu: Any) -> None:
    ranker, engine = opened(shop, catalog)
    with ranker, CatalogWriter.open(catalog, bundle=shop / "exact") as writer:
        for change in range(3):
            writer.upsert([Item("3", f"black glass table {change}"), Item(f"new {change}", "red lamp")])
            writer.delete([str(20 + change)])
            ids = ["3", f"new {change}", "5", "0"]
            for _ in range(2):  # on the way, or there
                np.testing.assert_allclose(ranker.score("red lamp", ids), exact(shop, catalog, ids), atol=CLOSE)
            assert copied(engine) == tokens_of(ranker)
            steps, launches = steps_of(gpu, lambda ids=ids: ranker.score("red lamp", ids))  # type: ignore[misc]
            assert steps == 4 * launches
        writer.compact()
        np.testing.assert_allclose(ranker.score("red lamp", ids), exact(shop, catalog, ids), atol=CLOSE)
        assert copied(engine) == tokens_of(ranker)
    assert gpu.MEMORY.blocks == {}


@pytest.mark.parametrize("share", [0.0, 4e-7])
def test_what_does_not_fit_comes_along(shop: Path, catalog: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(trt_kept, "FREE_SHARE", share)
    ranker, engine = opened(shop, catalog)
    with ranker:
        assert (0 < copied(engine) < tokens_of(ranker)) if share else copied(engine) == 0
        np.testing.assert_allclose(ranker.score("red lamp", IDS), exact(shop, catalog, IDS), atol=CLOSE)


def test_tokens_are_what_is_kept(shop: Path, catalog: Path, gpu: Any) -> None:
    ranker, engine = opened(shop, catalog)
    with ranker:
        assert engine.keeps == "tokens"
        assert ranker.catalog is not None
        (segment,) = ranker.catalog.segments
        assert [len(column) for column in segment.table(engine.keeps).columns] == [tokens_of(ranker)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), rows=st.integers(0, 40), query=st.integers(0, 6))
def test_rows_joined_there_are_those_joined_here(shop: Path, gpu: Any, seed: int, rows: int, query: int) -> None:
    engine = open_engine(shop / "plan", threads=1)
    assert isinstance(engine, TensorRtEngine)
    one = batch(seed, rows, query=query)
    np.testing.assert_array_equal(engine.run_items(one), engine.run_ragged(engine._joined(one)))
    engine.close()


def test_rows_of_a_kept_table_and_of_the_request_mix(shop: Path, gpu: Any) -> None:
    _, engine = opened(shop)
    one = batch(1, 30)
    engine.keep([StoredTable("a", (one.tokens,))], wait=True)
    owners = np.arange(30) % 2
    source = TableSource(("a", "unknown"), owners, one.starts)
    found = engine.run_items(
        RaggedItemBatch(*(getattr(one, name) for name in RaggedItemBatch.__dataclass_fields__ if name != "source"), source)
    )
    np.testing.assert_array_equal(found, engine.run_items(one))


def test_concurrent_callers_have_lanes_of_their_own(shop: Path, catalog: Path, gpu: Any) -> None:
    ranker, _ = opened(shop, catalog, threads=3)
    lists = [IDS[n % 7 : 8 + n % 23] for n in range(23)]
    expected = [exact(shop, catalog, ids) for ids in lists]
    with ranker, ThreadPoolExecutor(6) as pool:
        for found, right in zip(pool.map(lambda ids: ranker.score("red lamp", ids), lists), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=CLOSE)


def test_rows_after_the_deadline_are_left_out(shop: Path, gpu: Any) -> None:
    _, engine = opened(shop)
    one, done = batch(2, 40), np.ones(40, np.bool_)
    assert np.isnan(engine.run_items(one, deadline_ns=1, done=done)).all()
    assert not done.any()
    engine.run_items(one, deadline_ns=monotonic_ns() + 10**12, done=done)
    assert done.all()


def test_without_a_kernel_the_host_joins_and_it_is_said(shop: Path, catalog: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pycuda.driver as cuda

    def refuse(text: bytes) -> Any:
        raise cuda.LogicError("cuModuleLoadDataEx failed: PTX JIT compiler library not found")

    monkeypatch.setattr(cuda, "module_from_buffer", refuse)
    ranker, engine = opened(shop, catalog)
    with ranker:
        assert engine.kept.startswith("0 tokens: the driver refuses gather.ptx: cuModuleLoadDataEx failed")
        result = ranker.rank("red lamp", IDS, top_k=40)
        assert (result.degraded, len(result.ids)) == (False, 40)
        np.testing.assert_allclose(ranker.score("red lamp", IDS), exact(shop, catalog, IDS), atol=CLOSE)
    assert gpu.MEMORY.blocks == {}


def test_a_lost_device_hands_over_to_the_cpu_for_good(shop: Path, catalog: Path, gpu: Any) -> None:
    ranker, engine = opened(shop, catalog)
    with ranker:
        ranker.score("red lamp", IDS)
        gpu.MEMORY.lost = "unspecified launch failure"
        np.testing.assert_allclose(ranker.score("red lamp", IDS), exact(shop, catalog, IDS), atol=CLOSE)
        assert engine.note.startswith("the CPU engine (native fp32) has taken over from the GPU: the GPU failed:")
        gpu.MEMORY.lost = ""
        steps, _ = steps_of(gpu, lambda: ranker.score("red lamp", IDS))
        assert steps == 0


def test_a_token_out_of_range_is_an_error_and_never_reaches_the_gpu(shop: Path, gpu: Any) -> None:
    _, engine = opened(shop)
    one = batch(3, 4)
    one.tokens[:] = 1_000_000
    with pytest.raises(EngineError, match="tokens has values from 1000000 to 1000000, expected 0 to"):
        engine.run_items(one)
    engine.keep([StoredTable("a", (one.tokens,))], wait=True)
    assert engine.kept.startswith("0 tokens: batch: tokens has values from 1000000 to 1000000, expected 0 to")
    assert engine.note == ""


WRONG: dict[str, Any] = {
    "starts": np.array([61, 0], np.int64),
    "lengths": np.array([1 << 62, 1], np.int64),
    "query_ids": np.full(4, 999, np.int32),
    "feature_ids": np.zeros((3, 4), np.int32),
    "tokens": np.zeros(60, np.int64),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_batch_that_does_not_fit_is_refused(shop: Path, gpu: Any, name: str) -> None:
    _, engine = opened(shop)
    one = batch(4, 2)
    fields = {field: getattr(one, field) for field in RaggedItemBatch.__dataclass_fields__}
    with pytest.raises(EngineError, match="batch"):
        engine.run_items(RaggedItemBatch(**{**fields, name: WRONG[name]}))
    assert engine.note == ""


def test_a_row_longer_than_the_student_takes_is_refused(shop: Path, gpu: Any) -> None:
    _, engine = opened(shop)
    one = batch(5, 1)
    one.starts[:], one.lengths[:] = 0, MAX_TOKENS
    with pytest.raises(EngineError, match=f"at most {MAX_TOKENS} are taken"):
        engine.run_items(one)


def test_a_damaged_catalogue_is_a_bundle_error(shop: Path, catalog: Path, gpu: Any) -> None:
    ranker, _ = opened(shop, catalog)
    with ranker:
        assert ranker.catalog is not None
        tokens, offsets = ranker.catalog.segments[0].item_tokens
        broken = offsets.copy()
        broken[5] = len(tokens) + 7
        ranker.catalog.segments[0].item_tokens = (tokens, broken)
        with pytest.raises(BundleError, match="out of place"):
            ranker.score("red lamp", IDS)


@pytest.mark.parametrize("places", [lambda kept: np.where(kept > 0, kept - 1, kept), lambda kept: np.where(kept >= 0, kept + 1, kept)])
def test_a_mistake_in_the_places_would_be_seen(shop: Path, catalog: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch, places: Any) -> None:
    from edgerec.engine import trt

    real = trt.along
    monkeypatch.setattr(trt, "along", lambda starts, lengths, kept: real(starts, lengths, places(kept)))
    ranker, _ = opened(shop, catalog)
    with ranker:
        result = ranker.rank("red lamp", IDS, top_k=40)
        found = dict(zip(result.ids, result.scores.tolist(), strict=True))
    expected = exact(shop, catalog, IDS)
    assert result.degraded or max(abs(found[one] - score) for one, score in zip(IDS, expected.tolist(), strict=True)) > 3 * CLOSE
