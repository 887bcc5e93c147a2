"""The readout that a training fits: against the plain way, with all cells at hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from slimbrain_app.embedding import View, encode_views
from slimbrain_app.errors import CallRefused
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.packages import Config, create_package, load_heads, save_package
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.model.readout import estimate_covariance, pool_covariance
from slimbrain_app.prepare.store import mask_image, read_frames
from slimbrain_app.records import Contract
from slimbrain_app.settings import FinetuneSettings, read_settings
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.readout import (
    FEWEST_PEOPLE,
    MOST_PEOPLE,
    _choose_runs,
    _find_common,
    fit_readout,
)
from slimbrain_app.workflow.finetuning import FinetuneCall, carry_out

STARTS = (0, 20, 60, 40)
TINY = PRESETS["tiny"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def items(prepared_runs, tmp_path_factory) -> list[Item]:
    folder = tmp_path_factory.mktemp("people")
    return [Item(one, STARTS) for one in prepared_runs(folder, FEWEST_PEOPLE)]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(TINY, seed=2).eval()


@pytest.fixture(scope="module")
def readout(items, encoder):
    return fit_readout(encoder, items, Contract(), CPU)


def read_plainly(encoder, item):
    """Return all cells (views, times, places, width), and their cubes' means, by loops."""
    cells = []
    run = item.recording.prepared
    for channel in torch.eye(TINY.embedding_width)[:: TINY.embedding_width // 4]:
        views = tuple(View(0, float(start), 0.0) for start in item.starts)
        signals = [
            own for _, own in encode_views(run, Contract(), encoder, views, "cpu", channel.numpy())
        ]
        cells.append(np.concatenate(signals))
    voxels = np.load(run.folder / "voxels.npy")
    x, y, z = np.unravel_index(voxels, (96, 96, 96))
    place = (x // 16 * 6 + y // 16) * 6 + z // 16
    cubes = np.full((len(item.starts), 10, 216), np.nan)
    for row, start in enumerate(item.starts):
        frames = read_frames(run, start, 40, 0.72, "voxel").reshape(10, 4, -1)
        for own in np.unique(place):
            cubes[row, :, own] = frames[:, :, place == own].mean((1, 2))
    return np.stack(cells, -1), cubes


def test_places_are_those_that_everybody_has(items, encoder, readout):
    known = [~np.isnan(read_plainly(encoder, item)[0][0, 0, :, 0]) for item in items[:3]]
    assert set(readout.places) <= set(np.flatnonzero(np.all(known, axis=0)))
    assert len(readout.places) == 12


def test_places_with_next_to_no_brain_are_not_compared(items, encoder):
    run = items[0].recording.prepared
    mask = mask_image(run)
    filled = mask.reshape(6, 16, 6, 16, 6, 16).mean((1, 3, 5)).ravel()
    assert set(_find_common(items[:1], encoder)) == set(np.flatnonzero(filled >= 1 / 16))


def test_signals_tell_their_cube_s_own_mean_better_than_any_channel(items, encoder, readout):
    def centre(values):
        kept = values[:, :, readout.places]
        return (kept - kept.mean((0, 1))).reshape(-1, *kept.shape[3:])

    told, channels, cubes = [], [], []
    for item in items[:4]:
        cells, cube = read_plainly(encoder, item)
        views = tuple(View(0, float(start), 0.0) for start in STARTS)
        signals = np.concatenate(
            [
                own
                for _, own in encode_views(
                    item.recording.prepared,
                    Contract(),
                    encoder,
                    views,
                    "cpu",
                    readout.direction,
                )
            ]
        )
        told.append(centre(signals - readout.mean))
        channels.append(centre(cells))
        cubes.append(centre(cube))
    cubes = np.concatenate(cubes)
    r = np.corrcoef(np.concatenate(told), cubes)[0, 1]
    others = [abs(np.corrcoef(one, cubes)[0, 1]) for one in np.concatenate(channels).T]
    assert r > 0.5
    assert r > 1.2 * max(others)


def test_the_mean_of_those_fitted_to_is_the_origin(items, encoder, readout):
    covariances = []
    for item in items:
        views = tuple(View(0, float(start), 0.0) for start in STARTS)
        signals = np.concatenate(
            [
                own
                for _, own in encode_views(
                    item.recording.prepared, Contract(), encoder, views, "cpu", readout.direction
                )
            ]
        )
        covariances.append(estimate_covariance(readout.mean, readout.places, signals))
        assert np.isfinite(pool_covariance(readout, signals)).all()
    mean = readout.whitening @ np.mean(covariances, axis=0) @ readout.whitening
    np.testing.assert_allclose(mean, np.eye(len(mean)), atol=1e-4)


def test_the_order_of_people_changes_nothing(items, encoder, readout):
    other = fit_readout(encoder, items[::-1], Contract(), CPU)
    assert np.array_equal(other.direction, readout.direction)
    assert np.array_equal(other.whitening, readout.whitening)


def test_too_few_people_or_windows_give_none(items, encoder):
    assert fit_readout(encoder, items[1:], Contract(), CPU) is None
    short = [replace(item, starts=STARTS[:3]) for item in items]
    assert fit_readout(encoder, short, Contract(), CPU) is None


def test_of_many_people_some_of_all_are_taken_once_each(items):
    recording = items[0].recording
    many = [
        Item(replace(recording, participant=f"{number:04}"), STARTS)
        for number in range(1000)
        for _ in range(2)
    ]
    chosen = [item.recording.participant for item in _choose_runs(many)]
    assert len(set(chosen)) == len(chosen) == MOST_PEOPLE
    assert (chosen[0], chosen[-1]) == ("0000", "0999")


@pytest.fixture(scope="module")
def people(prepared_runs, tmp_path_factory) -> Path:
    """A cohort of which one person has a short run, and a package that tells its places."""
    folder = tmp_path_factory.mktemp("cohort")
    prepared_runs(folder / "people", FEWEST_PEOPLE + 1)
    for file in (folder / "people/sub-11").glob("func/*"):
        shutil.rmtree(file)
    prepared_runs(folder / "short", 11, volumes=30)
    shutil.move(next((folder / "short/sub-11/func").iterdir()), folder / "people/sub-11/func")
    labels = [f"sub-{number:02}" for number in range(1, FEWEST_PEOPLE + 2)]
    ages = np.random.default_rng(0).normal(30, 8, len(labels)).round(1)
    table = pd.DataFrame({"participant_id": labels, "age": ages})
    table.to_csv(folder / "people/participants.tsv", sep="\t", index=False)
    return folder / "people"


@pytest.fixture(scope="module")
def package(encoder, readout, tmp_path_factory) -> Path:
    config = Config(preset="tiny", trained=True, seed=2, contract=Contract(), encoder=encoder.sizes)
    folder = tmp_path_factory.mktemp("models") / "telling"
    return save_package(folder, config, encoder, readout=readout, card="# telling").folder


def finetune(people, package, output, table):
    settings = read_settings(
        FinetuneSettings,
        None,
        {
            "model": str(package),
            "package_name": "mine",
            "judge": {"folds": 2, "repeats": 1},
            "predict": {"outcomes": ["age"], **table.pop("predict", {})},
            "compute": {"device": "cpu", "nprocs": 1},
            **table,
        },
    )
    call = FinetuneCall(
        datasets=(people,), output=output, settings=settings, work_dir=None, command=("slimbrain",)
    )
    return carry_out(call, Silent())


class Silent:
    def __getattr__(self, name):
        return lambda *_: None


def test_heads_read_the_covariance_where_the_package_can_tell_it(people, package, tmp_path):
    done = finetune(people, package, tmp_path / "out", {})
    (head,) = load_heads(done.package).heads
    assert (head.pooling, head.people) == ("covariance", FEWEST_PEOPLE)
    assert load_heads(done.package).weights["age"].shape == (1, 12 * 13 // 2)
    # A run of three windows can't be told of, and is listed.
    (refusal,) = done.refusals
    assert refusal.code == "too-short"
    assert "sub-11" in refusal.run
    assert any("move together" in note for note in done.notes)


@pytest.mark.parametrize("table", [{"predict": {"pooling": "mean"}}, {"rank": {"windows": 3}}])
def test_means_are_read_where_that_is_asked_for_or_windows_are_few(
    people, package, tmp_path, table
):
    done = finetune(people, package, tmp_path / "out", table)
    (head,) = load_heads(done.package).heads
    assert (head.pooling, head.people) == ("mean", FEWEST_PEOPLE + 1)


def test_covariance_of_a_package_without_a_readout_is_refused(people, tmp_path):
    tiny = create_package(tmp_path / "plain", "tiny")
    with pytest.raises(CallRefused, match="readout"):
        finetune(people, tiny.folder, tmp_path / "out", {"predict": {"pooling": "covariance"}})


def test_a_training_by_gradient_does_not_take_it(people, package, tmp_path):
    asked = {"predict": {"pooling": "covariance"}, "tune": {"encoder": "lora"}}
    with pytest.raises(CallRefused, match="frozen"):
        finetune(people, package, tmp_path / "out", asked)
