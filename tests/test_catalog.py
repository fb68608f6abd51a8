"""The catalogue: built in one pass, whole or absent, memory-mapped, and wrong in no way that goes unnoticed."""

from __future__ import annotations

import itertools
import json
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
from fixtures_export import make_export
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec import catalog_columns, catalog_encoder
from edgerec.builder import build_engine
from edgerec.bundle import read_json, read_manifest
from edgerec.catalog import Catalog, CatalogInfo, build_catalog
from edgerec.errors import BundleError, InputError
from edgerec.features import FeatureEncoder, FeatureSpec
from edgerec.segment import SectionFile, write_sections
from edgerec.text import TextEncoder, TextSpec
from edgerec.types import Item

ITEMS = [
    Item("1", "Red lamp", brand="Acme", price=12.5),
    Item("second", "", attributes={"colour": "blue"}),
    Item("\u00e9-3 \U0001f6cb", "Nordic sofa " * 30, category="sofas"),
    Item("4", "Red lamp", brand="Acme", price=12.5),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalog")
    make_export(folder / "export")
    build_engine(folder / "export", folder / "bundle", backend="reference")
    return folder / "bundle"


@pytest.fixture(scope="module")
def featureless(tmp_path_factory):
    folder = tmp_path_factory.mktemp("featureless")
    make_export(folder / "export", features=False)
    build_engine(folder / "export", folder / "bundle", backend="reference")
    return folder / "bundle"


@pytest.fixture
def path(bundle, tmp_path):
    build_catalog(ITEMS, bundle, tmp_path / "catalog")
    return tmp_path / "catalog"


def encoders(bundle):
    manifest = read_manifest(bundle)
    text = TextEncoder(bundle / "tokenizer.json", TextSpec.from_json(read_json(bundle, manifest, "model.json")["text"]))
    return text, FeatureEncoder(FeatureSpec.from_json(read_json(bundle, manifest, "features.json")))


def test_columns_are_what_the_encoders_give(bundle, path):
    catalog = Catalog.open(path, verify=True)
    text, features = encoders(bundle)
    assert len(catalog) == len(ITEMS)
    assert catalog.ids() == [item.id for item in ITEMS]
    for found, expected in zip(catalog.segments[0].item_tokens, text.encode_items([text.item_text(item) for item in ITEMS]), strict=True):
        np.testing.assert_array_equal(found, expected)
    expected = features.encode_items(ITEMS)
    np.testing.assert_array_equal(catalog.segments[0].features.hashes, expected.hashes)
    np.testing.assert_array_equal(catalog.segments[0].features.offsets, expected.offsets)
    assert catalog.segments[0].features.fields == expected.fields == 3


def test_info_names_the_bundle(bundle, path):
    manifest, info = read_manifest(bundle), Catalog.open(path).info
    assert (info.items, info.content_id, info.model_version) == (4, manifest.content_id, manifest.model_version)
    assert info.fields == ("title_words", "brand", "price")
    assert CatalogInfo.from_json(json.loads((path / "catalog.json").read_text())) == info
    assert info.segments[0].bytes == (path / info.segments[0].file).stat().st_size


def test_equal_content_has_an_equal_hash_whatever_the_id(path):
    content = Catalog.open(path).segments[0].content
    assert content[0] == content[3]
    assert len(set(content.tolist())) == 3


@pytest.mark.parametrize(
    "change", [{"title": "Red lamps"}, {"text": "x"}, {"brand": ""}, {"category": "x"}, {"price": 12.6}, {"attributes": {"a": "b"}}]
)
def test_any_change_of_an_item_changes_its_content_hash(bundle, tmp_path, change):
    build_catalog([ITEMS[0], replace(ITEMS[0], id="2", **change)], bundle, tmp_path / "catalog")
    content = Catalog.open(tmp_path / "catalog").segments[0].content
    assert content[0] != content[1]


def test_ids_are_found_and_unknown_ones_are_not(path):
    catalog = Catalog.open(path)
    asked = [ITEMS[2].id, "1", "none", "", "4", "second\x00", "\ud800", "1", "1 "]
    assert catalog.find(asked).tolist() == [2, 0, -1, -1, 3, -1, -1, 0, -1]
    assert catalog.find([]).tolist() == []


@pytest.mark.parametrize("ids", [None, "1", ("1",), [1], [b"1"]])
def test_what_is_no_list_of_ids_is_an_input_error(path, ids):
    with pytest.raises(InputError):
        Catalog.open(path).find(ids)


@settings(max_examples=15)
@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1, unique=True))
def test_every_id_is_found_at_its_row(bundle, tmp_path_factory, ids):
    folder = tmp_path_factory.mktemp("ids")
    build_catalog((Item(one, "lamp") for one in ids), bundle, folder / "catalog")
    catalog = Catalog.open(folder / "catalog")
    assert catalog.find(ids).tolist() == list(range(len(ids)))
    assert catalog.ids() == ids


def test_a_catalogue_written_in_many_chunks_is_that_written_in_one(bundle, tmp_path, monkeypatch):
    items = [Item(str(i), f"red lamp {i} " * (i % 5), brand="acme" if i % 3 else "") for i in range(100)]
    build_catalog(items, bundle, tmp_path / "one")
    monkeypatch.setattr(catalog_encoder, "CHUNK_ITEMS", 7)
    monkeypatch.setattr(catalog_columns, "_COPY_ROWS", 13)
    done = []
    build_catalog(iter(items), bundle, tmp_path / "many", progress=done.append)
    assert done == [*range(7, 100, 7), 100]
    one, many = (SectionFile(tmp_path / name / "segments/000000.seg") for name in ("one", "many"))
    assert one.path.read_bytes() == many.path.read_bytes()
    many.verify()


def test_a_bundle_without_features_has_a_catalogue_without_feature_columns(featureless, tmp_path):
    info = build_catalog(ITEMS, featureless, tmp_path / "catalog")
    catalog = Catalog.open(tmp_path / "catalog", verify=True)
    assert info.fields == ()
    assert catalog.segments[0].features.fields == len(catalog.segments[0].features.hashes) == 0


def listed(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("rows", [(0, 5), (4, 5), (0, 2)])
def test_an_id_given_twice_is_an_input_error_that_names_it_and_leaves_nothing(bundle, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(catalog_encoder, "CHUNK_ITEMS", 2)
    ids = [f"id-{i}" for i in range(6)]
    ids[rows[1]] = ids[rows[0]]
    with pytest.raises(InputError, match=rf"items {rows[0] + 1} and {rows[1] + 1} both have the id '{ids[rows[0]]}'"):
        build_catalog((Item(one, "lamp") for one in ids), bundle, tmp_path / "catalog")
    assert listed(tmp_path) == []


def test_equal_hashes_of_different_ids_are_no_duplicates(bundle, tmp_path, monkeypatch):
    class Weak:
        """The core, with a hash that is the same for all ids."""

        def __getattr__(self, name):
            return getattr(core, name)

        def hash_packed(self, data, offsets, seed):
            return np.zeros(len(offsets) - 1, np.uint64)

    core = catalog_columns._core
    monkeypatch.setattr(catalog_columns, "_core", Weak())
    build_catalog([Item(one, "lamp") for one in "abc"], bundle, tmp_path / "catalog")
    with pytest.raises(InputError, match="items 1 and 3 both have the id 'a'"):
        build_catalog([Item(one, "lamp") for one in "aba"], bundle, tmp_path / "other")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "there are no items"),
        ([Item("", "lamp")], "item 1 has the id ''"),
        ([Item("1", "lamp"), Item("a\x00b", "lamp")], "item 2 has the id"),
        ([Item("\ud800", "lamp")], "item 1 has the id"),
        ([Item(3, "lamp")], "item 1 has the id 3"),
        ([{"_id": "1", "title": "lamp"}], "item 1 is a dict"),
        ([Item("1", None)], "expected text as str"),
    ],
)
def test_wrong_items_are_an_input_error_and_leave_nothing(bundle, tmp_path, items, message):
    with pytest.raises(InputError, match=message):
        build_catalog(items, bundle, tmp_path / "catalog")
    assert listed(tmp_path) == []


def test_a_source_that_fails_leaves_nothing(bundle, tmp_path):
    def broken():
        yield ITEMS[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        build_catalog(broken(), bundle, tmp_path / "catalog")
    assert listed(tmp_path) == []


def test_an_existing_folder_is_not_touched(bundle, path):
    with pytest.raises(BundleError, match="exists; give a new path"):
        build_catalog(ITEMS, bundle, path)
    Catalog.open(path, verify=True)


def test_a_folder_that_cannot_be_made_is_a_bundle_error(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="could not be written"):
        build_catalog(ITEMS, bundle, tmp_path / "file" / "catalog")


def test_a_damaged_tokenizer_is_found_before_anything_is_written(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "bundle")
    with open(tmp_path / "bundle" / "tokenizer.json", "r+b") as f:
        f.write(b" ")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        build_catalog(ITEMS, tmp_path / "bundle", tmp_path / "catalog")


# ---------------------------------------------------------------------------------------------------------- damage


SEGMENT = {"file": "segments/000000.seg", "items": 4, "bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "edgerec-bundle"}, "this is no catalogue"),
        ({"version": 5}, "version is 5"),
        ({"version": 2}, "version is 2"),
        ({"version": "4"}, "version is '4'"),
        ({"items": 5}, "5 items, but its segments have 4"),
        ({"items": 3}, "3 items, but its segments have 4"),
        ({"items": "4"}, "items is '4'"),
        ({"items": -1}, "items is -1"),
        ({"content_id": None}, "content_id is None"),
        ({"fields": "title_words"}, "fields must be a list"),
        ({"fields": ["a", "b", "c", "d"]}, "offsets of 'features' do not fit"),
        ({"segments": []}, "0 segments"),
        ({"segments": [{}, {}]}, "file is None"),
        ({"segments": [{}] * 1025}, "1025 segments"),
        ({"version": 3, "segments": [{}, {}]}, "2 segments, expected 1 to 1 in version 3"),
        ({"generation": -1}, "generation is -1"),
        ({"generation": None}, "generation is None"),
        ({"segments": [3]}, "segments is int"),
        ({"segments": [{**SEGMENT, "file": "../../etc/passwd"}]}, "is no segment"),
        ({"segments": [{**SEGMENT, "file": "segments/000001.seg"}]}, "cannot be opened"),
        ({"segments": [SEGMENT]}, "is not the file that catalog.json lists"),
        ({"segments": [SEGMENT, SEGMENT], "generation": 1}, "listed twice"),
        ({"segments": [{**SEGMENT, "sha256": "x"}]}, "sha256 of segments/000000.seg is 'x'"),
        ({"version": 3, "items": 9, "segments": [{**SEGMENT, "items": 9}]}, "do not fit"),
    ],
)
def test_a_catalog_json_that_lies_is_a_bundle_error(path, change, message):
    data = json.loads((path / "catalog.json").read_text())
    (path / "catalog.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(BundleError, match=message):
        Catalog.open(path)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (1 << 20) + b"{}"])
def test_a_catalog_json_that_is_none_is_a_bundle_error(path, content):
    (path / "catalog.json").unlink()
    if content is not None:
        (path / "catalog.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"catalog\.json"):
        Catalog.open(path)


def overwrite(path, name, values):
    """Write over the first values of a section, in place."""
    opened = SectionFile(path / "segments/000000.seg")
    entry = opened._entries[name]
    with open(opened.path, "r+b") as f:
        f.seek(entry.offset)
        f.write(np.array(values, entry.dtype).tobytes())


@pytest.mark.parametrize("name", ["ids.offsets", "tokens.offsets", "features.offsets"])
def test_offsets_that_do_not_begin_at_zero_are_found_when_opening(path, name):
    overwrite(path, name, [1])
    with pytest.raises(BundleError, match=rf"the offsets of '{name.split('.')[0]}' do not fit"):
        Catalog.open(path)


def test_offsets_in_between_are_found_by_verify(path):
    overwrite(path, "tokens.offsets", [0, 2**40])
    Catalog.open(path)
    with pytest.raises(BundleError, match=r"tokens\.offsets' is damaged"):
        Catalog.open(path, verify=True)


def rewrite(path, change):
    """The segment with some columns changed, and checksums that fit."""
    opened = SectionFile(path / "segments/000000.seg")
    columns = {name: opened.column(name, e.dtype, len(e.shape)).copy() for name, e in opened._entries.items()}
    change(columns)
    opened.path.unlink()
    size = write_sections(opened.path, columns)
    info = json.loads((path / "catalog.json").read_text())
    info["segments"][0] |= {"bytes": size, "sha256": SectionFile(opened.path).table_sha256}
    (path / "catalog.json").write_text(json.dumps(info))


@pytest.mark.parametrize(("name", "length"), [("ids.index.keys", 12), ("ids.index.slots", 4), ("ids.index.keys", 4), ("content", 3)])
def test_columns_of_another_length_are_found_when_opening(path, name, length):
    rewrite(path, lambda columns: columns.update({name: np.resize(columns[name], length)}))
    with pytest.raises(BundleError, match="does not fit 4 items"):
        Catalog.open(path)


def test_verify_finds_offsets_that_go_backwards_even_when_the_checksum_is_right(path):
    rewrite(path, lambda columns: columns["tokens.offsets"].__setitem__(1, 2**40))
    with pytest.raises(BundleError, match="offsets go backwards"):
        Catalog.open(path, verify=True)


def test_a_damaged_index_ends_in_an_error_or_in_unknown(path):
    capacity = len(SectionFile(path / "segments/000000.seg").column("ids.index.slots", np.int32))
    overwrite(path, "ids.index.slots", [2**30] * capacity)
    with pytest.raises(BundleError, match="damaged index"):
        Catalog.open(path).find(["1"])


def test_damaged_id_offsets_end_in_a_bundle_error(path):
    overwrite(path, "ids.offsets", [0, 2**50, -(2**50)])
    with pytest.raises(BundleError, match="damaged index"):
        Catalog.open(path).find([item.id for item in ITEMS])


def test_ids_that_are_not_utf8_are_a_bundle_error(path):
    overwrite(path, "ids", [0xFF])
    with pytest.raises(BundleError, match="not UTF-8"):
        Catalog.open(path).ids()


def test_the_index_is_readable_as_documented(path):
    """A second reader, from docs/formats.md alone: linear probing from the low bits of the hash."""
    import xxhash

    opened = SectionFile(path / "segments/000000.seg")
    keys, slots = opened.column("ids.index.keys", np.uint64), opened.column("ids.index.slots", np.int32)
    data, offsets = opened.column("ids", np.uint8), opened.column("ids.offsets", np.int64)
    for row, (start, end) in enumerate(itertools.pairwise(offsets)):
        h = xxhash.xxh64_intdigest(data[start:end].tobytes())
        place = h & (len(keys) - 1)
        while slots[place] != row:
            assert slots[place] >= 0
            place = (place + 1) & (len(keys) - 1)
        assert keys[place] == h


def test_a_catalogue_of_version_3_opens_as_it_is(path):
    info = json.loads((path / "catalog.json").read_text())
    del info["generation"], info["segments"][0]["sha256"]
    (path / "catalog.json").write_text(json.dumps({**info, "version": 3}))
    catalog = Catalog.open(path, verify=True)
    assert catalog.ids() == [item.id for item in ITEMS]
    assert catalog.info.generation == 0
    assert catalog.refresh() is catalog


def test_the_file_is_found_by_its_magic(path):
    assert struct.unpack_from("<8sI", (path / "segments/000000.seg").read_bytes()) == (b"EDRSECT1", 1)
