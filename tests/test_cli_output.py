"""What the commands share: the hint for a missing extra, whole files or none, and results as JSON or as lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerec.cli_output import dump, leaves, needs, write_text
from edgerec.errors import MissingExtraError


def test_a_missing_extra_names_the_pip_command() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'edgerec\[train\]'"), needs("train"):
        import no_such_package_of_edgerec.part  # noqa: F401


def test_a_missing_module_of_our_own_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError) as caught, needs("train"):
        import edgerec.no_such_module  # noqa: F401
    assert not isinstance(caught.value, MissingExtraError)


def test_write_text_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "table.json"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\ud800")
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_output_refuses_nan_and_shows_paths() -> None:
    assert json.loads(dump({"at": Path("a/b")})) == {"at": "a/b"}
    with pytest.raises(ValueError, match="JSON compliant"):
        dump({"score": float("nan")})


def test_leaves_flatten_nested_results() -> None:
    assert list(leaves({"a": {"b": 0.123456789, "c": [1, 2]}, "d": None})) == [("a.b", "0.123457"), ("a.c", "[1, 2]"), ("d", "None")]
