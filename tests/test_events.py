"""The behaviour log: what is refused, what a crash leaves behind, and that nothing is lost in silence."""

from __future__ import annotations

import gzip
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerec.errors import InputError
from edgerec.events import ACTIONS, MAX_LINE_BYTES, Action, Event, EventWriter, Fault, Impression, parse_event, parse_object, read_events

PAGE = Impression("r1", 10, "u1", "red lamp", ("a", "b"), (1, 2), (1.0, 0.5))
CLICK = Action("click", "r1", "b", 12)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
numbers = st.one_of(st.integers(-(10**12), 10**12), st.floats(-1e12, 1e12))


@st.composite
def impressions(draw: st.DrawFn) -> Impression:
    items = draw(st.lists(texts, max_size=5, unique=True))
    positions = draw(st.permutations(range(1, len(items) + 1)))
    chances = draw(st.none() | st.lists(st.floats(1e-6, 1.0), min_size=len(items), max_size=len(items)).map(tuple))
    return Impression("r" + draw(texts), draw(numbers), draw(texts), draw(texts), tuple(items), tuple(positions), chances)


actions = st.builds(Action, st.sampled_from(ACTIONS), texts.map(lambda text: "r" + text), texts, numbers)
events = st.one_of(impressions(), actions)


def row(**changes: Any) -> bytes:
    return json.dumps({key: value for key, value in (PAGE.to_json() | changes).items() if value is not ...}).encode()


@given(event=events)
def test_an_event_survives_writing_and_parsing(event: Event) -> None:
    assert parse_event(json.dumps(event.to_json())) == event
    assert parse_event(json.dumps(event.to_json(), ensure_ascii=False).encode()) == event


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"type": "hover"}, "type is 'hover'"),
        ({"type": ...}, "type is None"),
        ({"request_id": 7}, "request_id is 7; expected a string"),
        ({"request_id": ""}, "request_id is empty"),
        ({"query": ...}, "query is missing"),
        ({"ts": "now"}, "ts is 'now'; expected a finite number"),
        ({"ts": True}, "ts is True"),
        ({"ts": 10**400}, "expected a finite number"),
        ({"items": "ab"}, "items must be a list of str"),
        ({"items": ["a", 2]}, "items must be a list of str"),
        ({"items": ["a", "a"]}, "an id twice"),
        ({"positions": [1]}, "positions has 1 values for 2 items"),
        ({"positions": [0, 1]}, "from 1"),
        ({"positions": [1, 1]}, "different integers"),
        ({"positions": [1, True]}, "positions must be a list of int"),
        ({"positions": [1, 2.0]}, "positions must be a list of int"),
        ({"propensities": [0.5, 0]}, "in (0, 1]"),
        ({"propensities": [0.5, 1.5]}, "in (0, 1]"),
        ({"propensities": [0.5]}, "propensities has 1 values"),
        ({"query": "\ud800"}, "lone surrogate"),
        ({"items": ["a", "\udfff"]}, "lone surrogate"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_event(row(**changes))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1', "not valid JSON"),
    ],
)
def test_json_is_read_strictly(raw: bytes, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_object(raw)
    assert says in str(caught.value)


def test_user_and_propensities_may_be_missing_and_other_keys_are_ignored() -> None:
    assert parse_event(row(user_id=..., propensities=..., session="s")) == replace(PAGE, user_id="", propensities=None)
    assert parse_event(row(user_id=None, propensities=None)) == replace(PAGE, user_id="", propensities=None)


@given(written=st.lists(events, max_size=4), cut=st.integers(0, 2000))
def test_a_log_cut_anywhere_gives_its_whole_lines_and_at_most_one_fault(
    tmp_path_factory: pytest.TempPathFactory, written: list[Event], cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    lines = [json.dumps(event.to_json()).encode() + b"\n" for event in written]
    path.write_bytes(b"".join(lines)[:cut])
    faults: list[Fault] = []
    found = [event for _, event in read_events(path, on_fault=faults.append)]
    ends = [sum(map(len, lines[: place + 1])) for place in range(len(lines))]
    # A line that lost nothing but its line break is whole.
    whole = sum(end - 1 <= cut for end in ends)
    assert found == written[:whole]
    torn = cut > 0 and cut not in {end - 1 for end in ends} | set(ends) and whole < len(written)
    assert len(faults) == torn
    assert all(fault.line == whole + 1 and "torn" in fault.message for fault in faults)


def test_without_a_handler_the_first_fault_raises_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(row() + b"\n\n" + b'{"type": "click"}\n')
    with pytest.raises(InputError, match=r"events\.jsonl:3: request_id is missing"):
        list(read_events(path))


def test_a_damaged_line_does_not_hide_the_ones_after_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + row() + b"\r\n" + b"\xff\xfe\n" + json.dumps(CLICK.to_json()).encode())
    faults: list[Fault] = []
    assert list(read_events(path, on_fault=faults.append)) == [(1, PAGE), (3, CLICK)]
    assert [str(fault).split(":")[:2] for fault in faults] == [["events.jsonl", "2"]]


def test_a_line_without_end_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 5) + b"\n" + row() + b"\n")
    faults: list[Fault] = []
    assert list(read_events(path, on_fault=faults.append)) == [(2, PAGE)]
    assert faults[0].line == 1
    assert "longer than" in faults[0].message


def test_a_gzip_log_is_read_and_a_cut_one_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    raw = gzip.compress(b"".join(row(request_id=f"r{place}", query=os.urandom(30).hex()) + b"\n" for place in range(300)))
    path.write_bytes(raw)
    assert len(list(read_events(path))) == 300
    path.write_bytes(raw[: len(raw) // 2])
    faults: list[Fault] = []
    found = list(read_events(path, on_fault=faults.append))
    assert 0 < len(found) < 300
    assert "cut short" in faults[-1].message
    path.write_bytes(b"plain text")
    assert list(read_events(path, on_fault=faults.append)) == []
    assert "cannot be read" in faults[-1].message


def test_a_missing_log_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        list(read_events(tmp_path / "events.jsonl"))


@given(written=st.lists(events, max_size=4))
def test_the_writer_and_the_reader_agree(tmp_path_factory: pytest.TempPathFactory, written: list[Event]) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    with EventWriter(path) as writer:
        for event in written:
            writer.append(event)
    assert [event for _, event in read_events(path)] == written


def test_a_log_torn_by_a_crash_is_continued_and_the_torn_line_stays_visible(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(row() + b"\n" + row()[:25])
    with EventWriter(path, sync=True) as writer:
        writer.append(CLICK)
        writer.append(CLICK)
    faults: list[Fault] = []
    assert [event for _, event in read_events(path, on_fault=faults.append)] == [PAGE, CLICK, CLICK]
    assert [fault.line for fault in faults] == [2]


def test_a_failed_write_does_not_spoil_the_next_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    real = os.write
    with EventWriter(path) as writer:
        writer.append(PAGE)

        def full(handle: int, data: bytes) -> int:
            if len(data) > 30:
                return real(handle, data[:30])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(InputError, match="No space left"):
            writer.append(CLICK)
        monkeypatch.setattr(os, "write", real)
        writer.append(CLICK)
    faults: list[Fault] = []
    assert [event for _, event in read_events(path, on_fault=faults.append)] == [PAGE, CLICK]
    assert len(faults) == 1


def test_threads_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as writer:

        def many(name: str) -> None:
            for place in range(200):
                writer.append(replace(PAGE, request_id=f"{name}{place}", query="x" * 500))

        threads = [threading.Thread(target=many, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {event.request_id for _, event in read_events(path)} == {f"{name}{place}" for name in "abcd" for place in range(200)}


def test_the_writer_refuses_what_could_not_be_read_back(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "events.jsonl") as writer:
        for event in (replace(CLICK, kind="hover"), replace(PAGE, positions=(1,)), replace(CLICK, ts=float("nan"))):
            with pytest.raises(InputError):
                writer.append(event)
        with pytest.raises(InputError, match="not valid UTF-8"):
            writer.append(replace(PAGE, query="\ud800"))
    with pytest.raises(InputError, match="is closed"):
        writer.append(CLICK)
    writer.close()
    assert (tmp_path / "events.jsonl").read_bytes() == b""
    for name in ("events.jsonl.gz", "missing/events.jsonl"):
        with pytest.raises(InputError, match="append"):
            EventWriter(tmp_path / name)
