"""The folder that ONNX rerankers read: Hugging Face files plus ``model.onnx``, exported the plain way that published models are."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
SPECIAL = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")


def write_onnx_folder(weights: Path, target: Path, *, max_tokens: int) -> None:
    """Copy the tokenizer, set its length limit, export the classifier in fp32 with dynamic batch and length."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (weights / name).exists():
            shutil.copy(weights / name, target / name)
    settings = json.loads((target / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = max_tokens
    settings.setdefault("pad_token", "[PAD]")
    (target / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if not (target / "special_tokens_map.json").exists():
        tokens = {name: settings[name] for name in SPECIAL if name in settings}
        (target / "special_tokens_map.json").write_text(json.dumps(tokens), encoding="utf-8")
    _export(weights, target / "model.onnx")


def _export(weights: Path, path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(weights, attn_implementation="eager").eval()
    model.config.return_dict = False
    names = ("input_ids", "attention_mask", "token_type_ids")
    sample = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in names)
    axes = {name: {0: "batch", 1: "length"} for name in names} | {"logits": {0: "batch"}}
    with warnings.catch_warnings():
        # The old exporter on purpose: its graphs are what Hugging Face hosts and what ONNX Runtime's fusions were written for.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            sample,
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=list(names),
            output_names=["logits"],
            dynamic_axes=axes,
        )
