"""Monitors: silent on health, loud on each way to collapse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from slimbrain_app.model.batches import Targets
from slimbrain_app.model.monitors import (
    effective_rank,
    find_alarms,
    measure,
    measure_distance,
    start_means,
    update_means,
)
from slimbrain_app.model.objective import Evidence

VIEWS, CELLS, WIDTH = 8, 200, 32
STEPS, WARM_UP = 1000, 50


@pytest.fixture
def healthy(generator) -> Evidence:
    """Independent features; predictions that err by less than the features' own spread."""
    truths = torch.randn(VIEWS * CELLS, WIDTH, generator=generator)
    truths = nn.functional.layer_norm(truths, (WIDTH,))
    noise = torch.randn(truths.shape, generator=generator)
    cells, views = torch.arange(CELLS).repeat(VIEWS), torch.arange(VIEWS).repeat_interleave(CELLS)
    return Evidence(
        cells=torch.randn(truths.shape, generator=generator),
        lengths=(CELLS,) * VIEWS,
        truths=truths,
        guesses=truths + 0.5 * noise,
        targets=Targets(torch.arange(len(cells)), cells, views, cells % 3),
    )


def watch(*evidence, means=None):
    """Read monitors at the first alarm's step, after the warm-up, and at the end."""
    means = means or start_means(CELLS, WIDTH)
    steps = [100, 500, STEPS][-len(evidence) :]
    return [
        measure(step, some, means, distance=0.0) for step, some in zip(steps, evidence, strict=True)
    ]


def alarms(*evidence, means=None):
    return find_alarms(watch(*evidence, means=means), WIDTH, WARM_UP, STEPS)


def test_random_independent_features_raise_no_alarm(healthy):
    assert alarms(healthy, healthy, healthy) == []


def test_a_constant_encoder_is_noticed_whether_it_became_so_or_was(healthy, generator):
    constant = replace(healthy, cells=torch.randn(WIDTH, generator=generator).expand(1600, -1))
    faint = replace(healthy, cells=constant.cells + 0.005 * healthy.cells)
    for history in ((healthy, constant), (healthy, faint), (constant, constant)):
        assert any("hardly spread" in alarm for alarm in alarms(*history, history[-1]))


def test_a_rank_one_encoder_is_noticed(healthy, generator):
    line = torch.randn(1600, 1, generator=generator) * torch.randn(WIDTH, generator=generator)
    (alarm,) = alarms(*[replace(healthy, cells=line)] * 3)
    assert "in 1.0 directions of 32" in alarm


def test_a_predictor_of_the_mean_is_noticed_after_the_warm_up_only(healthy):
    mean = replace(healthy, guesses=healthy.truths.mean(0).expand(1600, -1))
    reading = watch(mean)[0]
    assert reading.over_constant == pytest.approx(1)
    judged = [
        find_alarms([replace(reading, step=step, over_constant=0.995)], WIDTH, WARM_UP, STEPS)
        for step in (WARM_UP, WARM_UP + 1)
    ]
    assert judged[0] == []
    assert "no better than a constant" in judged[1][0]


def anatomy(evidence, generator):
    """Give targets a part that hangs on the cell alone, and predictions exactly that."""
    place = 2 * torch.randn(CELLS, WIDTH, generator=generator)
    truths = place[evidence.targets.cells] + evidence.truths
    return replace(evidence, truths=truths, guesses=place[evidence.targets.cells]), place


def test_a_predictor_of_position_alone_is_noticed_at_the_end_although_it_beats_a_constant(
    healthy, generator
):
    evidence, place = anatomy(healthy, generator)
    means = replace(start_means(CELLS, WIDTH), sums=place, weights=torch.ones(CELLS))
    (alarm,) = alarms(*[evidence] * 3, means=means)
    assert "mean target at each place" in alarm
    assert watch(evidence, means=means)[0].over_constant < 0.8
    assert alarms(evidence, means=means) == [alarm]
    assert find_alarms(watch(evidence, evidence, means=means)[:1], WIDTH, WARM_UP, STEPS) == []


def test_running_means_come_to_know_what_position_tells(healthy, generator):
    evidence, place = anatomy(healthy, generator)
    means = start_means(CELLS, WIDTH)
    for _ in range(60):
        noise = torch.randn(evidence.truths.shape, generator=generator)
        means = update_means(means, replace(evidence, truths=evidence.guesses + noise))
    assert (means.guess(torch.arange(CELLS)) - place).std() < 0.1


def test_running_means_are_those_of_a_plain_loop(healthy, generator):
    means = start_means(CELLS, WIDTH)
    sums, weights = torch.zeros(WIDTH), 0.0
    for _ in range(5):
        some = torch.randperm(1600, generator=generator)[:300]
        targets = Targets(
            *(getattr(healthy.targets, name)[some] for name in ("rows", "cells", "views", "kinds"))
        )
        means = update_means(
            means, replace(healthy, truths=healthy.truths[some], targets=targets), decay=0.5
        )
        sums, weights = sums * 0.5, weights * 0.5
        for cell, truth in zip(targets.cells, healthy.truths[some], strict=True):
            if cell == 17:
                sums, weights = sums + truth, weights + 1
    assert_close(means.guess(torch.tensor([17]))[0], sums / weights)


def test_a_cell_never_seen_as_a_target_is_guessed_as_zero():
    assert not start_means(CELLS, WIDTH).guess(torch.tensor([3])).any()


@pytest.mark.parametrize("directions", [1, 5, 32])
def test_effective_rank_counts_equal_directions(directions, generator):
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0][:directions]
    rows = torch.linalg.qr(torch.randn(1024, directions, generator=generator))[0]
    rows = torch.linalg.qr(rows - rows.mean(0))[0]
    assert effective_rank(rows @ basis + 5) == pytest.approx(directions, rel=0.01)


def test_effective_rank_of_equal_rows_is_one():
    assert effective_rank(torch.full((1024, WIDTH), 3.0)) == 1


def test_few_steps_are_first_read_after_a_tenth_of_them(healthy):
    readings = [
        replace(reading, step=step)
        for reading, step in zip(
            watch(healthy, replace(healthy, cells=healthy.cells * 1e-3)), (3, 20), strict=True
        )
    ]
    assert "at step 3" in find_alarms(readings, WIDTH, 1, 30)[0]
    assert find_alarms(readings, WIDTH, 1, 2000) == []


def test_kinds_are_read_apart(healthy):
    wrong = (healthy.targets.kinds == 1).float()[:, None]
    (reading,) = watch(replace(healthy, guesses=healthy.truths + 2 * wrong))
    assert reading.kinds == pytest.approx((0, 1.5, 0))


def test_distance_is_the_norm_over_all_weights():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    gaps = [
        (a - b).detach().flatten()
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    ]
    assert measure_distance(one, other) == pytest.approx(float(torch.cat(gaps).norm()))
    assert measure_distance(one, one) == 0
