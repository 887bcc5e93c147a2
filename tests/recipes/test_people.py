"""A cohort's own table, translated: whose row it is, which class a code belongs to."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.outcomes import read_phenotype, take_outcomes
from slimbrain_app.recipes.people import map_people, match_person, read_cell, write_people
from slimbrain_app.recipes.recipe import People, Target, load_recipe


def write(folder, text):
    file = folder / "raw.csv"
    file.write_text(text)
    return file


def read(mapped):
    """Return the rows as dictionaries."""
    people = mapped.phenotype
    return [dict(zip(people.columns, row.cells, strict=True)) for row in people.rows]


@pytest.mark.parametrize(
    "recipe, name, label",
    [
        ("abide-age", "50002", "0050002"),
        ("abide-age", "50002.0", "0050002"),
        ("adhd200", "1018959", "1018959"),
        ("adni-mci", "002_S_0295", "ADNI002S0295"),
        ("adni-mci", "002_S_0295", "002S0295"),
        ("ppmi", "3001", "3001"),
        ("ppmi", "3001", "PPMI3001"),
        ("hcp-sex", "100307", "100307"),
    ],
)
def test_a_person_is_called_as_the_folder_is(recipe, name, label):
    assert match_person(name, load_recipe(recipe).people, {label, "1", "99"}) == label


def test_two_numbers_that_differ_by_zeros_are_two_people():
    people = People(keys=("id",))
    assert match_person("1", people, {"01"}) == "1"
    assert match_person("01", people, {"1"}) == "01"


@pytest.mark.parametrize(
    "recipe, cells",
    [
        ("adhd200", {"0": "control", "1": "ADHD", "2.0": "ADHD", "3": "ADHD", "withheld": "n/a"}),
        ("adni-mci", {"CN": "CN", "EMCI": "MCI", "LMCI": "MCI", "SMC": "n/a", "AD": "n/a"}),
        ("ppmi", {"1": "PD", "PD": "PD", "2": "control", "4": "n/a", "Prodromal": "n/a"}),
        ("hcp-sex", {"F": "F", "M": "M", "U": "n/a", "": "n/a"}),
        ("abide-age-classes", {"14.99": "under15", "15": "from15", "0": "under15", "-1": "n/a"}),
        ("abide-age-classes", {"young": "n/a", "under15": "under15"}),
        ("abide-age", {"14.99": "14.99", "n/a": "n/a"}),
    ],
)
def test_codes_become_classes_and_others_are_left_out(recipe, cells):
    target = load_recipe(recipe).outcome
    assert {cell: read_cell(target, cell, own=False) for cell in cells} == cells


def test_codes_in_a_column_called_as_the_outcome_are_not_the_cohorts():
    target = load_recipe("adhd200").outcome
    assert read_cell(target, "1", own=True) == "n/a"
    assert read_cell(target, "ADHD", own=True) == "ADHD"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_is_in_one_band_at_most(number):
    bands = {"low": (0.0, 10.0), "high": (10.0, 20.0)}
    target = Target(name="group", columns=("age",), bands=bands, doubt="")
    told = read_cell(target, repr(number), own=False)
    expected = "low" if 0 <= number < 10 else "high" if 10 <= number < 20 else "n/a"
    assert told == expected


TABLE = """SUB_ID,SITE_ID,AGE_AT_SCAN,SEX
50002,PITT,16.77,1
50003,3,-9999,1
50004,,9.5,2
60001,NYU,11,1
"""


def test_marks_of_what_is_missing_are_no_ages_and_a_sites_number_is_a_name(tmp_path):
    labels = ["0050002", "0050003", "0050004"]
    rows = read(map_people(load_recipe("abide-age"), write(tmp_path, TABLE), labels))
    assert [row["age"] for row in rows] == ["16.77", "n/a", "9.5", "11"]
    assert [row["site"] for row in rows] == ["PITT", "site3", "n/a", "NYU"]
    assert rows[3]["participant_id"] == "sub-0060001"


def test_cells_without_a_class_are_counted_of_people_with_runs_alone(tmp_path):
    table = "PATNO,COHORT\n3001,1\n3002,4\n3003,4\n3004,2\n9999,3\n"
    labels = ["3001", "3002", "3003", "3004"]
    mapped = map_people(load_recipe("ppmi"), write(tmp_path, table), labels)
    assert mapped.left_out == {"4": 2}
    assert mapped.column == "COHORT"


def test_what_was_written_is_read_by_an_evaluation_and_by_the_recipe_again(tmp_path):
    recipe = load_recipe("abide-age-classes")
    labels = ["0050002", "0050004", "0060001"]
    mapped = map_people(recipe, write(tmp_path, TABLE), labels)
    file = tmp_path / "people.tsv"
    write_people(mapped.phenotype, file)
    kept = read_phenotype(file)
    assert [row.cells for row in kept.rows] == [row.cells for row in mapped.phenotype.rows]
    assert kept.sidecar == mapped.phenotype.sidecar != {}
    again = map_people(recipe, file, labels)
    assert [row.cells for row in again.phenotype.rows] == [row.cells for row in kept.rows]
    with file.open() as text:
        header = next(csv.reader(text, delimiter="\t"))
    # No column of age: an evaluation would take it for a covariate, which tells all.
    assert header == ["participant_id", "age_group", "site", "sex"]


def test_numbers_are_numbers_in_units_even_where_there_are_few(tmp_path):
    recipe = load_recipe("abide-age")
    table = "SUB_ID,AGE_AT_SCAN\n50001,10\n50002,11\n50003,12\n"
    labels = ["0050001", "0050002", "0050003"]
    mapped = map_people(recipe, write(tmp_path, table), labels)
    (outcome,), _ = take_outcomes(mapped.phenotype, ["age"], labels, {})
    assert (outcome.kind, outcome.units) == ("number", "years")


def test_two_visits_with_two_diagnoses_are_told_by_the_rows_of_the_table(tmp_path):
    table = "Subject,Group\n002_S_0295,CN\n002_S_0295,MCI\n003_S_0001,CN\n"
    labels = ["002S0295", "003S0001"]
    mapped = map_people(load_recipe("adni-mci"), write(tmp_path, table), labels)
    with pytest.raises(CallRefused, match=r"002S0295 has 'CN' \(row 2\) and 'MCI' \(row 3\)"):
        take_outcomes(mapped.phenotype, ["diagnosis"], labels, {})


@pytest.mark.parametrize("table", ["PATNO,AGE\n3001,70\n", "person,COHORT\n3001,1\n", ""])
def test_a_table_without_people_or_outcome_is_refused_by_the_columns_that_it_has(tmp_path, table):
    with pytest.raises(CallRefused) as caught:
        map_people(load_recipe("ppmi"), write(tmp_path, table), ["3001"])
    assert caught.value.reason == "no-outcome"
    expected = "PATNO" if "COHORT" in table or not table else "COHORT or Group"
    assert expected in caught.value.expected
