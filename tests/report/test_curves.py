"""Curves: every series is drawn, none is bent by being thinned, none is needed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.report.curves import Chart, draw_corpus, draw_training, thin
from slimbrain_app.report.story import Story
from slimbrain_app.training.log import Alarm, Probe, Step, Validation, pick

MakeStory = Callable[..., Story]
TITLES = [
    "Loss",
    "Loss of each kind of target",
    "Loss over that of guesses",
    "Spread of features",
    "Effective rank",
    "Distance between encoders",
    "Learning rate and gradient",
    "Throughput",
    "Temporal extractor",
    "Probe: site",
]


@pytest.fixture(scope="module")
def charts(make_story: MakeStory) -> list[Chart]:
    return draw_training(make_story())


def test_a_whole_log_gives_every_chart(charts: list[Chart]) -> None:
    assert [chart.title for chart in charts] == TITLES
    assert all(chart.svg.count("<svg") == 1 and chart.caption for chart in charts)


def test_without_events_there_is_no_chart(make_story: MakeStory) -> None:
    assert draw_training(make_story(events=())) == []
    assert draw_corpus(make_story(training=(), validation=())) == []


def test_a_masked_autoencoder_has_no_monitors_and_no_empty_chart(
    make_story: MakeStory, make_events
) -> None:
    kept = [event for event in make_events() if isinstance(event, Step)]
    events = tuple(replace(step, momentum=math.nan) for step in kept)
    titles = [
        chart.title for chart in draw_training(make_story(events=(*make_events()[:6], *events)))
    ]
    assert titles == ["Loss", "Loss of each kind of target", *TITLES[6:9]]


@pytest.mark.parametrize("passes", [1, 2, 60])
@pytest.mark.parametrize("steps", [1, 30])
def test_any_length_of_training_can_be_drawn(make_story: MakeStory, make_events, passes, steps):
    charts = draw_training(make_story(events=make_events(passes=passes, steps=steps)))
    assert [chart.title for chart in charts] == TITLES
    assert all(len(chart.svg) < 60_000 for chart in charts)


def test_numbers_that_are_not_finite_are_left_out(make_story: MakeStory, make_events) -> None:
    events = tuple(
        replace(event, loss=math.nan, gradient_norm=math.nan)
        if isinstance(event, Step) and event.step > 6
        else event
        for event in make_events()
    )
    (loss, *_) = draw_training(make_story(events=events))
    assert "nan" not in loss.svg.lower()
    assert "training: 0.306 at first, 0.103 at last" in loss.svg


def test_gradients_of_zero_are_drawn(make_story: MakeStory, make_events) -> None:
    events = tuple(
        replace(event, gradient_norm=0.0, rate=0.0) if isinstance(event, Step) else event
        for event in make_events()
    )
    assert "Learning rate and gradient" in [
        c.title for c in draw_training(make_story(events=events))
    ]


def test_texts_tell_first_and_last_values_to_those_who_cannot_see(
    charts: list[Chart], make_events
) -> None:
    label = re.search('aria-label="([^"]*)"', charts[0].svg)
    assert label is not None
    last = pick(make_events(), Validation)[-1].loss
    assert f"validation: 0.2 at first, {last:.3g} at last" in label[1]


def test_alarms_are_marked(charts: list[Chart], make_story: MakeStory, make_events) -> None:
    events = (*make_events(), Alarm(step=7, pass_=3, message="collapsed"))
    alarmed = draw_training(make_story(events=events))
    assert [chart.title for chart in alarmed if ">alarm</text>" in chart.svg] == TITLES[2:5]
    assert [chart.title for chart in charts if ">alarm</text>" in chart.svg] == []


def test_colours_are_not_all_that_tells_lines_apart(charts: list[Chart]) -> None:
    styles = re.findall(r"stroke-dasharray: ([^;]+);", charts[1].svg)
    assert len(set(styles)) >= 2


def test_names_of_probes_are_escaped(make_story: MakeStory, make_events) -> None:
    probes = [event for event in make_events() if isinstance(event, Probe)]
    events = tuple(replace(probe, name="<b>", metric="&r") for probe in probes)
    (chart,) = draw_training(make_story(events=events))
    assert chart.title == "Probe: <b>"
    assert "<b>" not in chart.svg
    assert "&r<" not in chart.svg


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(-1e3, 1e3)), max_size=2000))
def test_thinned_points_stay_within_the_values_and_keep_their_mean(points) -> None:
    thinned = thin(points)
    assert len(thinned) <= 300
    if points:
        values = [y for _, y in points]
        assert min(values) - 1e-9 <= min(y for _, y in thinned)
        assert max(y for _, y in thinned) <= max(values) + 1e-9
    if len(points) <= 300:
        assert thinned == points


@pytest.mark.parametrize("runs", [1, 2, 500])
def test_the_corpus_has_histograms_of_every_run(
    make_story: MakeStory, make_recording, runs
) -> None:
    recordings = tuple(
        make_recording(f"{number:03}", coverage=0.9 + number / 10_000) for number in range(runs)
    )
    coverage, motion = draw_corpus(make_story(training=recordings, validation=()))
    assert f"Coverage of {runs} runs" in coverage.svg
    assert f"Motion of {runs} runs" in motion.svg


def test_unknown_motion_is_counted(make_story: MakeStory, make_recording) -> None:
    recordings = (make_recording("01"), make_recording("02", displacement=None))
    _, motion = draw_corpus(make_story(training=recordings, validation=()))
    assert "unknown for 1 of 2 runs" in motion.caption
    none = (make_recording("02", displacement=None),)
    _, motion = draw_corpus(make_story(training=none, validation=()))
    assert "None is known" in motion.svg
