"""Vocabulary pruning: the embedding rows and tokens that a shop's items and queries never use are taken out.

WordPiece takes the longest piece that its vocabulary has. A piece that stays is still the longest one, so a text whose pieces all stay is
cut as before, and its logit is the same; a text with a piece that went is spelled from shorter ones.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edgerec.errors import InputError
from edgerec.text import TextEncoder

from .config import PruneSettings
from .data import Dataset
from .student import Student, StudentScorer

EMBEDDING = "tower.word_embeddings.weight"


def prune_vocabulary(
    scorer: StudentScorer, folder: Path, datasets: Sequence[Dataset], settings: PruneSettings, out: Path
) -> tuple[StudentScorer, dict[str, Any] | None]:
    """The student with the tokens of the items and training queries alone; its ``tokenizer.json`` is written to ``out``.

    Special tokens and single characters stay too, so that an unseen word can still be spelled. Without ``settings.vocabulary`` the
    tokenizer is copied and the student returned as it is.

    Returns
    -------
    The student, and what changed: tokens, embedding bytes, and the share of unknown tokens in the dev queries, before and after.

    Raises
    ------
    InputError : the tokenizer is no WordPiece.
    """
    source, target = folder / "tokenizer.json", out / "tokenizer.json"
    if not settings.vocabulary:
        shutil.copy(source, target)
        return scorer, None
    table = json.loads(source.read_text(encoding="utf-8"))
    if table["model"].get("type") != "WordPiece":
        raise InputError(f"{source}: vocabulary pruning knows WordPiece, not {table['model'].get('type')}")
    spec = scorer.text.spec
    unknown = table["model"]["vocab"].get(table["model"]["unk_token"])
    counts = token_counts(scorer.text, datasets)
    kept = sorted(
        {i for i, n in counts.items() if n >= settings.min_count}
        | {i for token, i in table["model"]["vocab"].items() if len(token.removeprefix("##")) == 1}
        | {i for i in (*spec.prefix, *spec.middle, *spec.suffix, spec.pad_id, unknown) if i is not None}
        | {added["id"] for added in table.get("added_tokens", [])}
    )
    new_ids = {old: new for new, old in enumerate(kept)}
    target.write_text(json.dumps(remap(table, new_ids), ensure_ascii=False), encoding="utf-8")
    special: dict[str, Any] = {name: tuple(new_ids[i] for i in getattr(spec, name)) for name in ("prefix", "middle", "suffix")}
    text = TextEncoder(target, dataclasses.replace(spec, **special, pad_id=new_ids[spec.pad_id]))
    weights = scorer.student.state_dict()
    weights[EMBEDDING] = weights[EMBEDDING].cpu()[torch.tensor(kept)]
    student = Student(dataclasses.replace(scorer.student.shape, vocab=len(kept)))
    student.load_state_dict(weights)
    before, after = (_unknown_share(t, u, datasets) for t, u in ((scorer.text, unknown), (text, new_ids[unknown])))
    row = 4 * scorer.student.shape.hidden
    report = {
        "tokens_before": scorer.student.shape.vocab,
        "tokens": len(kept),
        "embedding_bytes_before": row * scorer.student.shape.vocab,
        "embedding_bytes": row * len(kept),
        "dev_unknown_before": before,
        "dev_unknown": after,
        "dev_queries_changed": _changed_share(scorer.text, text, kept, datasets),
    }
    return StudentScorer(student, text, scorer.features), report


def token_counts(encoder: TextEncoder, datasets: Sequence[Dataset]) -> Counter[int]:
    """How often each token stands in items and in training queries, as far as the model reads them."""
    counts: Counter[int] = Counter()
    for dataset in datasets:
        tokens, _ = encoder.encode_items([encoder.item_text(item) for item in dataset.items.values()])
        counts.update(tokens.tolist())
        for query_id in dataset.qrels.get("train", {}):
            counts.update(encoder.encode_query(dataset.queries[query_id]).tolist())
    return counts


def remap(table: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """A WordPiece ``tokenizer.json`` with the tokens of ``new_ids`` (old id -> new id) alone, padding and truncation left out."""
    model = table["model"]
    vocab = {token: new_ids[i] for token, i in sorted(model["vocab"].items(), key=lambda entry: entry[1]) if i in new_ids}
    added = [{**token, "id": new_ids[token["id"]]} for token in table.get("added_tokens", [])]
    return {
        **table,
        "model": {**model, "vocab": vocab},
        "added_tokens": added,
        "post_processor": _remap_special(table.get("post_processor"), new_ids),
        "padding": None,
        "truncation": None,
    }


def _remap_special(processor: Any, new_ids: Mapping[int, int]) -> Any:
    """The ids that BertProcessing (``"sep": ["[SEP]", 102]``) and TemplateProcessing (``"ids": [102]``) name; others have none."""
    if isinstance(processor, list):
        return [_remap_special(one, new_ids) for one in processor]
    if not isinstance(processor, Mapping):
        return processor
    found = {}
    for key, value in processor.items():
        if key in ("sep", "cls"):
            found[key] = [value[0], new_ids[value[1]]]
        elif key == "ids":
            found[key] = [new_ids[i] for i in value]
        else:
            found[key] = _remap_special(value, new_ids)
    return found


def _dev_queries(datasets: Sequence[Dataset]) -> list[str]:
    return [dataset.queries[query_id] for dataset in datasets for query_id in dataset.qrels.get("dev", {})]


def _unknown_share(encoder: TextEncoder, unknown: int | None, datasets: Sequence[Dataset]) -> float:
    tokens = [token for text in _dev_queries(datasets) for token in encoder.encode_query(text).tolist()]
    return tokens.count(unknown) / len(tokens) if tokens else 0.0


def _changed_share(before: TextEncoder, after: TextEncoder, kept: Sequence[int], datasets: Sequence[Dataset]) -> float:
    """Share of the dev queries that are no longer cut as they were."""
    queries = _dev_queries(datasets)
    same = sum(before.encode_query(text).tolist() == [kept[i] for i in after.encode_query(text).tolist()] for text in queries)
    return 1 - same / len(queries) if queries else 0.0
