"""No broken bundle crashes, hangs, reads outside its folder, runs code, or is taken for a good one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fixtures_export import make_export

from edgerec.builder import build_engine
from edgerec.bundle import describe, verify_bundle
from edgerec.engine import open_engine
from edgerec.errors import BundleError, EngineError

from .broken import DAMAGE, FORGED


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    build_engine(make_export(root / "export"), root / "bundle", backend="ort")
    return root / "bundle"


@pytest.fixture
def bundle(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(good, tmp_path / "bundle"))


def test_the_good_bundle_is_good(bundle: Path) -> None:
    verify_bundle(bundle)
    describe(bundle)
    open_engine(bundle).close()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_a_bundle_error(bundle: Path, name: str) -> None:
    DAMAGE[name](bundle)
    with pytest.raises(BundleError) as caught:
        verify_bundle(bundle)
    assert str(bundle) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", FORGED)
def test_forged_content_is_refused_at_load(bundle: Path, tmp_path: Path, name: str) -> None:
    FORGED[name](bundle)
    with pytest.raises((BundleError, EngineError)) as caught:
        open_engine(bundle)
    assert str(caught.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("name", [name for name in DAMAGE if name.startswith(("engine", "manifest", "probe", "name"))])
def test_damage_is_refused_at_load_where_the_engine_reads_it(bundle: Path, name: str) -> None:
    DAMAGE[name](bundle)
    with pytest.raises(BundleError):
        open_engine(bundle)
