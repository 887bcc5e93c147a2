"""Pace and time left, from made-up steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.training.log import Start, Step
from slimbrain_app.training.throughput import measure_throughput

START = Start(passes=4, steps=400, batch=8, windows_per_run=1, warm_up=20, frames=40, width=192)
TIMES = st.tuples(st.floats(0.01, 100), st.floats(0, 1))


def make_steps(times: Sequence[tuple[float, float]], windows: int = 8) -> list[Step]:
    """Steps of so many seconds, a share of them spent waiting."""
    return [
        Step(
            step=number,
            pass_=1,
            loss=0.5,
            kinds=(0.5, 0.5, 0.5),
            rate=1e-3,
            gradient_norm=1.0,
            momentum=0.996,
            seconds=seconds,
            loader_seconds=share * seconds,
            windows_per_second=windows / seconds,
        )
        for number, (seconds, share) in enumerate(times, 1)
    ]


def test_an_even_pace_is_told_exactly() -> None:
    pace = measure_throughput(make_steps([(2.0, 0.25)] * 100), START)
    assert pace.windows_per_second == pytest.approx(4)
    assert pace.volumes_per_second == pytest.approx(160)
    assert pace.loader_share == pytest.approx(0.25)
    assert pace.seconds_left == pytest.approx(600)


def test_a_new_pace_replaces_the_old_one() -> None:
    pace = measure_throughput(make_steps([(60.0, 1.0)] * 10 + [(1.0, 0.0)] * 90), START)
    assert pace.seconds_left == pytest.approx(300)
    assert pace.loader_share == 0


@given(st.lists(TIMES, min_size=1, max_size=50))
def test_all_windows_are_counted_over_all_seconds(times) -> None:
    pace = measure_throughput(make_steps(times), START)
    seconds = sum(seconds for seconds, _ in times)
    assert pace.windows_per_second * seconds == pytest.approx(8 * len(times))
    assert 0 <= pace.loader_share <= 1 + 1e-9
    assert pace.seconds_left == pytest.approx((400 - len(times)) * seconds / len(times))


def test_no_time_is_left_after_the_last_step() -> None:
    steps = make_steps([(2.0, 0.0)] * 400)
    assert measure_throughput(steps, START).seconds_left == 0


def test_nothing_is_known_before_the_first_step() -> None:
    pace = measure_throughput([], START)
    assert math.isnan(pace.seconds_left)
    assert math.isnan(pace.windows_per_second)
