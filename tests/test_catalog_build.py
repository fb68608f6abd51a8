"""Building a catalogue again: after a kill, after changes, with several processes. What comes out is what one process makes in one go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures_export import make_export

from edgerec import Catalog, CatalogWriter, Item, catalog_encoder
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.catalog_encoder import ItemEncoder
from edgerec.errors import BundleError, EngineError, InputError

ITEMS = [Item(f"i{n}", f"red lamp {n} " * (n % 4), brand="acme" if n % 3 else "", price=float(n)) for n in range(23)]
CHUNK = 5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    make_export(folder / "export")
    build_engine(folder / "export", folder / "bundle", backend="reference")
    return folder / "bundle"


@pytest.fixture(scope="module")
def fresh(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh") / "catalog"
    build_catalog(ITEMS, bundle, folder)
    return folder


@pytest.fixture
def encoded(monkeypatch):
    """Small chunks, and the ids of all items that are encoded."""
    seen, real = [], ItemEncoder.compute

    def compute(self, items):
        seen.extend(item.id for item in items)
        return real(self, items)

    monkeypatch.setattr(catalog_encoder, "CHUNK_ITEMS", CHUNK)
    monkeypatch.setattr(ItemEncoder, "compute", compute)
    return seen


def assert_same(one, other):
    """Byte for byte, but for the time of building."""
    infos = [json.loads((path / "catalog.json").read_text()) for path in (one, other)]
    assert infos[0] | {"created": ""} == infos[1] | {"created": ""}
    file = infos[0]["segments"][0]["file"]
    assert (one / file).read_bytes() == (other / file).read_bytes()
    assert sorted(str(p.relative_to(one)) for p in one.rglob("*")) == sorted(str(p.relative_to(other)) for p in other.rglob("*"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def until(count):
    yield from ITEMS[:count]
    raise RuntimeError("the source broke")


def test_a_build_that_failed_is_resumed_where_it_stopped(bundle, fresh, tmp_path, encoded):
    with pytest.raises(RuntimeError, match="the source broke"):
        build_catalog(until(12), bundle, tmp_path / "catalog", resume=True)
    assert names(tmp_path) == ["catalog.run"]
    assert len(encoded) == 2 * CHUNK
    encoded.clear()
    done = []
    build_catalog(ITEMS, bundle, tmp_path / "catalog", resume=True, progress=done.append)
    assert encoded == [item.id for item in ITEMS[2 * CHUNK :]]
    assert done == [5, 10, 15, 20, 23]
    assert names(tmp_path) == ["catalog"]
    assert_same(tmp_path / "catalog", fresh)


def test_a_build_that_was_killed_is_resumed(bundle, fresh, tmp_path, encoded):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_catalog_build import ITEMS, CHUNK
from edgerec import catalog_encoder
from edgerec.catalog import build_catalog
catalog_encoder.CHUNK_ITEMS = CHUNK
def source():
    yield from ITEMS[:12]
    os.kill(os.getpid(), signal.SIGKILL)
build_catalog(source(), sys.argv[1], sys.argv[2])
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code, str(bundle), str(tmp_path / "catalog")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["catalog.run"]
    with pytest.raises(BundleError, match=r"catalog\.run exists: .* go on with resume"):
        build_catalog(ITEMS, bundle, tmp_path / "catalog")
    build_catalog(ITEMS, bundle, tmp_path / "catalog", resume=True)
    assert encoded == [item.id for item in ITEMS[2 * CHUNK :]]
    assert_same(tmp_path / "catalog", fresh)


@pytest.mark.parametrize("kind", ["item", "damage", "model"])
def test_a_finished_chunk_is_made_again_when_it_is_not_what_is_wanted(bundle, tmp_path, encoded, kind, tmp_path_factory):
    with pytest.raises(RuntimeError):
        build_catalog(until(12), bundle, tmp_path / "catalog", resume=True)
    items, again = list(ITEMS), [item.id for item in ITEMS[:CHUNK]]
    if kind == "item":
        items[2] = replace(items[2], brand="other")
    elif kind == "damage":
        chunk = min((tmp_path / "catalog.run").iterdir())
        data = bytearray(chunk.read_bytes())
        data[-1] ^= 1
        chunk.write_bytes(data)
    else:
        folder = tmp_path_factory.mktemp("other")
        make_export(folder / "export", features=False)
        build_engine(folder / "export", folder / "bundle", backend="reference")
        bundle, again = folder / "bundle", [item.id for item in ITEMS[: 2 * CHUNK]]
    encoded.clear()
    build_catalog(items, bundle, tmp_path / "catalog", resume=True)
    assert encoded == again + [item.id for item in ITEMS[2 * CHUNK :]]
    build_catalog(items, bundle, tmp_path / "expected")
    assert_same(tmp_path / "catalog", tmp_path / "expected")


def test_two_builds_of_one_catalogue_do_not_mix(bundle, fresh, tmp_path, encoded):
    def source():
        yield from ITEMS[:12]
        for resume in (False, True):
            with pytest.raises(BundleError, match=r"catalog\.run exists" if not resume else "another process is building"):
                build_catalog(ITEMS, bundle, tmp_path / "catalog", resume=resume)
        yield from ITEMS[12:]

    build_catalog(source(), bundle, tmp_path / "catalog")
    assert_same(tmp_path / "catalog", fresh)


def test_without_resume_a_build_that_fails_leaves_nothing(bundle, tmp_path, encoded):
    with pytest.raises(RuntimeError):
        build_catalog(until(12), bundle, tmp_path / "catalog")
    assert names(tmp_path) == []


def test_items_that_have_not_changed_come_from_the_previous_catalogue(bundle, fresh, tmp_path, encoded):
    items = [ITEMS[9], *ITEMS[2:8], replace(ITEMS[8], title="blue sofa"), Item("new", "green shelf"), *ITEMS[10:], ITEMS[0]]
    build_catalog(items, bundle, tmp_path / "catalog", previous=fresh)
    assert encoded == ["i8", "new"]
    build_catalog(items, bundle, tmp_path / "expected")
    assert_same(tmp_path / "catalog", tmp_path / "expected")


def test_the_previous_catalogue_may_have_been_changed_meanwhile(bundle, tmp_path, encoded):
    build_catalog(ITEMS, bundle, tmp_path / "old")
    changed = [replace(ITEMS[3], title="blue sofa"), Item("late", "a late lamp")]
    with CatalogWriter.open(tmp_path / "old", bundle) as writer:
        writer.upsert(changed)
        writer.delete(["i7"])
    items = [*ITEMS[:3], changed[0], *ITEMS[4:], changed[1]]
    encoded.clear()
    build_catalog(items, bundle, tmp_path / "catalog", previous=tmp_path / "old")
    assert encoded == ["i7"]
    build_catalog(items, bundle, tmp_path / "expected")
    assert_same(tmp_path / "catalog", tmp_path / "expected")


def test_the_previous_catalogue_of_another_model_is_refused(fresh, tmp_path):
    make_export(tmp_path / "export", features=False)
    build_engine(tmp_path / "export", tmp_path / "bundle", backend="reference")
    with pytest.raises(BundleError, match="nothing of it can be used again"):
        build_catalog(ITEMS, tmp_path / "bundle", tmp_path / "catalog", previous=fresh)


def test_ids_given_twice_in_different_chunks_are_named(bundle, tmp_path, encoded):
    with pytest.raises(InputError, match="items 2 and 24 both have the id 'i1'"):
        build_catalog([*ITEMS, ITEMS[1]], bundle, tmp_path / "catalog")
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------- several processes


def test_several_processes_make_what_one_makes(bundle, fresh, tmp_path, encoded):
    done = []
    build_catalog(iter(ITEMS), bundle, tmp_path / "catalog", workers=2, progress=done.append)
    assert encoded == []
    assert done == [5, 10, 15, 20, 23]
    assert_same(tmp_path / "catalog", fresh)
    Catalog.open(tmp_path / "catalog", verify=True)


class Deadly(Item):
    """Ends the process that unpickles it."""

    __slots__ = ()

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (Item("x", "lamp", price="cheap"), InputError, "a price must be a number"),
        (Deadly("x", "lamp"), EngineError, "processes that encode items died"),
    ],
    ids=["wrong item", "killed"],
)
def test_an_error_in_a_process_is_the_error_of_the_build(bundle, tmp_path, item, error, message):
    with pytest.raises(error, match=message):
        build_catalog([*ITEMS, item], bundle, tmp_path / "catalog", workers=2)
    assert names(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"engine": "spark"}])
def test_wrong_options_are_an_input_error(bundle, tmp_path, wrong):
    with pytest.raises(InputError, match=r"expected at least 1, and 'local' or 'ray'"):
        build_catalog(ITEMS, bundle, tmp_path / "catalog", **wrong)
