"""A tiny random BERT and a small graded shop: enough to run the training code, never enough to mean anything."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from edgerec.training.config import FitSettings, LossSettings, Recipe, StudentSettings, TextSettings
from fixtures_export import write_tokenizer
from transformers import BertConfig, BertModel

COLOURS = ("red", "blue", "green", "black")
THINGS = ("lamp", "chair", "table", "shelf", "sofa")


def write_base_model(folder: Path, layers: int = 2, gelu: str = "gelu", hidden: int = 32, heads: int = 4) -> Path:
    """An encoder of width 32 with a pooler, and its tokenizer."""
    folder.mkdir()
    vocab = write_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 64}', encoding="utf-8")
    torch.manual_seed(1)
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 64,
    }
    BertModel(BertConfig(vocab_size=vocab, hidden_act=gelu, **sizes)).save_pretrained(folder)
    return folder


def write_shop(folder: Path, name: str = "tiny") -> Path:
    """20 items, 12 queries; grade 3 for the same thing and colour, 2 the same thing, 1 anything else."""
    (folder / "qrels").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"name": name, "grades": {"min": 1, "max": 3}}), encoding="utf-8")
    items = [(f"i{c}{t}", f"{colour} {thing}") for c, colour in enumerate(COLOURS) for t, thing in enumerate(THINGS)]
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"_id": i, "title": title, "text": ""}) + "\n" for i, title in items)
    queries = [(f"q{n}", f"{COLOURS[n % 4]} {THINGS[n % 5]}") for n in range(12)]
    with open(folder / "queries.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"_id": q, "text": text}) + "\n" for q, text in queries)
    for split, chosen in (("train", queries[:9]), ("dev", queries[9:])):
        with open(folder / "qrels" / f"{split}.tsv", "w", encoding="utf-8") as f:
            f.write("query-id\tcorpus-id\tscore\n")
            for q, text in chosen:
                for i, title in items[:: 1 + int(q[1:]) % 2]:
                    grade = 3 if title == text else 2 if title.split()[1] == text.split()[1] else 1
                    f.write(f"{q}\t{i}\t{grade}\n")
    return folder


def tiny_recipe(**parts: object) -> Recipe:
    """A recipe that trains for 6 steps; ``parts`` replace whole groups of settings."""
    groups: dict[str, object] = {
        "text": TextSettings(max_tokens=32, max_query_tokens=12),
        "fit": FitSettings(epochs=1, batch_size=24, max_steps=6, eval_every=2, learning_rate=1e-3, precision="fp32"),
        "loss": LossSettings(bce=1.0, listwise=0.3),
        "student": StudentSettings(layers=(1,), buckets=256, slots=8, feature_dim=4, feature_hidden=4),
    }
    return Recipe("tiny", 0, **{**groups, **parts})  # type: ignore[arg-type]
