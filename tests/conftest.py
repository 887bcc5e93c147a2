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
