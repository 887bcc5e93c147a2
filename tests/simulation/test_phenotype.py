from __future__ import annotations

import pandas as pd
import pytest

from slimbrain_app.simulation.phenotype import (
    describe_participants,
    read_phenotype,
    tabulate_participants,
)


@pytest.fixture
def participants(files):
    table = read_phenotype(files.inputs.phenotype)
    return tabulate_participants(table, ["B01", "A07", "A02", "A03"], "FILE_ID")


def test_columns_have_the_names_and_codes_of_bids(participants):
    assert list(participants.columns) == [
        "participant_id",
        "age",
        "sex",
        "group",
        "site",
        "source_id",
        "fiq",
        "func_mean_fd",
    ]
    first = participants.iloc[0].to_dict()
    assert first["participant_id"] == "sub-B01"
    assert (first["age"], first["sex"], first["group"]) == ("12.5", "F", "autism")
    assert (first["site"], first["source_id"]) == ("North", "B_01")


def test_empty_cells_and_abides_mark_are_missing(participants):
    assert participants["fiq"].isna().tolist() == [False, True, True, False]
    assert participants["func_mean_fd"].isna().tolist() == [False, False, True, False]


def test_every_column_is_described_with_levels_or_units(participants):
    described = describe_participants(participants)
    assert described.keys() == set(participants.columns) - {"participant_id"}
    assert described["age"]["Units"] == "years"
    assert described["sex"]["Levels"].keys() == {"F", "M"}
    assert described["group"]["Levels"].keys() == set(participants["group"])


@pytest.mark.parametrize("codes", [["0", "1"], ["M", "other"], ["1", "3"]])
def test_codes_that_are_not_known_are_left_as_they_are(codes):
    table = pd.DataFrame({"FILE_ID": ["a", "b"], "SEX": codes, "DX_GROUP": ["1", "4"]})
    participants = tabulate_participants(table, ["a", "b"], "FILE_ID")
    assert participants["sex"].tolist() == codes
    assert participants["group"].tolist() == ["1", "4"]
    described = describe_participants(participants)
    assert "Levels" not in described["group"] and "Levels" not in described["sex"]


@pytest.mark.parametrize("codes", [["1", "2"], ["male", "female"], ["M", "F"], ["1.0", "2.0"]])
def test_sex_is_understood_in_several_codes(codes):
    table = pd.DataFrame({"FILE_ID": ["a", "b"], "Gender": codes})
    participants = tabulate_participants(table, ["a", "b"], "FILE_ID")
    assert participants["sex"].tolist() == ["M", "F"]


def test_missing_sex_stays_missing():
    table = pd.DataFrame({"FILE_ID": ["a", "b"], "SEX": ["1", None]})
    participants = tabulate_participants(table, ["a", "b"], "FILE_ID")
    assert participants["sex"].isna().tolist() == [False, True]
