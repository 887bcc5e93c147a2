"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with small example inputs, where there is one."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SLIMBRAIN_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("no folder of example inputs; set SLIMBRAIN_SHARED_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Derivatives of two simulated people, one coarse run each; not to be changed."""
    from slimbrain_app.simulation import SimulationSettings, simulate_dataset

    folder = tmp_path_factory.mktemp("simulated") / "fmriprep"
    settings = SimulationSettings(participants=2, volumes=40, voxel_size=6.0)
    simulate_dataset(folder, settings)
    return folder
