"""``slimbrain-tools simulate``: which options go together, and that they arrive."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from slimbrain_app.cli.tools import main

FILES = ("--roi-timeseries", "series.npz", "--atlas", "atlas.nii", "--phenotype", "people.csv")


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """One person, two regions: the left and the right half."""
    monkeypatch.chdir(tmp_path)
    halves = np.ones((40, 40, 40), np.int16)
    halves[20:] = 2
    affine = nibabel.affines.from_matvec(np.diag([4.0, 4.0, 4.0]), [-80, -100, -60])
    nibabel.save(nibabel.Nifti1Image(halves, affine), "atlas.nii")
    np.savez("series.npz", a_1=np.random.default_rng(0).standard_normal((30, 2)))
    Path("people.csv").write_text("FILE_ID,TR\na_1,2.0\n")
    return tmp_path


def test_prepared_runs_are_written_and_printed(files, capsys):
    options = ("--prepared", "--voxel-size", "6", "--nprocs", "1", "--tsnr", "50")
    assert main(["simulate", "out", *FILES, *options]) == 0
    (printed,) = capsys.readouterr().out.splitlines()
    assert (files / printed / "signal.npy").is_file()
    assert "- tsnr: 50.0" in (files / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (FILES[:4], "--phenotype"),
        (FILES[2:], "--roi-timeseries"),
        ((*FILES, "--runs", "2", "--tr", "2"), "--runs, --tr"),
        ((*FILES, "--nprocs", "0"), "--nprocs 0"),
        (("--prepared",), "--prepared"),
        (("--tsnr", "50", "--moments", "m.npz"), "--moments, --tsnr"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(files, capsys, options, named):
    assert main(["simulate", "out", *options]) == 64
    assert named in capsys.readouterr().err
    assert not (files / "out").exists()


def test_files_that_do_not_fit_end_the_call_as_bad_data(files, capsys):
    Path("people.csv").write_text("FILE_ID\na_1\n")
    assert main(["simulate", "out", *FILES]) == 65
    assert "[cohort-bad]" in capsys.readouterr().err
