"""Rates: where they peak, where they end, and that they never jump."""

from __future__ import annotations

import pytest

from slimbrain_app.training.schedule import Schedule, make_schedule, scale_rate


@pytest.mark.parametrize(("steps", "warm_up"), [(1000, 0.05), (7, 0.3), (2, 0.5), (40, 0.9)])
def test_the_peak_comes_at_the_end_of_the_warm_up_and_the_last_rate_at_the_last_step(
    steps, warm_up
):
    schedule = make_schedule(steps, warm_up, last=0.002)
    shares = [schedule.share(step) for step in range(1, steps + 1)]
    assert shares.index(max(shares)) + 1 == max(1, round(warm_up * steps))
    assert max(shares) == 1
    assert shares[-1] == pytest.approx(0.002)


def test_rates_rise_evenly_and_fall_as_a_cosine():
    schedule = Schedule(steps=110, warm_up=10, last=0.2)
    assert schedule.share(1) == pytest.approx(0.1)
    assert schedule.share(5) == pytest.approx(0.5)
    assert schedule.share(60) == pytest.approx(0.6)  # Halfway between 1 and 0.2.
    falls = [schedule.share(step) - schedule.share(step + 1) for step in range(10, 110)]
    assert min(falls) > 0
    assert falls.index(max(falls)) in (49, 50)


@pytest.mark.parametrize("warm_up", [0, 0.05, 0.99])
def test_a_single_step_is_made_at_the_peak(warm_up):
    assert make_schedule(1, warm_up, last=0.1).share(1) == 1


def test_the_rate_is_in_proportion_to_the_batch():
    assert scale_rate(5e-4, 64) == 5e-4
    assert scale_rate(5e-4, 8) == pytest.approx(5e-4 / 8)
