"""``edgerec data import``: public product-search judgements, as their owners publish them, to a data folder.

Text is taken as it is. A split the publisher made is kept; where there is none, queries are split by a hash, near twins
together. A damaged source is refused with file and line; nothing is written then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgerec.errors import InputError
from edgerec.types import Item

from .folder import item_row, new_folder, write_json, write_jsonl, write_qrels
from .publishers import Draft, read_crowdflower, read_esci, read_homedepot, read_wands
from .twins import SHARES, split_groups, twin_groups

_DEV_OF_PUBLISHED_TRAIN = 0.1


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was written: counts, judgements by split, and notes on what was merged or left out, by kind and number."""

    folder: str
    items: int
    queries: int
    judgements: Mapping[str, int]
    notes: Mapping[str, int]


def import_dataset(
    kind: str, source: Path | str, folder: Path | str, *, seed: int = 0, locale: str = "us", small: bool = False
) -> ImportReport:
    """Convert a public data set.

    Parameters
    ----------
    kind : ``wands``, ``esci``, ``homedepot`` or ``crowdflower``.
    source : the folder with the publisher's files.
    folder : must not exist, or be empty.
    seed : of the split where the publisher made none (and of dev, cut from train, for ``esci``).
    locale : ``esci`` only: ``us``, ``es`` or ``jp``.
    small : ``esci`` only: the rows of the reduced version alone.

    Raises
    ------
    InputError : an unknown kind, a source that is not in the publisher's format, or a folder that cannot be written.
    MissingExtraError : ``esci`` without pyarrow.
    """
    source = Path(source)
    readers: dict[str, Callable[[], Draft]] = {
        "wands": lambda: read_wands(source),
        "esci": lambda: read_esci(source, locale, small),
        "homedepot": lambda: read_homedepot(source),
        "crowdflower": lambda: read_crowdflower(source),
    }
    if kind not in readers:
        raise InputError(f"kind {kind!r} is unknown; expected one of {', '.join(readers)}")
    if not source.is_dir():
        raise InputError(f"{source} is not a folder; name the one with the publisher's files")
    # The target is tried before the work, so that a taken name is not found out after minutes of reading.
    with new_folder(Path(folder)) as staging:
        draft = readers[kind]()
        if not draft.grades:
            raise InputError(f"{source} holds no judgements; is it the full file?")
        needed = {item_id for _, item_id in draft.grades}
        written: set[str] = set()
        write_jsonl(staging / "corpus.jsonl", (item_row(item) for item in _once(draft, needed, written)))
        missing = sorted(needed - written)
        if missing:
            raise InputError(f"{len(missing)} judged items are not among the products, e.g. {missing[:3]}; are the files of one release?")
        splits = _split(draft, seed)
        judgements: dict[str, list[tuple[str, str, float]]] = {split: [] for split in ("train", "dev", "test")}
        for (query_id, item_id), grade in sorted(draft.grades.items()):
            times = 1 + draft.repeats.get((query_id, item_id), 0)
            judgements[splits[query_id]].append((query_id, item_id, grade / times))
        if draft.repeats:
            draft.note("judgements averaged with others of their pair", sum(draft.repeats.values()))
        meta = {"name": draft.name, "task": draft.task, "grades": {"min": draft.range[0], "max": draft.range[1]}}
        write_json(staging / "dataset.json", {**meta, "language": draft.language, "origin": draft.origin, "split_seed": seed})
        write_jsonl(staging / "queries.jsonl", ({"_id": query_id, "text": text} for query_id, text in draft.queries.items()))
        write_qrels(staging, judgements)
    sizes = {split: len(rows) for split, rows in judgements.items()}
    return ImportReport(str(folder), len(written), len(draft.queries), sizes, draft.notes)


def _once(draft: Draft, needed: set[str], written: set[str]) -> Iterator[Item]:
    """The judged items, each once: the first of its id."""
    for item in draft.items:
        if item.id not in needed:
            draft.note("products without a judgement left out")
        elif item.id in written:
            draft.note("products with a repeated id left out")
        else:
            written.add(item.id)
            yield item


def _split(draft: Draft, seed: int) -> dict[str, str]:
    splits = dict(draft.published)
    shares = {"train": 1 - _DEV_OF_PUBLISHED_TRAIN, "dev": _DEV_OF_PUBLISHED_TRAIN} if splits else SHARES
    ids = [query_id for query_id in draft.queries if splits.get(query_id, "train") == "train"]
    texts = [draft.queries[query_id] for query_id in ids]
    splits.update(zip(ids, split_groups(texts, twin_groups(texts), seed=seed, shares=shares), strict=True))
    return splits
