"""Ranking with a mid-fusion student: from the catalogue's states or from whole items, the scores are the student's."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from edgerec.training.data import load_dataset
from edgerec.training.student import StudentScorer
from engine.backends import NARROW, PER_LAYER, Case
from fixtures_export import make_export

from edgerec import Cascade, CatalogWriter, Item, Ranker
from edgerec.builder import build_engine
from edgerec.catalog import Catalog, build_catalog
from edgerec.cli import cli
from edgerec.corpus import read_items
from edgerec.engine import MidEngine, RaggedMidEngine, open_engine
from edgerec.errors import BundleError
from edgerec.states import ItemStates
from edgerec.text import TextEncoder, TextSpec

CLOSE = 0.02  # a number between two int8 steps may be rounded to either
QUERIES = ("blue sofa", "", "red lamp for a small kids room and a green shelf beside that wall")


@dataclass
class Shop:
    folder: Path
    ranker: Ranker
    scorer: StudentScorer
    items: list[Item]

    @property
    def ids(self) -> list[str]:
        return [item.id for item in self.items]


@pytest.fixture(
    scope="module",
    params=[("ort", PER_LAYER), ("ort", NARROW), ("native", NARROW), ("reference", NARROW)],
    ids=lambda p: f"{p[0]} {'narrow' if p[1] is NARROW else 'per layer'}",
)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder, (backend, settings) = tmp_path_factory.mktemp("mid"), request.param
    build_engine(Case("", "", True, 0, mid=settings).mid_export(folder), folder / "bundle", backend=backend)
    items = [
        *load_dataset(folder / "shop").items.values(),
        Item("empty", ""),
        Item("long", "red wood chair with steel " * 20, brand="acme"),
    ]
    build_catalog(items, folder / "bundle", folder / "catalog", threads=1)
    with Ranker.open(folder / "bundle", catalog=folder / "catalog", threads=2) as ranker:
        yield Shop(folder, ranker, StudentScorer.load(folder / "student"), items)


@pytest.mark.parametrize("query", QUERIES)
def test_scores_are_those_of_the_trained_student(shop: Shop, query: str) -> None:
    expected = shop.scorer.score(query, shop.items)
    np.testing.assert_allclose(shop.ranker.score(query, shop.ids), expected, atol=CLOSE)
    np.testing.assert_allclose(shop.ranker.score(query, shop.items), expected, atol=CLOSE)
    assert np.std(expected) > CLOSE


def test_ids_and_whole_items_may_be_mixed(shop: Shop) -> None:
    mixed: list[Any] = [item if i % 3 else item.id for i, item in enumerate(shop.items)]
    np.testing.assert_allclose(shop.ranker.score("green chair", mixed), shop.ranker.score("green chair", shop.ids), atol=CLOSE)


def test_rank_puts_the_best_first_and_lists_the_unknown(shop: Shop) -> None:
    found = shop.ranker.rank("green chair", [*shop.ids, "nowhere"], top_k=5)
    scores = shop.ranker.score("green chair", shop.ids)
    assert list(found.ids) == [shop.ids[i] for i in np.argsort(-scores, kind="stable")[:5]]
    assert found.skipped == (("nowhere", "unknown id"),)
    assert shop.ranker.rank("green chair", []).ids == ()


def test_many_candidates_come_in_several_batches(shop: Shop) -> None:
    many = [dataclasses.replace(item, id=f"{item.id}-{n}") for n in range(8) for item in shop.items]
    expected = np.tile(shop.ranker.score("black table", shop.ids), 8)
    np.testing.assert_allclose(shop.ranker.score("black table", many), expected, atol=CLOSE)


def test_whole_items_that_come_again_have_the_same_bits_and_are_not_encoded(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, catalog = shop.folder / "bundle", shop.folder / "catalog"
    with Ranker.open(bundle, catalog=catalog) as kept, Ranker.open(bundle, catalog=catalog, inline_cache_bytes=0) as none:
        first = kept.score("blue sofa", shop.items[3:9])
        encoded: list[int] = []
        encode = type(kept._engine).encode_items  # type: ignore[attr-defined]
        monkeypatch.setattr(type(kept._engine), "encode_items", lambda *call: (encoded.append(len(call[1])), encode(*call))[1])
        np.testing.assert_array_equal(kept.score("blue sofa", shop.items[3:9]), first)
        assert encoded == []
        for again in (kept.score("red lamp", shop.items), kept.score("red lamp", shop.items)):
            np.testing.assert_array_equal(again, none.score("red lamp", shop.items))
        changed = dataclasses.replace(shop.items[4], title=shop.items[4].title + " lamp")
        assert kept.score("lamp", [changed])[0] == none.score("lamp", [changed])[0] != kept.score("lamp", [shop.items[4]])[0]


def test_the_query_is_encoded_once_a_request(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [*shop.ids, *(dataclasses.replace(item, id=f"{item.id}-{n}") for n in range(8) for item in shop.items)]
    engine: Any = shop.ranker._engine
    native = isinstance(engine, RaggedMidEngine)
    name = "run_ragged_states" if native else "_ask"
    ask, asked = getattr(engine, name), []
    monkeypatch.setattr(engine, name, lambda *given, **options: (asked.append(given), ask(*given, **options))[1])
    shop.ranker.score("black table", many)
    shop.ranker.rank("", many)
    # The native engine reads it in its call for the catalogue's rows, and in that for whole items.
    assert len(asked) == (4 if native else 2)
    assert native or [len(ids) for ids, _ in asked] == [1, 1]
    assert len(many) > 2 * 64


def test_without_time_whole_items_are_not_encoded(shop: Shop) -> None:
    with Ranker.open(shop.folder / "bundle") as ranker:
        found = ranker.rank("red lamp", shop.items, top_k=4, deadline_ms=0)
        assert (found.ids, found.degraded) == (tuple(shop.ids[:4]), True)
        assert ranker._inline is not None
        assert len(ranker._inline.cache) == 0
        assert not ranker.rank("red lamp", shop.items, deadline_ms=1e9).degraded


def test_the_catalogue_holds_what_the_engine_makes(shop: Shop) -> None:
    catalog = Catalog.open(shop.folder / "catalog", verify=True)
    spec, states = catalog.info.states, catalog.segments[0].states
    assert spec is not None
    assert states is not None
    assert states.values.nbytes + states.scales.nbytes == spec.token_bytes * int(states.offsets[-1])
    np.testing.assert_array_equal(np.diff(states.offsets), np.diff(catalog.segments[0].item_tokens[1]) + 1)
    model = json.loads((shop.folder / "bundle" / "model.json").read_text())
    text = TextEncoder(shop.folder / "bundle" / "tokenizer.json", TextSpec.from_json(model["text"]))
    engine = open_engine(shop.folder / "bundle")
    assert isinstance(engine, MidEngine)
    again = engine.encode_ragged(*text.encode_items([text.item_text(item) for item in shop.items]))
    engine.close()
    steps = 1 if spec.precision == "int8" else 1e-4
    assert np.abs(again.values.astype(np.float64) - states.values).max() <= steps
    np.testing.assert_allclose(again.scales, states.scales, rtol=1e-3)


def test_chunks_do_not_change_what_is_stored(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgerec import catalog_columns, catalog_encoder

    done: list[int] = []
    monkeypatch.setattr(catalog_encoder, "ENCODED_ITEMS", 5)
    monkeypatch.setattr(catalog_columns, "_COPY_ROWS", 3)
    build_catalog(shop.items, shop.folder / "bundle", tmp_path / "catalog", progress=done.append)
    one, other = (Catalog.open(path, verify=True).segments[0].states for path in (tmp_path / "catalog", shop.folder / "catalog"))
    assert one is not None
    assert other is not None
    assert done == [5, 10, 15, 20, 22]
    np.testing.assert_array_equal(one.offsets, other.offsets)
    assert np.abs(one.values.astype(np.float64) - other.values).max() <= 1


def test_another_students_catalogue_is_refused(shop: Shop, tmp_path: Path) -> None:
    info = json.loads((shop.folder / "catalog" / "catalog.json").read_text())
    for key, value, message in (("content_id", "0" * 64, "content_id"), ("states", None, "item states")):
        folder = tmp_path / key
        shutil.copytree(shop.folder / "catalog", folder)
        (folder / "catalog.json").write_text(json.dumps({**info, key: value}))
        with pytest.raises(BundleError, match=message):
            Ranker.open(shop.folder / "bundle", catalog=folder)
    wider = {**info["states"], "width": info["states"]["width"] + 1}
    (tmp_path / "states" / "catalog.json").write_text(json.dumps({**info, "states": wider}))
    with pytest.raises(BundleError, match="are not those of"):
        Catalog.open(tmp_path / "states")


def test_its_catalogue_serves_a_cross_student_of_the_same_text_and_features(shop: Shop, tmp_path: Path) -> None:
    make_export(tmp_path / "export")
    mid, own = (json.loads((folder / "model.json").read_text()) for folder in (shop.folder / "export", tmp_path / "export"))
    (tmp_path / "export" / "model.json").write_text(json.dumps({**own, "text": mid["text"], "features": mid["features"]}))
    (tmp_path / "export" / "tokenizer.json").write_bytes((shop.folder / "export" / "tokenizer.json").read_bytes())
    build_engine(tmp_path / "export", tmp_path / "bundle", backend="reference")
    build_catalog(shop.items, tmp_path / "bundle", tmp_path / "catalog")
    catalog = Catalog.open(shop.folder / "catalog")
    with Ranker.open(tmp_path / "bundle", catalog=catalog) as cross, Ranker.open(tmp_path / "bundle", catalog=tmp_path / "catalog") as same:
        np.testing.assert_array_equal(cross.score("red lamp", shop.ids), same.score("red lamp", shop.ids))
        found = Cascade(shop.ranker, cross, n=6).rank("red lamp", [*shop.ids[:9], *shop.items[9:]], top_k=9)
        best = shop.ranker.rank("red lamp", [*shop.ids[:9], *shop.items[9:]], top_k=9).ids
        scores = dict(zip(shop.ids, cross.score("red lamp", shop.items).tolist(), strict=True))
        assert found.ids == (*sorted(best[:6], key=lambda name: -scores[name]), *best[6:])
    with pytest.raises(BundleError, match="content_id"):
        Ranker.open(shop.folder / "bundle", catalog=tmp_path / "catalog")
    (tmp_path / "export" / "model.json").write_text(
        json.dumps({**own, "text": {**mid["text"], "max_tokens": 40}, "features": mid["features"]})
    )
    build_engine(tmp_path / "export", tmp_path / "other", backend="reference")
    with pytest.raises(BundleError, match="content_id"):
        Ranker.open(tmp_path / "other", catalog=catalog)


def test_items_that_came_later_score_as_what_they_say(shop: Shop, tmp_path: Path) -> None:
    shutil.copytree(shop.folder / "catalog", tmp_path / "catalog")
    changed = [
        dataclasses.replace(shop.items[3], title="green chair"),
        Item("late", "black wood table " * 3, brand="acme"),
        Item("bare", ""),
    ]
    now = [*shop.items[:3], changed[0], *shop.items[4:], *changed[1:]]
    with (
        Ranker.open(shop.folder / "bundle", catalog=tmp_path / "catalog", threads=2) as ranker,
        CatalogWriter.open(tmp_path / "catalog", shop.folder / "bundle", threads=1) as writer,
    ):
        for compacted in (False, True):
            generation = writer.compact() if compacted else writer.upsert(changed)
            by_id = ranker.score("green chair", [item.id for item in now])
            np.testing.assert_allclose(by_id, shop.scorer.score("green chair", now), atol=CLOSE)
            assert ranker.catalog is not None
            assert ranker.catalog.info.generation == generation
        writer.delete(["late"])
        assert ranker.rank("green chair", ["late", "bare"]).ids == ("bare",)
    Catalog.open(tmp_path / "catalog", verify=True)


def test_several_processes_store_the_same_states(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgerec import catalog_encoder

    monkeypatch.setattr(catalog_encoder, "ENCODED_ITEMS", 5)
    one, two = (
        build_catalog(shop.items, shop.folder / "bundle", tmp_path / str(workers), threads=1, workers=workers).segments
        for workers in (1, 2)
    )
    assert one == two  # with their SHA-256
    again = build_catalog(shop.items, shop.folder / "bundle", tmp_path / "again", threads=1, previous=tmp_path / "1").segments
    assert again == one


def stored(catalog: Catalog) -> ItemStates:
    states = catalog.segments[0].states
    assert states is not None
    return states


def test_offsets_out_of_place_are_a_damaged_catalogue(shop: Shop) -> None:
    catalog = Catalog.open(shop.folder / "catalog")
    for wrong in (-5, 10**9, int(stored(catalog).offsets[4])):
        offsets = stored(catalog).offsets.copy()
        offsets[3] = wrong
        catalog.segments[0].states = dataclasses.replace(stored(catalog), offsets=offsets)
        with Ranker.open(shop.folder / "bundle", catalog=catalog) as ranker, pytest.raises(BundleError, match="damaged"):
            ranker.score("lamp", shop.ids)
        catalog = Catalog.open(shop.folder / "catalog")


def test_the_command_builds_it_and_says_what_an_item_costs(shop: Shop, tmp_path: Path) -> None:
    corpus = shop.folder / "shop" / "corpus.jsonl"
    arguments = ["build-catalog", str(corpus), str(shop.folder / "bundle"), str(tmp_path / "catalog"), "--threads", "1", "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["bytes_per_item"] == round(told["segments"][0]["bytes"] / len(list(read_items(corpus))), 1)
    assert told["states"]["width"] == shop.scorer.student.shape.state_width  # type: ignore[union-attr]
