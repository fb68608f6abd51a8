"""Recipes: shipped ones load; wrong ones say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgerec.training.config import Recipe, load_recipe, recipe_from_json

from edgerec.errors import InputError

SHIPPED = sorted(p.stem for p in (Path(__file__).parents[2] / "training" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_by_name_and_survives_json(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe.name == name
    assert recipe_from_json(recipe.to_json(), "json") == recipe


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("seed = 1", "name"),
        ("name = 'x'\nepochs = 3", "epochs"),
        ("name = 'x'\n[fit]\nepochs = 'three'", "epochs"),
        ("name = 'x'\n[fit]\nepochs = true", "epochs"),
        ("name = 'x'\n[fit]\nepochs = 0", "epochs"),
        ("name = 'x'\n[fit]\nstart_share = 1", r"in \[0, 1\)"),
        ("name = 'x'\n[fit]\nstart_share = 0.5\n[fit.lora]\nrank = 2", "whole weights"),
        ("name = 'x'\n[fit.lora]\nrank = 2\n[fit.attack]\nkind = 'fgm'", "freezes"),
        ("name = 'x'\n[fit.lora]\nrank = -1", "fit.lora"),
        ("name = 'x'\n[fit]\ndropout = 1", "dropout"),
        ("name = 'x'\n[fit]\ndropout = 0\n[loss]\nr_drop = 1", "r_drop"),
        ("name = 'x'\n[fit]\nlearning_rate = -1", "learning"),
        ("name = 'x'\n[fit]\nprecision = 'fp8'", "precision"),
        ("name = 'x'\n[fit]\npasses = { shop = 'two' }", "passes.shop"),
        ("name = 'x'\n[loss]\nclasses = 1", "classes"),
        ("name = 'x'\n[loss]\nbce = 0", "loss term"),
        ("name = 'x'\n[text]\nmax_tokens = 20", "max_tokens"),
        ("name = 'x'\n[text]\nitem_fields = ['colour']", "item_fields"),
        ("name = 'x'\n[student]\nslots = 0", "slots"),
        ("name = 'x'\n[student]\ninteraction = 'late'", "interaction"),
        ("name = 'x'\n[student]\nstates = 'two'", "states"),
        ("name = 'x'\n[student]\nquery_layers = 0", "query_layers"),
        ("name = 'x'\n[student]\nstate_precision = 'int4'", "state_precision"),
        ("name = 'x'\n[student]\nclosing = 0.5", "closing"),
        ("name = 'x'\n[student]\ninteraction = 'mid'\nclosing = 1.5", "closing"),
        ("name = ", "TOML"),
    ],
)
def test_a_wrong_recipe_is_an_input_error_that_names_the_key(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=word):
        load_recipe(path)


def test_an_integer_stands_for_a_float() -> None:
    assert recipe_from_json({"name": "x", "fit": {"learning_rate": 1}}, "x").fit.learning_rate == 1.0
    assert isinstance(recipe_from_json({"name": "x"}, "x"), Recipe)
