"""What most training tests start from: a tiny encoder, a small graded shop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from edgerec.training.data import Dataset, load_dataset
from fixtures_tiny import write_base_model, write_shop
from fixtures_traced import traced_unmeasured


@pytest.fixture(scope="session", autouse=True)
def _traced_unmeasured() -> Iterator[None]:
    with traced_unmeasured():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an encoder, as `train_teacher` takes it."""
    return str(write_base_model(tmp_path_factory.mktemp("base") / "bert"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder."""
    return write_shop(tmp_path_factory.mktemp("data") / "shop")


@pytest.fixture(scope="module")
def dataset(shop: Path) -> Dataset:
    """The same, read."""
    return load_dataset(shop)
