"""A bundle is judged through the serve path: catalogue, ranker, scores by id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.evaluate import evaluate
from fixtures_export import WORDS, make_export

from edgerec.builder import build_engine
from edgerec.errors import BundleError
from edgerec.ranker import Ranker

TITLES = [f"{WORDS[n % 5]} {WORDS[5 + n % 7]}" for n in range(30)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "qrels").mkdir()
    (folder / "dataset.json").write_text(json.dumps({"name": "toy", "grades": {"min": 0, "max": 3}}))
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"i{n}", "title": t}) + "\n" for n, t in enumerate(TITLES)))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{n}", "text": TITLES[n]}) + "\n" for n in range(4)))
    lines = [f"q{q}\ti{n}\t{(q * 7 + n * 5) % 4}" for q in range(4) for n in range(12)]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    build_engine(make_export(root / "export"), root / "student-tiny", backend="reference")
    return root / "student-tiny"


def test_a_bundle_scores_as_its_ranker_does(data: Path, bundle: Path) -> None:
    table = evaluate(data, "dev", bundles=[bundle], samples=20, latency=True, latency_candidates=6, latency_calls=2, command="test")
    row = table.row("student-tiny")
    assert row.kind == "bundle"
    assert row.latency is not None
    assert row.latency.candidates == 6
    assert row.scores is not None
    with Ranker.open(bundle) as ranker:
        assert row.detail == {"model_version": ranker.manifest.model_version, "backend": "reference", "precision": "fp32"}
        for judged, scores in zip(table.lists, row.scores, strict=True):
            np.testing.assert_allclose(scores, ranker.score(judged.query, judged.items), rtol=1e-4, atol=1e-5)


def test_bundles_of_one_name_are_told_apart_by_their_path(data: Path, bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / bundle.name
    build_engine(make_export(tmp_path / "export", seed=1), other, backend="reference")
    table = evaluate(data, "dev", bundles=[bundle, other], samples=20, command="test")
    assert [row.name for row in table.rows[2:]] == [str(bundle), str(other)]
    assert table.rows[2].ndcg_by_query.tolist() != table.rows[3].ndcg_by_query.tolist()


def test_a_damaged_bundle_is_a_bundle_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        evaluate(data, "dev", bundles=[tmp_path], samples=20, command="test")
