"""The layer table of the design, read from the source by AST, and what `import edgerec` may load.

A module imports lower layers. Within a layer it imports only its own package (``engine``, ``builder``, ``training``) and parts: files
split off a room by the length budget. A new module fails here until it has a place in the table.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"edgerec": ROOT / "edgerec", "edgerec.training": ROOT / "training"}

EXTENSIONS = ("edgerec._core", "edgerec._native", "edgerec._wordpiece")

# Room -> layer. The C core has no Python source: its stub stands for it.
LAYERS = {
    "edgerec.errors": 0,
    "edgerec.types": 1,
    "edgerec._core": 1,
    "edgerec._native": 1,
    "edgerec._wordpiece": 1,
    "edgerec.features": 2,
    "edgerec.text": 2,
    "edgerec.bundle": 2,
    "edgerec.events": 2,
    "edgerec.metrics": 2,
    "edgerec.policy": 2,
    "edgerec.states": 2,
    "edgerec.catalog": 3,
    "edgerec.engine": 3,
    "edgerec.ranker": 4,
    "edgerec.builder": 5,
    "edgerec.training": 5,
    "edgerec.bench": 5,
    "edgerec.score": 5,
    "edgerec.triton": 5,
    "edgerec.cli": 6,
    "edgerec": 7,
}

# Part -> the room it was split off, where its name does not say it: `catalog_writer` is a part of `catalog`. A part has its room's layer;
# the rooms of that layer and above may import it.
PARTS = {
    "edgerec.corpus": "edgerec.events",  # items on disk, the third record beside events and judgements
    "edgerec.words": "edgerec.text",  # the cleaning that text and features must share
    "edgerec.feature_spec": "edgerec.features",
    "edgerec.manifest": "edgerec.bundle",
    "edgerec.vectors": "edgerec.states",  # the second thing kept of an item for a mid-fusion student
    "edgerec.segment": "edgerec.catalog",
    "edgerec.crew": "edgerec.catalog",  # who works on its build; bulk scoring hires them too
    "edgerec.crew_ray": "edgerec.catalog",
    "edgerec.machine": "edgerec.bench",  # what a measurement was taken on
    "edgerec.__main__": "edgerec.cli",
}

# One module that may import one module above its layer, and why.
EXCEPTIONS = {
    ("edgerec.catalog_encoder", "edgerec.engine"): "the states of a mid-fusion student's items are made by the engine that will read them",
    ("edgerec.training.scorers", "edgerec.ranker"): "a bundle is judged through the serve path that users get, never a copy of it",
    ("edgerec.training.scorers", "edgerec.catalog"): "that path starts from a catalogue",
}

NUMERIC = {"numpy"}
EXPORT = {"onnx", "onnxscript"}
TRAINING = (
    NUMERIC
    | EXPORT
    | {"torch", "transformers", "tokenizers", "safetensors", "pyarrow", "tensorboard", "bm25s", "matplotlib", "tqdm", "tomli", "peft"}
)
THIRD_PARTY = {
    "edgerec.errors": set(),
    "edgerec.text": NUMERIC | {"tokenizers"},
    "edgerec.engine.ort": NUMERIC | {"onnxruntime"},
    "edgerec.crew_ray": NUMERIC | {"ray"},
    "edgerec.triton_graph": NUMERIC | {"onnx"},
    "edgerec.builder": NUMERIC | {"tokenizers", "onnx", "onnxruntime"},
    "edgerec.training": TRAINING,
    "edgerec.training.export": TRAINING | {"onnxruntime"},  # the exported graph is run beside torch before it is written
    "edgerec.training.export_mid": TRAINING | {"onnxruntime"},  # likewise
    "edgerec.cli": NUMERIC | {"click"},
}
HEAVY = ("torch", "transformers", "onnxruntime", "tensorrt", "tokenizers", "onnx", "pyarrow", "click")


@dataclass(frozen=True)
class Import:
    importer: str
    target: str
    line: int
    at_top: bool  # not inside a function, not under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.importer} line {self.line}: imports {self.target}"


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            name = ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imports_of(name: str, path: Path) -> Iterator[Import]:
    """Every import of one module, absolute names; ``from . import x`` names the module x where there is one."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno, at_top)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(name, full if full in MODULES or full in EXTENSIONS else base, node.lineno, at_top)
        guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_top and not guarded and not inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


IMPORTS = [found for name, path in sorted(MODULES.items()) for found in imports_of(name, path)]


def is_ours(module: str) -> bool:
    return module == "edgerec" or module.startswith("edgerec.")


def whole(module: str) -> str:
    """The room a part was split off; any other module is its own whole."""
    named = module.rpartition("_")[0]
    return PARTS.get(module) or (named if named in LAYERS and "." in named else module)


def room(module: str) -> str:
    """The entry of LAYERS a module belongs to: itself, its room, or the package it lies in."""
    module = whole(module)
    while module not in LAYERS:
        module, dot, _ = module.rpartition(".")
        assert dot, "a module of edgerec has no place"
    return module


def layer(module: str) -> int:
    return LAYERS[room(module)]


def is_allowed(found: Import) -> bool:
    importer, target = found.importer, found.target
    if (importer, target) in EXCEPTIONS or layer(target) < layer(importer):
        return True
    if layer(target) > layer(importer):
        return False
    return whole(target) != target or room(target) == room(importer)


def test_every_module_has_a_place_in_the_table() -> None:
    unplaced = [name for name in MODULES if name != "edgerec" and room(name) == "edgerec"]
    assert unplaced == [], "add it to LAYERS, or to PARTS with the room it was split off"


def test_modules_import_lower_layers_only() -> None:
    wrong = [str(i) for i in IMPORTS if is_ours(i.target) and i.target != "edgerec" and not is_allowed(i)]
    assert wrong == []


def test_every_exception_is_still_needed() -> None:
    used = {(i.importer, i.target) for i in IMPORTS}
    assert [pair for pair in EXCEPTIONS if pair not in used] == []


def test_training_never_imports_builder_or_engine() -> None:
    reach = ("edgerec.builder", "edgerec.engine")
    assert [str(i) for i in IMPORTS if i.importer.startswith("edgerec.training") and i.target.startswith(reach)] == []


def test_third_party_packages_stay_in_their_rooms() -> None:
    def allowed(module: str) -> set[str]:
        module = module if module in THIRD_PARTY else whole(module)
        while module not in THIRD_PARTY:
            module, dot, _ = module.rpartition(".")
            if not dot:
                return NUMERIC
        return THIRD_PARTY[module]

    foreign = [i for i in IMPORTS if not is_ours(i.target) and i.target.partition(".")[0] not in sys.stdlib_module_names | {"tomllib"}]
    assert foreign, "the walk found no third-party import at all"
    assert [str(i) for i in foreign if i.target.partition(".")[0] not in allowed(i.importer)] == []


def test_the_package_itself_imports_only_errors_and_types_at_the_top() -> None:
    light = {"edgerec.errors", "edgerec.types"}
    assert [str(i) for i in IMPORTS if i.importer == "edgerec" and i.at_top and is_ours(i.target) and i.target not in light] == []


def test_the_command_line_imports_its_halves_inside_functions() -> None:
    light = {"edgerec", "edgerec.errors", *(name for name in MODULES if room(name) == "edgerec.cli")}
    wrong = [str(i) for i in IMPORTS if room(i.importer) == "edgerec.cli" and i.at_top and is_ours(i.target) and i.target not in light]
    assert wrong == []


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in IMPORTS:
        if found.at_top and found.target in MODULES and found.target != found.importer:
            graph[found.importer].add(found.target)
    done: set[str] = set()

    def walk(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join((*trail[trail.index(node) :], node))
        if node in done:
            return
        for target in sorted(graph[node]):
            walk(target, (*trail, node))
        done.add(node)

    for name in sorted(graph):
        walk(name, ())


@pytest.mark.parametrize(
    ("statement", "may_load"),
    [("import edgerec", ()), ("import edgerec.cli", ("click",))],
    ids=["import edgerec", "import edgerec.cli"],
)
def test_import_stays_light(statement: str, may_load: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print(*sorted(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(may_load)


def test_the_training_folder_refuses_its_own_name() -> None:
    done = subprocess.run([sys.executable, "-c", "import training"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "edgerec.training" in done.stderr
