from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from slimbrain_app.bids.discover import discover_participant
from slimbrain_app.bids.entities import parse_name
from slimbrain_app.errors import CallRefused
from slimbrain_app.prepare import prepare_run
from slimbrain_app.prepare.store import load_prepared
from slimbrain_app.records import Contract
from slimbrain_app.settings import Prepare, PretrainSettings, Select
from slimbrain_app.simulation import CohortSettings, Inputs, simulate_cohort

COARSE = CohortSettings(voxel_size=6.0, seed=2)
ARRAYS = ("signal", "mean", "scale", "voxels")


@pytest.fixture(scope="module")
def derivatives(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "fmriprep"
    simulate_cohort(folder, files.inputs, COARSE)
    return folder


@pytest.fixture(scope="module")
def prepared(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "prepared"
    simulate_cohort(folder, files.inputs, COARSE, prepared=True)
    return folder


def list_prepared(folder: Path) -> dict[str, Path]:
    found = sorted(folder.glob("sub-*/func/*_desc-slimbrain_prepared"))
    return {path.name.partition("_")[0].removeprefix("sub-"): path for path in found}


def read_bytes(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refuse(folder, inputs, settings=COARSE, **options) -> CallRefused:
    with pytest.raises(CallRefused) as caught:
        simulate_cohort(folder, inputs, settings, **options)
    return caught.value


def test_short_way_gives_what_preparing_the_files_would_to_the_bit(derivatives, prepared, tmp_path):
    short = list_prepared(prepared)
    assert short.keys() == {"B01", "A02", "A03"}
    for label, folder in short.items():
        (run,) = discover_participant(derivatives, label, Select(), Prepare()).runs
        long = prepare_run(run, tmp_path / label, Prepare(), Contract().span_seconds)
        for name in ARRAYS:
            expected = np.load(long.folder / f"{name}.npy")
            np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), expected)
        record = load_prepared(folder)
        np.testing.assert_allclose(record.displacement, long.displacement, atol=1e-6)
        for name in ("volumes", "voxels", "tr", "dummy_scans", "coverage", "mean", "deviation"):
            assert getattr(record, name) == getattr(long, name)
        assert record.clipped_values == long.clipped_values
        assert record.notices == long.notices


def test_two_processes_give_the_same_bytes_and_tell_runs_in_the_same_order(
    prepared, files, tmp_path
):
    told: list[Path] = []
    paths = simulate_cohort(
        tmp_path / "out", files.inputs, COARSE, prepared=True, nprocs=2, watch=told.append
    )
    assert read_bytes(tmp_path / "out") == read_bytes(prepared)
    assert list(paths) == told
    assert [path.parts[-3] for path in paths] == ["sub-B01", "sub-A02", "sub-A03"]


def test_person_is_the_same_whoever_else_takes_part(prepared, files, tmp_path):
    table = files.table().iloc[[2, 0]]
    inputs = files.rewrite(tmp_path / "files", table=table)
    simulate_cohort(tmp_path / "out", inputs, COARSE, prepared=True)
    alone, together = list_prepared(tmp_path / "out"), list_prepared(prepared)
    assert alone.keys() == {"A02", "B01"}
    for label in alone:
        for name in ARRAYS:
            content = (alone[label] / f"{name}.npy").read_bytes()
            assert content == (together[label] / f"{name}.npy").read_bytes()


def test_fingerprint_tells_what_made_a_run(prepared, files, tmp_path):
    fingerprints = {load_prepared(list_prepared(prepared)["B01"]).fingerprint}
    other = {**files.series(), "B_01": files.series()["B_01"][::-1]}
    reversed_ = files.rewrite(tmp_path / "files", series=other)
    for folder, inputs, seed in ((tmp_path / "a", files.inputs, 3), (tmp_path / "b", reversed_, 2)):
        settings = CohortSettings(participants=1, voxel_size=6.0, seed=seed)
        simulate_cohort(folder, inputs, settings, prepared=True)
        fingerprints.add(load_prepared(list_prepared(folder)["B01"]).fingerprint)
    assert len(fingerprints) == 3
    run = json.loads((list_prepared(prepared)["B01"] / "run.json").read_text())
    assert run["settings"]["person"]["source"] == "B_01"
    assert run["settings"]["inputs"].keys() == {"series.npz", "atlas.nii.gz"}


def test_regions_follow_the_series_they_were_given(files, tmp_path):
    """Found from outside: nilearn's means over the atlas, against the archive."""
    from nilearn.maskers import NiftiLabelsMasker

    settings = CohortSettings(participants=1, tsnr=80.0)
    (bold,) = simulate_cohort(tmp_path / "out", files.inputs, settings)
    masker = NiftiLabelsMasker(nibabel.load(files.inputs.atlas), resampling_target="data")
    means, recorded = masker.fit_transform(bold), files.series()["B_01"]
    agreement = [
        np.corrcoef(means[:, region], recorded[:, region])[0, 1]
        for region in range(12)
        if recorded[:, region].any()
    ]
    assert min(agreement) > 0.8 and np.median(agreement) > 0.9
    crossed = np.corrcoef(means.T, recorded.T[[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]])[:12, 12:]
    assert np.median(np.abs(crossed)) < 0.4


def test_names_and_repetition_times_are_found_as_they_were_given(derivatives):
    assert all(
        parse_name(path.name) is not None for path in derivatives.rglob("sub-*") if path.is_file()
    )
    for label, tr, volumes in (("B01", 2.0, 30), ("A02", 1.5, 24), ("A03", 1.5, 24)):
        (run,) = discover_participant(derivatives, label, Select(), Prepare()).runs
        assert run.repetition_time.seconds == tr
        assert nibabel.load(run.bold).shape[3] == volumes
        assert run.notices == ()


def test_participants_are_listed_with_levels_and_units(derivatives, prepared):
    table = pd.read_csv(derivatives / "participants.tsv", sep="\t")
    assert table["participant_id"].tolist() == ["sub-B01", "sub-A02", "sub-A03"]
    assert table["sex"].tolist() == ["F", "M", "M"]
    assert table["age"].tolist() == [12.5, 20, 9]
    described = json.loads((derivatives / "participants.json").read_text())
    assert described.keys() == set(table.columns) - {"participant_id"}
    for name in ("participants.tsv", "participants.json"):
        assert (derivatives / name).read_bytes() == (prepared / name).read_bytes()


def test_description_says_who_made_the_dataset_and_that_it_is_half_real(derivatives, prepared):
    for folder, maker in ((derivatives, "SlimBrain simulator"), (prepared, "SlimBrain")):
        description = json.loads((folder / "dataset_description.json").read_text())
        assert description["GeneratedBy"][0]["Name"] == maker
        assert "License" not in description
        assert "real" in (folder / "README.md").read_text()


def test_people_who_moved_more_move_more(prepared):
    moved = {
        label: np.mean(load_prepared(folder).displacement)
        for label, folder in list_prepared(prepared).items()
    }
    assert moved["B01"] > 2 * moved["A03"]


def test_pretraining_finds_the_prepared_runs_and_their_sites(prepared, tmp_path):
    from slimbrain_app.workflow.corpus import plan_corpus

    plan = plan_corpus([prepared], tmp_path / "out", PretrainSettings(), Contract())
    assert not plan.refused and not plan.todo
    assert {(one.participant, one.site) for one in plan.recordings} == {
        ("B01", "North"),
        ("A02", "South"),
        ("A03", "South"),
    }


def test_participant_level_runs_on_the_derivatives(derivatives, tmp_path, capsys):
    from slimbrain_app.cli.app import main

    command = [str(derivatives), str(tmp_path / "out"), "participant", "--nprocs", "1"]
    assert main([*command, "--participant-label", "B01"]) == 0
    embeddings = list((tmp_path / "out").rglob("*_stat-mean_desc-slimbrain_embeddings.tsv"))
    assert len(embeddings) == 1
    assert all(np.isfinite(pd.read_csv(path, sep="\t")).all(axis=None) for path in embeddings)


@pytest.mark.parametrize("kind", ["derivatives", "prepared"])
def test_bids_validator_finds_no_error(kind, request):
    beside = Path(sys.executable).with_name("bids-validator-deno")
    validator = shutil.which("bids-validator-deno") or (beside if beside.exists() else None)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    command = [str(validator), "--format", "json", str(request.getfixturevalue(kind))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_folder_with_content_is_refused_and_left_alone(files, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert refuse(tmp_path, files.inputs).reason == "usage"
    assert read_bytes(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "fault", [{"participants": 0}, {"tsnr": 500.0}, {"tsnr": float("nan")}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused_by_name(files, tmp_path, fault):
    refusal = refuse(tmp_path / "out", files.inputs, CohortSettings(**fault))
    assert refusal.reason == "usage" and next(iter(fault)) in str(refusal)
    assert not (tmp_path / "out").exists()


def test_atlas_beside_the_brain_is_refused(files, tmp_path):
    atlas = nibabel.load(files.inputs.atlas)
    beside = atlas.affine.copy()
    beside[:3, 3] += 300
    moved = nibabel.Nifti1Image(np.asarray(atlas.dataobj), beside)
    inputs = files.rewrite(tmp_path, atlas=moved)
    refusal = refuse(tmp_path / "out", inputs)
    assert refusal.reason == "cohort-bad" and "none in 12 of 12" in str(refusal)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_where_the_files_do_not_fit(files, tmp_path):
    inputs = files.rewrite(tmp_path, table=files.table().drop(columns="TR"))
    assert refuse(tmp_path / "out", inputs).reason == "cohort-bad"
    assert not (tmp_path / "out").exists()


def test_recorded_people_of_the_examples_keep_their_regions_apart(shared_data, tmp_path):
    from nilearn.maskers import NiftiLabelsMasker

    folder = shared_data / "abide1_cc200"
    inputs = Inputs(
        series=folder / "timeseries.npz",
        atlas=folder / "cc200_roi_atlas.nii.gz",
        phenotype=folder / "phenotypic.csv",
        moments=folder / "moments.npz",
    )
    settings = CohortSettings(participants=2, voxel_size=4.0)
    for bold in simulate_cohort(tmp_path / "out", inputs, settings):
        table = pd.read_csv(tmp_path / "out" / "participants.tsv", sep="\t", index_col=0)
        source = table.loc[bold.parts[-3], "source_id"]
        with np.load(inputs.series) as archive:
            recorded = archive[source].astype(float)
        masker = NiftiLabelsMasker(nibabel.load(inputs.atlas), resampling_target="data")
        means = masker.fit_transform(bold)
        recorded = recorded[:, [int(label) - 1 for label in masker.labels_ if label]]
        present = recorded.std(axis=0) > 0
        means, recorded = means[:, present], recorded[:, present]
        regions = means.shape[1]
        agreement = np.diag(np.corrcoef(means.T, recorded.T)[:regions, regions:])
        assert np.median(agreement) > 0.85
        upper = np.triu_indices(regions, 1)
        connectivity = [np.corrcoef(one.T)[upper] for one in (means, recorded)]
        assert np.corrcoef(connectivity)[0, 1] > 0.8
