"""Pairs that nobody judged: first-stage candidates of the training queries, and queries made from titles.

A few hundred judged queries show a model few words. A span of a title is a query that somebody could have typed, about an item that the
shop has; a teacher (or words and embeddings, `edgerec.training.weak`) labels it. Idea: Bonifacio et al., InPars, arXiv 2202.05144, and Wang
et al., GPL, arXiv 2112.07577, without their text generator.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from edgerec.words import split_words

from .data import Dataset
from .first_stage import Bm25

CANDIDATES = 6
"""Of a made query. One of them is any item of the corpus."""
POOL = 50
"""The other candidates are drawn from so many first-stage hits: near misses teach more than the best few, which all match."""


def first_stage_pairs(dataset: Dataset, bm25: Bm25, query_ids: Sequence[str], per_query: int) -> dict[str, dict[str, float]]:
    """The best ``per_query`` first-stage hits of some queries: query id -> item id -> NaN."""
    found = bm25.search_many([dataset.queries[q] for q in query_ids], per_query) if per_query else [[]] * len(query_ids)
    return {name: dict.fromkeys((item_id for item_id, _ in hits), float("nan")) for name, hits in zip(query_ids, found, strict=True)}


def span_pairs(dataset: Dataset, bm25: Bm25, queries: int, seed: int) -> tuple[dict[str, str], dict[str, dict[str, float]]]:
    """Queries made from titles, each with first-stage candidates and one random item.

    Spans are as long, in words, as the data set's training queries. Same arguments, same pairs.

    Returns
    -------
    texts : query id -> text; the ids start with NUL, as no id in a file does. pairs : query id -> item id -> NaN.
    """
    rng = np.random.default_rng([seed, zlib.crc32(dataset.name.encode())])
    lengths = [max(1, len(split_words(dataset.queries[q]))) for q in dataset.qrels.get("train", {})]
    ids = list(dataset.items)
    texts: dict[str, str] = {}
    pairs: dict[str, dict[str, float]] = {}
    for number, row in enumerate(np.resize(rng.permutation(len(ids)), queries).tolist()):
        words = split_words(dataset.items[ids[row]].title)
        length = min(int(rng.choice(lengths)), len(words))
        if length == 0:
            continue
        start = int(rng.integers(len(words) - length + 1))
        name, text = f"\0{number}", " ".join(words[start : start + length])
        hits = [item_id for item_id, _ in bm25.search(text, POOL)]
        drawn = rng.choice(len(hits), min(CANDIDATES - 1, len(hits)), replace=False).tolist()
        texts[name] = text
        pairs[name] = dict.fromkeys([*(hits[i] for i in drawn), ids[int(rng.integers(len(ids)))]], float("nan"))
    return texts, pairs


def with_unjudged(dataset: Dataset, *, per_query: int, span_queries: int, seed: int) -> Dataset:
    """The data set with unjudged pairs in its train split, as grades that are NaN."""
    if not per_query and not span_queries:
        return dataset
    bm25, judged = Bm25(dataset), dataset.qrels.get("train", {})
    more = first_stage_pairs(dataset, bm25, list(judged), per_query)
    texts, spans = span_pairs(dataset, bm25, span_queries, seed)
    train = {query_id: {**more[query_id], **grades} for query_id, grades in judged.items()} | spans
    return dataclasses.replace(dataset, queries={**dataset.queries, **texts}, qrels={**dataset.qrels, "train": train})
