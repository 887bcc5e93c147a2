"""Motion and dummy scans out of tables of every era."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nilearn.interfaces.fmriprep import load_confounds

from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare.confounds import frame_displacement, read_confounds, read_nuisance


def write_table(folder, columns):
    path = folder / "confounds.tsv"
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n")
    return path


def read(folder, columns, volumes=4):
    return read_confounds(write_table(folder, columns), "confounds.tsv", volumes)


def refusal_of(folder, columns, volumes=4):
    with pytest.raises(RunRefused) as caught:
        read(folder, columns, volumes)
    assert (caught.value.reason, caught.value.file) == ("bad-confounds", "confounds.tsv")
    return caught.value


FD = ["n/a", "0.1", "0.2", "0.3"]


@pytest.mark.parametrize("name", ["framewise_displacement", "FramewiseDisplacement"])
def test_displacement_is_found_under_the_name_of_each_era(tmp_path, name):
    confounds = read(tmp_path, {"csf": [1, 2, 3, 4], name: FD, "trans_x": [0, 0, 0, 0]})
    assert confounds.displacement.tolist() == [0, 0.1, 0.2, 0.3]
    assert (confounds.dummy_scans, confounds.notices) == (0, ())


@pytest.mark.parametrize("cell", ["n/a", "nan", "NaN", "NA", "", "0.0"])
def test_first_displacement_missing(tmp_path, cell):
    """It is no motion; and of a run without its dummy scans the first one is none either."""
    columns = {
        "framewise_displacement": [cell, "0.1", "0.2", "0.3"],
        "non_steady_state_outlier00": [1, 0, 0, 0],
    }
    confounds = read(tmp_path, columns)
    assert confounds.displacement.tolist() == [0, 0.1, 0.2, 0.3]
    assert confounds.kept_displacement == (0, 0.2, 0.3)


def test_shared_tables_of_fmriprep_give_small_displacements(shared_data):
    func = shared_data / "fmriprep_like" / "sub-01" / "func"
    path = func / "sub-01_task-rest_run-01_desc-confounds_timeseries.tsv"
    displacement = read_confounds(path, path.name, 100).displacement
    assert displacement[0] == 0
    assert 0 < np.median(displacement) < 0.5
    # Two spikes were planted, and each moves the head there and back.
    assert set(np.argsort(displacement)[-4:]) <= {37, 38, 71, 72}


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=2, max_size=30))
def test_displacement_survives_the_table(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("table")
    columns = {"framewise_displacement": ["n/a", *map(repr, values)]}
    displacement = read(folder, columns, len(values) + 1).displacement
    assert displacement.tolist() == [0, *values]


def test_no_table_is_a_notice(tmp_path):
    confounds = read_confounds(None, None, 4)
    assert [notice.code for notice in confounds.notices] == ["no-confounds"]
    assert (confounds.displacement, confounds.dummy_scans) == (None, 0)


@pytest.mark.parametrize("text", ["", "0.1\t0.2\n0.1\t0.3\n"])
def test_table_without_header_is_a_notice(tmp_path, text):
    path = tmp_path / "confounds.tsv"
    path.write_text(text)
    confounds = read_confounds(path, "confounds.tsv", 2)
    assert [notice.code for notice in confounds.notices] == ["confounds-unreadable"]
    assert confounds.displacement is None


def test_table_without_motion_still_tells_dummy_scans(tmp_path):
    confounds = read(tmp_path, {"non_steady_state_outlier00": [1, 0, 0, 0]})
    assert [notice.code for notice in confounds.notices] == ["confounds-unreadable"]
    assert (confounds.displacement, confounds.dummy_scans) == (None, 1)


@pytest.mark.parametrize("volumes", [3, 5])
def test_rows_must_match_volumes(tmp_path, volumes):
    error = refusal_of(tmp_path, {"framewise_displacement": FD}, volumes)
    assert (error.expected, error.found) == (f"{volumes} rows, one per volume", "4 rows")


@pytest.mark.parametrize("cell", ["n/a", "much", "", "inf", "nan"])
def test_what_is_no_number_is_refused_with_its_place(tmp_path, cell):
    error = refusal_of(tmp_path, {"x": [1] * 4, "framewise_displacement": ["n/a", "0", cell, "0"]})
    assert "framewise_displacement" in error.expected
    assert "row 3" in error.found


def test_ragged_rows_are_refused(tmp_path):
    path = tmp_path / "confounds.tsv"
    path.write_text("csf\tframewise_displacement\n1\tn/a\n2\n")
    with pytest.raises(RunRefused) as caught:
        read_confounds(path, "confounds.tsv", 2)
    assert caught.value.reason == "bad-confounds"


def test_dummy_scans_from_columns(tmp_path):
    columns = {
        "framewise_displacement": FD,
        "non_steady_state_outlier00": [1, 0, 0, 0],
        "non_steady_state_outlier01": [0, 1, 0, 0],
    }
    assert read(tmp_path, columns).dummy_scans == 2


def test_later_non_steady_states_are_no_dummy_scans(tmp_path):
    columns = {"framewise_displacement": FD, "non_steady_state_outlier00": [0, 0, 1, 0]}
    assert read(tmp_path, columns).dummy_scans == 0


def plain_frame_displacement(displacement, tr, frames, frame_time):
    values = []
    for frame in range(frames):
        position = frame * frame_time / tr
        if abs(position - round(position)) < 1e-6:
            values.append(displacement[round(position)])
        else:
            values.append(
                max(displacement[math.floor(position)], displacement[math.ceil(position)])
            )
    return values


@pytest.mark.parametrize(
    ("tr", "frame_time"), [(2.0, 0.72), (0.72, 0.72), (0.8, 2.0), (1.44, 0.72)]
)
def test_frame_takes_the_larger_of_its_two_volumes(tr, frame_time):
    displacement = np.random.default_rng(0).uniform(0, 1, 50)
    frames = int(49 * tr / frame_time) + 1
    expected = plain_frame_displacement(displacement, tr, frames, frame_time)
    assert frame_displacement(displacement, tr, frames, frame_time).tolist() == expected


SIX = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
# Before fMRIPrep 1.2.
OLD_SIX = ("X", "Y", "Z", "RotX", "RotY", "RotZ")


def nuisance_of(folder, columns, volumes=4, dummy_scans=0):
    return read_nuisance(write_table(folder, columns), "confounds.tsv", volumes, dummy_scans, 24)


def test_nuisance_is_what_nilearn_loads_of_the_table(simulated):
    bold = next(simulated.rglob("*_desc-preproc_bold.nii.gz"))
    table = next(bold.parent.glob("*_desc-confounds_timeseries.tsv"))
    expected, _ = load_confounds(
        str(bold), strategy=("motion", "wm_csf"), motion="full", wm_csf="basic", demean=False
    )
    nuisance = read_nuisance(table, table.name, 40, 0, 24)
    assert sorted(nuisance.names) == sorted(expected.columns)
    np.testing.assert_allclose(
        nuisance.values, expected[list(nuisance.names)], rtol=1e-4, atol=1e-7
    )


def test_nuisance_is_the_same_under_the_names_of_each_era(tmp_path):
    draw = np.random.default_rng(0).normal(size=(8, 4))
    now = nuisance_of(tmp_path, dict(zip((*SIX, "csf", "white_matter"), draw, strict=True)))
    then = nuisance_of(tmp_path, dict(zip((*OLD_SIX, "CSF", "WhiteMatter"), draw, strict=True)))
    assert now.names == then.names
    assert len(now.names) == 26
    np.testing.assert_array_equal(now.values, then.values)


def test_first_volume_after_dummy_scans_has_moved_from_the_last_of_them(tmp_path):
    nuisance = nuisance_of(tmp_path, {"trans_x": [9, 1, 3, 4]}, dummy_scans=2)
    assert nuisance.names[:2] == ("trans_x", "trans_x_derivative1")
    assert nuisance.values.tolist() == [[3, 2, 9, 4], [4, 1, 16, 1]]


def test_nuisance_is_as_much_as_the_table_knows(tmp_path):
    assert nuisance_of(tmp_path, {"csf": [1, 2, 3, 4], "dvars": FD}).names == ("csf",)


@pytest.mark.parametrize("columns", [None, {"dvars": FD}, {"1": [0.1] * 4}])
def test_nothing_known_is_nothing_to_remove(tmp_path, columns):
    path = None if columns is None else write_table(tmp_path, columns)
    nuisance = read_nuisance(path, "confounds.tsv", 4, 1, 24)
    assert (nuisance.names, nuisance.values.shape) == ((), (3, 0))


@pytest.mark.parametrize("column", [[1, 2, 3], [1, 2, "much", 4]])
def test_nuisance_of_another_run_or_of_no_numbers_is_refused(tmp_path, column):
    with pytest.raises(RunRefused) as caught:
        nuisance_of(tmp_path, {"csf": column})
    assert (caught.value.reason, caught.value.file) == ("bad-confounds", "confounds.tsv")
