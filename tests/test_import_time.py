"""`import edgerec` is light, and what it imports late is there all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "onnxruntime", "tensorrt", "tokenizers", "onnx", "click")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_edgerec_loads_no_heavy_module():
    loaded = run(f"import edgerec, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded == "[]"


def test_modules_that_are_not_told_to_load_models_stay_light_too():
    code = f"import edgerec.features, edgerec.text, edgerec.bundle, edgerec.catalog, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.parametrize(("name", "module"), [("Ranker", "edgerec.ranker"), ("Catalog", "edgerec.catalog")])
def test_late_names_are_the_classes_of_their_modules(name, module):
    code = f"import edgerec, {module} as m; print(edgerec.{name} is m.{name}, {name!r} in dir(edgerec), {name!r} in edgerec.__all__)"
    assert run(code) == "True True True"


def test_an_unknown_name_is_an_attribute_error():
    import edgerec

    with pytest.raises(AttributeError, match="has no attribute 'Rankr'"):
        edgerec.Rankr  # noqa: B018
