"""The sdist and the wheel: what is in them, and that each is enough."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import edgerec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BINDINGS = ("_core.c", "_native.c", "_wordpiece.c")
BUILD_PRODUCTS = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", *BINDINGS)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a clean copy of the sources, and the wheel built from that sdist: `python -m build` does both."""
    copy = tmp_path_factory.mktemp("source") / "edgerec"
    for folder in ("edgerec", "training", "csrc"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=BUILD_PRODUCTS)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"):
        shutil.copy(ROOT / name, copy / name)
    # Without isolation nothing is fetched: the build tools are those of this environment. No optimiser: contents are tested, not speed.
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", str(copy)]
    done = subprocess.run(command, env={**os.environ, "EDGEREC_DEBUG": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def sdist_names(dist: Path) -> set[str]:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def sources(dist: Path, folder: str, *suffixes: str) -> set[str]:
    copy = dist.parent
    paths = (path for path in (copy / folder).rglob("*") if path.suffix in suffixes and path.name not in BINDINGS)
    return {path.relative_to(copy).as_posix() for path in paths}


def test_sdist_holds_every_source(dist: Path, sdist_names: set[str]) -> None:
    wanted = sources(dist, "csrc", ".c", ".h") | sources(dist, "edgerec", ".py", ".pyx", ".pyi") | sources(dist, "training", ".py", ".toml")
    assert any(name.startswith("csrc/") and name.endswith(".c") for name in wanted)
    assert wanted - sdist_names == set()
    assert {"LICENSE", "CHANGELOG.md", "constraints.txt", "edgerec/py.typed"} <= sdist_names


def test_sdist_holds_nothing_compiled(sdist_names: set[str]) -> None:
    assert [name for name in sdist_names if name.endswith((".so", ".o", ".pyc"))] == []


def test_wheel_holds_both_halves_and_no_c_source(dist: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    python = sources(dist, "edgerec", ".py", ".pyi") | {f"edgerec/{name}" for name in sources(dist, "training", ".py", ".toml")}
    assert python - names == set()
    assert "edgerec/py.typed" in names
    assert any(name.startswith("edgerec/_core.") and name.endswith((".so", ".pyd")) for name in names)
    assert [name for name in names if name.endswith((".c", ".h")) or name.startswith(("training/", "tests/", "csrc/"))] == []


def test_wheel_is_small(wheel: Path) -> None:
    """Below 3 MB, and this one even has the debugger's symbols."""
    assert wheel.stat().st_size < 3_000_000


def test_wheel_works_away_from_the_sources(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import edgerec, edgerec.training, edgerec._core as c; print(edgerec.__file__, c.__file__, edgerec.training.__file__)"
    # -P and -S would lose numpy; PYTHONPATH puts the unpacked wheel before the editable install.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split())


def test_version_is_stated_once() -> None:
    assert PROJECT["version"] == edgerec.__version__


def test_runtime_dependencies_stay_few() -> None:
    names = {requirement.partition(">")[0] for requirement in PROJECT["dependencies"]}
    assert names == {"numpy", "tokenizers", "click"}
    extras = {extra: {r.partition(">")[0] for r in wanted} for extra, wanted in PROJECT["optional-dependencies"].items()}
    assert extras["ort"] == {"onnxruntime"}
    assert extras["build"] == {"onnx", "onnxruntime"}
    assert extras["build"] < extras["train"]


def test_every_requirement_is_pinned_in_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(r for extra in ("ort", "build", "rtx", "train", "ray", "dev") for r in extras[extra])]
    names = {requirement.partition(">")[0].partition("[")[0].lower() for requirement in wanted}
    assert names - pinned == set()
