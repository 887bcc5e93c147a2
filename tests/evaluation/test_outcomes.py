from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.outcomes import Outcome, read_phenotype, take_outcomes

MISSING = ["", "n/a", "N/A", "NaN", "nan"]
LABELS = st.text("abcDEF0123-+ äß", min_size=1).map(str.strip).filter(bool)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("phenotype")


def write_table(folder, columns, sidecar=None, people=None):
    """Write a table of columns, a list of cells for each name, and read it."""
    length = len(next(iter(columns.values())))
    people = people or [f"sub-{number:02d}" for number in range(1, length + 1)]
    lines = zip(["participant_id", *people], *([k, *v] for k, v in columns.items()), strict=True)
    file = folder / "participants.tsv"
    file.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    file.with_suffix(".json").write_text(json.dumps(sidecar or {}))
    return read_phenotype(file)


def take(phenotype, *names, people=None, kinds=None):
    present = dict.fromkeys(row.person for row in phenotype.rows)
    return take_outcomes(phenotype, names, people or list(present), kinds or {})


def take_one(folder, cells, sidecar=None, kind=None):
    phenotype = write_table(folder, {"score": cells}, sidecar and {"score": sidecar})
    (outcome,), (note,) = take(phenotype, "score", kinds=kind and {"score": kind})
    return outcome, note


def refusal_of(call, *arguments, reason="no-outcome", **more) -> str:
    with pytest.raises(CallRefused) as caught:
        call(*arguments, **more)
    assert caught.value.reason == reason
    return str(caught.value)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name, delimiter", [("participants.tsv", "\t"), ("people.csv", ",")])
@pytest.mark.parametrize("prefix", ["sub-", ""])
def test_tables_of_every_spelling_say_the_same(tmp_path, prefix, name, delimiter, mark, ending):
    rows = [["participant_id", "age"], [f"{prefix}01", "20.5"], [f"{prefix}02", " 31 "]]
    text = mark + "".join(delimiter.join(row) + ending for row in [*rows, ["", ""]])
    (tmp_path / name).write_bytes(text.encode())
    (outcome,), _ = take(read_phenotype(tmp_path / name), "age", people=["01", "02"])
    assert list(outcome.people) == ["01", "02"]
    assert outcome.values.tolist() == [20.5, 31]


@given(st.binary() | st.text().map(str.encode))
def test_of_any_bytes_only_refusals_come(folder, content):
    file = folder / "any.tsv"
    file.write_bytes(content)
    refusal_of(read_phenotype, file)


@given(
    st.lists(st.lists(st.text(max_size=5) | NUMBERS.map(str), min_size=3, max_size=3), min_size=1),
    st.sampled_from([None, "class", "number"]),
)
def test_of_any_cells_come_outcomes_with_values_to_learn_from_or_refusals(folder, rows, kind):
    header = "participant_id\ta\tb\n"
    text = "".join("\t".join(row) + "\n" for row in rows)
    (folder / "any.tsv").write_text(header + text, encoding="utf-8", newline="")
    try:
        phenotype = read_phenotype(folder / "any.tsv")
        outcomes, _ = take(phenotype, "a", "b", kinds=kind and {"a": kind, "b": kind})
    except CallRefused as error:
        assert error.reason in ("no-outcome", "outcome-constant", "too-few")
        return
    for outcome in outcomes:
        values, counts = np.unique(outcome.values, return_counts=True)
        assert len(values) > 1
        assert counts.min() > 1 if outcome.kind == "class" else np.isfinite(values).all()


@given(st.lists(NUMBERS, min_size=2, unique=True))
def test_numbers_are_those_written(folder, numbers):
    outcome, _ = take_one(folder, [repr(number) for number in numbers], kind="number")
    assert outcome.values.tolist() == numbers


@given(st.lists(LABELS, min_size=2, unique=True), st.randoms())
def test_labels_are_those_written(folder, labels, random):
    cells = labels * 2
    random.shuffle(cells)
    levels = {label: f"about {label}" for label in labels}
    outcome, _ = take_one(folder, cells, {"Levels": levels})
    assert outcome.values.tolist() == cells
    assert outcome.levels == levels


def test_real_phenotypes_are_those_that_pandas_reads(shared_data, tmp_path):
    file = shared_data / "abide1_cc200" / "phenotypic.csv"
    text = file.read_text().replace("FILE_ID", "participant_id", 1)
    (tmp_path / "abide.csv").write_text(text)
    expected = pd.read_csv(file, index_col="FILE_ID", dtype={"SEX": str})
    phenotype = read_phenotype(tmp_path / "abide.csv")
    outcomes, _ = take(phenotype, "AGE_AT_SCAN", "FIQ", "SEX", "SITE_ID")
    for outcome, kind in zip(outcomes, ["number", "number", "class", "class"], strict=True):
        column = expected[outcome.name].dropna()
        assert outcome.kind == kind
        assert outcome.values.tolist() == column.tolist()
        assert list(outcome.people) == column.index.tolist()


@pytest.mark.parametrize("missing", MISSING)
def test_each_outcome_keeps_the_people_who_have_it(folder, missing):
    columns = {"age": [missing, 20.5, 30, 40, 50], "sex": ["F", "M", missing, "M", "F"]}
    phenotype = write_table(folder, columns)
    (age, sex), notes = take(phenotype, "age", "sex")
    assert list(age.people) == ["02", "03", "04", "05"]
    assert age.values.tolist() == [20.5, 30, 40, 50]
    assert list(sex.people) == ["01", "02", "04", "05"]
    assert sex.values.tolist() == ["F", "M", "M", "F"]
    assert [note.split("; ")[-1] for note in notes] == [
        "4 people, 1 left out for want of a value"
    ] * 2


def test_people_are_those_asked_for_in_their_order(folder):
    phenotype = write_table(folder, {"age": [10.5, 20, 30]})
    (outcome,), notes = take(phenotype, "age", people=["03", *"uvwxyz", "01"])
    assert list(outcome.people) == ["03", "01"]
    assert outcome.values.tolist() == [30, 10.5]
    assert "6 of 8 people" in notes[-1]
    assert notes[-1].endswith("u, v, w, x, y and 1 more")


@pytest.mark.parametrize(
    "cells, sidecar, kind, why",
    [
        (["1", "2", "1", "2"], None, "class", "2 whole numbers"),
        (["1.0", "2", "n/a", "1", "2.0"], None, "class", "2 whole numbers"),
        ([0, 1, 2, 3, 4] * 2, None, "class", "5 whole numbers"),
        ([0, 1, 2, 3, 4, 5] * 2, None, "number", "values are numbers"),
        (["0.5", "1", "0.5", "1"], None, "number", "values are numbers"),
        (["1", "2", "1", "2"], {"Units": "years"}, "number", "states a unit"),
        (["1", "2", "1", "2"], {"Units": "n/a"}, "class", "2 whole numbers"),
        (["F", "M", "F", "M"], {"Units": "letters"}, "class", "values are text"),
        (["1e3", "-.5", "+7", "2."], None, "number", "values are numbers"),
        ([*map(str, range(9))] * 2, {"Levels": dict.fromkeys("012345678", "")}, "class", "levels"),
        (["0.5", "1"], {"Levels": {"n/a": "not known"}}, "number", "values are numbers"),
        (["a", "1", "a", "1"], None, "class", "values are text"),
    ],
)
def test_kind_follows_from_values_and_sidecar_and_the_note_says_why(
    folder, cells, sidecar, kind, why
):
    outcome, note = take_one(folder, cells, sidecar)
    assert outcome.kind == kind
    assert why in note


def test_kind_can_be_set_as_the_note_of_a_guess_says(folder):
    cells = ["1", "2", "1", "2"]
    outcome, note = take_one(folder, cells)
    assert outcome.values.tolist() == cells
    assert 'set predict.kinds = {"score" = "number"}' in note
    outcome, note = take_one(folder, cells, kind="number")
    assert outcome.values.tolist() == [1, 2, 1, 2]
    assert "as the settings say" in note
    outcome, _ = take_one(folder, ["0.5", "1", "0.5", "1"], kind="class")
    assert outcome.values.tolist() == ["0.5", "1", "0.5", "1"]


def test_kind_does_not_change_with_who_has_runs(folder):
    phenotype = write_table(folder, {"age": range(20, 40)})
    (outcome,), _ = take(phenotype, "age", people=["01", "02", "03"])
    assert outcome.kind == "number"


def test_units_and_levels_are_the_sidecars(folder):
    sidecar = {
        "age": {"Units": "years"},
        "sex": {
            "Units": "letters",
            "Levels": {"F": "female", "M": {"Description": "male"}, "O": "other"},
        },
    }
    phenotype = write_table(folder, {"age": [1, 2, 3, 4], "sex": ["F", "M", "M", "F"]}, sidecar)
    (age, sex), notes = take(phenotype, "age", "sex")
    assert (age.units, sex.units) == ("years", None)
    assert sex.levels == {"F": "female", "M": "male"}
    assert "numbers in years" in notes[0]
    assert "2 classes ('F' 2, 'M' 2)" in notes[1]


def test_codes_are_the_same_class_with_and_without_a_fraction_of_nought(folder):
    levels = {"1": "left", "2": "right"}
    outcome, _ = take_one(folder, ["1.0", "2.0", "1", "2", "n/a"], {"Levels": levels})
    assert outcome.values.tolist() == ["1", "2", "1", "2"]
    assert outcome.levels == levels


def test_codes_with_leading_noughts_are_classes_of_their_own(folder):
    outcome, _ = take_one(folder, ["01", "02", "1", "01", "02", "1"])
    assert outcome.classes.tolist() == ["01", "02", "1"]


def test_equal_values_of_several_visits_are_one(folder):
    columns = {"age": ["12.5", "12.50", "13", "14"], "sex": ["n/a", "F", "M", "M"]}
    phenotype = write_table(folder, columns, people=["sub-01", "01", "sub-02", "sub-03"])
    (age,), _ = take(phenotype, "age")
    assert list(age.people) == ["01", "02", "03"]
    assert age.values.tolist() == [12.5, 13, 14]


def test_values_that_differ_between_visits_are_refused_with_person_and_rows(folder):
    people = ["sub-01", "sub-02", "sub-01", "sub-03"]
    phenotype = write_table(folder, {"age": ["12.5", "13", "14", "9"]}, people=people)
    assert "01 has '12.5' (row 2) and '14' (row 4)" in refusal_of(take, phenotype, "age")
    (age,), _ = take(phenotype, "age", people=["02", "03"])
    assert age.values.tolist() == [13, 9]


@pytest.mark.parametrize(
    "text", ["12,5", ">89", "12 y", "1O", "inf", "-1e999", "1_0", "१२", "NA", "{"]
)
def test_text_among_numbers_is_refused_with_rows_not_taken_for_a_class(folder, text):
    phenotype = write_table(folder, {"age": ["12.5", "13", text, "14", "9", text]})
    message = refusal_of(take, phenotype, "age")
    assert f"no finite numbers: {text!r} (row 4), {text!r} (row 7)" in message
    (age,), _ = take(phenotype, "age", people=["01", "02", "05"])
    assert age.values.tolist() == [12.5, 13, 9]


def test_ten_faulty_cells_are_shown_and_the_others_counted(folder):
    phenotype = write_table(folder, {"age": [*range(20), *["?"] * 13]})
    message = refusal_of(take, phenotype, "age")
    assert message.count("'?'") == 10
    assert "and 3 more" in message


@pytest.mark.parametrize("mark", ["NA", "null", "-999", "-9999.0"])
@pytest.mark.parametrize("cells", [["F", "M"], [1, 2], [1.5, 2.5]])
def test_other_marks_of_missing_values_are_no_values(folder, cells, mark):
    phenotype = write_table(folder, {"score": [*cells * 3, mark, mark]})
    assert f"{mark!r} (row 8)" in refusal_of(take, phenotype, "score")


def test_a_mark_that_the_sidecar_describes_is_a_class_but_no_number(folder):
    phenotype = write_table(
        folder, {"iq": [99, 101, -999]}, {"iq": {"Levels": {"-999": "not done"}}}
    )
    assert "'-999' (row 4)" in refusal_of(take, phenotype, "iq", kinds={"iq": "number"})
    levels = {"NA": "North America", "EU": "Europe"}
    outcome, _ = take_one(folder, ["NA", "EU"] * 2, {"Levels": levels})
    assert outcome.classes.tolist() == ["EU", "NA"]


def test_a_label_that_the_sidecar_does_not_list_is_refused(folder):
    sidecar = {"sex": {"Levels": {"F": "female", "M": "male"}}}
    phenotype = write_table(folder, {"sex": ["F", "M", "F", "m"]}, sidecar)
    message = refusal_of(take, phenotype, "sex")
    assert "none of the sidecar's levels 'F', 'M': 'm' (row 5)" in message
    assert "one person" not in message


@pytest.mark.parametrize(
    "entry",
    [
        [],
        "female or male",
        {"Levels": ["F", "M"]},
        {"Levels": {"F": None}},
        {"Levels": {"F": {"Description": 1}}},
        {"Units": 3},
    ],
)
def test_a_sidecar_that_is_not_bids_is_refused_for_the_outcomes_asked_for_only(folder, entry):
    columns = {"sex": ["F", "M"] * 2, "age": [1.5, 2, 3, 4]}
    phenotype = write_table(folder, columns, {"sex": entry})
    assert "sex: in the sidecar" in refusal_of(take, phenotype, "sex")
    assert len(take(phenotype, "age")[0]) == 1


def test_everything_wrong_is_said_at_once_the_worst_first(folder):
    columns = {
        "sex": ["F", "F", "F", "M"],
        "site": ["a"] * 4,
        "age": ["12.5", "13", "12,5", "9"],
        "iq": ["n/a"] * 4,
        "group": ["x", "y"] * 2,
    }
    phenotype = write_table(folder, columns)
    names = ["sex", "site", "age", "iq", "Group", "group"]
    message = refusal_of(take, phenotype, *names)
    places = [
        message.index(part)
        for part in (
            "age: no finite numbers: '12,5' (row 4)",
            "iq: missing for everybody",
            "no column 'Group'",
            "site: 'a' for all 4",
            "sex: classes of one person with runs, 'M' (only 04)",
        )
    ]
    assert places == sorted(places)
    assert "instead of 'Group', try group" in message
    assert "group:" not in message
    message = refusal_of(take, phenotype, "sex", "site", reason="outcome-constant")
    assert message.index("site: ") < message.index("sex: ")
    refusal_of(take, phenotype, "sex", reason="too-few")


def test_what_nobody_with_runs_differs_in_is_constant(folder):
    phenotype = write_table(folder, {"age": [12.5, 12.5, 13, 14]})
    refusal_of(take, phenotype, "age", people=["01", "02"], reason="outcome-constant")


def test_amounts_taken_for_codes_are_refused_with_the_way_out(folder):
    phenotype = write_table(folder, {"age": [20, 30, 40]})
    message = refusal_of(take, phenotype, "age", reason="too-few")
    assert 'predict.kinds = {"age" = "number"}' in message
    assert "predict.kinds" not in refusal_of(
        take, write_table(folder, {"sex": ["F", "M", "X"]}), "sex", reason="too-few"
    )


def test_a_column_that_stands_twice_is_refused_if_asked_for(tmp_path):
    file = tmp_path / "people.csv"
    file.write_text("participant_id,age,age,iq\n01,1.5,2,3.5\n02,2,3,4\n")
    phenotype = read_phenotype(file)
    assert "2 columns 'age'" in refusal_of(take, phenotype, "age")
    assert take(phenotype, "iq")[0][0].values.tolist() == [3.5, 4]


def test_strangers_are_shown_with_the_nearest_labels_of_either_side(folder):
    phenotype = write_table(folder, {"age": [12.5, 13]}, people=["50001", "50772"])
    message = refusal_of(take, phenotype, "age", "iq", people=["0050772", "0050001"])
    assert "0050772 (nearest there: 50772)" in message
    assert "50001 (nearest there: 0050001)" in message
    assert "no column 'iq'" in message
    phenotype = write_table(folder, {"age": [12.5, 13]}, people=["01", "12"])
    message = refusal_of(take, phenotype, "age", people=["1", "2"])
    assert "1 (nearest there: 01), 2 (nearest there: 12)" in message


@pytest.mark.parametrize(
    "content, part",
    [
        (b"\n \n", "an empty file"),
        (b"\nage\tsex\n", "the columns 'age', 'sex'"),
        (b"participant_id\tage\n", "nothing below the header"),
        (b"participant_id,age\n01,3\n", "'participant_id,age'"),
        (b"participant_id\tage\n01\t3\n02\n", "1 in row 3"),
        (b"participant_id\tage\n01\t3\n\n02\t4\t5\n", "3 in row 4"),
        (b"participant_id\tage\n01\t3\nn/a\t4\n", "none in row 3"),
        (b"participant_id\tparticipant_id\n01\t3\n", "the columns"),
        (b"participant_id\tsex\n01\tm\xe4nnlich\n", "UTF-8"),
        ("participant_id\tage\n01\t3\n".encode("utf-16-le"), "UTF-16"),
        (b'participant_id\tage\n01\t"3\n02\t4\n', "near line 3"),
    ],
)
def test_what_is_no_table_of_people_is_refused(tmp_path, content, part):
    (tmp_path / "participants.tsv").write_bytes(content)
    assert part in refusal_of(read_phenotype, tmp_path / "participants.tsv")


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff"])
def test_a_broken_sidecar_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n01\t3\n")
    (tmp_path / "participants.json").write_bytes(content)
    assert "participants.json" in refusal_of(read_phenotype, tmp_path / "participants.tsv")


def test_a_table_that_is_not_there_is_refused(tmp_path):
    assert "No such file" in refusal_of(read_phenotype, tmp_path / "participants.tsv")


def test_some_people_of_an_outcome_keep_units_and_levels():
    outcome = Outcome(
        "sex", "class", np.array(["F", "M", "F"]), list("abc"), levels={"F": "female"}
    )
    some = outcome.take(np.array([2, 0]))
    assert (some.people, some.values.tolist()) == (["c", "a"], ["F", "F"])
    assert some.levels == {"F": "female"}
