from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slimbrain_app.errors import CallRefused
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

SMALL = SimulationSettings(participants=1, runs=1, volumes=5, voxel_size=6.0, seed=1)


def _content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_same_settings_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        simulate_dataset(tmp_path / name, SMALL)
    assert _content(tmp_path / "one") == _content(tmp_path / "two")


def test_another_seed_gives_other_people(tmp_path):
    one, two = (simulate_dataset(tmp_path / str(s), replace(SMALL, seed=s))[0] for s in (1, 2))
    assert one.read_bytes() != two.read_bytes()


def test_participant_is_the_same_whatever_their_number(tmp_path):
    simulate_dataset(tmp_path / "one", SMALL)
    simulate_dataset(tmp_path / "two", replace(SMALL, participants=2))
    assert _content(tmp_path / "one" / "sub-01") == _content(tmp_path / "two" / "sub-01")


def test_run_is_the_same_whatever_their_number(tmp_path):
    simulate_dataset(tmp_path / "one", SMALL)
    first, second = simulate_dataset(tmp_path / "two", replace(SMALL, runs=2))
    assert (
        _content(tmp_path / "one" / "sub-01").items()
        <= _content(tmp_path / "two" / "sub-01").items()
    )
    assert first.read_bytes() != second.read_bytes()


def test_bold_files_are_returned_in_order(tmp_path):
    series = simulate_dataset(tmp_path / "out", replace(SMALL, participants=2, runs=2, volumes=2))
    names = [path.name.partition("_space")[0] for path in series]
    assert names == [
        f"sub-{sub}_task-rest_run-{run}" for sub in ("01", "02") for run in ("01", "02")
    ]
    assert all(path.is_file() for path in series)


def test_folder_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CallRefused) as refusal:
        simulate_dataset(tmp_path, SMALL)
    assert refusal.value.reason == "usage"
    assert _content(tmp_path) == {"notes.txt": b"mine"}


def test_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CallRefused):
        simulate_dataset(tmp_path / "out", SMALL)


def test_empty_folder_is_used(tmp_path):
    assert simulate_dataset(tmp_path, SMALL)[0].is_relative_to(tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        {"participants": 0},
        {"volumes": 1},
        {"tr": 0.0},
        {"tr": float("nan")},
        {"voxel_size": 0.5},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, fault):
    with pytest.raises(CallRefused, match=next(iter(fault))):
        simulate_dataset(tmp_path / "out", replace(SMALL, **fault))
    assert not (tmp_path / "out").exists()


def test_bids_validator_finds_no_error(dataset):
    beside = Path(sys.executable).with_name("bids-validator-deno")
    validator = shutil.which("bids-validator-deno") or (beside if beside.exists() else None)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    result = subprocess.run(
        [str(validator), "--format", "json", str(dataset)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_description_is_honest(dataset):
    description = json.loads((dataset / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert [tool["Name"] for tool in description["GeneratedBy"]] == ["SlimBrain simulator"]
    assert "no person was scanned" in description["HowToAcknowledge"]


def test_participants_are_listed(dataset, settings):
    table = pd.read_csv(dataset / "participants.tsv", sep="\t")
    assert list(table.columns) == ["participant_id", "age", "sex"]
    assert list(table["participant_id"]) == [path.name for path in sorted(dataset.glob("sub-*"))]
    assert len(table) == settings.participants


def test_nothing_temporary_is_left(dataset):
    hidden = [path.name for path in dataset.rglob(".*")]
    assert hidden == [".bidsignore"]


def test_sidecar_agrees_with_header_and_settings(run, settings):
    sidecar = json.loads(Path(str(run.bold).replace(".nii.gz", ".json")).read_text())
    assert sidecar["RepetitionTime"] == settings.tr == run.image.header.get_zooms()[3]
    assert run.image.shape[3] == settings.volumes


def test_background_is_exactly_zero(run):
    data = run.image.get_fdata()
    assert np.all(data[[0, -1]] == 0)
    assert np.mean(np.any(data != 0, axis=3)) < 0.5


def test_signal_to_noise_is_that_of_a_3_tesla_scanner(run):
    signal = run.signal
    ratio = np.median(signal.mean(axis=0) / signal.std(axis=0))
    assert 50 < ratio < 130


def test_networks_agree_within_more_than_between(run, regions):
    """After the usual regression of nuisance, from spheres around the published centres."""
    confounds = run.confounds.filter(regex="^(trans|rot)_.$|^csf$|^white_matter$|^global_signal$")
    design = np.column_stack([np.ones(len(confounds)), confounds - confounds.mean()])
    places = np.argwhere(run.mask) @ run.image.affine[:3, :3].T + run.image.affine[:3, 3]
    signal = run.signal
    means = np.column_stack(
        [
            signal[:, np.linalg.norm(places - centre, axis=1) < 6].mean(axis=1)
            for centre in regions.coordinates
        ]
    )
    cleaned = means - design @ np.linalg.lstsq(design, means, rcond=None)[0]
    correlation = np.corrcoef(cleaned.T)
    same = regions.network[:, None] == regions.network
    within = correlation[same & ~np.eye(len(same), dtype=bool)].mean()
    assert within > 0.15
    assert within > correlation[~same].mean() + 0.1
