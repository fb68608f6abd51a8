"""On a bare machine: the runtime is Python 3.10, and with numpy alone everything imports that needs nothing more."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [*(ROOT / "edgerec").glob("**/*.py"), *(ROOT / "benchmarks").glob("*.py")]

# Names of the standard library that came after 3.10: `ast` knows syntax alone.
LATER = {
    "tomllib",
    "datetime.UTC",
    "hashlib.file_digest",
    "asyncio.TaskGroup",
    "asyncio.timeout",
    "contextlib.chdir",
    "enum.StrEnum",
    "itertools.batched",
    "typing.Self",
    "typing.Never",
    "typing.LiteralString",
    "typing.assert_never",
    "typing.reveal_type",
    "typing.override",
    "typing.Unpack",
    "typing.TypeVarTuple",
    "operator.call",
    "math.exp2",
    "math.cbrt",
    "math.sumprod",
}
BUILTINS = {"ExceptionGroup", "BaseExceptionGroup"}

# What imports a third package at its top, or a module that does.
NEED_MORE = {"edgerec.engine.ort": "onnxruntime", "edgerec.engine.mid_ort": "onnxruntime", "edgerec.triton_graph": "onnx"}

CHILD = """
import importlib, importlib.abc, sys
class NumpyAlone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"numpy", "edgerec"}:
            raise ModuleNotFoundError(f"blocked {top}", name=top)
sys.meta_path.insert(0, NumpyAlone())
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, getattr(error, "module", error.name))
"""


def names_of(tree: ast.AST) -> set[str]:
    """``module.name`` of what is imported or read of a module, modules alone, and plain names."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name):
            found.add(node.id)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_is_python_3_10(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    assert names_of(tree) & (LATER | BUILTINS) == set()


def test_a_later_name_would_be_found() -> None:
    tree = ast.parse(
        "import tomllib\nfrom datetime import UTC\nimport hashlib\nhashlib.file_digest(f, 'sha256')\nraise ExceptionGroup('', [])"
    )
    assert {"tomllib", "datetime.UTC", "hashlib.file_digest", "ExceptionGroup"} <= names_of(tree)
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* OSError:\n    pass\n", feature_version=(3, 10))


def test_with_numpy_alone_all_imports_that_needs_no_more() -> None:
    folder = ROOT / "edgerec"
    modules = [
        ".".join(("edgerec", *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(folder.glob("**/*.py"))
        if path.relative_to(folder).parts[0] not in ("builder", "__main__.py") and not path.name.startswith("cli")
    ]
    modules += ["edgerec._core", "edgerec._native", "edgerec._wordpiece"]
    done = subprocess.run([sys.executable, "-c", CHILD, *modules], capture_output=True, text=True, check=True, cwd=ROOT)
    assert dict(line.split() for line in done.stdout.splitlines()) == NEED_MORE
