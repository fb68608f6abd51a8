"""Retrieval from a catalogue that changes while it is served: what is found is what a plain sort over the items of that moment finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.retrieval import RetrievalSettings, add_retrieval
from fixtures_mid import write_mid_student
from fixtures_tiny import write_shop
from fixtures_traced import export_traced_once
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgerec import Catalog, CatalogWriter, Item, Ranker, catalog_writer, ranker_retrieve
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.catalog_encoder import ItemEncoder
from edgerec.catalog_segment import CatalogSegment
from edgerec.engine import QueryEngine, open_engine
from edgerec.errors import BundleError

NARROW = {"query_layers": 1, "states": "one", "state_width": 16, "state_precision": "int8"}
NAMES = [f"id-{n}" for n in range(6)]
QUERY = "red lamp"
CHANGED = ["new", NAMES[1]]


def item(name: str, version: int) -> Item:
    return Item(name, "red lamp " * (version % 4) + f"sofa {'blue ' * version}", brand=f"b{version}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles ``with`` and ``without`` a head, ``other`` with another one, and ``items`` and ``plain``, the catalogues of the first two."""
    root = tmp_path_factory.mktemp("retrieval")
    shop = write_shop(root / "shop")
    student = write_mid_student(root / "student", shop, **NARROW)  # type: ignore[arg-type]
    students = {"without": student}
    for seed, name in enumerate(("with", "other")):
        students[name] = root / f"student-{name}"
        add_retrieval(student, students[name], data=[shop], settings=RetrievalSettings(width=8, spans=10, epochs=1, seed=seed))
    for name, folder in students.items():
        export = export_traced_once(folder, root / f"export-{name}", data=[shop])
        build_engine(export, root / name, backend="native", gate={"ndcg_drop": 1.0})
    for bundle, name in (("with", "items"), ("without", "plain")):
        build_catalog([item(name, 0) for name in NAMES], root / bundle, root / name, threads=1)
    return root


@pytest.fixture(scope="module", autouse=True)
def _small_numbers() -> Iterator[None]:
    """Merging begins with the fourth segment, and a block of the scan is three items."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog_writer, "MOST_SEGMENTS", 3)
        patch.setattr(ranker_retrieve, "SCAN_ROWS", 3)
        yield


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    build_catalog([item(name, 0) for name in NAMES], made / "with", tmp_path / "catalog", threads=1)
    return tmp_path / "catalog"


def query_vector(ranker: Ranker, bundle: Path) -> tuple[NDArray[np.int8], np.float32]:
    engine, text = open_engine(bundle, threads=1), ranker._text
    assert isinstance(engine, QueryEngine)
    assert ranker.head is not None
    ids = np.array([[*text.spec.prefix, *text.encode_query(QUERY), *text.spec.middle]], np.int32)
    values, scales = ranker.head.query_vectors(engine.encode_queries(ids, np.array([ids.shape[1]], np.int32)))  # type: ignore[arg-type]
    return values[0], scales[0]


def by_sorting(
    query: tuple[NDArray[np.int8], np.float32], encoder: ItemEncoder, items: list[Item]
) -> tuple[list[str], NDArray[np.float32]]:
    if not items:
        return [], np.zeros(0, np.float32)
    columns = encoder.encode(items)
    scores = (columns["vectors"].astype(np.int32) @ query[0].astype(np.int32)).astype(np.float32) * (query[1] * columns["vectors.scale"])
    order = np.argsort(-scores, kind="stable")
    return [items[place].id for place in order], scores[order]


names = st.sampled_from([*NAMES, "new", "new-2"])
steps = st.one_of(
    st.tuples(st.just("upsert"), st.dictionaries(names, st.integers(0, 9), min_size=1, max_size=4)),
    st.tuples(st.just("delete"), st.lists(names, min_size=1, max_size=4)),
    st.tuples(st.just("compact"), st.none()),
    st.tuples(st.just("ask"), st.none()),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=10))
def test_what_is_found_is_what_a_plain_sort_finds(
    made: Path, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("changes")
    expected = {name: item(name, 0) for name in NAMES}  # in the order of their rows: an item that comes again goes to the end
    build_catalog(expected.values(), made / "with", folder / "catalog", threads=1)
    encoder = ItemEncoder(made / "with", threads=1)
    with CatalogWriter.open(folder / "catalog", made / "with", threads=1) as writer, encoder:
        ranker = Ranker.open(made / "with", catalog=folder / "catalog", threads=1)
        query = query_vector(ranker, made / "with")
        for kind, given_ in [*changes, ("ask", None)]:
            if isinstance(given_, dict):
                writer.upsert([item(name, version) for name, version in given_.items()])
                expected = {name: one for name, one in expected.items() if name not in given_}
                expected |= {name: item(name, version) for name, version in given_.items()}
            elif isinstance(given_, list):
                writer.delete(given_)
                expected = {name: one for name, one in expected.items() if name not in given_}
            elif kind == "compact":
                writer.compact()
            else:
                ids, scores = ranker.nearest(QUERY, 20)
                oracle, best = by_sorting(query, encoder, list(expected.values()))
                assert ids == oracle
                np.testing.assert_array_equal(scores, best)
                few, _ = ranker.nearest(QUERY, 2)
                assert few == oracle[:2]
        found = ranker.retrieve(QUERY, top_k=3, n=4)
        ranked = ranker.rank(QUERY, ids[:4], top_k=3)
        assert found.ids == ranked.ids
        np.testing.assert_array_equal(found.scores, ranked.scores)
        if expected:
            build_catalog(expected.values(), made / "with", folder / "fresh", threads=1)
            with Ranker.open(made / "with", catalog=folder / "fresh", threads=1) as fresh:
                assert fresh.nearest(QUERY, 20)[0] == ids
                assert fresh.retrieve(QUERY, top_k=3, n=4).ids == found.ids
        ranker.close()


def test_an_emptied_catalogue_has_nothing_near(made: Path, path: Path) -> None:
    with CatalogWriter.open(path, made / "with") as writer, Ranker.open(made / "with", catalog=path, threads=1) as ranker:
        for change in (lambda: writer.delete(NAMES), writer.compact):
            change()
            assert ranker.nearest(QUERY, 3)[0] == []
            assert ranker.retrieve(QUERY).ids == ()


def test_a_request_sees_one_generation(made: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CatalogWriter.open(path, made / "with") as writer, Ranker.open(made / "with", catalog=path, threads=1) as ranker:
        expected = ranker.retrieve(QUERY, top_k=6)
        looked, newest = [], Ranker.newest

        def change_after(self: Ranker) -> Catalog | None:
            looked.append(newest(self))
            writer.delete(NAMES[:3])
            return looked[-1]

        monkeypatch.setattr(Ranker, "newest", change_after)
        found = ranker.retrieve(QUERY, top_k=6)
        assert len(looked) == 1
        assert found.ids == expected.ids
        np.testing.assert_array_equal(found.scores, expected.scores)
        assert sorted(ranker.retrieve(QUERY, top_k=6).ids) == NAMES[3:]


def test_which_rows_are_alive_is_found_once_and_reads_the_ids_of_new_segments_only(
    made: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    ids = CatalogSegment.ids

    def spy(self: CatalogSegment) -> list[str]:
        read.append(self.entry.number)
        return ids(self)

    monkeypatch.setattr(CatalogSegment, "ids", spy)
    reader = Catalog.open(path)
    assert reader.alive() is None
    with CatalogWriter.open(path, made / "with") as writer:
        writer.upsert([item(name, 3) for name in CHANGED])
        reader = reader.refresh()
        for _ in range(2):
            assert [rows.tolist() for rows in reader.alive() or ()] == [[True, False, True, True, True, True], [True, True]]
        assert read == [1]
        earlier = reader
        writer.delete([NAMES[2], "new"])
        reader = reader.refresh()
        assert [rows.tolist() for rows in reader.alive() or ()] == [[True, False, False, True, True, True], [False, True], [False, False]]
        assert read == [1, 2]
        assert [int(rows.sum()) for rows in earlier.alive() or ()] == [5, 2]
        writer.compact()
        assert reader.refresh().alive() is None


def segments(path: Path) -> list[bytes]:
    return [(path / segment.file).read_bytes() for segment in Catalog.open(path, verify=True).info.segments]


@pytest.mark.parametrize(("bundle", "previous"), [("with", "plain"), ("without", "items"), ("other", "items"), ("with", "items")])
def test_a_previous_catalogue_of_another_head_saves_the_encoding(
    made: Path, tmp_path: Path, bundle: str, previous: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [item("new", 2), *(item(name, int(name == NAMES[3])) for name in NAMES)]
    build_catalog(items, made / bundle, tmp_path / "fresh", threads=1)
    computed: list[str] = []
    compute = ItemEncoder.compute

    def spy(self: ItemEncoder, items: list[Item]) -> dict[str, NDArray[np.generic]]:
        computed.extend(one.id for one in items)
        return compute(self, items)

    monkeypatch.setattr(ItemEncoder, "compute", spy)
    build_catalog(items, made / bundle, tmp_path / "catalog", previous=made / previous, threads=1)
    assert computed == ["new", NAMES[3]]
    assert segments(tmp_path / "catalog") == segments(tmp_path / "fresh")
    assert Catalog.open(tmp_path / "catalog").info.vectors == ItemEncoder(made / bundle).vectors


@pytest.mark.parametrize(("bundle", "catalog"), [("with", "plain"), ("without", "items"), ("other", "items")])
def test_a_writer_with_another_head_is_refused(made: Path, bundle: str, catalog: str) -> None:
    with pytest.raises(BundleError, match="another retrieval head"):
        CatalogWriter.open(made / catalog, made / bundle)
    CatalogWriter.open(made / catalog, made / {"plain": "without", "items": "with"}[catalog]).close()  # the lock is free
