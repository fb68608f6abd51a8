"""One folder for a run."""

from __future__ import annotations

from collections.abc import Iterator

import fixtures_once
import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker of pytest-xdist has a folder of its own inside the folder of the run."""
    own = tmp_path_factory.getbasetemp()
    fixtures_once.run_folder = own.parent if hasattr(request.config, "workerinput") else own
    yield
    fixtures_once.run_folder = None
