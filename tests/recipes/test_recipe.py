"""Recipes as they ship: each can be read, is whole, and says nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from slimbrain_app.bids.spaces import MODEL
from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.splits import FEWEST_SITES
from slimbrain_app.recipes.recipe import Target, list_recipes, load_recipe, make_settings
from slimbrain_app.settings import EvaluateSettings, read_settings

ROOT = Path(__file__).parents[2]
PAGE = "docs/how-to/repeat-a-benchmark.md"
NAMES = ["abide-age", "abide-age-classes", "adhd200", "adni-mci"]
NAMES += ["hcp-fingerprint", "hcp-sex", "ppmi"]


@pytest.fixture(scope="module")
def recipes():
    return list_recipes()


def test_the_seven_benchmarks_of_the_paper_are_there(recipes):
    assert sorted(recipe.name for recipe in recipes) == NAMES


def test_every_recipe_has_a_cohort_of_its_shape_in_the_tests(recipes, shapes):
    assert set(shapes) == {recipe.name for recipe in recipes}


def test_the_figures_are_those_of_the_page_and_no_others(recipes):
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    shown = [(name.strip("`"), *rest) for name, *rest in cells]
    expected = [
        (recipe.name, figure.model, figure.fit, figure.metric, str(figure))
        for recipe in recipes
        for figure in recipe.paper.figures
    ]
    assert sorted(shown) == sorted(expected)


def test_every_metric_of_the_paper_is_compared_with_something(recipes):
    for recipe in recipes:
        given = {figure.metric for figure in recipe.paper.figures}
        compared = {row.figure for row in recipe.ours.rows}
        missing = given - compared
        # Nobody is fitted to, so there is no F1.
        assert missing == ({"F1"} if recipe.identity else set()), recipe.name
        assert compared <= given


def test_nothing_that_the_outcome_is_made_of_is_a_covariate(recipes):
    for recipe in recipes:
        taken = {column for own in recipe.people.covariates.values() for column in own}
        outcome = recipe.outcome
        assert not taken & {outcome.name, *outcome.columns}, recipe.name
        assert outcome.name not in recipe.people.covariates


def test_sites_are_compared_wherever_the_cohort_has_any(recipes):
    for recipe in recipes:
        schemes = {row.scheme for row in recipe.ours.rows}
        assert ("site" in schemes) == ("site" in recipe.people.covariates), recipe.name
    assert FEWEST_SITES == 3  # As the recipes say.


def test_settings_of_every_recipe_are_those_of_an_evaluation(recipes):
    for recipe in recipes:
        settings = read_settings(EvaluateSettings, None, make_settings(recipe, "people.tsv"))
        assert settings.select == recipe.select
        assert settings.predict.outcomes == (recipe.outcome.name,)
        assert (settings.predict.family is not None) == bool(recipe.people.family)
        # The numbers that the recipes tell of our split.
        assert (settings.judge.folds, settings.judge.repeats) == (5, 5)


def test_fmriprep_is_told_to_write_the_space_that_needs_no_other(recipes):
    assert {recipe.output_spaces for recipe in recipes} == {(f"{MODEL.space}:res-2",)}


def test_what_is_not_certain_is_said_for_all_but_sex(recipes):
    assert [recipe.name for recipe in recipes if not recipe.outcome.doubt] == ["hcp-sex"]


def test_an_unknown_recipe_is_told_which_there_are():
    with pytest.raises(CallRefused, match="hcp-sex") as caught:
        load_recipe("../hcp-sex")
    assert caught.value.reason == "usage"


@pytest.mark.parametrize(
    "change",
    [
        {"classes": {"a": ["1"], "b": ["1"]}},
        {"classes": {"a": ["1"]}, "units": "years"},
        {},
        {"units": "years", "columns": []},
        {"units": "years", "column": "age"},
        {"bands": {"young": [0]}},
    ],
)
def test_an_outcome_that_can_be_read_in_two_ways_or_none_is_no_recipe(change):
    whole = {"name": "age", "columns": ["AGE"], "doubt": ""}
    adapter = TypeAdapter(Target)
    assert adapter.validate_json(json.dumps(whole | {"units": "years"}), strict=True).units
    with pytest.raises(ValidationError):
        adapter.validate_json(json.dumps(whole | change), strict=True)
