"""A small anatomy and a small dataset, each made once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from slimbrain_app.simulation import Inputs, SimulationSettings, simulate_dataset
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


@dataclass(frozen=True)
class Files:
    """Three people from two sites whose series were drawn at random, and the atlas to them."""

    folder: Path

    @property
    def inputs(self) -> Inputs:
        return Inputs(
            series=self.folder / "series.npz",
            atlas=self.folder / "atlas.nii.gz",
            phenotype=self.folder / "people.csv",
        )

    @property
    def moments(self) -> Path:
        return self.folder / "moments.npz"

    def series(self) -> dict[str, np.ndarray]:
        with np.load(self.inputs.series) as archive:
            return dict(archive)

    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.inputs.phenotype, dtype=str, keep_default_na=False)

    def rewrite(self, folder: Path, series=None, table=None, atlas=None, moments=None) -> Inputs:
        """Write the files to another folder, with some content of their own."""
        folder.mkdir(exist_ok=True)
        inputs = Files(folder).inputs
        np.savez(inputs.series, **(self.series() if series is None else series))
        (self.table() if table is None else table).to_csv(inputs.phenotype, index=False)
        nibabel.save(nibabel.load(self.inputs.atlas) if atlas is None else atlas, inputs.atlas)
        if moments is not None:
            np.savez(Files(folder).moments, **moments)
            inputs = replace(inputs, moments=Files(folder).moments)
        return inputs


def make_atlas() -> nibabel.Nifti1Image:
    """Cut the brain into 12 blocks; axes run to the left and back, and are permuted."""
    numbers = np.kron(np.arange(1, 13).reshape(3, 2, 2), np.ones((12, 18, 12))).astype(np.int16)
    affine = nibabel.affines.from_matvec(np.diag([-4.0, -5.0, 5.0]), [72, 72, -50])
    return nibabel.Nifti1Image(np.pad(numbers, 1), affine).as_reoriented(
        np.array([[2, 1], [0, 1], [1, -1]])
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("recorded")
    random = np.random.default_rng(5)
    people = {
        "B_01": random.standard_normal((30, 12)),
        "A_02": random.standard_normal((24, 12)).astype(np.float16),
        "A_03": random.standard_normal((24, 12)),
        "A_09": random.standard_normal((24, 12)),
    }
    # Outside of this person's field of view.
    people["B_01"][:, 4] = 0
    (folder / "people.csv").write_text(
        "FILE_ID,SITE_ID,AGE_AT_SCAN,SEX,DX_GROUP,FIQ,func_mean_fd,TR\n"
        "B_01,North,12.5,2,1,101,0.31,2.0\n"
        "A_07,South,30,1,2,,0.1,1.5\n"
        "A_02,South,20,1,2,-9999,,1.5\n"
        "A_03,South,9,1,2,99,0.05,1.5\n"
    )
    nibabel.save(make_atlas(), folder / "atlas.nii.gz")
    np.savez(folder / "series.npz", **people)
    return Files(folder)
