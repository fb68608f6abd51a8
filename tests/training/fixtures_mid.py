"""A tiny random mid-fusion student in a folder, as `edgerec distill` writes it: for tests of what comes after training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from edgerec.training.config import StudentSettings
from edgerec.training.distill import student_info
from edgerec.training.mid_start import item_sample, mid_from_cross
from edgerec.training.pairs import judged_pairs
from edgerec.training.student import StudentScorer, student_from_encoder
from edgerec.training.teacher import train_datasets
from fixtures_export import BUCKETS, SLOTS
from fixtures_tiny import tiny_recipe, write_base_model
from safetensors.torch import save_file

from edgerec.features import FeatureEncoder, default_spec
from edgerec.text import TextEncoder, text_spec_from_tokenizer


def write_mid_student(
    folder: Path,
    shop: Path,
    *,
    features: bool = True,
    layers: int = 3,
    hidden: int = 32,
    heads: int = 4,
    buckets: int = BUCKETS,
    slots: int = SLOTS,
    **settings: object,
) -> Path:
    """Random weights that look at things, from a fixed seed; ``settings`` are those of `StudentSettings`."""
    base = write_base_model(folder.with_name(folder.name + ".base"), layers=layers, hidden=hidden, heads=heads)
    recipe = tiny_recipe(student=StudentSettings(interaction="mid", features=features, **settings))  # type: ignore[arg-type]
    spec = text_spec_from_tokenizer(base / "tokenizer.json", max_tokens=32, max_query_tokens=12, item_fields=["title"])
    sizes = {"buckets": buckets, "feature_dim": 4, "feature_hidden": 4} if features else {}
    cross = student_from_encoder(base, **sizes)
    torch.manual_seed(5)
    for name, parameter in cross.named_parameters():
        usual = 0.2 * 32 / hidden
        torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.6 if name.startswith("features") else usual)
    datasets = train_datasets([shop])
    text, train = TextEncoder(base / "tokenizer.json", spec), judged_pairs(datasets, "train")
    student = mid_from_cross(cross.eval(), spec, recipe.student, item_sample(train, text, seed=0))
    scorer = StudentScorer(student, text, FeatureEncoder(default_spec(buckets=buckets, slots=slots)) if features else None)
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in student.state_dict().items()}, folder / "student.safetensors")
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    facts = {"identity": {}, "versions": {}, "machine": {}, "best_step": 0, "steps": 0, "dev": {}}
    info = {"version": 1, **student_info(scorer, datasets, train, recipe), **facts}
    (folder / "training.json").write_text(json.dumps(info), encoding="utf-8")
    assert dataclasses.asdict(student.shape)["interaction"] == "mid"
    return folder
