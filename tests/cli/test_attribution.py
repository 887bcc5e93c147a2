"""Explained predictions, as a user meets them: real calls, real files."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from slimbrain_app.errors import Exit
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.package_heads import Heads, Reference
from slimbrain_app.model.packages import Config, save_package
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.records import Contract, Head
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

SLIMBRAIN = str(Path(sys.executable).with_name("slimbrain"))
SIZES = EncoderSizes(
    patch=(20, 16, 16, 16),
    width=8,
    heads=1,
    depths=(1, 1),
    strides=(),
    mask_unit=(2, 2, 2, 2),
    unit_attention=(True, False),
    deletion="token",
)


def call(dataset: Path, output: Path, *options: object) -> subprocess.CompletedProcess[str]:
    config = dataset.parent / "explain.toml"
    config.write_text("[output]\nattribution = true\n[rank]\nwindows = 1\n")
    command = [SLIMBRAIN, dataset, output, "participant", "--config", config, "--nprocs", 1]
    environment = {**os.environ, "COLUMNS": "200"}
    words = [str(word) for word in (*command, *options)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "fmriprep"
    simulate_dataset(folder, SimulationSettings(participants=1, runs=1, volumes=40, voxel_size=6.0))
    return folder


@pytest.fixture(scope="module")
def output(dataset, tmp_path_factory) -> Path:
    draw = np.random.default_rng(0)
    package = save_package(
        tmp_path_factory.mktemp("packages") / "quick",
        Config(preset="tiny", trained=False, seed=0, contract=Contract(), encoder=SIZES),
        Encoder(SIZES),
        heads=Heads(
            heads=(Head(outcome="age", kind="number", people=9, units="years"),),
            weights={"age": draw.standard_normal((1, 16))},
            biases={"age": np.array([40.0])},
            reference=Reference(np.zeros(16), np.eye(16), 1e6),
        ),
        card="# quick",
    )
    folder = tmp_path_factory.mktemp("output") / "out"
    result = call(dataset, folder, "--model", package.folder)
    assert result.returncode == Exit.DONE, result.stderr
    assert "explain" in result.stderr
    again = call(dataset, folder, "--model", package.folder)
    assert "Nothing was done" in again.stderr
    return folder


def find(output: Path, ending: str) -> Path:
    (path,) = output.glob(f"sub-01/func/*_desc-slimbrain_{ending}")
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.mark.slow
def test_map_parcels_and_windows_agree_with_the_prediction(output):
    (told,) = json.loads(find(output, "attribution.json").read_text())["Maps"]
    values = np.asarray(nibabel.load(find(output, "attribution.nii.gz")).dataobj)
    mask = np.asarray(nibabel.load(find(output, "mask.nii.gz")).dataobj) > 0
    (prediction,) = read_rows(find(output, "predictions.tsv"))
    difference = told["Output"] - told["Baseline"]
    assert told["Output"] == pytest.approx(float(prediction["value"]), rel=1e-6)
    assert values.sum(dtype=float) == pytest.approx(difference + told["Gap"], abs=1e-5)
    assert abs(told["Gap"]) < 0.02 * abs(difference)
    assert (values[~mask] == 0).all()
    parcels = read_rows(find(output, "attribution.tsv"))
    assert sum(float(row["share"]) for row in parcels) == pytest.approx(1)
    (window,) = read_rows(find(output, "contributions.tsv"))
    assert float(window["over_baseline"]) == pytest.approx(difference, abs=1e-5)


@pytest.mark.slow
def test_the_page_shows_the_map_and_says_what_it_is_not(output):
    page = re.sub(r"<[^>]*>", " ", (output / "sub-01.html").read_text())
    assert "no biomarker" in page
    (figure,) = (output / "sub-01/figures").glob("*_desc-slimbrain_attribution.svg")
    assert "full colour at" in figure.read_text()
    parcels = read_rows(find(output, "attribution.tsv"))
    largest = max(parcels, key=lambda row: float(row["share"]))
    assert largest["name"] in page


def test_a_package_without_heads_is_refused_before_any_work(dataset, tmp_path):
    result = call(dataset, tmp_path / "out")
    assert result.returncode == Exit.CONFIGURATION
    assert "[no-head]" in result.stderr
    assert not (tmp_path / "out").exists()
