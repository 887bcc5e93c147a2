"""The temporal extractor's training: splits, its beginning, repetition, and that it learns."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor, cut_tokens
from slimbrain_app.ranking import standardise
from slimbrain_app.records import Contract
from slimbrain_app.settings import Extract
from slimbrain_app.training.log import Extract as Pass
from slimbrain_app.training.temporal import (
    Cells,
    draw_givers,
    is_useful,
    read_cells,
    start_from_components,
    train_extractor,
)

SMALL = ExtractorSizes(width=16, heads=2, blocks=1)


@pytest.fixture(scope="module")
def recordings(prepared_runs, tmp_path_factory):
    return prepared_runs(tmp_path_factory.mktemp("prepared"), 6)


def train(recordings, passes=2, **given):
    seen = []
    extractor = train_extractor(
        recordings,
        Contract(),
        Extract(passes=passes),
        3,
        seen.append,
        **{"sizes": SMALL, **given},
    )
    return extractor, seen


def same(one, other) -> bool:
    return all(
        torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()
    )


@given(tokens=st.integers(2, 60), stretch=st.integers(1, 10), seed=st.integers(0, 999))
def test_some_tokens_give_and_some_take(tokens, stretch, seed):
    gives = draw_givers(tokens, stretch, np.random.default_rng(seed))
    assert gives.shape == (tokens,)
    assert 0 < gives.sum() < tokens


def test_half_of_the_splits_are_of_stretches():
    draws = [draw_givers(160, 8, np.random.default_rng(seed)) for seed in range(200)]
    # Neighbours part at every eighth border at most where stretches are split.
    borders = np.array([np.count_nonzero(np.diff(gives)) for gives in draws])
    shares = np.array([gives.mean() for gives in draws])
    mixed = 2 * shares * (1 - shares) * 159
    assert 0.35 < np.mean(borders < mixed / 3) < 0.65
    assert shares.min() < 0.15 and shares.max() > 0.85


def test_it_begins_as_a_principal_component_analysis():
    draw = np.random.default_rng(0)
    courses = draw.standard_normal((400, 3)).cumsum(0)
    series = standardise(courses @ draw.standard_normal((3, 30)))
    run = Cells(series.astype(np.float32), np.arange(30))
    sizes = ExtractorSizes(cells=30, width=16, heads=2, blocks=2)
    extractor = TemporalExtractor(sizes)
    start_from_components(extractor, [run])
    tokens, _ = cut_tokens(series, run.index, sizes)
    tokens = tokens.float()
    with torch.no_grad():
        embedded = extractor.blocks(extractor.join(extractor.frame_map(tokens).flatten(-2)))
        parts = extractor.part(embedded).reshape(len(tokens), sizes.frames, -1)
        back = extractor.cell_map(parts)
    # Three components over space and five frames: 15 at most are there, and 16 can be kept.
    torch.testing.assert_close(back, tokens, rtol=0, atol=0.01)
    power = embedded.square().mean(0)
    torch.testing.assert_close(power[:15], torch.ones(15), rtol=0, atol=0.01)


def test_cells_are_those_of_the_ranking_and_are_found_again(recordings, tmp_path):
    prepared = recordings[0].prepared
    cells = read_cells(prepared, Contract())
    assert cells.series.dtype == np.float32
    assert cells.series.shape == (164, len(cells.index))
    first, _ = train(recordings[:2], passes=1, work=tmp_path)
    kept = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again, _ = train(recordings[:2], passes=1, work=tmp_path)
    assert kept == {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(kept) == 4
    unkept, _ = train(recordings[:2], passes=1)
    assert same(first, again) and same(first, unkept)


def test_repeated_and_interrupted_trainings_agree_to_the_bit(recordings):
    states = []
    whole, seen = train(recordings, 3, save=lambda state: states.append(copy.deepcopy(state)))
    again, _ = train(recordings, 3)
    rest, seen_rest = train(recordings, 3, state=states[0])
    assert same(whole, again) and same(whole, rest)
    assert [one.loss for one in seen_rest] == [one.loss for one in seen[1:]]


def test_what_is_kept_out_is_watched_and_changes_nothing(recordings):
    # The runs have the same cells, so that the networks are of the same shape.
    watched, seen = train(recordings[:4], validation=recordings[:2])
    unwatched, blind = train(recordings[:4])
    assert same(watched, unwatched)
    assert all(0 < one.validation < 2 and 0 < one.alone < 2 for one in seen)
    assert all(math.isnan(one.validation) and math.isnan(one.alone) for one in blind)


def test_hidden_cells_of_unseen_people_are_filled_in_ever_better(recordings):
    _, seen = train(recordings[:4], 10, validation=recordings[4:])
    assert seen[-1].alone < 0.95 * seen[0].alone
    assert [one.pass_ for one in seen] == list(range(1, 11))


def test_cells_that_nobody_had_are_neither_heeded_nor_guessed(recordings):
    extractor, _ = train(recordings[:2], 1)
    assert extractor.sizes == SMALL
    used = np.unique(
        np.concatenate([read_cells(r.prepared, Contract()).index for r in recordings[:2]])
    )
    nobody = np.setdiff1d(np.arange(SMALL.cells), used)
    assert len(nobody)
    assert not extractor.frame_map.weight[:, nobody].any()
    assert not extractor.cell_map.weight[nobody].any() and not extractor.cell_map.bias[nobody].any()
    assert extractor.frame_map.weight[:, used].any()


@pytest.mark.parametrize(
    ("validation", "alone", "useful"),
    [(0.98, 1.0, True), (0.995, 1.0, False), (1.02, 1.0, False), (math.nan, math.nan, False)],
)
def test_an_extractor_is_useful_where_parts_of_unseen_runs_tell_of_each_other(
    validation, alone, useful
):
    assert is_useful(Pass(pass_=1, loss=0.1, validation=validation, alone=alone)) is useful
