"""A damaged catalogue: a BundleError that names the file, and what is open serves on; a full disk damages nothing."""

from __future__ import annotations

import json
import shutil

import pytest
from fixtures_ranker import NAMES, item, make_shop

from edgerec import Catalog, CatalogWriter, catalog_writer
from edgerec.catalog import build_catalog
from edgerec.errors import BundleError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("shop"), backend="reference") / "bundle"


@pytest.fixture
def changed(bundle, tmp_path):
    """A catalogue of two segments."""
    path = tmp_path / "catalog"
    build_catalog([item(name, 0) for name in NAMES], bundle, path)
    with CatalogWriter.open(path, bundle) as writer:
        writer.upsert([item("new", 1)])
    assert len(Catalog.open(path).segments) == 2
    return path


def edit(path, change):
    info = json.loads((path / "catalog.json").read_text())
    change(info)
    (path / "catalog.json").write_text(json.dumps(info))


def test_a_truncated_segment_is_a_bundle_error(changed):
    segment = changed / "segments/000001.seg"
    segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"000001\.seg is damaged"):
        Catalog.open(changed)


def test_a_segment_of_another_generation_is_a_bundle_error(changed):
    shutil.copy(changed / "segments/000000.seg", changed / "segments/000001.seg")
    with pytest.raises(BundleError, match=r"000001\.seg is not the file that catalog\.json lists"):
        Catalog.open(changed)


def test_a_missing_segment_is_a_bundle_error(changed):
    (changed / "segments/000001.seg").unlink()
    with pytest.raises(BundleError, match=r"000001\.seg cannot be opened"):
        Catalog.open(changed)


@pytest.mark.parametrize(("key", "value", "message"), [("generation", 0, "generation 0"), ("created", "x", "another catalogue")])
def test_another_catalogue_in_the_place_of_an_open_one_is_a_bundle_error(changed, key, value, message):
    catalog = Catalog.open(changed)
    edit(changed, lambda info: info.update({key: value, "items": 6, "segments": info["segments"][:1]}))
    with pytest.raises(BundleError, match=message):
        catalog.refresh()


def test_a_damaged_new_generation_is_a_bundle_error_and_the_open_one_serves_on(bundle, changed):
    catalog = Catalog.open(changed)
    with CatalogWriter.open(changed, bundle) as writer:
        writer.upsert([item("newer", 1)])
    (changed / "catalog.json").write_text("{")
    with pytest.raises(BundleError, match=r"catalog\.json"):
        catalog.refresh()
    assert catalog.find(["new", "newer"]).tolist() == [6, -1]


def test_a_folder_that_is_gone_leaves_the_open_generation(changed):
    catalog = Catalog.open(changed)
    shutil.rmtree(changed)
    assert catalog.refresh() is catalog
    assert catalog.find(["new"]).tolist() == [6]


@pytest.mark.parametrize("name", ["tokens.offsets", "features.offsets"])
def test_damaged_offsets_of_rows_that_are_copied_are_a_bundle_error(changed, name):
    catalog = Catalog.open(changed)
    rows = catalog.find([*NAMES, "new"])
    for wrong in (-5, 2**40):
        columns = catalog.segments[0].columns
        original, columns[name] = columns[name], columns[name].copy()
        columns[name][3] = wrong
        with pytest.raises(BundleError, match="the catalogue is damaged"):
            catalog.take(rows)
        columns[name] = original


@pytest.mark.parametrize("call", ["write_segment", "write_info"])
def test_a_full_disk_is_a_bundle_error_and_changes_nothing(bundle, changed, monkeypatch, call):
    def full(*_):
        raise OSError(28, "No space left on device")

    with CatalogWriter.open(changed, bundle) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(catalog_writer, call, full)
            with pytest.raises(BundleError, match="No space left"):
                writer.upsert([item("newer", 1)])
        assert sorted(p.name for p in (changed / "segments").iterdir()) == ["000000.seg", "000001.seg"]
        writer.upsert([item("newer", 2)])
        assert writer.catalog.info.items == len(NAMES) + 2
