"""A catalogue that changes while it is served: as a dict would, for every reader, whatever happens to the writer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures_export import make_export
from fixtures_ranker import IDS, ITEMS, NAMES, SCORE_TOLERANCE, item, make_shop
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import Catalog, CatalogWriter, Item, Ranker, catalog_writer
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.catalog_encoder import ItemEncoder
from edgerec.catalog_writer import merge_start
from edgerec.errors import BundleError, InputError
from edgerec.states import ItemStates, StateSpec

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), backend="reference")


@pytest.fixture(scope="module")
def bundle(shop):
    return shop / "bundle"


@pytest.fixture
def path(bundle, tmp_path):
    build_catalog([item(name, 0) for name in NAMES], bundle, tmp_path / "catalog")
    return tmp_path / "catalog"


@pytest.fixture(scope="module", autouse=True)
def _early_merges():
    """Merging begins with the fourth segment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog_writer, "MOST_SEGMENTS", 3)
        yield


def assert_holds(catalog, encoder, expected):
    """The catalogue is what a dict of id -> item is."""
    asked = sorted({*NAMES, *expected, "nowhere"})
    assert [name for name, row in zip(asked, catalog.find(asked).tolist(), strict=True) if row >= 0] == sorted(expected)
    assert sorted(catalog.ids()) == sorted(expected)
    assert len(catalog) == catalog.info.items == len(expected)
    names = sorted(expected)
    rows = catalog.find(names)
    fresh = encoder.encode([expected[name] for name in names])
    found = catalog.columns(rows)
    for name, column in fresh.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    places, tokens, offsets, features, states, _ = catalog.take(rows)
    assert (states is None) == ("states" not in fresh)
    for k, place in enumerate(places.tolist()):
        np.testing.assert_array_equal(
            tokens[offsets[place] : offsets[place + 1]], fresh["tokens"][slice(*fresh["tokens.offsets"][k : k + 2])]
        )
        if states is not None:
            mine, own = slice(*states.offsets[place : place + 2]), slice(*fresh["states.offsets"][k : k + 2])
            np.testing.assert_array_equal(states.values[mine], fresh["states"][own])
            np.testing.assert_array_equal(states.scales[mine], fresh["states.scales"][own])
        width = features.fields
        start, end = features.offsets[place * width], features.offsets[(place + 1) * width]
        np.testing.assert_array_equal(
            features.hashes[start:end], fresh["features"][slice(*fresh["features.offsets"][k * width :: width][:2])]
        )
    np.testing.assert_array_equal(np.sort(rows), catalog.rows())


class FakeEncoder:
    """States that are a function of an item's tokens, for tests that need no model to make them."""

    spec = StateSpec(groups=2, width=3, precision="int8", sha256="fake")

    def encode_ragged(self, tokens, offsets):
        ends = offsets + np.arange(len(offsets))
        values = np.repeat(np.insert(tokens, offsets[1:], 7)[:, None], self.spec.numbers, axis=1) + np.arange(self.spec.numbers)
        return ItemStates(values.astype(np.int8), values[:, : self.spec.scales].astype(np.float32), ends)

    def close(self):
        pass


@contextmanager
def encoders(with_states):
    """Encoders of a model without or with item states."""
    real = ItemEncoder.__init__

    def init(self, *args, **options):
        real(self, *args, **options)
        self.states, self._engine = FakeEncoder.spec, FakeEncoder()

    with pytest.MonkeyPatch.context() as patch:
        if with_states:
            patch.setattr(ItemEncoder, "__init__", init)
        yield


names = st.sampled_from([*NAMES, "new", "new-2"])
steps = st.one_of(
    st.tuples(st.just("upsert"), st.dictionaries(names, st.integers(0, 9), max_size=4)),
    st.tuples(st.just("delete"), st.lists(names, max_size=4)),
    st.tuples(st.just("compact"), st.none()),
    st.tuples(st.just("reopen"), st.none()),
)


@pytest.mark.parametrize("with_states", [False, True], ids=["plain", "states"])
@settings(max_examples=15, deadline=None)
@given(changes=st.lists(steps, max_size=14))
def test_any_changes_leave_what_they_would_leave_in_a_dict(bundle, with_states, tmp_path_factory, changes):
    with encoders(with_states):
        check_against_a_dict(bundle, tmp_path_factory.mktemp("dict") / "catalog", changes, with_states)


def check_against_a_dict(bundle, path, changes, with_states):
    expected = {name: item(name, 0) for name in NAMES}
    build_catalog(expected.values(), bundle, path)
    reader, encoder, writer = Catalog.open(path), ItemEncoder(bundle), CatalogWriter.open(path, bundle)
    for kind, given_ in changes:
        if kind == "upsert":
            new = {name: item(name, version) for name, version in given_.items()}
            generation = writer.upsert(new.values())
            expected |= new
        elif kind == "delete":
            generation = writer.delete(given_)
            expected = {name: one for name, one in expected.items() if name not in given_}
        elif kind == "compact":
            generation = writer.compact()
        else:
            writer.close()
            writer = CatalogWriter.open(path, bundle)
            generation = writer.catalog.info.generation
        reader = reader.refresh()
        assert reader.info.generation >= generation
        assert_holds(reader, encoder, expected)
    writer.compact()
    writer.close()
    last = Catalog.open(path, verify=True)
    assert_holds(last, encoder, expected)
    assert bool(last.info.states) == with_states
    assert len(last.segments) == 1
    assert sorted(p.name for p in (path / "segments").iterdir()) == [Path(last.info.segments[0].file).name]


def test_a_compacted_catalogue_holds_the_bytes_that_a_fresh_one_would(bundle, path, tmp_path):
    with CatalogWriter.open(path, bundle) as writer:
        writer.upsert([item("new", 5)])
        writer.delete([NAMES[1]])
        writer.compact()
    left = [item(name, 0) for name in NAMES if name != NAMES[1]]
    build_catalog([*left, item("new", 5)], bundle, tmp_path / "fresh")
    (one,), (other,) = (Catalog.open(p).info.segments for p in (path, tmp_path / "fresh"))
    assert one.sha256 == other.sha256
    assert (path / one.file).read_bytes() == (tmp_path / "fresh" / other.file).read_bytes()


def test_everything_may_be_deleted_and_come_back(bundle, path):
    with CatalogWriter.open(path, bundle) as writer:
        writer.delete(NAMES)
        writer.compact()
        assert (len(writer.catalog), writer.catalog.ids()) == (0, [])
        writer.upsert([item(NAMES[2], 7)])
        assert_holds(Catalog.open(path, verify=True), ItemEncoder(bundle), {NAMES[2]: item(NAMES[2], 7)})


def test_an_open_generation_does_not_change(bundle, path):
    old = Catalog.open(path)
    before = old.columns(old.find(NAMES))
    with CatalogWriter.open(path, bundle) as writer:
        writer.upsert([item(name, 3) for name in NAMES])
        writer.compact()
    assert not (path / "segments" / "000000.seg").exists()
    for name, column in old.columns(old.find(NAMES)).items():
        np.testing.assert_array_equal(column, before[name])
    assert old.refresh() is old.refresh() is not old


def test_what_changes_nothing_makes_no_generation(bundle, path):
    with CatalogWriter.open(path, bundle) as writer:
        assert writer.upsert([]) == writer.delete([]) == writer.delete(["nowhere"]) == writer.compact() == 0
    assert Catalog.open(path).info.generation == 0


def test_a_catalogue_of_version_3_can_be_changed(bundle, path):
    info = json.loads((path / "catalog.json").read_text())
    del info["generation"], info["segments"][0]["sha256"]
    (path / "catalog.json").write_text(json.dumps({**info, "version": 3}))
    reader = Catalog.open(path)
    with CatalogWriter.open(path, bundle) as writer:
        writer.upsert([item("new", 1)])
        assert_holds(reader.refresh(), ItemEncoder(bundle), {name: item(name, 0) for name in NAMES} | {"new": item("new", 1)})
    assert Catalog.open(path, verify=True).info.segments[0].sha256


# ------------------------------------------------------------------------------------------------------------ serving


def test_a_ranker_sees_each_change_at_its_next_request(shop, tmp_path):
    shutil.copytree(shop / "catalog", tmp_path / "catalog")
    new = [Item("brand-new", "red desk lamp", brand="acme", price=3.0), replace(ITEMS[7], title="green sofa")]
    with (
        Ranker.open(shop / "bundle", catalog=tmp_path / "catalog") as ranker,
        CatalogWriter.open(tmp_path / "catalog", shop / "bundle") as writer,
    ):
        before = ranker.score("red desk lamp", IDS[:20])
        writer.upsert(new)
        writer.delete([IDS[3]])
        asked = [*IDS[:20], "brand-new"]
        found = ranker.score("red desk lamp", asked)
        whole = ranker.score("red desk lamp", [*ITEMS[:7], new[1], *ITEMS[8:20], new[0]])
        assert np.isnan(found[3])
        keep = [i for i in range(len(asked)) if i != 3]
        np.testing.assert_allclose(found[keep], whole[keep], atol=SCORE_TOLERANCE)
        np.testing.assert_allclose(np.delete(found[:20], [3, 7]), np.delete(before, [3, 7]), atol=SCORE_TOLERANCE)
        assert ("i3", "unknown id") in ranker.rank("red desk lamp", asked, top_k=30).skipped
        assert set(ranker.rank("red desk lamp", ["brand-new", IDS[7]]).ids) == {"brand-new", IDS[7]}


@pytest.mark.parametrize("versions", [25, pytest.param(3000, marks=pytest.mark.slow)])
def test_readers_never_see_a_part_of_a_change(bundle, path, versions):
    """Every change replaces all items by those of one version: a reader that sees two versions, or another's column, saw half of one."""
    encoder = ItemEncoder(bundle)
    whole = [encoder.encode([item(name, version) for name in NAMES]) for version in range(versions)]
    by_content = {tuple(columns["content"].tolist()): columns for columns in whole}
    catalog, finished, torn, looks = Catalog.open(path), threading.Event(), [], []

    def read():
        mine = catalog
        while True:
            last = finished.is_set()
            mine = mine.refresh()
            found = mine.columns(mine.find(NAMES))
            expected = by_content.get(tuple(found["content"].tolist()))
            looks.append(mine.info.generation)
            if expected is None or any(not np.array_equal(found[name], column) for name, column in expected.items()):
                torn.append(mine.info.generation)
            if last:
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    with CatalogWriter.open(path, bundle) as writer:
        for version in range(1, versions):
            writer.upsert([item(name, version) for name in NAMES])
    finished.set()
    for reader in readers:
        reader.join()
    assert torn == []
    assert max(looks) == writer.catalog.info.generation >= versions - 1


def test_writers_of_several_threads_lose_nothing(bundle, path):
    with CatalogWriter.open(path, bundle) as writer:

        def write(mine):
            for version in range(8):
                writer.upsert([item(f"{mine}-{version}", version)])

        threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = {f"{n}-{version}": item(f"{n}-{version}", version) for n in range(3) for version in range(8)}
    assert_holds(Catalog.open(path), ItemEncoder(bundle), expected | {name: item(name, 0) for name in NAMES})


# ------------------------------------------------------------------------------------------------------------- crashes


def crash(mode, bundle, folder, count):
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, TESTS / "catalog_crash.py", mode, bundle, folder, str(count)]
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_no_acknowledged_change_is_lost_when_writers_are_killed(bundle, tmp_path, kills):
    report = crash("random", bundle, tmp_path / "catalog", kills)
    assert report["kills"] == kills
    assert report["acknowledged"] > kills


def test_a_writer_may_die_before_any_of_its_calls(bundle, tmp_path):
    assert crash("everywhere", bundle, tmp_path / "catalog", 0)["kills"] > 30


# -------------------------------------------------------------------------------------------------------------- errors


def test_a_second_writer_is_refused_and_told_who_has_the_folder(bundle, path):
    with CatalogWriter.open(path, bundle), pytest.raises(BundleError, match=rf"has a writer already \(process {os.getpid()}\)"):
        CatalogWriter.open(path, bundle)
    CatalogWriter.open(path, bundle).close()


def test_a_closed_writer_and_one_from_before_a_fork_refuse(bundle, path, monkeypatch):
    writer = CatalogWriter.open(path, bundle)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(BundleError, match="before a fork"):
            writer.upsert([item("new", 1)])
    writer.close()
    writer.close()
    for change in (lambda: writer.upsert([item("new", 1)]), lambda: writer.delete(NAMES), writer.compact):
        with pytest.raises(BundleError, match="is closed"):
            change()


def test_a_bundle_of_another_model_is_refused(path, tmp_path):
    make_export(tmp_path / "export", features=False)
    build_engine(tmp_path / "export", tmp_path / "other", backend="reference")
    with pytest.raises(BundleError, match="open it with a bundle of that model"):
        CatalogWriter.open(path, tmp_path / "other")
    with pytest.raises(BundleError, match=r"catalog\.json"):
        CatalogWriter.open(tmp_path, tmp_path / "other")
    assert not (tmp_path / "writer.lock").exists()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([item("a", 1), item("b", 1), item("a", 2)], "two of the items have the id 'a'"),
        ([item("a", 1), Item("", "x")], "item 2 has the id ''"),
        ([{"_id": "a"}], "item 1 is a dict"),
        ([Item("a", None)], "expected text as str"),
    ],
)
def test_wrong_items_change_nothing(bundle, path, items, message):
    with CatalogWriter.open(path, bundle) as writer:
        with pytest.raises(InputError, match=message):
            writer.upsert(items)
        with pytest.raises(InputError):
            writer.delete("id-1")
        with pytest.raises(InputError):
            writer.delete([1])
    assert Catalog.open(path).info.generation == 0
    assert sorted(p.name for p in (path / "segments").iterdir()) == ["000000.seg"]


def test_more_segments_than_may_be_are_refused_until_they_are_merged(bundle, path, monkeypatch):
    monkeypatch.setattr(catalog_writer, "MAX_SEGMENTS", 3)
    monkeypatch.setattr(catalog_writer, "merge_start", lambda rows: None)
    with CatalogWriter.open(path, bundle) as writer:
        for version in range(2):
            writer.upsert([item("new", version)])
        with pytest.raises(BundleError, match="3 segments, the most there may be"):
            writer.upsert([item("new", 2)])
        writer.compact()
        writer.upsert([item("new", 3)])
        assert writer.catalog.columns(writer.catalog.find(["new"]))["content"] == ItemEncoder(bundle).encode([item("new", 3)])["content"]


def test_a_merge_that_fails_is_told_at_the_next_change(bundle, path, monkeypatch):
    writer, real = CatalogWriter.open(path, bundle), catalog_writer.write_segment

    def fails(root, file, pieces):
        if len(pieces) > 1:
            raise OSError(5, "Input/output error")
        return real(root, file, pieces)

    monkeypatch.setattr(catalog_writer, "write_segment", fails)
    for version in range(3):
        writer.upsert([item("new", version)])
    writer._merger.join()
    with pytest.raises(BundleError, match=r"merging segments in the background failed: .*Input/output error"):
        writer.upsert([item("new", 9)])
    monkeypatch.undo()
    writer.upsert([item("new", 9)])
    writer.close()
    assert_holds(Catalog.open(path), ItemEncoder(bundle), {name: item(name, 0) for name in NAMES} | {"new": item("new", 9)})


@pytest.mark.parametrize(
    ("rows", "start"),
    [([9], None), ([9, 1, 1], None), ([99, 1, 1, 1], 1), ([2, 1, 1, 1], 0), ([99, 1, 5, 1], 1), ([99, 13, 5, 1], 2), ([0, 0, 0, 0], 0)],
)
def test_merging_takes_the_newest_segments_and_those_not_much_larger(rows, start):
    assert merge_start(rows) == start
