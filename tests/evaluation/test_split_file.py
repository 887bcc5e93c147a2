from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.split_file import Split, cut_by_file, match_split, read_split
from slimbrain_app.evaluation.splits import NO_FOLD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("splits")


def write(folder, rows, column="fold"):
    file = folder / "split.tsv"
    lines = [f"participant_id\t{column}", *("\t".join(row) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def refusal_of(call, *arguments, reason) -> str:
    with pytest.raises(CallRefused) as caught:
        call(*arguments)
    assert caught.value.reason == reason
    return str(caught.value)


def test_folds_have_any_names_and_other_columns_are_passed_over(folder):
    file = write(folder, [("sub-01", "north", "7"), ("02", "süd", "8")], "fold\tage")
    split = read_split(file)
    assert (dict(split.of), split.parts) == ({"01": "north", "02": "süd"}, False)


def test_parts_are_train_validation_and_test(folder):
    rows = [("sub-01", "train"), ("sub-02", "validation"), ("sub-03", "test"), ("03", "test")]
    split = read_split(write(folder, rows, "part"))
    assert dict(split.of) == {"01": "train", "02": "validation", "03": "test"}
    assert split.parts


def test_the_order_of_rows_changes_nothing(folder):
    rows = [(f"sub-{number:02d}", str(number % 3)) for number in range(9)]
    assert read_split(write(folder, rows)).of == read_split(write(folder, rows[::-1])).of


@pytest.mark.parametrize("column, sides", [("fold", ("1", "2")), ("part", ("train", "test"))])
def test_a_person_on_two_sides_is_a_leak_and_named(folder, column, sides):
    rows = [("sub-01", sides[0]), ("sub-02", sides[1]), ("01", sides[1])]
    told = refusal_of(read_split, write(folder, rows, column), reason="leak")
    assert "sub-01" in told and "sub-02" not in told


def test_all_that_is_wrong_with_rows_is_told_at_once_the_worst_first(folder):
    rows = [("01", "train"), ("01", "test"), ("02", "Test"), ("03", ""), ("04", "n/a")]
    told = refusal_of(read_split, write(folder, rows, "part"), reason="leak")
    assert "sub-01 in test and train" in told
    assert "'Test' (row 4)" in told
    assert "row 5, 6" in told


@pytest.mark.parametrize(
    "column, cells, reason, found",
    [
        ("part", ["train", "validation"], "too-few", "nobody in test"),
        ("part", ["validation", "test"], "too-few", "nobody in train"),
        ("fold", ["1", "1"], "too-few", "one fold only"),
        ("group", ["1", "2"], "no-outcome", "'group'"),
        ("fold\tpart", ["1\ttrain", "2\ttest"], "no-outcome", "'fold', 'part'"),
        ("fold\tfold", ["1\t1", "2\t2"], "no-outcome", "'fold', 'fold'"),
    ],
)
def test_what_splits_nobody_is_refused(folder, column, cells, reason, found):
    rows = [(f"sub-{number:02d}", cell) for number, cell in enumerate(cells)]
    assert found in refusal_of(read_split, write(folder, rows, column), reason=reason)


@pytest.mark.parametrize("text", ["", "fold\tage\n1\t2\n", "participant_id\tfold\n01\n"])
def test_what_is_no_table_of_people_is_refused(folder, text):
    file = folder / "split.tsv"
    file.write_text(text)
    refusal_of(read_split, file, reason="no-outcome")


def test_a_file_that_is_not_there_is_refused(folder):
    assert "No such file" in refusal_of(read_split, folder / "none.tsv", reason="no-outcome")


CELLS = st.sampled_from(["01", "sub-01", "02", "sub-", "", "n/a", "train", "test", "x", '"', "\r"])
TABLES = st.lists(st.lists(CELLS, max_size=4).map("\t".join), max_size=6).map("\n".join)


@given(
    header=st.sampled_from(["participant_id\tpart\n", "participant_id\tfold\n", "fold\n", ""]),
    body=st.one_of(TABLES.map(str.encode), st.binary(max_size=80)),
)
def test_any_file_is_read_or_refused(folder, header, body):
    file = folder / "any.tsv"
    file.write_bytes(header.encode() + body)
    try:
        split = read_split(file)
    except CallRefused:
        return
    assert len(set(split.of.values())) > 1
    assert all(split.of) and all(split.of.values())


def split_of(*sides, parts):
    return Split({f"{row:04d}": side for row, side in enumerate(sides)}, parts, "split.tsv")


def test_folds_are_counted_in_the_order_of_their_names(make_outcome):
    outcome = make_outcome([1.0, 2.0, 3.0, 4.0], "number")
    split = split_of("10", "9", "1", "9", parts=False)
    assert cut_by_file(outcome, split).tolist() == [[2, 1, 0, 1]]
    assert cut_by_file(outcome.take(np.array([0, 1])), split).tolist() == [[2, 1]]


@pytest.mark.parametrize("parts, sides", [(True, ("train", "test")), (False, ("1", "2"))])
def test_a_family_on_two_sides_is_a_leak_and_named(make_outcome, parts, sides):
    outcome = make_outcome([1.0, 2.0, 3.0, 4.0], "number", ["a", "b", "b", "a"])
    split = split_of(sides[0], sides[0], sides[1], sides[0], parts=parts)
    told = refusal_of(cut_by_file, outcome, split, reason="leak")
    assert f"family b: sub-0001 in {sides[0]}, sub-0002 in {sides[1]}" in told
    assert "family a" not in told


def test_train_and_validation_are_one_side(make_outcome):
    outcome = make_outcome([1.0, 2.0, 3.0, 4.0], "number", ["a", "a", "b", "b"])
    split = split_of("train", "validation", "test", "test", parts=True)
    assert cut_by_file(outcome, split).tolist() == [[NO_FOLD, NO_FOLD, 0, 0]]


@pytest.mark.parametrize(
    "values, kind, sides, found",
    [
        ([0, 1, 0, 0], "class", ("train", "train", "test", "test"), "no '1' in test"),
        ([0, 0, 0, 1], "class", ("train", "validation", "test", "test"), "no '1' in train"),
        ([1.0, 2.0, 3.0, 3.0], "number", ("train", "train", "test", "test"), "one value in test"),
        ([0, 1, 0, 1], "class", ("train",) * 4, "all on one side"),
        ([0, 0, 0, 0], "class", ("train", "train", "test", "test"), "the same value"),
    ],
)
def test_sides_that_tell_nothing_are_refused(make_outcome, values, kind, sides, found):
    split = split_of(*sides, parts=True)
    assert found in refusal_of(cut_by_file, make_outcome(values, kind), split, reason="too-few")


def test_who_is_not_on_both_sides_is_told():
    split = split_of("1", "2", "1", parts=False)
    first, second = match_split(split, ["0000", "0001", "x"])
    assert "1 of 3 people" in first and first.endswith("sub-x")
    assert second.startswith("1 people")
    assert match_split(split, ["0000", "0001", "0002"]) == ()


def test_a_split_of_nobody_shows_the_nearest_labels():
    told = refusal_of(match_split, split_of("1", "2", parts=False), ["1", "2"], reason="no-outcome")
    assert "1 (nearest there: 0001)" in told
