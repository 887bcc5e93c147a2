"""Which places move together: against scikit-learn and scipy, and what must not change it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.linalg import logm
from sklearn.covariance import LedoitWolf

from slimbrain_app.errors import CallRefused
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.packages import (
    Config,
    copy_package,
    load_package,
    load_readout,
    save_package,
)
from slimbrain_app.model.presets import CONTRACTS, PRESETS
from slimbrain_app.model.readout import READOUT, Readout, estimate_covariance, pool_covariance

TIMES, PLACES = 10, 216


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(5)


def make_readout(draw, places) -> Readout:
    square = draw.standard_normal((len(places), len(places)))
    return Readout(
        direction=draw.standard_normal(192).astype(np.float32),
        mean=draw.standard_normal((TIMES, PLACES)).astype(np.float32),
        places=np.asarray(places, np.int64),
        whitening=(np.eye(len(places)) + 0.1 * (square + square.T)).astype(np.float32),
    )


@pytest.fixture
def readout(draw) -> Readout:
    return make_readout(draw, [0, 3, 8, 100, 215])


@pytest.fixture
def signals(draw) -> np.ndarray:
    return draw.standard_normal((6, TIMES, PLACES)).astype(np.float32)


def test_it_is_the_logarithm_of_the_whitened_shrunk_covariance(readout, signals):
    series = (signals - readout.mean)[:, :, readout.places].reshape(-1, 5)
    series = (series - series.mean(0)) / series.std(0)
    covariance = LedoitWolf(assume_centered=True).fit(series.astype(float)).covariance_
    expected = logm(readout.whitening @ covariance @ readout.whitening)
    found = pool_covariance(readout, signals)
    matrix = np.zeros((5, 5))
    matrix[np.triu_indices(5)] = found
    matrix /= np.where(np.eye(5, dtype=bool), 1, np.sqrt(2))
    np.testing.assert_allclose(matrix, np.triu(expected), atol=1e-5)
    # Its length is that of the matrix.
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=1e-5)
    assert found.shape == (readout.width,)


def test_people_who_are_like_the_mean_lie_at_the_origin(readout, signals):
    covariance = estimate_covariance(readout.mean, readout.places, signals)
    values, vectors = np.linalg.eigh(covariance)
    own = replace(readout, whitening=(vectors / np.sqrt(values)) @ vectors.T)
    np.testing.assert_allclose(pool_covariance(own, signals), 0, atol=1e-5)


def test_how_much_a_place_moves_and_where_it_stands_change_nothing(readout, signals, draw):
    scale, offset = draw.uniform(0.5, 3, PLACES), draw.standard_normal(PLACES)
    other = readout.mean + scale * (signals - readout.mean) + offset
    np.testing.assert_allclose(
        pool_covariance(readout, other.astype(np.float32)),
        pool_covariance(readout, signals),
        atol=1e-4,
    )


def test_the_order_of_views_changes_nothing(readout, signals):
    np.testing.assert_allclose(
        pool_covariance(readout, signals[::-1]), pool_covariance(readout, signals), atol=1e-5
    )


def test_places_that_are_not_compared_may_lack_cells_and_others_not(readout, signals):
    expected = pool_covariance(readout, signals)
    signals[:, :, 1] = np.nan
    assert np.array_equal(pool_covariance(readout, signals), expected)
    signals[:, :, 3] = np.nan
    with pytest.raises(ValueError, match="no cell"):
        pool_covariance(readout, signals)


@pytest.fixture
def folder(readout, tmp_path) -> Path:
    encoder = Encoder(PRESETS["tiny"])
    config = Config(
        preset="tiny", trained=True, seed=0, contract=CONTRACTS["tiny"], encoder=encoder.sizes
    )
    return save_package(tmp_path / "mine", config, encoder, readout=readout, card="# mine").folder


def sign(folder: Path) -> None:
    """Make checksums fit the files, as someone would who means to deceive."""
    names = [file.name for file in folder.iterdir() if file.name != "checksums.json"]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "checksums.json").write_text(json.dumps(digests))


def test_a_package_keeps_its_readout_to_the_bit_through_copies(folder, readout, tmp_path):
    copy = copy_package(load_package(folder), tmp_path / "copy")
    for package in (load_package(folder), copy):
        back = load_readout(package)
        for name in ("direction", "mean", "places", "whitening"):
            assert np.array_equal(getattr(back, name), getattr(readout, name))


@pytest.mark.parametrize(
    "change",
    [
        {"direction": np.zeros(191, np.float32)},
        {"mean": np.zeros((TIMES, 215), np.float32)},
        {"whitening": np.zeros((4, 4), np.float32)},
        {"places": np.array([0, 3, 8, 100, 216])},
        {"places": np.array([0, 3, 3, 100, 215])},
        {"places": np.array([-1, 3, 8, 100, 215])},
        {"direction": np.full(192, np.nan, np.float32)},
        {"other": np.zeros(1, np.float32)},
        {"places": np.zeros(0, np.int64), "whitening": np.zeros((0, 0), np.float32)},
    ],
)
def test_a_readout_that_does_not_fit_the_encoder_is_refused(folder, change):
    save_file({**load_file(folder / READOUT), **change}, folder / READOUT)
    sign(folder)
    with pytest.raises(CallRefused) as caught:
        load_package(folder)
    assert caught.value.reason == "package-bad"
    assert READOUT in str(caught.value.file)


def test_a_readout_that_is_no_tensor_file_is_refused(folder):
    (folder / READOUT).write_bytes(b"rubbish")
    sign(folder)
    with pytest.raises(CallRefused, match="safetensors"):
        load_package(folder)
