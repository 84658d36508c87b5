import sys
from dataclasses import dataclass

import pytest

import pellucid as pl
from pellucid.core.recipe import Recipe, Value, decode, encode


@dataclass(frozen=True)
class Nested(Value):
    inner: object = None
    numbers: tuple[int, ...] = ()


def test_settings_survive_their_json_form():
    explain = pl.SmoothGrad(base=pl.Absolute(), noise_level=pl.NoiseLevel.absolute(2.0), n_samples=7, seed=3)
    assert decode(encode(explain)) == explain
    assert encode(pl.SimpleGradient()) == {"type": "SimpleGradient"}


def test_classes_of_other_packages_go_by_their_packages_name():
    value = Nested(inner=pl.ClassScore(3), numbers=(1, 2))
    assert encode(value)["type"] == f"{__name__.partition('.')[0]}.Nested"
    assert decode(encode(value)) == value


def test_what_cannot_come_back_is_refused():
    with pytest.raises(pl.RecipeError, match="Got list"):
        encode(Nested(inner=[1]))


def test_unknown_classes_are_refused_and_never_imported():
    sys.modules.pop("antigravity", None)
    with pytest.raises(pl.RecipeError, match=r"'antigravity.Fly', which is not registered"):
        decode({"type": "antigravity.Fly"})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("settings", [{"wrong": 1}, {"n_samples": -1}])
def test_settings_that_the_class_does_not_take_are_refused(settings):
    with pytest.raises(pl.RecipeError, match="SmoothGrad does not accept"):
        decode({"type": "SmoothGrad", "settings": settings})


def test_a_recipe_is_the_same_bytes_again():
    recipe = Recipe(
        explainer={"type": "X"}, targets=[], inputs=[], keys=[], weights="w", model="m", run={"b": 1, "a": 2}
    )
    assert recipe.to_json() == Recipe.from_json(recipe.to_json()).to_json()
    assert '"a":2,"b":1' in recipe.to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"explainer": 1, "nonsense": 2}'])
def test_other_text_is_no_recipe(text):
    with pytest.raises(pl.RecipeError, match="Expected the recipe"):
        Recipe.from_json(text)
