"""The loader: the first fault is an InputError that names the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgerec.training.data import load_dataset
from fixtures_tiny import write_shop

from edgerec.errors import InputError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("qrels/train.tsv", b"query-id\tcorpus-id\tscore\nq0\ti00\t\xff\n"),
        ("qrels/train.tsv", b"query-id\tcorpus-id\tscore\nq0\ti00\tmany\n"),
        ("qrels/train.tsv", b"q0\ti00\t1\n"),
        ("qrels/dev.tsv", b"query-id\tcorpus-id\tscore\nq0\tnobody\t1\n"),
        ("corpus.jsonl", b'{"_id": "i00", "title": 3}\n'),
        ("corpus.jsonl", b'{"_id": "i00", "title": "a"}\n{"_id": "i00", "title": "b"}\n'),
        ("queries.jsonl", b"\xff\n"),
        ("queries.jsonl", b"[1]\n"),
        ("dataset.json", b'{"grades": {"min": 3, "max": 3}}'),
    ],
)
def test_a_fault_is_an_input_error_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    shop = write_shop(tmp_path / "shop")
    (shop / name).write_bytes(content)
    with pytest.raises(InputError, match=Path(name).stem):
        load_dataset(shop)
