"""Training labels from a behaviour log: graded by what users did, weighted against position bias, split by time.

The position of an item is used for one thing, its propensity; it is in no record that a model is trained on, and the order
of the records of one page does not tell it either.

Source: Joachims, Swaminathan, Schnabel, "Unbiased learning-to-rank with biased feedback", WSDM 2017 (inverse propensity weights);
Strehl et al., "Learning from logged implicit exploration data", NeurIPS 2010 (clipping).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerec.corpus import item_from_record, read_jsonl
from edgerec.errors import InputError

from .cleaning import GRADES, CleaningReport, CleaningRules, Request, read_requests
from .folder import new_folder, write_json, write_jsonl, write_qrels


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One item shown for one query.

    Attributes
    ----------
    request_id : rows of one page have the same; ``ts`` is the page's, in Unix seconds.
    user_id : ``""`` when unknown.
    label : 0 only shown, 1 clicked, 2 put in the cart, 3 bought.
    weight : 1 for label 0; otherwise 1 / propensity, at most the clip.
    """

    request_id: str
    query: str
    item_id: str
    user_id: str
    label: int
    weight: float
    ts: float


@dataclass(frozen=True, slots=True)
class BehaviourLabels:
    """Rows before and from ``split_ts``, in order of time, then of item id; and what became of the rest of the log."""

    train: tuple[LabelRow, ...]
    dev: tuple[LabelRow, ...]
    split_ts: float
    report: CleaningReport

    @property
    def rows(self) -> tuple[LabelRow, ...]:
        """All of them."""
        return self.train + self.dev


def labels_from_events(
    folder: Path | str, *, rules: CleaningRules | None = None, clip: float = 10.0, eta: float = 1.0, dev_share: float = 0.2
) -> BehaviourLabels:
    """Labels of a data folder's ``events.jsonl[.gz]``.

    Items that were never acted on, or that have nothing but a title, are kept: a new item looks just like that.

    Parameters
    ----------
    rules : of the cleaning; ``None`` for the defaults.
    clip : the largest weight, at least 1: a smaller one has less variance and more bias.
    eta : where a page was logged without propensities, ``(1 / position) ** eta`` is taken; the report counts such pages.
    dev_share : of the requests, the latest; in [0, 1).

    Raises
    ------
    InputError : a file is missing, a parameter is out of range, or nothing is left after cleaning.
    """
    requests, split_ts, report = _requests(Path(folder), rules or CleaningRules(), clip, eta, dev_share)
    rows: dict[bool, list[LabelRow]] = {False: [], True: []}
    for request in requests:
        page = request.page
        chances = dict(zip(page.items, _propensities(request, eta), strict=True))
        for item_id in sorted(page.items):
            label = request.grades.get(item_id, 0)
            weight = 1.0
            if label:
                weight = min(1.0 / chances[item_id], clip)
                report.noted["weights clipped"] += 1.0 / chances[item_id] > clip
            rows[page.ts >= split_ts].append(LabelRow(page.request_id, page.query, item_id, page.user_id, label, weight, page.ts))
    return BehaviourLabels(tuple(rows[False]), tuple(rows[True]), split_ts, report)


def write_behaviour_dataset(
    folder: Path | str,
    out: Path | str,
    *,
    rules: CleaningRules | None = None,
    eta: float = 1.0,
    dev_share: float = 0.2,
    prior_looks: float = 1.0,
) -> CleaningReport:
    """Write a data folder whose judgements are behaviour, for ``edgerec train --data``.

    The grade of a query and an item is what the item is worth to a user who looks at it, 0 to 3: the sum of its grades over the
    sum of its propensities, drawn towards the mean of the train part by ``prior_looks`` looks, so that one unlucky page says little.
    Train and dev are split by time, so a query may be in both.

    Parameters
    ----------
    out : must not exist, or be empty. It gets the corpus of ``folder``.
    prior_looks : at least 0; how many looks the mean counts as.
    rules, eta, dev_share : as in :func:`labels_from_events`.

    Raises
    ------
    InputError : as :func:`labels_from_events`; or ``out`` cannot be written.
    """
    folder = Path(folder)
    if not 0 <= prior_looks < math.inf:
        raise InputError(f"prior_looks is {prior_looks}; expected a number from 0")
    requests, split_ts, report = _requests(folder, rules or CleaningRules(), 1.0, eta, dev_share)
    worth: dict[bool, dict[tuple[str, str], tuple[float, float]]] = {False: {}, True: {}}
    for request in requests:
        side = worth[request.page.ts >= split_ts]
        for item_id, chance in zip(request.page.items, _propensities(request, eta), strict=True):
            pair = (request.page.query, item_id)
            earned, looks = side.get(pair, (0.0, 0.0))
            side[pair] = (earned + request.grades.get(item_id, 0), looks + chance)
    mean = sum(earned for earned, _ in worth[False].values()) / max(sum(looks for _, looks in worth[False].values()), 1e-9)
    best = float(max(GRADES.values()))
    ids = {text: f"b{place:06d}" for place, text in enumerate(sorted({text for side in worth.values() for text, _ in side}))}
    qrels = {
        split: sorted(
            (ids[text], item_id, min((earned + prior_looks * mean) / (looks + prior_looks), best))
            for (text, item_id), (earned, looks) in worth[late].items()
        )
        for split, late in (("train", False), ("dev", True))
        if worth[late]
    }
    with new_folder(Path(out)) as staging:
        corpus = _corpus_file(folder)
        shutil.copyfile(corpus, staging / corpus.name)
        write_jsonl(staging / "queries.jsonl", ({"_id": query_id, "text": text} for text, query_id in ids.items()))
        write_qrels(staging, qrels)
        meta = {"name": f"{folder.name}-behaviour", "task": "worth of an item to a user who looks at it, from behaviour"}
        write_json(staging / "dataset.json", {**meta, "grades": {"min": 0, "max": best}, "split": "time", "split_ts": split_ts})
    return report


def _requests(folder: Path, rules: CleaningRules, clip: float, eta: float, dev_share: float) -> tuple[list[Request], float, CleaningReport]:
    """The cleaned requests, the time where dev begins, and the report."""
    if not 1 <= clip < math.inf or not 0 <= eta < math.inf or not 0 <= dev_share < 1:
        raise InputError(f"clip={clip}, eta={eta}, dev_share={dev_share}; expected clip from 1, eta from 0, dev_share in [0, 1)")
    items = {item_from_record(record, place).id for place, record in read_jsonl(_corpus_file(folder))}
    report = CleaningReport()
    requests = read_requests(_find(folder, "events.jsonl"), items, rules, report)
    if not requests:
        raise InputError(f"{folder}: no request is left after cleaning; dropped: {dict(report.dropped)}")
    report.noted["requests without propensities"] += sum(request.page.propensities is None for request in requests)
    split_ts = _split_time(requests, dev_share)
    kept = []
    for request in requests:
        # What happened after the split would not have been known when training before it.
        if request.page.ts < split_ts <= request.last_ts:
            report.drop("request with actions on both sides of the split", f"request {request.page.request_id!a}")
        else:
            kept.append(request)
    return kept, split_ts, report


def _split_time(requests: Sequence[Request], dev_share: float) -> float:
    """The first moment of dev; requests of one moment are on one side, and train is never empty."""
    times = [request.page.ts for request in requests]
    first_dev = len(times) - int(dev_share * len(times))
    if first_dev >= len(times) or times[first_dev] == times[0]:
        return math.inf
    return times[first_dev]


def _propensities(request: Request, eta: float) -> Sequence[float]:
    page = request.page
    return page.propensities or [float(1.0 / position**eta) for position in page.positions]


def _corpus_file(folder: Path) -> Path:
    return _find(folder, "corpus.jsonl")


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder}: neither {name} nor {name}.gz is there; name a data folder with a behaviour log")
