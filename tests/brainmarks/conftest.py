"""The suite's templates, stood in for by the shipped brain, a small package, a cohort."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from slimbrain_app.brainmarks.space import TEMPLATE, VOXELS, suite_grid
from slimbrain_app.model.packages import Package
from slimbrain_app.prepare import grid
from slimbrain_app.simulation import SimulationSettings, simulate_dataset


def write_image(path: Path, values: np.ndarray, affine: np.ndarray, tr: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, 1)
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
        image.header.set_xyzt_units("mm", "sec")
    image.to_filename(path)
    return path


@pytest.fixture(scope="session")
def brain() -> np.ndarray:
    """A brain of as many voxels as the suite's on its grid, (x, y, z)."""
    suite, model = suite_grid(), grid.model_grid()
    coordinates = grid.point_coordinates(model, grid.points_of(suite), suite)
    inside = grid.sample_mask(grid.template_brain(), coordinates)
    depth = distance_transform_edt(inside) - distance_transform_edt(~inside)
    mask = np.zeros(inside.size, bool)
    mask[np.argsort(-depth, axis=None, kind="stable")[:VOXELS]] = True
    return mask.reshape(inside.shape)


@pytest.fixture
def templates(brain, tmp_path, monkeypatch) -> Path:
    """A TEMPLATEFLOW_HOME with the mask alone."""
    home = tmp_path / "templateflow"
    name = f"tpl-{TEMPLATE}/tpl-{TEMPLATE}_res-02_desc-brain_mask.nii.gz"
    write_image(home / name, brain.astype(np.uint8), suite_grid().affine)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def package(small_package) -> Package:
    return small_package


@pytest.fixture(scope="session")
def relabelled(tmp_path_factory) -> Path:
    """Twelve simulated people in the model's space, which are said to be in the suite's."""
    folder = tmp_path_factory.mktemp("twelve") / "fmriprep"
    settings = SimulationSettings(participants=12, volumes=16, voxel_size=6.0)
    simulate_dataset(folder, settings)
    for path in folder.rglob("*space-MNI152NLin2009cAsym*"):
        path.rename(path.with_name(path.name.replace("MNI152NLin2009cAsym", TEMPLATE)))
    return folder


@pytest.fixture
def cohort(relabelled, tmp_path) -> Path:
    """A copy of them that may be changed."""
    return Path(shutil.copytree(relabelled, tmp_path / "fmriprep"))
