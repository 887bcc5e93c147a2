"""A small package, images, and where a run's BOLD file lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from slimbrain_app.prepare.grid import model_grid, template_brain


@pytest.fixture(scope="session")
def small(small_package) -> Path:
    """Where that package is."""
    return small_package.folder


def _make_image(seed: int, volumes: int = 16) -> nibabel.Nifti1Image:
    """Noise on a brain of 8 mm voxels; whole numbers, a volume each 2 s."""
    brain = template_brain()[::4, ::4, ::4]
    random = np.random.default_rng(seed)
    noise = (
        random.normal(0, 100, (*brain.shape, volumes))
        + random.normal(9000, 500, brain.shape)[..., None]
    )
    values = np.where(brain[..., None], noise, 0).round().astype(np.int16)
    image = nibabel.Nifti1Image(values, model_grid().affine @ np.diag([4, 4, 4, 1]))
    image.header.set_zooms((8, 8, 8, 2))
    image.header.set_xyzt_units("mm", "sec")
    return image


@pytest.fixture(scope="session")
def make_image() -> Callable[..., nibabel.Nifti1Image]:
    return _make_image


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """Paths of four images that lie in no folder of derivatives."""
    folder = tmp_path_factory.mktemp("images")
    for seed in range(4):
        _make_image(seed).to_filename(folder / f"{seed}.nii.gz")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="session")
def find_bold() -> Callable[[Path, str], Path]:
    """The one BOLD file of a person in the model's space."""

    def find_bold(dataset: Path, label: str) -> Path:
        (path,) = dataset.glob(f"sub-{label}/func/*_desc-preproc_bold.nii.gz")
        return path

    return find_bold
