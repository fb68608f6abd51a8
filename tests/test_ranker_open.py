"""Opening and closing a ranker: what is refused, and what may be shared."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from fixtures_ranker import IDS, ITEMS, SCORE_TOLERANCE, USER, make_shop

from edgerec import Catalog, Ranker
from edgerec.bundle import content_id, read_manifest
from edgerec.bundle_writer import write_bundle
from edgerec.errors import BundleError, EngineError, FeatureError
from edgerec.features import FeatureSpec, add_golden
from edgerec.segment import SectionFile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_shop(tmp_path_factory.mktemp("ranker"))


@pytest.fixture(scope="module")
def ranker(folder):
    with Ranker.open(folder / "bundle", catalog=folder / "catalog", threads=1) as opened:
        yield opened


def rebuilt(folder, tmp_path, *, features=None, model=None, tokenizer=None):
    """The bundle with one of its files replaced, sealed again with a manifest that fits."""
    source = folder / "bundle"
    manifest = read_manifest(source)
    files = {name: (source / name).read_bytes() for name in manifest.files}
    for name, value in (("features.json", features), ("model.json", model)):
        if value is not None:
            files[name] = json.dumps(value).encode()
    if tokenizer is not None:
        files["tokenizer.json"] = tokenizer
    loaded = {name: json.loads(files[name]) for name in ("features.json", "model.json")}
    identity = content_id(files["tokenizer.json"], loaded["features.json"], loaded["model.json"].get("text"))
    write_bundle(
        tmp_path / "bundle",
        files,
        model_version=manifest.model_version,
        backend=manifest.backend,
        precision=manifest.precision,
        content_id=identity,
        fingerprint=manifest.fingerprint,
    )
    return tmp_path / "bundle"


def test_a_closed_ranker_refuses(folder):
    with Ranker.open(folder / "bundle", catalog=folder / "catalog") as opened:
        assert len(opened.rank("red", IDS)) == 10
    with pytest.raises(EngineError, match="closed"):
        opened.rank("red", IDS)
    opened.close()


def test_an_open_catalogue_can_be_shared(folder, ranker):
    catalog = Catalog.open(folder / "catalog")
    with Ranker.open(folder / "bundle", catalog=catalog, verify=False) as opened:
        assert opened.catalog is catalog
        np.testing.assert_allclose(opened.score("red", IDS), ranker.score("red", IDS), atol=SCORE_TOLERANCE)


def test_a_catalogue_of_another_bundle_is_refused_with_both_ids(folder, tmp_path):
    model = json.loads((folder / "bundle" / "model.json").read_text())
    model["text"]["max_query_tokens"] -= 1
    other = rebuilt(folder, tmp_path, model=model)
    with pytest.raises(BundleError, match="build-catalog") as error:
        Ranker.open(other, catalog=folder / "catalog")
    assert read_manifest(other).content_id in str(error.value)
    assert read_manifest(folder / "bundle").content_id in str(error.value)


def test_a_catalogue_that_lists_other_fields_is_refused(folder, tmp_path):
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    info = json.loads((tmp_path / "catalog" / "catalog.json").read_text())
    (tmp_path / "catalog" / "catalog.json").write_text(json.dumps({**info, "fields": info["fields"][::-1]}))
    with pytest.raises(BundleError, match="columns for the fields"):
        Ranker.open(folder / "bundle", catalog=tmp_path / "catalog")


@pytest.mark.parametrize("column", ["tokens.offsets", "features.offsets"])
def test_a_damaged_catalogue_is_a_bundle_error_when_the_row_is_used(folder, tmp_path, column):
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    sections = SectionFile(tmp_path / "catalog/segments/000000.seg")
    with open(sections.path, "r+b") as f:
        f.seek(sections._entries[column].offset + 8)
        f.write((2**60).to_bytes(8, "little"))
    with Ranker.open(folder / "bundle", catalog=tmp_path / "catalog", threads=1) as opened:
        with pytest.raises(BundleError, match="the catalogue is damaged"):
            opened.rank("red", IDS)
        assert len(opened.rank("red", IDS[10:])) == 10


def test_golden_vectors_are_checked_when_opening(folder, tmp_path):
    spec = FeatureSpec.from_json(json.loads((folder / "bundle" / "features.json").read_text()))
    body = add_golden(spec, [("red lamp", ITEMS[1], USER)]).to_json()
    Ranker.open(rebuilt(folder, tmp_path / "good", features=body)).close()
    body["golden"][0]["ids"][0] += 1
    with pytest.raises(FeatureError, match="golden example 1"):
        Ranker.open(rebuilt(folder, tmp_path / "bad", features=body))


@pytest.mark.parametrize("text", [None, {}, {"max_tokens": 64}])
def test_a_text_part_that_cannot_be_used_is_a_bundle_error(folder, tmp_path, text):
    model = json.loads((folder / "bundle" / "model.json").read_text())
    with pytest.raises(BundleError, match=r"model\.json"):
        Ranker.open(rebuilt(folder, tmp_path, model={**model, "text": text}))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["tokenizer.json", "features.json", "model.json", "engine.onnx"])
def test_a_file_changed_behind_the_manifest_is_a_bundle_error(folder, tmp_path, name, verify):
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    data = bytearray((tmp_path / "bundle" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bundle" / name).write_bytes(data)
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Ranker.open(tmp_path / "bundle", verify=verify)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("")], ids=["missing", "empty folder", "file"])
def test_what_is_no_bundle_is_a_bundle_error(tmp_path, make):
    make(tmp_path / "bundle")
    with pytest.raises(BundleError):
        Ranker.open(tmp_path / "bundle")
