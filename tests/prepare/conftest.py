"""Small runs, written as files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from slimbrain_app.prepare.grid import model_grid, template_brain
from slimbrain_app.records import RepetitionTime, Run

# 8 mm voxels that hold the whole template: few enough that a run is made in a blink.
COARSE_SHAPE = (25, 29, 25)
COARSE_AFFINE = np.array([[8.0, 0, 0, -96], [0, 8, 0, -132], [0, 0, 8, -78], [0, 0, 0, 1]])

MakeRun = Callable[..., Run]


def _brain_on(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The template's brain on another grid: voxels whose centres lie in it."""
    inverse = np.linalg.inv(model_grid().affine) @ affine
    points = np.indices(shape).reshape(3, -1)
    index = np.rint(inverse[:3, :3] @ points + inverse[:3, 3:]).astype(int)
    inside = ((index >= 0) & (index < 96)).all(axis=0)
    brain = np.zeros(points.shape[1], bool)
    brain[inside] = template_brain()[tuple(index[:, inside])]
    return brain.reshape(shape)


def _bold_like(mask: np.ndarray, volumes: int, seed: int = 0) -> np.ndarray:
    """Anatomy of about 10,000 and noise of 100 inside the mask, zeros outside; whole numbers."""
    noise = np.random.default_rng(seed)
    anatomy = noise.normal(10_000, 1_500, mask.shape)[..., None]
    series = anatomy + noise.normal(0, 100, (*mask.shape, volumes))
    return np.where(mask[..., None], np.rint(series), 0)


def _write_image(path: Path, data: np.ndarray, affine: np.ndarray, tr: float = 2.0) -> None:
    image = nibabel.Nifti1Image(data, affine)
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    if data.ndim > 3:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr, *[1] * (data.ndim - 4)))
    image.to_filename(path)


def _orientations() -> list[np.ndarray]:
    return [
        np.array([order, signs], float).T
        for order, signs in product(permutations(range(3)), product((1, -1), repeat=3))
    ]


@pytest.fixture(scope="session")
def brain_on() -> Callable[..., np.ndarray]:
    return _brain_on


@pytest.fixture(scope="session")
def bold_like() -> Callable[..., np.ndarray]:
    return _bold_like


@pytest.fixture(scope="session")
def write_image() -> Callable[..., None]:
    return _write_image


@pytest.fixture(scope="session")
def orientations() -> list[np.ndarray]:
    """All 48 ways to store a volume whose axes are those of the body, as nibabel puts them."""
    return _orientations()


@pytest.fixture(scope="session")
def coarse_affine() -> np.ndarray:
    return COARSE_AFFINE.copy()


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a series and its mask below a folder of its own, and return them as a run."""
    made = []

    def make(series: np.ndarray, mask: np.ndarray, affine: np.ndarray, **fields: Any) -> Run:
        folder = tmp_path / f"dataset-{len(made)}"
        made.append(folder)
        folder.mkdir()
        _write_image(folder / "bold.nii.gz", series, affine)
        _write_image(folder / "mask.nii.gz", mask.astype(np.uint8), affine)
        known: dict[str, Any] = {
            "entities": (("sub", "01"), ("task", "rest")),
            "dataset": folder,
            "bold": folder / "bold.nii.gz",
            "mask": folder / "mask.nii.gz",
            "confounds": None,
            "sidecars": (),
            "transforms": (),
            "space": "MNI152NLin2009cAsym",
            "rung": 0,
            "interpolations": 2,
            "repetition_time": RepetitionTime(seconds=2.0, origin="sidecar"),
            "notices": (),
        }
        return Run(**(known | fields))

    return make


@pytest.fixture
def coarse_mask() -> np.ndarray:
    return _brain_on(COARSE_SHAPE, COARSE_AFFINE)


@pytest.fixture
def make_coarse(make_run: MakeRun, coarse_mask: np.ndarray) -> MakeRun:
    """Write a series (25, 29, 25, volumes) in 8 mm voxels as a run."""

    def make(series: np.ndarray, mask: np.ndarray | None = None, **fields: Any) -> Run:
        return make_run(series, coarse_mask if mask is None else mask, COARSE_AFFINE, **fields)

    return make
