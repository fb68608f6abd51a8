"""The retrieval head, from training to `Ranker.retrieve`: what is learned, what stays, and what is found, against slow oracles."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from edgerec.training.data import load_dataset
from edgerec.training.retrieval import RetrievalSettings, add_retrieval, item_means, positive_pairs, query_rows, title_spans
from edgerec.training.student import StudentScorer
from fixtures_mid import write_mid_student
from fixtures_tiny import write_shop
from fixtures_traced import export_traced_once

from edgerec import Item, Ranker, ranker_retrieve
from edgerec.builder import build_engine
from edgerec.catalog import Catalog, build_catalog
from edgerec.cli import cli
from edgerec.errors import BuildError, BundleError, InputError

NARROW = {"query_layers": 1, "states": "one", "state_width": 16, "state_precision": "int8"}
SETTINGS = RetrievalSettings(width=8, spans=40, epochs=60, batch=32, learning_rate=0.01)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``shop``, ``student``, ``with-head``, ``export``, ``ort``, ``native``, ``reference``, ``catalog``."""
    root = tmp_path_factory.mktemp("retrieval")
    shop = write_shop(root / "shop")
    write_mid_student(root / "student", shop, **NARROW)  # type: ignore[arg-type]
    add_retrieval(root / "student", root / "with-head", data=[shop], settings=SETTINGS)
    export_traced_once(root / "with-head", root / "export", data=[shop])
    for backend in ("ort", "native", "reference"):
        build_engine(root / "export", root / backend, backend=backend, gate={"ndcg_drop": 1.0})
    items = [*load_dataset(shop).items.values(), Item("empty", ""), Item("long", "red wood chair with steel " * 20)]
    build_catalog(items, root / "ort", root / "catalog", threads=1)
    return root


@pytest.fixture(scope="module", params=["ort", "native", "reference"])
def ranker(made: Path, request: pytest.FixtureRequest) -> Iterator[Ranker]:
    with Ranker.open(made / request.param, catalog=made / "catalog", threads=1) as opened:
        yield opened


def cosines(made: Path, query: str) -> dict[str, float]:
    """By torch, of every item of the catalogue."""
    scorer, catalog = StudentScorer.load(made / "with-head"), Catalog.open(made / "catalog")
    items = {**load_dataset(made / "shop").items, "empty": Item("empty", ""), "long": Item("long", "red wood chair with steel " * 20)}
    with np.load(made / "with-head" / "retrieve.npz") as head:
        asked = query_rows(scorer, [query]) @ head["query_weight"].T + head["query_bias"]
        stored = item_means(scorer, [items[name] for name in catalog.ids()]) @ head["item_weight"].T + head["item_bias"]
    scores = (stored @ asked[0]) / (np.linalg.norm(stored, axis=1) * np.linalg.norm(asked))
    return dict(zip(catalog.ids(), scores.tolist(), strict=True))


def test_the_student_stays_as_it_was_and_the_same_seed_gives_the_same_head(made: Path, tmp_path: Path) -> None:
    for name in ("student.safetensors", "tokenizer.json"):
        assert (made / "with-head" / name).read_bytes() == (made / "student" / name).read_bytes()
    old, new = (json.loads((made / folder / "training.json").read_text()) for folder in ("student", "with-head"))
    assert {**old, "retrieval": new["retrieval"]} == new
    short = dataclasses.replace(SETTINGS, epochs=2)
    first, second, other = (
        add_retrieval(made / "student", tmp_path / name, data=[made / "shop"], settings=dataclasses.replace(short, seed=seed))["retrieval"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second != other
    assert first["loss"] > new["retrieval"]["loss"]


def test_pairs_are_the_relevant_items_and_spans_with_their_titles(made: Path) -> None:
    shop = load_dataset(made / "shop")
    pairs = positive_pairs([shop], SETTINGS)
    found = {(pairs.queries[q], pairs.items[i].id) for q, i in zip(pairs.query, pairs.item, strict=True)}
    judged = {(shop.queries[q], i) for q, grades in shop.qrels["train"].items() for i, grade in grades.items() if grade >= 2.2}
    spans = set(title_spans(shop, SETTINGS.spans, 0))
    assert found == judged | spans
    assert len(found) == len(pairs.query)
    assert all(text in shop.items[i].title for text, i in spans)
    assert judged
    assert spans - judged


def test_what_is_relevant_comes_nearer_than_chance(made: Path) -> None:
    shop = load_dataset(made / "shop")
    ranks = []
    for query_id in shop.qrels["train"]:
        by_score = cosines(made, shop.queries[query_id])
        order = sorted(by_score, key=lambda name: -by_score[name])
        ranks += [order.index(item) / len(order) for item, grade in shop.qrels["train"][query_id].items() if grade >= 2.2]
    assert np.mean(ranks) < 0.25


@pytest.mark.parametrize("query", ["blue sofa", "", "red lamp for a small kids room and a green shelf"])
def test_the_nearest_are_those_of_the_oracle(made: Path, ranker: Ranker, query: str) -> None:
    expected = cosines(made, query)
    ids, scores = ranker.nearest(query, 100)
    assert sorted(ids) == sorted(expected)
    np.testing.assert_allclose(scores, [expected[name] for name in ids], atol=0.03)  # two vectors of int8
    assert (np.diff(scores) <= 0).all()
    few, best = ranker.nearest(query, 5)
    assert few == ids[:5]
    np.testing.assert_array_equal(best, scores[:5])


def test_the_scan_does_not_depend_on_its_blocks(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, scores = ranker.nearest("red lamp", 7)
    monkeypatch.setattr(ranker_retrieve, "SCAN_ROWS", 3)
    again, same = ranker.nearest("red lamp", 7)
    assert again == ids
    np.testing.assert_array_equal(same, scores)


def test_retrieve_ranks_what_it_found(ranker: Ranker) -> None:
    found = ranker.retrieve("red lamp", top_k=4, n=9)
    ranked = ranker.rank("red lamp", ranker.nearest("red lamp", 9)[0], top_k=4)
    assert found.ids == ranked.ids
    np.testing.assert_array_equal(found.scores, ranked.scores)
    assert found.timings_us["total"] > found.timings_us["retrieve"] > 0
    assert len(ranker.retrieve("red lamp", top_k=12, n=2)) == 12
    late = ranker.retrieve("red lamp", top_k=3, deadline_ms=0)
    assert (late.ids, late.degraded) == (tuple(ranker.nearest("red lamp", 3)[0]), True)
    assert late.reason == "22 of 22 candidates were not scored within 0 ms"
    for wrong in ({"top_k": 0}, {"n": 0}, {"deadline_ms": -1}):
        with pytest.raises(InputError):
            ranker.retrieve("red lamp", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the query must be a str"):
        ranker.retrieve(b"red lamp")  # type: ignore[arg-type]


def test_without_vectors_it_says_what_to_do(made: Path, tmp_path: Path) -> None:
    with Ranker.open(made / "reference") as ranker, pytest.raises(InputError, match="no catalogue with vectors"):
        ranker.retrieve("red lamp")
    export_traced_once(made / "student", tmp_path / "export", data=[made / "shop"])
    build_engine(tmp_path / "export", tmp_path / "bundle", backend="reference", gate={"ndcg_drop": 1.0})
    with Ranker.open(tmp_path / "bundle", catalog=made / "catalog") as ranker, pytest.raises(InputError, match="edgerec add-retrieval"):
        ranker.retrieve("red lamp")


def test_another_heads_catalogue_or_file_is_refused(made: Path, tmp_path: Path) -> None:
    info = json.loads((made / "catalog" / "catalog.json").read_text())
    for name, vectors, message in (
        ("another", {**info["vectors"], "sha256": "0" * 64}, "another retrieval head"),
        ("wider", {**info["vectors"], "width": 9}, "are not those of 22 items of 9 numbers"),
        ("odd", {"width": 8}, "catalog.json: vectors must be an object"),
        ("none", {**info["vectors"], "width": 0}, "a width from 1 to"),
    ):
        shutil.copytree(made / "catalog", tmp_path / name)
        (tmp_path / name / "catalog.json").write_text(json.dumps({**info, "vectors": vectors}))
        with pytest.raises(BundleError, match=message):
            Ranker.open(made / "reference", catalog=tmp_path / name)
    for name, data, message in (("changed", b"x", "not the one that model.json names"), ("missing", None, "cannot be read")):
        shutil.copytree(made / "export", tmp_path / name)
        (tmp_path / name / "retrieve.npz").unlink()
        if data is not None:
            (tmp_path / name / "retrieve.npz").write_bytes(data)
        with pytest.raises(BuildError, match=message):
            build_engine(tmp_path / name, tmp_path / "bundle", backend="reference")


def test_wrong_settings_and_other_students_are_refused(made: Path, tmp_path: Path) -> None:
    for wrong in ({"width": 0}, {"width": 5000}, {"epochs": 0}, {"batch": 0}, {"spans": -1}, {"temperature": 0.0}):
        with pytest.raises(InputError, match="retrieval settings"):
            RetrievalSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="exists and is not empty"):
        add_retrieval(made / "student", made / "export", data=[made / "shop"], settings=SETTINGS)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_it_made(made: Path, tmp_path: Path) -> None:
    words = ["add-retrieval", str(made / "student"), str(tmp_path / "out"), "--data", str(made / "shop"), "--width", "4", "--epochs", "1"]
    result = CliRunner().invoke(cli, [*words, "--spans", "10"])
    assert result.exit_code == 0, result.output
    assert "retrieval.width: 4" in result.stdout
    assert (tmp_path / "out" / "retrieve.npz").exists()
