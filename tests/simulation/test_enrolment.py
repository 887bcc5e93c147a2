from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest

from slimbrain_app.errors import CallRefused
from slimbrain_app.simulation.enrolment import enrol


def refusal_of(inputs) -> str:
    with pytest.raises(CallRefused) as caught:
        enrol(inputs, None)
    assert caught.value.reason == "cohort-bad"
    return str(caught.value)


def test_people_are_the_rows_with_a_series_in_the_tables_order(files):
    cohort = enrol(files.inputs, None)
    assert [person.source for person in cohort.volunteers] == ["B_01", "A_02", "A_03"]
    assert [person.label for person in cohort.volunteers] == ["B01", "A02", "A03"]
    assert [person.tr for person in cohort.volunteers] == [2.0, 1.5, 1.5]
    assert [person.site for person in cohort.volunteers] == ["North", "South", "South"]
    assert [person.displacement for person in cohort.volunteers] == [0.31, None, 0.05]


def test_first_so_many_people_are_taken(files):
    cohort = enrol(files.inputs, 2)
    assert [person.source for person in cohort.volunteers] == ["B_01", "A_02"]
    assert list(cohort.table["FILE_ID"]) == ["B_01", "A_02"]


def test_columns_may_be_called_as_in_bids(files, tmp_path):
    names = {"FILE_ID": "participant_id", "TR": "RepetitionTime", "SITE_ID": "site"}
    inputs = files.rewrite(tmp_path, table=files.table().rename(columns=names))
    assert enrol(inputs, None).volunteers == enrol(files.inputs, None).volunteers


def test_tabs_are_understood_by_the_files_name(files, tmp_path):
    table = tmp_path / "participants.tsv"
    files.table().to_csv(table, sep="\t", index=False)
    inputs = replace(files.inputs, phenotype=table)
    assert enrol(inputs, None).volunteers == enrol(files.inputs, None).volunteers


def test_all_files_and_columns_that_are_missing_are_listed_at_once(files, tmp_path):
    table = files.table().drop(columns=["FILE_ID", "TR"])
    inputs = files.rewrite(tmp_path, table=table)
    inputs.series.write_bytes(b"no archive")
    inputs.atlas.write_bytes(b"no image")
    inputs = replace(inputs, moments=tmp_path / "absent.npz")
    message = refusal_of(inputs)
    for part in ("FILE_ID or participant_id", "TR or RepetitionTime", "series.npz:", "atlas.nii"):
        assert part in message
    assert "absent.npz: No such file" in message


def test_all_that_is_wrong_with_people_is_listed_at_once_and_names_them(files, tmp_path):
    series = files.series()
    series["A_02"] = series["A_02"][:, :11]
    series["A_03"][3, 3] = np.nan
    table = files.table()
    table.loc[table["FILE_ID"] == "B_01", "TR"] = "soon"
    table.loc[table["FILE_ID"] == "A_03", "func_mean_fd"] = "-1"
    message = refusal_of(files.rewrite(tmp_path, series=series, table=table))
    assert "11 regions in the series, 12 in the atlas (A_02)" in message
    assert "values that aren't finite in the series (A_03)" in message
    assert "no TR from 0.1 to 10 s (B_01)" in message
    assert "func_mean_fd is no length (A_03)" in message


@pytest.mark.parametrize("tr", ["", "0", "2000", "nan", "inf"])
def test_tr_that_is_none_is_refused(files, tmp_path, tr):
    table = files.table()
    table.loc[0, "TR"] = tr
    assert "no TR" in refusal_of(files.rewrite(tmp_path, table=table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one[:10], "less than 28.08 s"),
        (lambda one: one[:, 0], "no table of numbers"),
        (lambda one: one.astype(str), "no table of numbers"),
        (np.zeros_like, "no region changes"),
        (lambda one: np.where(one > 1, np.inf, one), "aren't finite"),
    ],
)
def test_series_that_can_not_be_used_are_refused(files, tmp_path, change, message):
    series = files.series()
    series["B_01"] = change(series["B_01"])
    assert f"{message}" in refusal_of(files.rewrite(tmp_path, series=series))


def test_series_that_just_fills_a_window_is_taken(files, tmp_path):
    series = files.series()
    # 14.04 s between two volumes, three of them.
    table = files.table()
    table.loc[0, "TR"] = "7.02"
    series["B_01"] = series["B_01"][:5]
    assert enrol(files.rewrite(tmp_path, series=series, table=table), None).volunteers


def test_labels_that_collide_are_refused(files, tmp_path):
    series, table = files.series(), files.table()
    series["b01"] = series["B_01"]
    table.loc[1, "FILE_ID"] = "b01"
    message = refusal_of(files.rewrite(tmp_path, series=series, table=table))
    assert "(B_01)" in message and "(b01)" in message


def test_person_twice_in_the_table_is_refused(files, tmp_path):
    table = files.table()
    table.loc[1, "FILE_ID"] = "B_01"
    assert "more than one (B_01, B_01)" in refusal_of(files.rewrite(tmp_path, table=table))


def test_name_without_letters_is_refused(files, tmp_path):
    series, table = files.series(), files.table()
    series["__"] = series["B_01"]
    table.loc[1, "FILE_ID"] = "__"
    assert "no letter or digit" in refusal_of(files.rewrite(tmp_path, series=series, table=table))


def test_nobody_with_a_series_is_refused(files, tmp_path):
    table = files.table()
    table["FILE_ID"] = "no_filename"
    assert "nobody in column FILE_ID" in refusal_of(files.rewrite(tmp_path, table=table))


def test_long_lists_of_people_are_cut_and_counted(files, tmp_path):
    random = np.random.default_rng(0)
    series = {f"P{number}": random.standard_normal((30, 3)) for number in range(9)}
    table = files.table().iloc[:1].loc[[0] * 9].assign(FILE_ID=list(series))
    message = refusal_of(files.rewrite(tmp_path, series=series, table=table))
    assert "(P0, P1, P2, P3, P4 and 4 more)" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4, 4), 1.5), "whole numbers"),
        (np.zeros((4, 4, 4)), "no region"),
        (np.ones((4, 4, 4, 2)), "one volume"),
    ],
)
def test_image_that_is_no_atlas_is_refused(files, tmp_path, values, message):
    atlas = nibabel.Nifti1Image(values.astype(np.float32), np.eye(4))
    assert message in refusal_of(files.rewrite(tmp_path, atlas=atlas))


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ({"file_id": ["B_01"], "std": np.ones((1, 12))}, "no moments (A_02, A_03)"),
        ({"std": np.ones((1, 12))}, "no array file_id"),
        ({"file_id": ["B_01", "A_02"], "std": np.ones((1, 12))}, "no table"),
        (
            {"file_id": ["B_01", "A_02", "A_03"], "std": np.ones((3, 7))},
            "7 regions in the moments, 12 in the atlas",
        ),
        (
            {"file_id": ["B_01", "A_02", "A_03"], "std": -np.ones((3, 12))},
            "moments that are no deviations",
        ),
    ],
)
def test_moments_that_do_not_fit_are_refused(files, tmp_path, moments, message):
    assert message in refusal_of(files.rewrite(tmp_path, moments=moments))
