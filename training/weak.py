"""Weak labels: what the words and a model's sentence embeddings say about a pair, before anybody has judged one.

A cross-encoder that starts from a sentence-embedding model forgets what that model knows of similarity, since its head is new. A warm-up on
these labels teaches it that first; judgements then correct it. Source of the idea: Dehghani et al., arXiv 1704.08803.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from edgerec.errors import InputError
from edgerec.words import split_words

from .config import WarmUpSettings
from .data import Dataset
from .first_stage import Bm25, fold_plural
from .loop import autocast, device
from .pairs import Pairs, judged_pairs
from .unjudged import CANDIDATES, first_stage_pairs, span_pairs


class Coverage:
    """How much of a query's words an item's title has, each weighted by its rarity (IDF) in the corpus."""

    def __init__(self, dataset: Dataset) -> None:
        self._items = len(dataset.items)
        self._frequency = Counter(word for item in dataset.items.values() for word in _words(item.title))

    def score(self, query: str, title: str) -> float:
        """From 0 (no word) to 1 (every word)."""
        wanted = _words(query)
        total = sum(map(self._weight, wanted))
        return sum(map(self._weight, wanted & _words(title))) / total if total else 0.0

    def _weight(self, word: str) -> float:
        n = self._frequency[word]
        return math.log(1 + (self._items - n + 0.5) / (n + 0.5))


def _words(text: str) -> set[str]:
    return {fold_plural(word) for word in split_words(text)}


@torch.no_grad()
def embed(texts: list[str], embedder: str, *, max_tokens: int, precision: str, progress: bool = False) -> NDArray[np.float32]:
    """Sentence embeddings of length 1, float32 [N, H]: the mean of the encoder's outputs (Reimers and Gurevych, arXiv 1908.10084).

    Raises InputError when there is no such encoder.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(embedder)
        model: Any = AutoModel.from_pretrained(embedder).to(device()).eval()
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"--embedder {embedder}: {e}; expected a Hugging Face folder or a hub name that can be reached") from e
    order = np.argsort([len(text) for text in texts], kind="stable")
    out: NDArray[np.float32] = np.empty((len(texts), model.config.hidden_size), np.float32)
    with autocast(precision), tqdm(total=len(texts), disable=not progress, unit="text", desc="embeddings") as bar:
        for rows in np.array_split(order, max(1, -(-len(order) // 64))):
            inputs = tokenizer(
                [texts[i] for i in rows], padding=True, pad_to_multiple_of=8, truncation=True, max_length=max_tokens, return_tensors="pt"
            ).to(device())
            hidden = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
            bar.update(len(rows))
    return out


def warm_up_dataset(
    dataset: Dataset, embedder: str, settings: WarmUpSettings, *, max_tokens: int, precision: str, seed: int, progress: bool = False
) -> Dataset:
    """Training queries and queries made from titles, with first-stage candidates and weak labels, as a data set of its own.

    Its grades are the labels, in [0, 1]: ``cosine`` times the cosine of the embeddings (0 where negative), and the rest the word coverage.
    """
    bm25 = Bm25(dataset)
    texts, pairs = span_pairs(dataset, bm25, settings.span_queries, seed)
    real = np.random.default_rng(seed).permutation(list(dataset.qrels.get("train", {}))).tolist()[: settings.span_queries]
    pairs |= {name: found for name, found in first_stage_pairs(dataset, bm25, real, CANDIDATES).items() if found}
    texts |= {name: dataset.queries[name] for name in real}
    weak = dataclasses.replace(dataset, name=f"{dataset.name}/warm-up", queries=texts, qrels={"train": pairs}, grade_min=0.0, grade_max=1.0)
    labels = iter(
        weak_scores(
            judged_pairs([weak], "train"),
            [weak],
            embedder,
            cosine=settings.cosine,
            max_tokens=max_tokens,
            precision=precision,
            progress=progress,
        ).tolist()
    )
    return dataclasses.replace(
        weak, qrels={"train": {query_id: {item_id: next(labels) for item_id in found} for query_id, found in pairs.items()}}
    )


def weak_scores(
    pairs: Pairs, datasets: Sequence[Dataset], embedder: str, *, cosine: float, max_tokens: int, precision: str, progress: bool = False
) -> NDArray[np.float32]:
    """The weak label of every pair, float32 [P] in [0, 1]; ``datasets`` in the order of ``pairs.names``."""
    coverage = [Coverage(dataset) for dataset in datasets]
    places = zip(pairs.query.tolist(), pairs.item.tolist(), pairs.dataset.tolist(), strict=True)
    words = np.array([coverage[d].score(pairs.query_texts[q], pairs.items[i].title) for q, i, d in places], np.float32)
    if not cosine:
        return words
    texts = [*pairs.query_texts, *(item.title for item in pairs.items)]
    vectors = embed(texts, embedder, max_tokens=max_tokens, precision=precision, progress=progress)
    similar = np.einsum("ph,ph->p", vectors[pairs.query], vectors[len(pairs.query_texts) + pairs.item])
    return np.asarray(cosine * np.clip(similar, 0, 1) + (1 - cosine) * words, np.float32)
