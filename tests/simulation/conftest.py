"""A small anatomy and a small dataset, each made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from slimbrain_app.simulation import SimulationSettings, simulate_dataset
from slimbrain_app.simulation.anatomy import Anatomy, load_anatomy
from slimbrain_app.simulation.networks import Regions, load_regions


@dataclass(frozen=True)
class SimulatedRun:
    """What a reader who knows only nibabel and pandas finds."""

    bold: Path

    def beside(self, ending: str) -> Path:
        return self.bold.with_name(self.bold.name.partition("_space-")[0] + ending)

    @property
    def image(self) -> nibabel.Nifti1Image:
        return nibabel.load(self.bold)

    @property
    def mask(self) -> np.ndarray:
        name = "_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz"
        return np.asarray(nibabel.load(self.beside(name)).dataobj) > 0

    @property
    def signal(self) -> np.ndarray:
        """Brain voxels, shape (volumes, voxels)."""
        return self.image.get_fdata()[self.mask].T

    @property
    def confounds(self) -> pd.DataFrame:
        return pd.read_csv(self.beside("_desc-confounds_timeseries.tsv"), sep="\t", na_values="n/a")


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    return load_anatomy(4.0)


@pytest.fixture(scope="session")
def regions() -> Regions:
    return load_regions()


@pytest.fixture(scope="session")
def settings() -> SimulationSettings:
    return SimulationSettings(participants=2, runs=1, volumes=100, voxel_size=4.0, seed=3)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, settings) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "derivatives"
    simulate_dataset(folder, settings)
    return folder


@pytest.fixture(scope="session")
def run(dataset) -> SimulatedRun:
    name = "sub-01_task-rest_run-01_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    return SimulatedRun(dataset / "sub-01" / "func" / name)
