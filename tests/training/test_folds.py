"""Folds: every judged query is held out once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from edgerec.training.data import load_dataset
from edgerec.training.folds import write_folds
from edgerec.training.validate import validate

from edgerec.cli import cli
from edgerec.errors import InputError


def test_each_query_is_in_dev_of_one_fold_and_in_train_of_the_others(shop: Path, tmp_path: Path) -> None:
    whole = load_dataset(shop)
    judged = whole.qrels["train"] | whole.qrels["dev"]
    folds = [load_dataset(folder) for folder in write_folds(shop, tmp_path / "folds", count=5, seed=1)]
    held = [query for fold in folds for query in fold.qrels["dev"]]
    assert sorted(held) == sorted(judged)
    for fold in folds:
        assert fold.name == whole.name
        assert fold.items == whole.items
        assert fold.qrels["train"] | fold.qrels["dev"] == judged
        assert not set(fold.qrels["train"]) & set(fold.qrels["dev"])
        assert abs(len(fold.qrels["dev"]) - len(judged) / 5) < 1
        assert validate(tmp_path / "folds" / "0").errors == ()


def test_the_seed_decides(shop: Path, tmp_path: Path) -> None:
    dealt = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_folds(shop, tmp_path / name, count=3, seed=seed)
        dealt.append([(tmp_path / name / str(i) / "qrels" / "dev.tsv").read_bytes() for i in range(3)])
    assert dealt[0] == dealt[1] != dealt[2]


@pytest.mark.parametrize("count", [1, 13])
def test_a_count_that_does_not_fit_leaves_nothing_behind(shop: Path, tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match="12 judged queries"):
        write_folds(shop, tmp_path / "folds", count=count)
    assert list(tmp_path.iterdir()) == []


def test_the_command(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "folds"
    done = CliRunner().invoke(cli, ["data", "folds", str(shop), str(out), "--count", "2"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["0", "1"]
    again = CliRunner().invoke(cli, ["data", "folds", str(shop), str(out)])
    assert again.exit_code == 1
    assert "exists" in again.stderr
