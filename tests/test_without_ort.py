"""A native bundle needs no onnxruntime and no onnx: opened and ranked in a process that has neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_ranker import IDS, make_shop

from edgerec import Ranker

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("onnxruntime", "onnx", "torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""

RANK = """
import edgerec
from edgerec import Item, Ranker
with Ranker.open(sys.argv[1], catalog=sys.argv[2], threads=2) as ranker:
    result = ranker.rank("red lamp", [*sys.argv[3:], Item("new", "red desk lamp")], top_k=5)
assert "numpy.ma" not in sys.modules  # np.unique imports it, in half the time that opening a bundle takes
print(*result.ids)
"""

BUILD = "import edgerec.builder"


def run(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCK + code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shop(tmp_path_factory.mktemp("native"), "native")


def test_a_native_bundle_is_opened_and_ranked_without_onnxruntime(native: Path) -> None:
    done = run(RANK, native / "bundle", native / "catalog", *IDS[:30])
    assert (done.returncode, done.stderr) == (0, "")
    with Ranker.open(native / "bundle", catalog=native / "catalog") as ranker:
        expected = ranker.rank("red lamp", [*IDS[:30], {"_id": "new", "title": "red desk lamp"}], top_k=5)
    assert done.stdout.split() == list(expected.ids)


def test_the_command_line_ranks_without_onnxruntime(native: Path) -> None:
    code = "from edgerec.cli import main; main()"
    done = run(code, "rank", native / "bundle", "--catalog", native / "catalog", "--query", "red lamp", "--top-k", "3")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)


def test_an_ort_bundle_says_which_extra_it_needs(tmp_path: Path) -> None:
    shop = make_shop(tmp_path)
    done = run(RANK, shop / "bundle", shop / "catalog", *IDS[:3])
    assert "MissingExtraError: onnxruntime is not installed; run: pip install 'edgerec[ort]'" in done.stderr


def test_the_builder_says_which_extra_it_needs() -> None:
    assert "MissingExtraError: onnx is not installed; run: pip install 'edgerec[build]'" in run(BUILD).stderr
    only = BLOCK.replace('("onnxruntime", "onnx", "torch", "transformers")', '("onnxruntime",)')
    done = subprocess.run([sys.executable, "-c", only + BUILD], capture_output=True, text=True, check=False)
    assert "MissingExtraError: onnxruntime is not installed; run: pip install 'edgerec[build]'" in done.stderr
