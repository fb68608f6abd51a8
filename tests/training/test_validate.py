"""Every fault of a data folder is found, once, with its file and line; and what is passed can be loaded."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from edgerec.training.data import load_dataset
from edgerec.training.findings import KEPT_PER_CODE, Finding
from edgerec.training.text_faults import mojibake
from edgerec.training.validate import validate
from hypothesis import given
from hypothesis import strategies as st

from edgerec.errors import InputError

FILES = {
    "dataset.json": '{"name": "tiny", "grades": {"min": 0, "max": 3}}',
    "corpus.jsonl": "\n".join(
        [
            '{"_id": "a", "title": "Red lamp", "text": "", "brand": "Lumo", "price": 12.5, "attributes": {"color": "red"}}',
            '{"_id": "b", "title": "Blue café lamp", "text": "é, naïve, 5 µm, 20 °C, “quoted”"}',
            '{"_id": "c", "title": "Sofa", "price": null}',
            "",
        ]
    ),
    "queries.jsonl": '{"_id": "q1", "text": "red lamp"}\n{"_id": "q2", "text": "sofa"}\n{"_id": "q3", "text": "unjudged"}\n',
    "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq1\ta\t3\nq1\tb\t1.5\n",
    "qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq2\tc\t3\nq2\ta\t0\n",
    "users.jsonl": '{"_id": "u1", "brands": {"Lumo": 0.5}, "categories": {}}\n',
    "events.jsonl": "\n".join(
        [
            '{"type": "impression", "request_id": "r1", "ts": 1, "query": "lamp", "items": ["a", "b"], "positions": [1, 2]}',
            '{"type": "click", "request_id": "r1", "item_id": "a", "ts": 2}',
            "",
        ]
    ),
}
Edit = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny")


def write(folder: Path, **files: str) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def line(name: str, number: int, text: str | bytes) -> Edit:
    """Replace a line of a file; past its end, add one."""

    def edit(folder: Path) -> None:
        lines = (folder / name).read_bytes().splitlines()
        lines[number - 1 : number] = [text if isinstance(text, bytes) else text.encode()]
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")

    return edit


def content(name: str, raw: bytes) -> Edit:
    return lambda folder: (folder / name).write_bytes(raw)


def remove(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def test_a_sound_folder_has_counts_and_nothing_else(folder: Path) -> None:
    report = validate(folder)
    assert report.errors == report.warnings == ()
    assert report.counts == {
        "items": 3,
        "queries": 3,
        "judgements": {"train": 2, "dev": 2},
        "judged queries": {"train": 1, "dev": 1},
        "queries without judgements": 1,
        "users": 1,
        "events": {"impression": 1, "click": 1},
    }
    assert report.grades == {"train": {"1.5": 1, "3": 1}, "dev": {"0": 1, "3": 1}}


ITEM = '{"_id": "d", "title": "Rug"'
ERRORS: list[tuple[str, str, int, Edit]] = [
    ("malformed", "corpus.jsonl", 2, line("corpus.jsonl", 2, '{"_id": "b", "title": ')),
    ("malformed", "corpus.jsonl", 4, line("corpus.jsonl", 4, "[1]")),
    ("malformed", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "price": NaN}')),
    ("malformed", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "title": "Rug"}')),
    ("encoding", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM.encode() + b', "text": "caf\xe9"}')),
    ("encoding", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + r', "text": "\ud83d alone"}')),
    ("encoding", "queries.jsonl", 4, line("queries.jsonl", 4, r'{"_id": "q4", "text": "\udc00"}')),
    ("duplicate-id", "corpus.jsonl", 4, line("corpus.jsonl", 4, '{"_id": "a", "title": "Rug"}')),
    ("duplicate-id", "queries.jsonl", 4, line("queries.jsonl", 4, '{"_id": "q1", "text": "rug"}')),
    ("wrong-type", "corpus.jsonl", 4, line("corpus.jsonl", 4, '{"_id": 4, "title": "Rug"}')),
    ("wrong-type", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "brand": ["x"]}')),
    ("wrong-type", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "attributes": ["x"]}')),
    ("wrong-type", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "image_embedding": [1, "x"]}')),
    ("wrong-type", "queries.jsonl", 4, line("queries.jsonl", 4, '{"_id": "q4"}')),
    ("wrong-type", "queries.jsonl", 4, line("queries.jsonl", 4, '{"_id": "q4", "text": "rug", "ts": "now"}')),
    ("wrong-type", "users.jsonl", 2, line("users.jsonl", 2, '{"_id": "u2", "brands": {"Lumo": 7}}')),
    ("odd-id", "corpus.jsonl", 4, line("corpus.jsonl", 4, r'{"_id": "d\te", "title": "Rug"}')),
    ("odd-id", "corpus.jsonl", 4, line("corpus.jsonl", 4, r'{"_id": "d\u2028", "title": "Rug"}')),
    ("price", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "price": 1e999}')),
    ("price", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "price": "cheap"}')),
    ("price", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "price": true}')),
    ("orphan-query", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q9\ta\t1")),
    ("orphan-item", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2\tz\t1")),
    ("grade", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2\tb\t4")),
    ("grade", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2\tb\tnan")),
    ("grade", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2\tb\thigh")),
    ("grade", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2\tb\t1_0")),
    ("malformed", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2 b 1")),
    ("malformed", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "")),
    ("malformed", "qrels/dev.tsv", 1, line("qrels/dev.tsv", 1, "query\titem\tgrade")),
    ("duplicate-judgement", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2\tc\t1")),
    ("split-overlap", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q1\tc\t1")),
    ("malformed", "events.jsonl", 3, line("events.jsonl", 3, '{"type": "click"}')),
    ("missing-file", "corpus.jsonl", 0, remove("corpus.jsonl")),
    ("missing-file", "queries.jsonl", 0, remove("queries.jsonl")),
    ("missing-file", "dataset.json", 0, remove("dataset.json")),
    ("malformed", "dataset.json", 0, content("dataset.json", b'{"name": "x", "grades": {"min": 3, "max": 3}}')),
    ("malformed", "dataset.json", 0, content("dataset.json", b'{"name": "x", "grades": [0, 3]}')),
    ("malformed", "dataset.json", 0, content("dataset.json", b"{")),
    ("byte-order-mark", "qrels/dev.tsv", 1, line("qrels/dev.tsv", 1, b"\xef\xbb\xbfquery-id\tcorpus-id\tscore")),
]


@pytest.mark.parametrize(("code", "file", "number", "edit"), ERRORS, ids=[f"{code}-{n}" for n, (code, *_) in enumerate(ERRORS)])
def test_an_error_is_found_with_file_and_line(folder: Path, code: str, file: str, number: int, edit: Edit) -> None:
    edit(folder)
    found = [(one.code, one.file, one.line) for one in validate(folder).errors]
    assert (code, file, number) in found
    # A file that is gone orphans what refers to it; every other fault is told once and alone.
    if code != "missing-file" and (file, number) != ("corpus.jsonl", 2):
        assert found == [(code, file, number)]


WARNINGS: list[tuple[str, str, int, Edit]] = [
    ("empty-title", "corpus.jsonl", 4, line("corpus.jsonl", 4, '{"_id": "d", "title": "  "}')),
    ("empty-title", "corpus.jsonl", 4, line("corpus.jsonl", 4, '{"_id": "d"}')),
    ("duplicate-title", "corpus.jsonl", 4, line("corpus.jsonl", 4, '{"_id": "d", "title": "RED lamp "}')),
    ("mojibake", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "text": "cafÃ©"}')),
    ("mojibake", "queries.jsonl", 4, line("queries.jsonl", 4, '{"_id": "q4", "text": "cafÃ©"}')),
    ("replacement-character", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "text": "caf\ufffd"}')),
    ("control-character", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + r', "text": "a\u0000b"}')),
    ("price", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "price": -1}')),
    ("price", "corpus.jsonl", 4, line("corpus.jsonl", 4, ITEM + ', "price": "12"}')),
    ("odd-id", "corpus.jsonl", 4, line("corpus.jsonl", 4, '{"_id": " d", "title": "Rug"}')),
    ("empty-query", "queries.jsonl", 4, line("queries.jsonl", 4, '{"_id": "q4", "text": ""}')),
    ("duplicate-judgement", "qrels/dev.tsv", 4, line("qrels/dev.tsv", 4, "q2\tc\t3")),
    ("unknown-split", "qrels/extra.tsv", 0, content("qrels/extra.tsv", b"query-id\tcorpus-id\tscore\nq3\ta\t1\n")),
    ("unread-file", "qrels/notes.txt", 0, content("qrels/notes.txt", b"x")),
    ("unread-file", "corpus.jsonl.gz", 0, content("corpus.jsonl.gz", b"x")),
    ("empty-file", "users.jsonl", 0, content("users.jsonl", b"")),
    ("byte-order-mark", "corpus.jsonl", 1, line("corpus.jsonl", 1, b'\xef\xbb\xbf{"_id": "a", "title": "Rug"}')),
    ("line-ends", "queries.jsonl", 1, line("queries.jsonl", 4, '{"_id": "q4", "text": "rug"}\r')),
    ("orphan-event-item", "events.jsonl", 3, line("events.jsonl", 3, '{"type": "cart", "request_id": "r1", "item_id": "z", "ts": 2}')),
    ("orphan-action", "events.jsonl", 3, line("events.jsonl", 3, '{"type": "cart", "request_id": "r9", "item_id": "a", "ts": 2}')),
    ("no-name", "dataset.json", 0, content("dataset.json", b'{"grades": {"min": 0, "max": 3}}')),
]


@pytest.mark.parametrize(("code", "file", "number", "edit"), WARNINGS, ids=[f"{code}-{n}" for n, (code, *_) in enumerate(WARNINGS)])
def test_a_warning_is_found_and_the_folder_still_loads(folder: Path, code: str, file: str, number: int, edit: Edit) -> None:
    edit(folder)
    report = validate(folder)
    assert report.errors == ()
    assert [(one.code, one.file, one.line) for one in report.warnings] == [(code, file, number)]
    load_dataset(folder)


def test_the_same_query_text_on_two_sides_is_an_error_and_a_near_twin_a_warning(folder: Path) -> None:
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "Red  Refrigerator"}\n{"_id": "q2", "text": "red refridgerator"}\n')
    report = validate(folder)
    assert ([one.code for one in report.errors], [one.code for one in report.warnings]) == ([], ["split-twins"])
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "RED lamp"}\n{"_id": "q2", "text": "red lamp"}\n')
    assert [one.code for one in validate(folder).errors] == ["split-overlap"]


def test_a_split_by_time_may_judge_a_query_on_both_sides(folder: Path) -> None:
    line("qrels/dev.tsv", 4, "q1\tc\t1")(folder)
    (folder / "dataset.json").write_text('{"name": "t", "grades": {"min": 0, "max": 3}, "split": "time"}')
    report = validate(folder)
    assert report.errors == ()
    assert report.counts["queries in several splits"] == 1


def test_a_folder_without_judgements_needs_a_log(folder: Path) -> None:
    shutil.rmtree(folder / "qrels")
    assert [(one.code, one.file) for one in validate(folder).warnings] == [("missing-file", "qrels")]
    (folder / "events.jsonl").unlink()
    assert [(one.code, one.file) for one in validate(folder).errors] == [("missing-file", "qrels")]


def test_gzip_files_are_read_and_a_cut_one_is_an_error(folder: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "events.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert (validate(folder).errors, validate(folder).counts["items"]) == ((), 3)
    cut = (folder / "corpus.jsonl.gz").read_bytes()[:-12]
    (folder / "corpus.jsonl.gz").write_bytes(cut)
    unreadable = [one for one in validate(folder).errors if one.code == "unreadable"]
    assert [(one.file, "cut short" in one.message) for one in unreadable] == [("corpus.jsonl.gz", True)]


def test_a_million_faults_are_counted_and_a_few_are_kept(folder: Path) -> None:
    with open(folder / "corpus.jsonl", "a") as file:
        file.write("broken\n" * 5000)
    report = validate(folder)
    assert (len(report.errors), report.totals["malformed"]) == (KEPT_PER_CODE, 5000)
    assert "error malformed (5,000)" in report.to_text()
    assert "... and 4,995 more" in report.to_text()


def test_many_grades_are_shown_as_ranges(folder: Path) -> None:
    with open(folder / "corpus.jsonl", "a") as file:
        file.writelines(f'{{"_id": "x{place}", "title": "Thing {place}"}}\n' for place in range(61))
    with open(folder / "qrels" / "dev.tsv", "a") as file:
        file.writelines(f"q2\tx{place}\t{place * 0.05:g}\n" for place in range(61))
    shown = validate(folder).grades["dev"]
    assert next(iter(shown)) == "0 to 0.3"
    assert (len(shown), sum(shown.values())) == (10, 63)


def test_both_forms_of_the_report_hold_every_finding(folder: Path) -> None:
    line("corpus.jsonl", 4, ITEM + r', "price": "\ud800"}')(folder)
    line("qrels/dev.tsv", 4, "q2\tb\t9")(folder)
    report = validate(folder)
    plain = json.loads(json.dumps(report.to_json(), ensure_ascii=False).encode())
    assert plain["ok"] is False
    assert [Finding(**one) for one in plain["errors"]] == list(report.errors)
    text = report.to_text()
    text.encode()
    assert all(str(one) in text for one in report.errors)
    assert text.splitlines()[-1] == "2 errors, 0 warnings"


def test_every_code_is_in_the_documentation() -> None:
    root = Path(__file__).resolve().parents[2]
    codes: set[str] = set()
    for name in ("validate", "check", "check_shop", "text_faults"):
        source = (root / "training" / f"{name}.py").read_text(encoding="utf-8")
        codes |= set(re.findall(r"""(?:error|warn|note)\(\s*"([a-z-]+)\"""", source))
    told = set(re.findall(r"`([a-z-]+)`", (root / "docs" / "data.md").read_text(encoding="utf-8")))
    assert {code for code, *_ in ERRORS + WARNINGS} <= codes
    assert codes - told == set()


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        validate(tmp_path / "nothing")


def test_an_empty_folder_never_raises(tmp_path: Path) -> None:
    assert {one.code for one in validate(tmp_path).errors} == {"missing-file"}


@pytest.mark.parametrize("text", ["é", "naïve café", "20 °C", "“quoted”", "Ã", "日本語", "Привет", "£5 – 10 €", "Łódź"])
def test_sound_text_is_no_mojibake_and_its_double_decoding_is(text: str) -> None:
    assert mojibake(text) is None
    for wrong in ("cp1252", "latin-1"):
        try:
            twice = f"so {text.encode().decode(wrong)} it is"
        except UnicodeDecodeError:
            continue
        assert mojibake(twice) is not None, (text, wrong)


HURTS = [b"", b"\n", b"\t", b"\r", b'"', b"\\", b"0", b"a", b"\x00", b"\xff", b"\xc2\x85", b"\x0b", b",", b"}"]


@given(data=st.data())
def test_what_passes_can_be_loaded_however_the_bytes_were_hurt(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write(tmp_path_factory.mktemp("hurt"))
    name = data.draw(st.sampled_from([name for name in FILES if name not in ("users.jsonl", "events.jsonl")]))
    raw = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"\n", b"\t", b"\r", b'"', b"\\", b"0", b"a", b"\x00", b"\xff", b"\xc2\x85", b"\x0b", b",", b"}"])
        )
        raw[at : at + data.draw(st.integers(0, 2))] = piece
        if not raw:
            break
    (folder / name).write_bytes(bytes(raw))
    if not validate(folder).errors:
        load_dataset(folder)
