"""What is told of a cohort that is there, in part, or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from slimbrain_app.errors import CallRefused, Exit
from slimbrain_app.recipes.checking import check_cohort
from slimbrain_app.recipes.recipe import list_recipes, load_recipe

PEOPLE = 8


@pytest.fixture(scope="module")
def cohort(simulated, lay_cohort, shapes, tmp_path_factory):
    """Derivatives and table of a recipe, both for reading only."""
    made = {}

    def cohort(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = lay_cohort(simulated, folder, shapes[name], PEOPLE)
        return made[name]

    return cohort


def list_findings(check):
    return {one.name: one for one in check.findings}


def test_every_recipe_takes_its_own_cohort(cohort):
    for recipe in list_recipes():
        check = check_cohort(recipe, *cohort(recipe.name))
        assert check.refusal is None, recipe.name
        found = list_findings(check)
        assert found["people"].found.startswith(f"{PEOPLE} with runs that can be used, of {PEOPLE}")
        assert found["spaces"].state == "well"
        assert "site" not in recipe.people.covariates or "site" in found
        assert check.people.columns[1] == recipe.outcome.name


@pytest.mark.parametrize(
    "name, expected",
    [
        ("hcp-sex", "8 of 8 people by Gender: F 4, M 4; to say F of everybody is right in 50%"),
        ("adni-mci", "6 of 8 people by Group: CN 3, MCI 3; to say CN of everybody is right in 50%"),
        ("adhd200", "7 of 8 people by DX: ADHD 3, control 4; to say control of everybody is right"),
        ("ppmi", "6 of 8 people by COHORT: PD 3, control 3"),
        ("abide-age-classes", "8 of 8 people by AGE_AT_SCAN: from15 4, under15 4"),
        ("abide-age", "8 of 8 people by AGE_AT_SCAN: 8.5 to 24.375 years, half of them under"),
    ],
)
def test_people_are_counted_by_what_is_told_of_them(cohort, name, expected):
    recipe = load_recipe(name)
    found = list_findings(check_cohort(recipe, *cohort(name)))
    assert found[recipe.outcome.name].found.startswith(expected)


def test_what_is_left_out_is_told_by_its_code(cohort):
    found = list_findings(check_cohort(load_recipe("ppmi"), *cohort("ppmi")))
    assert found["left out"].found == "3 (1 cell), 4 (1 cell)"
    assert found["left out"].state == "mind"


def test_figures_of_the_release_are_beside_what_is_there(cohort):
    found = list_findings(check_cohort(load_recipe("hcp-sex"), *cohort("hcp-sex")))
    assert found["people"].found.endswith("1,206 in HCP-YA, release S1200")
    assert found["tasks"].found == "REST1 (16 runs), REST2 (16 runs)"
    assert found["TR"].found == "2 s (32 runs); 0.72 s is usual"
    assert found["family"].found == "4, each on one side"
    assert [found[name].state for name in ("people", "tasks", "TR")] == ["mind", "well", "mind"]


def test_people_with_too_few_runs_are_named(simulated, lay_cohort, shapes, tmp_path):
    derivatives, table = lay_cohort(simulated, tmp_path, shapes["hcp-sex"], 4)
    for file in derivatives.glob("sub-100308/func/*REST2*"):
        file.unlink()
    found = list_findings(check_cohort(load_recipe("hcp-sex"), derivatives, table))
    assert found["tasks"].state == "mind"
    assert found["tasks"].found.endswith("fewer than 4 of sub-100308")


def test_fingerprints_take_one_run_of_each_day_and_need_both(
    simulated, lay_cohort, shapes, tmp_path
):
    derivatives, table = lay_cohort(simulated, tmp_path, shapes["hcp-sex"], 4)
    recipe = load_recipe("hcp-fingerprint")
    check = check_cohort(recipe, derivatives, table)
    assert list_findings(check)["tasks"].found == "REST1 (4 runs), REST2 (4 runs)"
    for file in derivatives.glob("*/func/*REST2*"):
        file.unlink()
    refusal = check_cohort(recipe, derivatives, table).refusal
    assert (refusal.reason, refusal.found) == ("too-few", "0 of 4")


def test_visits_that_would_all_count_are_told(simulated, lay_cohort, shapes, tmp_path):
    shape = replace(shapes["ppmi"], runs=["ses-BL_task-rest", "ses-V04_task-rest"])
    derivatives, table = lay_cohort(simulated, tmp_path, shape, 6)
    recipe = load_recipe("ppmi")
    shutil.rmtree(derivatives / "sub-3001" / "ses-V04")
    told = list_findings(check_cohort(recipe, derivatives, table))["sessions"]
    assert told.state == "mind"
    assert told.found == (
        "BL (6 visits), V04 (5 visits); several of sub-3002, sub-3003, sub-3004, sub-3005, sub-3006"
    )
    for folder in derivatives.glob("sub-*/ses-V04"):
        shutil.rmtree(folder)
    told = list_findings(check_cohort(recipe, derivatives, table))["sessions"]
    assert (told.state, told.found) == ("well", "BL (6 visits)")


def test_runs_that_cannot_be_used_are_counted_by_reason(simulated, lay_cohort, shapes, tmp_path):
    derivatives, table = lay_cohort(simulated, tmp_path, shapes["ppmi"], 8)
    for mask in derivatives.glob("sub-300[12]/**/*_mask.nii.gz"):
        mask.unlink()
    check = check_cohort(load_recipe("ppmi"), derivatives, table)
    found = list_findings(check)
    assert found["refused"].found == "no-mask (2 runs)"
    assert found["people"].found == "6 with runs that can be used, of 8 in the folder"
    for mask in derivatives.glob("**/*_mask.nii.gz"):
        mask.unlink()
    check = check_cohort(load_recipe("ppmi"), derivatives, table)
    assert check.refusal.reason == "no-runs"
    assert "no-mask (8 runs)" in list_findings(check)["refused"].found


@pytest.mark.parametrize(
    "rows, reason",
    [
        ("3001,1 3002,1 3003,1", "outcome-constant"),
        ("3001,4 3002,4", "no-outcome"),
        ("3001,1 3002,1 3003,2", "too-few"),
        ("9001,1 9002,2", "no-outcome"),
    ],
)
def test_an_outcome_that_cannot_be_told_is_refused_as_an_evaluation_would(
    cohort, tmp_path, rows, reason
):
    table = tmp_path / "raw.csv"
    table.write_text("\n".join(["PATNO,COHORT", *rows.split()]) + "\n")
    check = check_cohort(load_recipe("ppmi"), cohort("ppmi")[0], table)
    assert check.refusal.reason == reason
    assert check.refusal.exit_code == Exit.DATA
    assert check.people is None
    assert "people" in list_findings(check)


def test_without_a_table_the_datasets_own_is_read(cohort, tmp_path):
    derivatives, table = cohort("adhd200")
    copy = shutil.copytree(derivatives, tmp_path / "fmriprep")
    refusal = check_cohort(load_recipe("adhd200"), copy).refusal
    assert refusal.reason == "no-outcome" and "participants.tsv" in refusal.file
    shutil.copy(table, copy / "participants.tsv")
    assert check_cohort(load_recipe("adhd200"), copy).refusal is None


def test_tasks_of_another_name_are_listed(cohort):
    with pytest.raises(CallRefused, match="task rest") as caught:
        check_cohort(load_recipe("hcp-fingerprint"), *cohort("ppmi"))
    assert caught.value.reason == "no-runs"


def test_people_without_sites_or_families_are_told_so(simulated, lay_cohort, shapes, tmp_path):
    derivatives, _ = lay_cohort(simulated, tmp_path, shapes["hcp-sex"], 4)
    table = tmp_path / "raw.csv"
    table.write_text("Subject,Gender\n100307,F\n100308,M\n100309,F\n100310,M\n")
    found = list_findings(check_cohort(load_recipe("hcp-sex"), derivatives, table))
    assert (found["family"].state, found["family"].found) == ("mind", "not known")
    assert "Family_ID" in found["family"].advice
