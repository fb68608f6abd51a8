"""The command line: exit codes, error lines, JSON, and the main job through the commands alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from fixtures_cli import ok, run
from fixtures_export import make_export

from edgerec.cli import cli
from edgerec.cli_output import write_text

SHOP = ("--items", "60", "--queries", "12", "--users", "5", "--events", "60", "--seed", "3")


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in cli.commands.items():
        found += [(name, inner) for inner in command.commands] if isinstance(command, click.Group) else [(name,)]
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "shop"
    ok("data", "simulate", folder, *SHOP)
    return folder


@pytest.fixture(scope="module")
def served(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``export``, ``bundle`` and ``catalog``."""
    folder = tmp_path_factory.mktemp("served")
    make_export(folder / "export")
    ok("build-engine", folder / "export", folder / "bundle")
    ok("build-catalog", shop / "corpus.jsonl", folder / "bundle", folder / "catalog")
    return folder


def test_commands_are_those_of_the_readme() -> None:
    names = {" ".join(words) for words in all_commands()}
    serve = {"build-engine", "build-catalog", "rank", "score", "bench", "inspect", "verify", "version", "export-triton"}
    train = {
        "data validate",
        "data import",
        "data simulate",
        "data labels",
        "data folds",
        "train",
        "distill",
        "prune",
        "add-retrieval",
        "export",
        "evaluate",
    }
    assert names == serve | train


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_help_has_an_example(words: tuple[str, ...]) -> None:
    text = ok(*words, "--help").output
    assert "Example:" in text
    assert f"edgerec {' '.join(words)} " in text


@pytest.mark.parametrize("words", [w for w in all_commands() if w != ("evaluate",)], ids=" ".join)
def test_every_command_that_prints_a_result_has_json(words: tuple[str, ...]) -> None:
    assert "--json" in ok(*words, "--help").output


@pytest.mark.parametrize(
    "words",
    [
        ("rnak",),
        ("rank",),
        ("rank", "no-such-bundle", "--query", "lamp"),
        ("data", "import", "unknown", ".", "out"),
        ("data", "simulate", "out", "--items", "0"),
        ("train", "--data", ".", "--out", "x"),
    ],
    ids=lambda words: " ".join(words),
)
def test_wrong_usage_exits_with_2(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "Usage: edgerec" in result.output


def test_an_error_is_one_line_without_traceback(tmp_path: Path) -> None:
    result = run("verify", tmp_path)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line


def test_debug_shows_the_error_itself(tmp_path: Path) -> None:
    result = run("--debug", "verify", tmp_path)
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "BundleError"


def test_version_names_what_it_runs_on() -> None:
    assert ok("version").output.startswith("edgerec ")
    versions = json.loads(ok("version", "--json").stdout)
    assert {"edgerec", "python", "machine", "isa", "numpy", "onnxruntime"} <= set(versions)


def test_simulate_gives_the_same_bytes_for_the_same_seed(shop: Path, tmp_path: Path) -> None:
    again = tmp_path / "shop"
    said = json.loads(ok("data", "simulate", again, *SHOP, "--json").stdout)
    assert said["items"] == 60
    files = [path.relative_to(shop) for path in shop.rglob("*") if path.is_file()]
    assert [f for f in files if (shop / f).read_bytes() != (again / f).read_bytes()] == []


def test_validate_passes_a_good_folder_and_fails_a_broken_one(shop: Path, tmp_path: Path) -> None:
    assert json.loads(ok("data", "validate", shop, "--json").stdout)["errors"] == []
    broken = tmp_path / "broken"
    ok("data", "simulate", broken, *SHOP)
    with open(broken / "qrels" / "dev.tsv", "a", encoding="utf-8") as f:
        f.write("q00000\tno-such-item\t1\n")
    result = run("data", "validate", broken, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["errors"]
    text = run("data", "validate", broken)
    assert text.exit_code == 1
    assert "dev.tsv:" in text.output


def test_labels_turns_a_log_into_a_data_folder(tmp_path: Path) -> None:
    ok("data", "simulate", tmp_path / "shop", "--items", 60, "--queries", 12, "--users", 5, "--events", 400, "--seed", 3)
    report = json.loads(ok("data", "labels", tmp_path / "shop", tmp_path / "labels", "--json").stdout)
    assert report["kept"]["requests"] > 0
    ok("data", "validate", tmp_path / "labels")


def test_import_reads_the_publishers_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = ["product_id", "product_name", "product_class", "category hierarchy", "product_description", "product_features"]
    columns = [*names, "rating_count", "average_rating", "review_count"]
    products = [["0", "Red lamp", "Lamps", "Lighting", *5 * [""]], ["1", "Blue desk", "Desks", "Office", *5 * [""]]]
    write_text(source / "product.csv", "".join("\t".join(line) + "\n" for line in [columns, *products]))
    write_text(source / "query.csv", "query_id\tquery\tquery_class\n0\tred lamp\tLamps\n")
    write_text(source / "label.csv", "id\tquery_id\tproduct_id\tlabel\n0\t0\t0\tExact\n1\t0\t1\tIrrelevant\n")
    report = json.loads(ok("data", "import", "wands", source, tmp_path / "out", "--json").stdout)
    assert (report["items"], report["queries"]) == (2, 1)


def test_build_engine_reports_parity_and_refuses_to_replace(served: Path) -> None:
    result = json.loads(ok("build-engine", served / "export", served / "other", "--precision", "int8", "--json").stdout)
    assert (result["precision"], result["backend"]) == ("int8", "native")
    assert result["parity"]["rows"] > 0
    again = run("build-engine", served / "export", served / "other")
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_build_engine_takes_every_bound_of_the_gate(served: Path, tmp_path: Path) -> None:
    bounds = {"ndcg_drop": 0.5, "top_overlap": 0.25, "tau": 0.125, "nan_count": 3}
    options = [f"--{name.replace('_', '-')}={bound}" for name, bound in bounds.items()]
    report = json.loads(ok("build-engine", served / "export", tmp_path / "b", *options, "--json").stdout)
    assert bounds.items() <= report["tolerance"].items()


def test_rank_all_of_a_catalogue_prints_one_line_a_result(served: Path) -> None:
    lines = ok("rank", served / "bundle", "--catalog", served / "catalog", "--query", "red lamp", "--top-k", 3).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]


def test_rank_takes_ids_and_whole_items_from_stdin(served: Path, shop: Path) -> None:
    first, second, *_ = (shop / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    known = json.loads(first)["_id"]
    fresh = json.dumps({**json.loads(second), "_id": "fresh"})
    words = ("rank", served / "bundle", "--catalog", served / "catalog", "--query", "red lamp", "--candidates", "-", "--json")
    result = json.loads(ok(*words, text=f"{known}\n\n{fresh}\nno-such-item\n").stdout)
    assert {found["id"] for found in result["results"]} == {known, "fresh"}
    assert [skipped["id"] for skipped in result["skipped"]] == ["no-such-item"]
    assert result["timings_us"]["total"] > 0


def test_score_writes_every_query_of_a_log_once(served: Path, shop: Path, tmp_path: Path) -> None:
    words = ("score", served / "bundle", "--queries", shop, "--catalog", served / "catalog", "--workers", 1, "--part-queries", 5)
    said = json.loads(ok(*words, "--first-stage", 4, "--top-k", 2, "--out", tmp_path / "bm25", "--json").stdout)
    assert (said["queries"], said["parts"], said["skipped"]) == (12, 3, 0)
    assert said["run"]["source"]["candidates"].startswith("BM25 ")
    ids = [json.loads(line)["_id"] for line in (shop / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [json.loads(line) for path in sorted((tmp_path / "bm25").glob("part-*")) for line in path.read_text().splitlines()]
    assert sorted(line["query_id"] for line in lines) == sorted(ids)
    assert all(len(line["ids"]) <= 2 for line in lines)
    lists = tmp_path / "lists.jsonl"
    lists.write_text(json.dumps({"query_id": ids[0], "items": ["no-such-item"]}) + "\n", encoding="utf-8")
    listed = (*words, "--candidates", lists, "--out", tmp_path / "listed")
    assert "skipped: 1\n" in ok(*listed).stdout
    again = run(*listed)
    assert again.exit_code == 1
    assert "exists" in again.stderr


def test_score_takes_candidates_from_one_source(served: Path, shop: Path, tmp_path: Path) -> None:
    words = ("score", served / "bundle", "--catalog", served / "catalog", "--out", tmp_path / "out", "--first-stage", 4)
    both = run(*words, "--queries", shop, "--candidates", shop / "queries.jsonl")
    assert both.exit_code == 2
    assert "give one" in both.stderr
    file = run(*words, "--queries", shop / "queries.jsonl")
    assert file.exit_code == 1
    assert "name the folder" in file.stderr


def test_rank_uses_the_user(served: Path, shop: Path) -> None:
    brand = json.loads((shop / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[0])["brand"]
    words = ("rank", served / "bundle", "--catalog", served / "catalog", "--query", "lamp", "--top-k", 60, "--json")
    plain = json.loads(ok(*words).stdout)["results"]
    personal = json.loads(ok(*words, "--user", json.dumps({"brands": {brand: 1.0}})).stdout)["results"]
    assert plain != personal


@pytest.mark.parametrize("user", ["{", "[1]", '{"colour": {}}', '{"brands": {"acme": "much"}}'])
def test_rank_refuses_a_user_it_does_not_understand(served: Path, user: str) -> None:
    result = run("rank", served / "bundle", "--catalog", served / "catalog", "--query", "lamp", "--user", user)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --user")


def test_rank_has_a_deadline_and_says_what_it_cost(served: Path) -> None:
    words = ("rank", served / "bundle", "--catalog", served / "catalog", "--query", "lamp", "--top-k", 3)
    late = ok(*words, "--deadline-ms", 0)
    assert [line.split()[1] for line in late.stdout.splitlines()] == ["-"] * 3
    assert late.stderr == "degraded: 60 of 60 candidates were not scored within 0 ms\n"
    told = json.loads(ok(*words, "--deadline-ms", 0, "--json").stdout)
    assert ([found["score"] for found in told["results"]], told["degraded"]) == ([None] * 3, True)
    assert ok(*words, "--deadline-ms", 1e9).stdout == ok(*words).stdout
    assert run(*words, "--deadline-ms", -1).exit_code == 2


def test_rank_lets_a_second_student_score_the_best_again(served: Path, tmp_path: Path, shop: Path) -> None:
    make_export(tmp_path / "export", seed=7)
    ok("build-engine", tmp_path / "export", tmp_path / "second")
    common = ("--query", "red lamp", "--top-k", 60, "--json")
    first, second, both = (
        json.loads(ok("rank", bundle, "--catalog", served / "catalog", *common, *more).stdout)
        for bundle, more in (
            (served / "bundle", ()),
            (tmp_path / "second", ()),
            (served / "bundle", ("--second", tmp_path / "second", "--second-n", 10)),
        )
    )
    one, other, found = ([result["id"] for result in told["results"]] for told in (first, second, both))
    assert found == sorted(one[:10], key=other.index) + one[10:] != one
    assert both["model_version"] == f"{first['model_version']}+{second['model_version']}"
    ok("build-catalog", shop / "corpus.jsonl", tmp_path / "second", tmp_path / "catalog")
    words = ("--second", tmp_path / "second", "--second-n", 10, "--second-catalog", tmp_path / "catalog")
    again = json.loads(ok("rank", served / "bundle", "--catalog", served / "catalog", *common, *words).stdout)
    assert again["results"] == both["results"]


@pytest.mark.parametrize(
    "words",
    [(), ("--catalog", "catalog", "--context", "device"), ("--catalog", "catalog", "--second-catalog", "catalog")],
    ids=["no candidates", "context without =", "a second catalogue alone"],
)
def test_rank_refuses_wrong_options(served: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(served)
    assert run("rank", "bundle", "--query", "lamp", *words).exit_code == 2


def test_inspect_and_verify_say_what_a_bundle_is(served: Path) -> None:
    said = json.loads(ok("inspect", served / "bundle", "--json").stdout)
    assert json.loads(ok("verify", served / "bundle", "--json").stdout)["model_version"] == said["model_version"]


def test_verify_finds_a_changed_byte(served: Path, tmp_path: Path) -> None:
    ok("build-engine", served / "export", tmp_path / "bundle")
    engine = tmp_path / "bundle" / "engine.bin"
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    result = run("verify", tmp_path / "bundle")
    assert result.exit_code == 1
    assert "engine.bin" in result.stderr


def test_bench_times_every_size(served: Path, shop: Path) -> None:
    words = ("bench", served / "bundle", "--data", shop, "--candidates", 5, "--candidates", 20, "--repeat", 2)
    report = json.loads(ok(*words, "--json").stdout)
    assert [row["candidates"] for row in report["rows"]] == [5, 20]
    assert "p50 ms" in ok(*words).stdout


def test_evaluate_writes_the_table_it_prints_and_a_page(served: Path, shop: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "deep" / "table.json", tmp_path / "deep" / "report.html"
    printed = ok("evaluate", "--data", shop, "--bundle", served / "bundle", "--latency", "--json", out, "--report", page).stdout
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == ["no rerank", "BM25", "bundle"]
    assert all(f"{row['ndcg']['value']:.3f}" in printed for row in rows)
    assert rows[-1]["latency"]["p50_ms"] > 0
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_an_unknown_split_is_bad_data(shop: Path) -> None:
    result = run("evaluate", "--data", shop, "--split", "tomorrow")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_progress_goes_to_a_terminal_only(served: Path, shop: Path, tmp_path: Path) -> None:
    assert ok("build-catalog", shop / "corpus.jsonl", served / "bundle", tmp_path / "catalog").stderr == ""


def test_build_catalog_copies_what_has_not_changed(served: Path, shop: Path, tmp_path: Path) -> None:
    words = ("build-catalog", shop / "corpus.jsonl", served / "bundle", tmp_path / "catalog", "--previous", served / "catalog", "--json")
    told = json.loads(ok(*words).stdout)
    before = json.loads((served / "catalog" / "catalog.json").read_text(encoding="utf-8"))
    assert told["segments"] == before["segments"]
    assert told["bytes_per_item"] == round(before["segments"][0]["bytes"] / before["items"], 1)


def test_build_catalog_says_how_to_go_on_after_a_kill(served: Path, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "catalog.run").mkdir()
    words = ("build-catalog", shop / "corpus.jsonl", served / "bundle", tmp_path / "catalog")
    result = run(*words)
    assert (result.exit_code, "--resume" in result.stderr) == (1, True)
    ok(*words, "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["catalog"]


def test_without_ray_build_catalog_says_what_to_install(served: Path, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("build-catalog", shop / "corpus.jsonl", served / "bundle", tmp_path / "catalog", "--engine", "ray")
    assert (result.exit_code, result.stderr) == (1, "error: ray is not installed; run: pip install 'edgerec[ray]'\n")


def open_when_read(pipe: Path, reader: subprocess.Popen[str]) -> int:
    """Open a named pipe for writing once the reader has opened its end; fails, and does not hang, when the reader dies first."""
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or reader.poll() is not None:
                raise
        time.sleep(0.01)


def test_an_interrupt_exits_with_130_and_leaves_nothing(served: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "catalog"
    os.mkfifo(corpus)  # the command waits for a corpus that never comes
    command = [sys.executable, "-m", "edgerec", "build-catalog", "--json", str(corpus), str(served / "bundle"), str(out)]
    # A runner that was started in the background ignores SIGINT, and its children inherit that.
    heeds = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heeds) as process:
        pipe = open_when_read(corpus, process)
        try:
            os.write(pipe, b'{"_id": "a", "title": "lamp"}\n')
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=30)
        finally:
            os.close(pipe)
    assert (process.returncode, stdout, stderr) == (130, "", "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_without_torch_train_says_what_to_install(shop: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "torch.py"
    blocked.write_text("raise ModuleNotFoundError('blocked', name='torch')\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "edgerec",
        "train",
        "--data",
        str(shop),
        "--base-model",
        "x",
        "--recipe",
        "x",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: torch is not installed; run: pip install 'edgerec[train]'\n")
