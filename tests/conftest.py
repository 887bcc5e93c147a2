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


@pytest.fixture(scope="session")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped package with heads of random weights: a number, two classes, three classes."""
    import numpy as np

    from slimbrain_app.model.package_heads import Heads, Reference
    from slimbrain_app.model.packages import (
        load_encoder,
        load_package,
        load_readout,
        save_package,
    )
    from slimbrain_app.records import Calibration, Head

    tiny = load_package("tiny")
    width = tiny.config.encoder.embedding_width
    draw = np.random.default_rng(0)
    quantiles = tuple(np.linspace(0, 1, 101))
    heads = (
        Head(outcome="age", kind="number", people=30, units="years", margin=9.5),
        Head(
            outcome="sex",
            kind="class",
            people=30,
            classes=("F", "M"),
            levels={"F": "female", "M": "male"},
            calibration=Calibration(slope=0.8, intercept=0.1),
            quantiles=quantiles,
        ),
        Head(outcome="site", kind="class", people=30, classes=("a", "b", "c")),
    )
    shapes = {head.outcome: (head.outputs, width) for head in heads}
    folder = tmp_path_factory.mktemp("packages") / "headed"
    save_package(
        folder,
        tiny.config,
        load_encoder(tiny),
        readout=load_readout(tiny),
        heads=Heads(
            heads=heads,
            weights={name: 0.2 * draw.standard_normal(shape) for name, shape in shapes.items()},
            biases={name: draw.standard_normal(shape[0]) for name, shape in shapes.items()},
            reference=Reference(np.zeros(width), np.eye(width), 1e6),
        ),
        card="# headed",
    )
    return folder
