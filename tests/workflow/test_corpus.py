from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from slimbrain_app.errors import CallRefused
from slimbrain_app.prepare import prepare_run
from slimbrain_app.records import Contract
from slimbrain_app.settings import Prepare, PretrainSettings, Rank, Select
from slimbrain_app.workflow.corpus import name_datasets, plan_corpus

CONTRACT = Contract()


@pytest.fixture
def prepared(simulated, tmp_path):
    """Derivatives of two people and an output with all their runs prepared."""
    dataset = Path(shutil.copytree(simulated, tmp_path / "fmriprep"))
    output = tmp_path / "out"
    for todo in plan(dataset, output).todo:
        todo.folder.parent.mkdir(parents=True)
        prepare_run(todo.run, todo.folder, Prepare(), CONTRACT.span_seconds)
    return dataset, output


DEFAULTS = PretrainSettings()


def plan(dataset, output, settings=DEFAULTS, *others):
    return plan_corpus([dataset, *others], output, settings, CONTRACT)


def count(found) -> tuple[int, int, int]:
    return len(found.recordings), len(found.todo), len(found.refused)


def test_datasets_are_named_by_as_little_as_tells_them_apart():
    folders = [Path("/a/one/fmriprep"), Path("/b/two/fmriprep"), Path("/c/xcp")]
    assert [one.name for one in name_datasets(folders[1:])] == ["fmriprep", "xcp"]
    assert [one.name for one in name_datasets(folders)] == ["one_fmriprep", "two_fmriprep", "c_xcp"]


def test_a_dataset_given_twice_is_refused(tmp_path):
    with pytest.raises(CallRefused, match="more than once"):
        name_datasets([tmp_path, tmp_path / "." / "x" / ".."])


def test_runs_prepared_before_are_used_and_nothing_is_left_to_do(prepared):
    assert count(plan(*prepared)) == (2, 0, 0)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda bold: os.utime(bold, (0, 0)), (2, 0, 0)),
        (lambda bold: bold.write_bytes(bold.read_bytes()[:-1] + b"\1"), (1, 1, 0)),
    ],
    ids=["time", "content"],
)
def test_a_run_is_prepared_again_if_its_content_changed_not_if_its_time_did(
    prepared, change, counts
):
    change(next(prepared[0].rglob("sub-01*_bold.nii.gz")))
    assert count(plan(*prepared)) == counts


def test_runs_prepared_otherwise_are_kept_apart(prepared):
    dataset, output = prepared
    other = plan(dataset, output, PretrainSettings(prepare=Prepare(dummy_scans=1)))
    assert count(other) == (0, 2, 0)
    before = {recording.prepared.folder for recording in plan(dataset, output).recordings}
    assert before.isdisjoint(todo.folder for todo in other.todo)


def test_settings_of_training_do_not_ask_for_preparing_again(prepared):
    dataset, output = prepared
    assert count(plan(dataset, output, PretrainSettings(seed=1, rank=Rank(windows=2)))) == (2, 0, 0)


def test_runs_saved_by_the_participant_level_are_used(prepared):
    dataset, output = prepared
    (store,) = (output / "prepared").iterdir()
    shutil.move(store / "sub-01", output / "sub-01")
    shutil.rmtree(output / "prepared")
    assert count(plan(dataset, output)) == (1, 1, 0)


@pytest.fixture
def elsewhere(prepared, tmp_path) -> Path:
    """A copy of the folder of prepared runs."""
    (store,) = (prepared[1] / "prepared").iterdir()
    return Path(shutil.copytree(store, tmp_path / "elsewhere"))


def test_a_folder_of_prepared_runs_is_a_dataset(elsewhere, tmp_path):
    found = plan(elsewhere, tmp_path / "new")
    people = {recording.person for recording in found.recordings}
    assert people == {"elsewhere/sub-01", "elsewhere/sub-02"}


def test_same_label_in_two_datasets_is_two_people(prepared, elsewhere):
    found = plan(*prepared, DEFAULTS, elsewhere)
    assert len({recording.person for recording in found.recordings}) == 4


def test_labels_must_be_in_at_least_one_dataset(prepared, elsewhere):
    shutil.rmtree(elsewhere / "sub-02")
    second, third = (PretrainSettings(select=Select(participants=(x,))) for x in ("02", "03"))
    assert count(plan(*prepared, second, elsewhere)) == (1, 0, 0)
    with pytest.raises(CallRefused, match="no-participant"):
        plan(*prepared, third, elsewhere)


def test_filters_that_leave_none_of_the_prepared_runs_are_told(elsewhere, tmp_path):
    settings = PretrainSettings(select=Select(tasks=("movie",)))
    with pytest.raises(CallRefused, match="no-runs"):
        plan(elsewhere, tmp_path / "new", settings)


@pytest.mark.parametrize("column", ["site", "SITE_ID", "Site"])
def test_sites_come_from_the_table_of_participants(prepared, column):
    dataset, output = prepared
    text = f"participant_id\tage\t{column}\nsub-01\t20\tNYU\nsub-02\t30\tn/a\n"
    (dataset / "participants.tsv").write_text(text)
    assert [one.site for one in plan(dataset, output).recordings] == ["NYU", None]
