"""The whole main job, as a user would do it: judgements in, a served ranker out. `make demo` runs it.

    python examples/demo.py                      a generated shop, under demo/shop/
    python examples/demo.py --data FOLDER        your data folder, under demo/NAME/

Every step is a command that is printed before it runs. A step whose output is there already is skipped, so a second run goes on where the
first one stopped; delete a folder to redo its step and the ones after it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOP = ("--items", "2000", "--queries", "300", "--users", "100", "--events", "5000", "--seed", "1")
WEIGHTS = "minilm-l6"


@dataclass
class Steps:
    """Runs commands, skips those whose output exists, and keeps the time of each."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, command: Sequence[str | Path], makes: Path | None = None) -> None:
        """Run one step unless ``makes`` exists; the demo ends where a step fails."""
        if makes is not None and makes.exists():
            print(f"\n== {name}: {shown(makes)} is there, skipped", flush=True)
            return
        words = [str(word) for word in command]
        print(f"\n== {name}\n$ {shlex.join(shown(word) for word in words)}", flush=True)
        start = time.monotonic()
        # The command of this interpreter's environment, whatever PATH says.
        program = [sys.executable, "-m", "edgerec"] if words[0] == "edgerec" else [sys.executable]
        done = subprocess.run([*program, *words[1:]], check=False)
        self.seconds[name] = time.monotonic() - start
        if done.returncode:
            print(f"\nthe step '{name}' failed with exit code {done.returncode}", file=sys.stderr)
            raise SystemExit(done.returncode if done.returncode > 0 else 1)

    def print_times(self) -> None:
        """One line a step, and the sum."""
        print("\n== time")
        for name, seconds in self.seconds.items():
            print(f"{seconds:8.1f} s  {name}")
        print(f"{sum(self.seconds.values()):8.1f} s  all steps of this run")


def shown(path: str | Path) -> str:
    """A path as the reader would type it: relative to where the demo runs."""
    text = str(path)
    here = f"{Path.cwd()}/"
    return text.removeprefix(here)


def evaluation_split(data: Path) -> str:
    """``test`` where the folder has one: dev chose the checkpoints, so test is the honest split. Else ``dev``."""
    return "test" if (data / "qrels" / "test.tsv").exists() else "dev"


def find_corpus(data: Path) -> Path:
    """corpus.jsonl, plain or gzip."""
    return next((path for path in (data / "corpus.jsonl", data / "corpus.jsonl.gz") if path.exists()), data / "corpus.jsonl")


def example_query(data: Path, split: str) -> str:
    """The text of the split's first judged query."""
    query_id = (data / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1].partition("\t")[0]
    with open(data / "queries.jsonl", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            if record["_id"] == query_id:
                return str(record["text"])
    raise SystemExit(f"error: {data}/queries.jsonl lacks query {query_id!r} of qrels/{split}.tsv")


def train(steps: Steps, data: Path, work: Path, options: argparse.Namespace) -> None:
    """Data to exported student. An unfinished run is resumed."""
    models = options.models / WEIGHTS
    teacher, student, export = work / "teacher", work / "student", work / "export"
    steps.run("pretrained weights", ["python", ROOT / "examples" / "weights.py", WEIGHTS, models], models / "model.safetensors")
    command = ["edgerec", "train", "--data", data, "--base-model", models, "--recipe", options.teacher, "--out", teacher]
    steps.run("teacher", [*command, *resumed(teacher)], teacher)
    command = ["edgerec", "distill", "--teacher", teacher, "--data", data, "--student", options.student, "--out", student]
    steps.run("student", [*command, *resumed(student)], student)
    steps.run("export", ["edgerec", "export", student, export, "--data", data], export)


def resumed(out: Path) -> list[str]:
    """``--resume`` where an unfinished run lies beside ``out``."""
    return ["--resume"] if out.with_name(f"{out.name}.run").exists() else []


def serve(steps: Steps, data: Path, work: Path) -> None:
    """Exported student to bundles, catalogue, table and one ranked list."""
    fp32, int8, ort, catalog = work / "student-fp32", work / "student-int8", work / "student-ort-int8", work / "catalog"
    for bundle, words in ((fp32, ["fp32"]), (int8, ["int8"]), (ort, ["int8", "--backend", "ort"])):
        steps.run(f"engine {bundle.name}", ["edgerec", "build-engine", work / "export", bundle, "--precision", *words], bundle)
    steps.run("catalogue", ["edgerec", "build-catalog", find_corpus(data), int8, catalog], catalog)
    split = evaluation_split(data)
    table = ["--json", work / "table.json", "--report", work / "report.html"]
    bundles = [word for bundle in (fp32, int8, ort) for word in ("--bundle", bundle)]
    command = ["edgerec", "evaluate", "--data", data, "--split", split, "--model", work / "teacher", *bundles]
    steps.run(f"evaluation on {split}", [*command, "--latency", *table])
    query = example_query(data, split)
    steps.run("one query", ["edgerec", "rank", int8, "--catalog", catalog, "--query", query, "--top-k", "5"])
    print(f"\ntable:  {shown(work / 'table.json')}\nreport: {shown(work / 'report.html')}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a data folder; default: a generated shop")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the demo works")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where pretrained weights are kept")
    parser.add_argument("--teacher", default="demo-teacher", help="recipe of the teacher")
    parser.add_argument("--student", default="demo-student", help="recipe of the student")
    options = parser.parse_args()
    steps = Steps()
    if options.data is None:
        work = options.out / "shop"
        data = work / "data"
        steps.run("generated shop", ["edgerec", "data", "simulate", data, *SHOP], data)
    else:
        data = options.data
        work = options.out / data.resolve().name
    steps.run("validation", ["edgerec", "data", "validate", data])
    train(steps, data, work, options)
    serve(steps, data, work)
    steps.print_times()


if __name__ == "__main__":
    main()
