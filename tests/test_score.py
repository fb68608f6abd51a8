"""Bulk scoring: what is written is what a ranker returns, each query once, whatever is killed, however many work."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures_export import make_export

from edgerec import Catalog, CatalogWriter, Item, Ranker, UserProfile
from edgerec.builder import build_engine
from edgerec.catalog import build_catalog
from edgerec.errors import BundleError, EngineError, InputError
from edgerec.score import open_scorer, score_queries
from edgerec.score_input import Request, Requests, read_lists, read_requests
from edgerec.score_parts import run_folder

ITEMS = [Item(f"i{n}", f"red lamp {n} " * (1 + n % 4), brand="acme" if n % 3 else "", price=float(n)) for n in range(20)]
REQUESTS = [
    *(Request(f"q{n}", f"lamp {n}", tuple(f"i{(n * m) % 23}" for m in range(9))) for n in range(5)),
    Request("all", "red lamp"),
    Request("none", "nothing", ()),
    Request("user", "red lamp", ("i1", "i2", "i3"), UserProfile("u", brands={"acme": 0.9}), {"page": "home"}),
]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles ``native`` and ``ort``, both int8, and their one ``catalog``."""
    folder = tmp_path_factory.mktemp("score")
    export = make_export(folder / "export")
    for backend in ("native", "ort"):
        build_engine(export, folder / backend, backend=backend, precision="int8", gate={"tau": -1.0, "ndcg_drop": 1.0})
    build_catalog(ITEMS, folder / "native", folder / "catalog")
    return folder


def requests(rows: list[Request] = REQUESTS, **source: str) -> Requests:
    return Requests(iter(rows), {"log": "1", **source})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.read_bytes().splitlines()]


def ranked(bundle: Path, catalog: Path, *, top_k: int = 100, threads: int = 1) -> list[dict[str, Any]]:
    """What `Ranker.rank` returns in this process, as lines."""
    with Ranker.open(bundle, catalog=catalog, threads=threads) as ranker:
        everything = Catalog.open(catalog).ids()
        found = []
        for one in REQUESTS:
            result = ranker.rank(
                one.query, everything if one.candidates is None else one.candidates, top_k=top_k, user=one.user, context=one.context
            )
            skipped = [list(pair) for pair in result.skipped]
            found.append({"query_id": one.id, "ids": list(result.ids), "scores": result.scores.tolist(), "skipped": skipped})
        return found


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("native", {"part_queries": 3}),
        ("native", {"top_k": 2, "threads": 2}),
        ("ort", {}),
        ("ort", {"threads": 2, "part_queries": 1}),
        ("ort", {"workers": 2, "part_queries": 1}),
    ],
    ids=str,
)
def test_what_is_written_is_what_a_ranker_returns_to_the_bit(built: Path, tmp_path: Path, backend: str, options: dict[str, int]) -> None:
    done: list[int] = []
    scores = score_queries(requests(), built / backend, built / "catalog", tmp_path / "out", progress=done.append, **options)
    kept = {name: value for name, value in options.items() if name in ("top_k", "threads")}
    assert lines(tmp_path / "out") == ranked(built / backend, built / "catalog", **kept)
    assert done[-1] == scores["queries"] == len(REQUESTS)
    assert len(done) == len(scores["parts"]) == -(-len(REQUESTS) // options.get("part_queries", 256))
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores
    assert scores["skipped"] == sum(len(line["skipped"]) for line in lines(tmp_path / "out")) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_killed_before_any_call_to_the_disk_goes_on_to_the_same_files(built: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "score_crash.py"), *(str(built / name) for name in ("native", "catalog"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (tmp_path / "runs").mkdir()
    done = subprocess.run(
        [*command, str(tmp_path / "expected"), str(tmp_path / "runs")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["kills"] > 15


def test_a_run_of_several_processes_that_was_killed_goes_on(built: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_score import requests, score_queries
if __name__ == "__main__":
    kill = lambda done: os.kill(os.getpid(), signal.SIGKILL)
    score_queries(requests(), *sys.argv[1:], part_queries=2, workers=2, progress=kill)
"""
    program = tmp_path / "program.py"
    program.write_text(code, encoding="utf-8")
    out = tmp_path / "out"
    words = [str(path) for path in (program, built / "native", built / "catalog", out)]
    # Its workers hold the pipe, too: it ends when the last of them has ended.
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, stdout=subprocess.PIPE, timeout=100
    )
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(InputError, match=r"out\.run exists: .* go on with resume"):
        score_queries(requests(), built / "native", built / "catalog", out, part_queries=2)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.run").glob("part-*.jsonl")}
    assert kept
    score_queries(requests(), built / "native", built / "catalog", out, part_queries=2, resume=True)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()
    assert lines(out) == ranked(built / "native", built / "catalog")


def broken_off(built: Path, out: Path) -> None:
    def rows() -> Any:
        yield from REQUESTS[:3]
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        score_queries(Requests(rows(), {"log": "1"}), built / "native", built / "catalog", out, part_queries=1)


@pytest.mark.parametrize("damage", ["a bit", "cut short", "another query", "twice"])
def test_a_part_that_is_not_whole_is_made_again(built: Path, tmp_path: Path, damage: str) -> None:
    broken_off(built, tmp_path / "out")
    first, second, *_ = sorted((tmp_path / "out.run").glob("part-*.jsonl"))
    data = first.read_bytes()
    if damage == "a bit":
        first.write_bytes(data.replace(b"0", b"1", 1))
    elif damage == "cut short":
        first.write_bytes(data[:-9])
    elif damage == "another query":
        first.write_bytes(second.read_bytes())
    else:
        first.with_name("part-000000-0000000000000000.jsonl").write_bytes(data)
    score_queries(requests(), built / "native", built / "catalog", tmp_path / "out", part_queries=1, resume=True)
    assert lines(tmp_path / "out") == ranked(built / "native", built / "catalog")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 3}, "top_k was 100, is 3"),
        ({"threads": 2}, "threads was 1, is 2"),
        ({"source": "2"}, "source.log was '1', is '2'"),
        ({"bundle": "ort"}, "model.backend was 'native', is 'ort'"),
        ({"catalog": "other"}, "catalog.items was 20, is 19"),
    ],
)
def test_what_does_not_fit_the_run_is_refused_by_name(built: Path, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    broken_off(built, tmp_path / "out")
    catalog = built / "catalog"
    if "catalog" in changed:
        catalog = tmp_path / "catalog"
        build_catalog(ITEMS[1:], built / "native", catalog)
    options = {name: changed[name] for name in ("top_k", "threads") if name in changed}
    rows = Requests(iter(REQUESTS), {"log": changed.get("source", "1")})
    with pytest.raises(InputError, match=f"out.run is of another run: .*{message}"):
        score_queries(rows, built / changed.get("bundle", "native"), catalog, tmp_path / "out", part_queries=1, resume=True, **options)
    assert len(list((tmp_path / "out.run").glob("part-*.jsonl"))) == 3


def test_a_catalogue_that_is_written_to_is_scored_as_it_was(built: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog"
    build_catalog(ITEMS, built / "native", catalog)
    expected = ranked(built / "native", catalog)
    before = Catalog.open(catalog).info

    def write(_: int) -> None:
        with CatalogWriter.open(catalog, built / "native") as writer:
            writer.upsert([Item("i1", "blue sofa"), Item("new", "red lamp")])

    score_queries(requests(), built / "native", catalog, tmp_path / "out", part_queries=1, progress=write)
    assert lines(tmp_path / "out") == expected
    with pytest.raises(BundleError, match="the run began with generation 0 with 20; score a copy that nobody writes to"):
        open_scorer(built / "native", catalog=catalog, expected=before, top_k=1, threads=1)
    with pytest.raises(BundleError, match="must lie at the same path on every machine that scores"):
        open_scorer(built / "native", catalog=tmp_path / "nowhere", expected=before, top_k=1, threads=1)


def test_two_runs_do_not_mix_and_what_exists_is_not_replaced(built: Path, tmp_path: Path) -> None:
    def rows() -> Any:
        yield REQUESTS[0]
        with pytest.raises(InputError, match="another process scores into"):
            score_queries(requests(), built / "native", built / "catalog", tmp_path / "out", resume=True)
        yield from REQUESTS[1:]

    score_queries(Requests(rows()), built / "native", built / "catalog", tmp_path / "out", part_queries=1)
    assert lines(tmp_path / "out") == ranked(built / "native", built / "catalog")
    with pytest.raises(InputError, match="out exists; give a new path"):
        score_queries(requests(), built / "native", built / "catalog", tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], InputError, "no queries to score"),
        ([REQUESTS[0], REQUESTS[0]], InputError, "query 'q0' came twice"),
        ([Request("q", 5, ("i1",))], InputError, "query 'q': the query must be a str"),  # type: ignore[arg-type]
    ],
)
def test_a_run_that_fails_at_once_leaves_nothing(built: Path, tmp_path: Path, rows: list[Request], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        score_queries(requests(rows), built / "native", built / "catalog", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"engine": "spark"}, {"top_k": 0}, {"part_queries": 0}, {"threads": 0}])
def test_wrong_options_are_an_input_error(built: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected at least 1"):
        score_queries(requests(), built / "native", built / "catalog", tmp_path / "out", **wrong)


def test_a_worker_that_returns_other_queries_is_found_out(tmp_path: Path) -> None:
    with run_folder(tmp_path / "out", False) as folder, pytest.raises(EngineError, match="other queries than the 2"):
        folder.write(0, b'{"query_id": "a", "ids": [], "skipped": []}\n', ["a", "b"])


# ----------------------------------------------------------------------------------------------------------- what is read

LISTS = [("b", ["i1", "i2"]), ("a", ["i3"])]
FORMS = {
    "lists.jsonl": '{"query_id": "b", "items": ["i1", "i2"]}\n\n{"query_id": "a", "items": ["i3"]}\n',
    "run.trec": "b Q0 i1 1 9.5 bm25\nb Q0 i2 2 9.1 bm25\na Q0 i3 1 2 bm25\n",
    "qrels.tsv": "query-id\tcorpus-id\tscore\nb\ti1\t3\nb\ti2\t0\r\na\ti3\t1\n",
}
LOG = """{"_id": "a", "text": "red"}
{"_id": "b", "text": "lamp", "user": {"brands": {"acme": 1}}, "context": {"page": "home"}}
{"_id": "c", "text": ""}
"""


@pytest.mark.parametrize("name", [*FORMS, *(f"{name}.gz" for name in FORMS)])
def test_lists_are_read_in_any_of_their_formats(tmp_path: Path, name: str) -> None:
    data = FORMS[name.removesuffix(".gz")].encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(read_lists(tmp_path / name)) == LISTS
    (tmp_path / "queries.jsonl").write_text(LOG, encoding="utf-8")
    found = read_requests(tmp_path, tmp_path / name)
    assert sorted(found.source) == ["candidates", "queries"]
    b, a, c = found.rows
    assert (b.id, b.query, b.candidates, b.context) == ("b", "lamp", ("i1", "i2"), {"page": "home"})
    assert b.user is not None
    assert b.user.brands == {"acme": 1}
    assert (a.id, a.candidates, c.id, c.candidates) == ("a", ("i3",), "c", ())


@pytest.mark.parametrize(
    ("log", "lists", "message"),
    [
        ('{"_id": 1, "text": "x"}\n', "", r"queries.jsonl:1: a query needs the strings _id and text"),
        ('{"_id": "a", "text": "x"}\n' * 2, "", r"queries.jsonl:2: query 'a' stands twice"),
        ('{"_id": "a", "text": "x", "user": 5}\n', "", r"queries.jsonl:1: user: expected a JSON object"),
        ('{"_id": "a", "text": "x", "user": {"age": 5}}\n', "", r"unknown keys \['age'\]"),
        ('{"_id": "a", "text": "x", "context": {"page": 5}}\n', "", r"expected an object of strings"),
        ("no json\n", "", r"queries.jsonl: "),
        (LOG, "b Q0 i1 1 9.5\n", r"lists:1: 5 columns; expected a TREC run"),
        (LOG, "query-id\tcorpus-id\tscore\nb\ti1\n", r"lists:2: 2 columns; expected query-id<TAB>corpus-id<TAB>score"),
        (LOG, '{"query_id": "b", "items": "i1"}\n', r"lists:1: a list of candidates needs query_id"),
        (LOG, "x Q0 i1 1 9.5 t\n", r"query 'x' has candidates, but is not in the query log"),
        (LOG, "b Q0 i1 1 2 t\na Q0 i1 1 2 t\nb Q0 i2 2 1 t\n", r"query 'b' has two lists of candidates, or its lines"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(tmp_path: Path, log: str, lists: str, message: str) -> None:
    (tmp_path / "queries.jsonl").write_text(log, encoding="utf-8")
    (tmp_path / "lists").write_text(lists, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        list(read_requests(tmp_path / "queries.jsonl", tmp_path / "lists").rows)


def test_a_folder_without_queries_and_a_file_that_is_no_gzip_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither queries.jsonl nor queries.jsonl.gz is there"):
        read_requests(tmp_path)
    (tmp_path / "run.gz").write_bytes(b"b Q0 i1 1 2 t\n")
    with pytest.raises(InputError, match=r"run.gz: Not a gzipped file"):
        list(read_lists(tmp_path / "run.gz"))
