"""A cohort as a dataset of the suite: who is in which part, and what is written of each run."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app import CallRefused, RunRefused
from slimbrain_app.bids.discover import discover
from slimbrain_app.brainmarks.cohort import export_cohort, sort_classes, split_people
from slimbrain_app.brainmarks.rows import ATLAS, average_parcels, normalise, read_parcels, read_rows
from slimbrain_app.brainmarks.space import TEMPLATE, VOXELS, suite_grid
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.settings import Prepare, Select

from .conftest import write_image

PARTS = {"train", "validation", "test"}


def find_runs(dataset):
    return discover(dataset, Select(), Prepare(space=TEMPLATE), stay=True).runs


def export(dataset, folder, outcome="sex", phenotype=None, say=lambda text: None):
    return export_cohort(dataset, folder, outcome, phenotype, say)


@given(st.lists(st.sampled_from("abc"), min_size=15, max_size=60))
def test_a_person_is_in_one_part_and_each_class_in_all(labels):
    labels += [label for label in "abc" for _ in range(5)]
    classes = {f"{number:03d}": label for number, label in enumerate(labels)}
    parts = split_people(classes)
    assert parts.keys() == classes.keys()
    for label in "abc":
        assert {parts[person] for person in classes if classes[person] == label} == PARTS
    assert split_people(dict(reversed(classes.items()))) == parts


def test_numbers_become_three_classes_in_their_order():
    values = np.random.default_rng(0).permutation(np.arange(20.0, 80.0, 2))
    outcome = Outcome("age", "number", values, [f"{i:02d}" for i in range(30)])
    classes = sort_classes(outcome)
    assert sorted(Counter(classes.values()).values()) == [10, 10, 10]
    labels = np.array([classes[person] for person in outcome.people])[np.argsort(values)]
    assert labels.tolist() == sorted(labels)


@pytest.mark.parametrize("labels", [["a"] * 6 + ["b"] * 4, ["a"] * 9])
def test_too_few_of_a_class_are_refused(labels):
    outcome = Outcome("group", "class", np.array(labels), [f"{i}" for i in range(len(labels))])
    with pytest.raises(CallRefused, match="too-few"):
        sort_classes(outcome)


def make_run(cohort, values, affine):
    """The first run, with other numbers on another grid."""
    run = find_runs(cohort)[0]
    for path, image in ((run.bold, values), (run.mask, np.ones(values.shape[:3], np.uint8))):
        write_image(path, image, affine)
    run.confounds.write_text("framewise_displacement\n" + "0\n" * values.shape[3])
    return run


def test_on_the_suites_grid_values_are_taken_as_they_are(cohort, brain):
    random = np.random.default_rng(0)
    values = random.normal(size=(*brain.shape, 3)).astype(np.float32)
    expected = [[values[x, y, z, t] for z, y, x in np.argwhere(brain.T)[::997]] for t in range(3)]
    for flips in (1, -1):
        affine = suite_grid().affine.copy()
        affine[0] = [2 * flips, 0, 0, -90 * flips]
        run = make_run(cohort, values[::flips], affine)
        rows = read_rows(run, brain.T).values
        np.testing.assert_array_equal(rows[:, ::997], expected)


def test_another_grid_is_read_linearly_and_nothing_beyond_it(cohort, brain):
    # Values that are x, y and z in mm: linear interpolation gives them exactly.
    shape, affine = (40, 50, 40), np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = (-78, -98, -70)
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    rows = read_rows(make_run(cohort, places.astype(np.float32), affine), brain.T).values
    suite = suite_grid().affine
    expected = (np.argwhere(brain.T)[:, ::-1] @ suite[:3, :3].T + suite[:3, 3]).T
    near = affine[:3, 3]
    far = near + 4 * (np.array(shape) - 1)
    inside = ((near <= expected.T) & (far >= expected.T)).all(axis=1)
    assert 0 < np.count_nonzero(~inside) < VOXELS / 2
    np.testing.assert_allclose(rows[:, inside], expected[:, inside], atol=1e-3)
    outside = ((near - 4 > expected.T) | (far + 4 < expected.T)).any(axis=1)
    assert not rows[:, outside].any()


def test_dummy_scans_are_left_out_and_gaps_refused(cohort, brain):
    values = np.ones((*brain.shape, 3), np.float32) * np.arange(3, dtype=np.float32)
    run = make_run(cohort, values, suite_grid().affine)
    run.confounds.write_text("non_steady_state_outlier00\n1\n0\n0\n")
    assert read_rows(run, brain.T).values[:, 5].tolist() == [1, 2]
    values[tuple(np.argwhere(brain)[9])][2] = np.nan
    with pytest.raises(RunRefused, match=r"nan-volumes.*the first is 2"):
        read_rows(make_run(cohort, values, suite_grid().affine), brain.T)


def test_normalising_can_be_undone(brain):
    rows = np.random.default_rng(0).normal(1000, 20, (30, 500)).astype(np.float32)
    rows[:, 7] = 50
    kept = normalise(rows)
    assert not (kept.values[:, 7].any() or kept.mean[:, 7].any() or kept.deviation[:, 7].any())
    undone = kept.values.astype(np.float32) * kept.deviation + kept.mean
    np.testing.assert_allclose(np.delete(undone, 7, 1), np.delete(rows, 7, 1), atol=0.05)


def test_parcels_are_means_of_what_moves(templates, brain):
    labels = np.zeros(brain.shape, np.int16)
    labels[brain] = np.arange(VOXELS) % 400 + 1
    write_image(templates / f"tpl-{TEMPLATE}/tpl-{TEMPLATE}_{ATLAS}", labels, suite_grid().affine)
    parcels = read_parcels(brain.T)
    rows = np.random.default_rng(0).normal(size=(3, VOXELS)).astype(np.float32)
    rows[:, ::5] = 1
    used = [rows[:, (parcels == k) & (np.arange(VOXELS) % 5 > 0)].mean(1) for k in (1, 250, 400)]
    np.testing.assert_allclose(average_parcels(rows, parcels)[:, [0, 249, 399]].T, used, atol=1e-5)
    labels[labels == 400] = 0
    write_image(templates / f"tpl-{TEMPLATE}/tpl-{TEMPLATE}_{ATLAS}", labels, suite_grid().affine)
    with pytest.raises(CallRefused, match="atlas-bad"):
        read_parcels(brain.T)


def test_a_column_that_is_not_there_is_refused_as_elsewhere(templates, cohort, tmp_path):
    with pytest.raises(CallRefused, match=r"no-outcome.*no column 'sexx'.*try sex"):
        export(cohort, tmp_path / "out", "sexx")
    assert not (tmp_path / "out").exists()


def test_runs_in_other_spaces_only_are_refused_with_what_helps(templates, simulated, tmp_path):
    with pytest.raises(CallRefused, match=rf"no-runs.*\[no-space\].*{TEMPLATE}:res-2"):
        export(simulated, tmp_path / "out")


def test_nothing_is_overwritten(templates, cohort, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CallRefused, match=r"usage.*something there already"):
        export(cohort, tmp_path / "out")


def test_a_missing_extra_is_named_with_what_installs_it(templates, cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CallRefused, match=r"extra-missing.*pip install \"slimbrain\[brainmarks\]"):
        export(cohort, tmp_path / "out")


def test_the_command_says_in_one_line_what_is_wrong(templates, cohort, tmp_path):
    program = "from slimbrain_app.cli.tools import main; raise SystemExit(main())"
    words = [sys.executable, "-c", program, "export", "brainmarks"]
    said = subprocess.run(
        [*words, cohort, tmp_path / "out", "--outcome", "height"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert said.returncode == 65
    assert said.stderr.startswith("slimbrain-tools: [no-outcome]")
    assert len(said.stderr.splitlines()) == 1
