"""One folder for all workers of a run, and the long files first, so that the workers end together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fixtures_once
import pytest
from hypothesis import HealthCheck, settings

from edgerec.builder import build
from edgerec.builder.wordpiece import CompiledTokenizer, compile_tokenizer

# No test fails because the machine is busy: a worker has another beside it.
settings.register_profile(
    "busy", settings.get_profile(settings.get_current_profile_name()), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy")

LONG = (
    "tests/test_core_c.py",
    "tests/engine/test_contract.py",
    "tests/engine/test_mid_native.py",
    "tests/engine/test_mid.py",
    "tests/training/test_export_mid.py",
    "tests/training/test_teacher_student.py",
    "tests/training/test_retrieval_changes.py",
    "tests/training/test_retrieval.py",
    "tests/test_ranker_mid.py",
    "tests/test_cli_train.py",
    "tests/test_catalog_ray.py",
    "tests/training/test_prune.py",
    "tests/builder/test_trt.py",
    "tests/test_packaging.py",
    "tests/test_wordpiece.py",
)
"""Files that take longest, the longest first. One that is not here costs a little time at the end of a run, nothing else."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: the tests of a file, and the other files, keep their order."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def _one_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker of pytest-xdist has a folder of its own inside the folder of the run."""
    own = tmp_path_factory.getbasetemp()
    fixtures_once.run_folder = own.parent if hasattr(request.config, "workerinput") else own
    yield
    fixtures_once.run_folder = None


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_once(_one_folder: None) -> Iterator[None]:
    """Compiling a tokenizer takes seconds, and most tests build bundles with the same one."""

    def compiled(tokenizer: bytes) -> CompiledTokenizer:
        def make(path: Path) -> None:
            found = compile_tokenizer(tokenizer)
            path.write_bytes(found.reason.encode() + b"\n" + found.data)

        name = f"tokenizer-{hashlib.sha256(tokenizer).hexdigest()}"
        reason, _, data = fixtures_once.once(name, make).read_bytes().partition(b"\n")
        return CompiledTokenizer(data, reason.decode())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "compile_tokenizer", compiled)
        yield
