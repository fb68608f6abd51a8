"""A catalogue's states on a stand-in GPU: requests bring none of them, changes follow, and what does not fit comes along as before."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures_mid_export import STUDENTS, mid_export
from fixtures_standin import standin, steps_of

from edgerec import CatalogWriter, Item, Ranker
from edgerec.builder import GpuOptions, build_engine
from edgerec.catalog import build_catalog
from edgerec.engine import KeepingEngine, trt_kept
from edgerec.states import PRECISIONS
from edgerec.types import StoredTable, TableSource

CLOSE = 0.02  # a number between two int8 steps may be rounded to either
TEXTS = ("red lamp", "blue sofa", "green wood chair with steel")
ITEMS = [Item(str(i), " ".join(TEXTS[i % 3 : i % 3 + 1] * (1 + i % 4))) for i in range(40)]
IDS = [item.id for item in ITEMS]


@pytest.fixture(scope="module", params=STUDENTS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kept")
    export = mid_export(request.param)
    build_engine(export, root / "exact", backend="reference")
    with standin():
        build_engine(export, root / "plan", backend="tensorrt", gpu=GpuOptions(buckets=((4, 12), (16, 30))))
    build_catalog(iter(ITEMS), root / "exact", root / "catalog", threads=1)
    return root


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin() as device:
        yield device


@pytest.fixture
def catalog(shop: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop / "catalog", tmp_path / "catalog"))


def open_ranker(shop: Path, catalog: Path) -> Ranker:
    return Ranker.open(shop / "plan", catalog=catalog, threads=1)


def exact(shop: Path, catalog: Path, ids: list[str]) -> Any:
    with Ranker.open(shop / "exact", catalog=catalog) as ranker:
        return ranker.score("red lamp", ids)


def kept(ranker: Ranker) -> int:
    return int(ranker._engine.kept.split()[0])  # type: ignore[attr-defined]


def tokens_of(ranker: Ranker) -> int:
    assert ranker.catalog is not None
    return sum(len(segment.states.values) for segment in ranker.catalog.segments if segment.states is not None)


def test_a_request_brings_no_states_of_the_catalogue(shop: Path, catalog: Path, gpu: Any) -> None:
    with open_ranker(shop, catalog) as ranker:
        assert isinstance(ranker._engine, KeepingEngine)
        assert kept(ranker) == tokens_of(ranker) > 0
        np.testing.assert_allclose(ranker.score("red lamp", IDS), exact(shop, catalog, IDS), atol=CLOSE)
        steps, launches = steps_of(gpu, lambda: ranker.score("red lamp", IDS))
        # The query: there, run. A bucket: rows there, widen, run, back.
        assert steps == 2 + 4 * (launches - 1)
        mixed = ["3", Item("whole", "red lamp red lamp"), "5"]
        with Ranker.open(shop / "exact", catalog=catalog) as reference:
            np.testing.assert_allclose(ranker.score("red lamp", mixed), reference.score("red lamp", mixed), atol=CLOSE)
    assert gpu.MEMORY.blocks == {}


def test_changes_of_the_catalogue_are_copied_while_it_serves(shop: Path, catalog: Path, gpu: Any) -> None:
    with open_ranker(shop, catalog) as ranker, CatalogWriter.open(catalog, bundle=shop / "exact") as writer:
        for change in range(3):
            writer.upsert([Item("3", f"black glass table {change}"), Item(f"new {change}", "red lamp")])
            writer.delete([str(20 + change)])
            ids = ["3", f"new {change}", "5", "0"]
            for _ in range(2):  # on the way, or there
                np.testing.assert_allclose(ranker.score("red lamp", ids), exact(shop, catalog, ids), atol=CLOSE)
            ranker._engine._device.kept._thread.join(10)  # type: ignore[attr-defined]
            assert kept(ranker) == tokens_of(ranker)
            steps, launches = steps_of(gpu, lambda ids=ids: ranker.score("red lamp", ids))  # type: ignore[misc]
            assert steps == 2 + 4 * (launches - 1)
        writer.compact()
        np.testing.assert_allclose(ranker.score("red lamp", ids), exact(shop, catalog, ids), atol=CLOSE)
        ranker._engine._device.kept._thread.join(10)  # type: ignore[attr-defined]
        assert kept(ranker) == tokens_of(ranker)
        assert sum(tokens for _, tokens in ranker._engine._device.kept._free) > 0  # type: ignore[attr-defined]
    assert gpu.MEMORY.blocks == {}


@pytest.mark.parametrize("share", [0.0, 2e-6])
def test_what_does_not_fit_comes_along(shop: Path, catalog: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(trt_kept, "FREE_SHARE", share)
    with open_ranker(shop, catalog) as ranker:
        assert kept(ranker) < tokens_of(ranker)
        assert (kept(ranker) > 0) == (share > 0)
        np.testing.assert_allclose(ranker.score("red lamp", IDS), exact(shop, catalog, IDS), atol=CLOSE)


def test_a_copy_that_fails_is_said_and_requests_go_on(shop: Path, catalog: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pycuda.driver as cuda

    def refuse() -> tuple[int, int]:
        raise cuda.MemoryError("out of memory")

    monkeypatch.setattr(cuda, "mem_get_info", refuse)
    with open_ranker(shop, catalog) as ranker:
        assert ranker._engine.kept == "0 tokens: the GPU failed: MemoryError: out of memory"  # type: ignore[attr-defined]
        result = ranker.rank("red lamp", IDS, top_k=40)
        assert (result.degraded, len(result.ids)) == (False, 40)


class OneTable:
    """A device of memory alone, for the bookkeeping."""

    def __init__(self, spec: Any) -> None:
        from edgerec.engine.trt_mid_device import MidDevice

        self.cuda = __import__("pycuda.driver").driver
        columns = ((spec.numbers, PRECISIONS[spec.precision]), (spec.scales, np.float32))
        self.kept = trt_kept.KeptTables(self, columns, lambda values: None)
        self.current, self.guard = (lambda: MidDevice.current(self)), (lambda: MidDevice.guard(self))  # type: ignore[arg-type]
        self._primary = self.cuda.Device(0).retain_primary_context()


def table(spec: Any, key: str, tokens: int, number: int) -> StoredTable:
    values = np.full((tokens, spec.numbers), number, PRECISIONS[spec.precision])
    return StoredTable(key, (values, np.full((tokens, spec.scales), float(number), np.float32)))


def test_a_place_is_not_given_away_while_somebody_reads_it(shop: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ranker.open(shop / "exact") as ranker:
        spec = ranker._engine._spec  # type: ignore[attr-defined]
    monkeypatch.setattr(trt_kept, "SPARE_TOKENS", 0)
    monkeypatch.setattr(trt_kept, "UPLOAD_BYTES", 3 * spec.token_bytes)
    device = OneTable(spec)
    states = device.kept
    states.keep([table(spec, "a", 40, 1)], wait=True)  # and room for ten more
    source = TableSource(("a", "b"), np.array([0, 0, 1]), np.array([0, 39, 5]))
    with states.use(source, np.array([40, 2, 3])) as places:
        np.testing.assert_array_equal(places, [0, -1, -1])  # there; past its end; not there
        done = threading.Thread(target=lambda: states.keep([table(spec, "b", 45, 2)], wait=True))
        done.start()
        done.join(0.2)
        assert done.is_alive()  # "a" is in use, and both have no room
        size = spec.numbers * np.dtype(PRECISIONS[spec.precision]).itemsize
        held = gpu.MEMORY.view(states.addresses[0], 40 * size)
        assert (held.view(PRECISIONS[spec.precision]) == 1).all()
    done.join(10)
    assert not done.is_alive()
    with states.use(source, np.array([40, 2, 3])) as places:
        np.testing.assert_array_equal(places, [-1, -1, 5])
        row = gpu.MEMORY.view(states.addresses[0] + 5 * size, 3 * size)
        assert (row.view(PRECISIONS[spec.precision]) == 2).all()
    states.keep([], wait=True)
    assert (states.tokens, states._free) == (0, [(0, 50)])
    with device.current():
        states.close()
    assert gpu.MEMORY.blocks == {}


def _elsewhere(places: Any) -> Any:
    return np.where(places > 0, places - 1, places)


def _one_further(places: Any) -> Any:
    return np.where(places >= 0, places + 1, places)


@pytest.mark.parametrize("mistake", [_elsewhere, _one_further])
def test_a_mistake_in_the_places_would_be_seen(shop: Path, catalog: Path, gpu: Any, monkeypatch: pytest.MonkeyPatch, mistake: Any) -> None:
    use = trt_kept.KeptTables.use

    class Wrong:
        def __init__(self, *given: Any) -> None:
            self._inner = use(*given)

        def __enter__(self) -> Any:
            return mistake(self._inner.__enter__())

        def __exit__(self, *error: Any) -> Any:
            return self._inner.__exit__(*error)

    with open_ranker(shop, catalog) as ranker:
        monkeypatch.setattr(trt_kept.KeptTables, "use", lambda *given: Wrong(*given))
        result = ranker.rank("red lamp", IDS, top_k=40)
        found = dict(zip(result.ids, result.scores.tolist(), strict=True))
    expected = exact(shop, catalog, IDS)
    assert result.degraded or max(abs(found[one] - score) for one, score in zip(IDS, expected.tolist(), strict=True)) > 3 * CLOSE
