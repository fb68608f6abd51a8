"""The main job through the commands alone, with a tiny random encoder: data, teacher, student, export, bundle, table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from edgerec.training.data import load_dataset
from edgerec.training.evaluate import evaluate
from fixtures_cli import ok, run
from fixtures_export import write_tokenizer
from fixtures_traced import traced_unmeasured

TEACHER = """
name = "tiny-teacher"
[text]
max_tokens = 32
max_query_tokens = 12
[fit]
epochs = 1
batch_size = 16
eval_every = 4
max_steps = 6
learning_rate = 1e-3
"""
STUDENT = """
name = "tiny-student"
[text]
max_tokens = 32
max_query_tokens = 12
[fit]
epochs = 1
batch_size = 16
eval_every = 4
max_steps = 6
[loss]
bce = 0.5
margin_mse = 1.0
[student]
layers = [1]
buckets = 256
slots = 8
feature_dim = 4
feature_hidden = 4
unlabelled_per_query = 2
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every folder of the main job, made by the commands in order."""
    import torch
    from transformers import BertConfig, BertModel

    work = tmp_path_factory.mktemp("job")
    base = work / "base"
    base.mkdir()
    vocab = write_tokenizer(base / "tokenizer.json")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 64}', encoding="utf-8")
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=vocab, **sizes)).save_pretrained(base)
    (work / "teacher.toml").write_text(TEACHER, encoding="utf-8")
    (work / "student.toml").write_text(STUDENT, encoding="utf-8")
    shop = work / "shop"
    ok("data", "simulate", shop, "--items", 60, "--queries", 24, "--users", 5, "--events", 0, "--seed", 3)
    ok("train", "--data", shop, "--base-model", base, "--recipe", work / "teacher.toml", "--out", work / "teacher")
    ok("distill", "--teacher", work / "teacher", "--data", shop, "--student", work / "student.toml", "--out", work / "student")
    with traced_unmeasured():
        ok("export", work / "student", work / "export", "--data", shop)
    ok("build-engine", work / "export", work / "bundle")
    return work


def test_the_table_has_a_row_for_every_stage(work: Path) -> None:
    models = ("--model", work / "teacher", "--model", work / "student", "--bundle", work / "bundle")
    ok("evaluate", "--data", work / "shop", "--split", "dev", *models, "--json", work / "table.json")
    rows = json.loads((work / "table.json").read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == ["no rerank", "BM25", "teacher", "student", "bundle"]


def test_a_model_that_is_worse_than_bm25_on_dev_is_warned_about(work: Path) -> None:
    """One step of a random encoder teaches nothing. BM25's figure is the table's."""
    (work / "short.toml").write_text(TEACHER.replace("max_steps = 6", "max_steps = 1"), encoding="utf-8")
    done = ok("train", "--data", work / "shop", "--base-model", work / "base", "--recipe", work / "short.toml", "--out", work / "short")
    info = json.loads((work / "short" / "training.json").read_text(encoding="utf-8"))
    bm25 = next(row for row in evaluate(work / "shop", "dev").rows if row.name == "BM25")
    name = f"ndcg@10/{load_dataset(work / 'shop').name}"
    assert info["first_stage"][name] == pytest.approx(bm25.ndcg.value)
    assert info["dev"][name] < info["first_stage"][name]
    assert f"warning: {name} is {info['dev'][name]:.3f} on the dev split, BM25's is {bm25.ndcg.value:.3f}" in done.stderr
    assert f"first_stage.{name}: " in done.stdout


def test_two_rankers_are_compared(work: Path) -> None:
    words = ("evaluate", "--data", work / "shop", "--bundle", work / "bundle", "--compare")
    result = ok(*words, "BM25", "bundle", "--json", work / "compared.json", "--report", work / "compared.html")
    comparison = json.loads((work / "compared.json").read_text(encoding="utf-8"))["comparison"]
    assert (comparison["a"], comparison["b"]) == ("BM25", "bundle")
    assert 0 < comparison["p_value"] <= 1
    assert "bundle against BM25" in result.stdout
    assert "bundle against BM25" in (work / "compared.html").read_text(encoding="utf-8")
    refused = run(*words, "BM25", "nobody")
    assert refused.exit_code == 2
    assert "nobody" in refused.stderr


def test_a_sentence_embedder_gives_the_weak_labels(work: Path) -> None:
    recipe = TEACHER.replace("max_steps = 6", "max_steps = 2") + "[warm_up]\nspan_queries = 4\ncosine = 0.5\n"
    (work / "warm.toml").write_text(recipe, encoding="utf-8")
    common = ("train", "--data", work / "shop", "--base-model", work / "base", "--recipe", work / "warm.toml")
    ok(*common, "--embedder", work / "base", "--out", work / "warm")
    inputs = json.loads((work / "warm" / "training.json").read_text(encoding="utf-8"))["identity"]["inputs"]
    assert inputs["embedder"] == inputs["base_model"]
    missing = run(*common, "--embedder", work / "nowhere", "--out", work / "new")
    assert missing.exit_code == 1
    assert "--embedder" in missing.stderr
    (work / "weak.toml").write_text(STUDENT + "[ensemble]\nweak = true\nweak_cosine = 0.5\n", encoding="utf-8")
    common = ("distill", "--teacher", work / "teacher", "--data", work / "shop", "--student", work / "weak.toml")
    refused = run(*common, "--out", work / "new")
    assert refused.exit_code == 1
    assert "--embedder" in refused.stderr
    assert not list(work.glob("new*"))
    ok(*common, "--embedder", work / "base", "--out", work / "weak")
    members = json.loads((work / "weak" / "training.json").read_text(encoding="utf-8"))["teachers"]
    assert [member["kind"] for member in members] == ["teacher", "weak"]


def test_an_fp32_bundle_scores_text_as_the_student_does(work: Path) -> None:
    """Logits, not nDCG: a student this little trained has scores so close that rounding alone reorders them."""
    from edgerec.training.data import load_dataset
    from edgerec.training.student import StudentScorer

    from edgerec import Ranker

    shop, student = load_dataset(work / "shop"), StudentScorer.load(work / "student")
    with Ranker.open(work / "bundle") as ranker:
        for query_id, grades in shop.qrels["dev"].items():
            query, items = shop.queries[query_id], [shop.items[item_id] for item_id in grades]
            np.testing.assert_allclose(ranker.score(query, items), student.score(query, items), rtol=0, atol=1e-6)


def test_the_student_ranks_in_process_through_its_catalogue(work: Path) -> None:
    ok("build-catalog", work / "shop" / "corpus.jsonl", work / "bundle", work / "catalog")
    result = ok("rank", work / "bundle", "--catalog", work / "catalog", "--query", "red lamp", "--top-k", 5, "--json")
    scores = [found["score"] for found in json.loads(result.stdout)["results"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("command", ["train", "distill", "export"])
def test_an_output_that_exists_is_never_replaced(work: Path, command: str) -> None:
    words: dict[str, tuple[object, ...]] = {
        "train": ("--data", work / "shop", "--base-model", work / "base", "--recipe", work / "teacher.toml", "--out", work / "teacher"),
        "distill": ("--teacher", work / "teacher", "--data", work / "shop", "--student", work / "student.toml", "--out", work / "student"),
        "export": (work / "student", work / "export"),
    }
    result = run(command, *words[command])
    assert result.exit_code == 1
    assert "exists" in result.stderr


def test_an_unknown_recipe_is_an_error_that_lists_the_shipped_ones(work: Path) -> None:
    result = run("train", "--data", work / "shop", "--base-model", work / "base", "--recipe", "no-such-recipe", "--out", work / "new")
    assert result.exit_code == 1
    assert "teacher-minilm-l6" in result.stderr
    assert not (work / "new").exists()
