"""What a log and a corpus come down to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from slimbrain_app.report.story import (
    Story,
    group_alarms,
    list_changes,
    list_origins,
    list_passes,
    mean_displacement,
)
from slimbrain_app.settings import PretrainSettings, Train
from slimbrain_app.training.log import Alarm, End, Resume, Start, Step, pick

MakeStory = Callable[..., Story]


def test_passes_are_the_means_of_their_steps(make_story: MakeStory) -> None:
    story = make_story()
    rows = list_passes(story)
    steps = pick(story.events, Step)
    assert [row.number for row in rows] == [1, 2, 3, 4]
    for row in rows:
        losses = [step.loss for step in steps if step.pass_ == row.number]
        assert row.loss == pytest.approx(sum(losses) / 3)
        assert (row.seconds, row.windows_per_second, row.loader_share) == (6.0, 4.0, 0.25)
        assert row.validation is not None
        assert row.validation.pass_ == row.number
        assert row.reading is not None
        assert row.reading.step == 3 * row.number


def test_the_last_ending_counts(make_story: MakeStory, make_events) -> None:
    begun = make_events()[:-1]
    stop, resume = End(step=6, pass_=2, finished=False, reason="x"), Resume(step=6, pass_=2)
    finish = End(step=12, pass_=4, finished=True)
    for events, state in (
        ((), "open"),
        (begun, "open"),
        ((*begun, stop), "stopped"),
        ((*begun, stop, resume), "open"),
        ((*begun, stop, resume, finish), "finished"),
    ):
        assert make_story(events=events).state == state


def test_a_story_before_the_first_step_is_at_no_pass(make_story: MakeStory) -> None:
    story = make_story(events=())
    assert (story.reached, story.passes, list_passes(story)) == (0, 40, [])


def test_the_last_beginning_counts(make_story: MakeStory, make_events) -> None:
    old = replace(pick(make_events(), Start)[0], steps=99)
    story = make_story(events=(old, *make_events()))
    assert story.place([6, 12]) == [2, 4]


def test_origins_count_every_run_and_person_once(make_story: MakeStory, make_recording) -> None:
    recordings = (
        make_recording("01"),
        make_recording("01", run="02", tr=0.8),
        make_recording("01", dataset="other", displacement=None),
        make_recording("02", site=None, volumes=100),
    )
    origins = list_origins(recordings)
    assert [(o.dataset, o.site, o.people, o.runs) for o in origins] == [
        ("cohort", None, 1, 1),
        ("cohort", "here", 1, 2),
        ("other", "here", 1, 1),
    ]
    assert origins[1].trs == (0.8, 2.0)
    assert (origins[1].shortest, origins[1].longest) == (120.0, 300.0)
    assert origins[2].displacement is None
    story = make_story(training=recordings, validation=())
    assert sum(origin.hours for origin in origins) == pytest.approx(story.hours)


def test_the_first_volume_has_no_displacement(make_recording) -> None:
    assert mean_displacement(make_recording(displacement=(0.0, 0.2, 0.4))) == pytest.approx(0.3)
    assert mean_displacement(make_recording(displacement=(0.0,))) is None


def test_alarms_that_differ_in_numbers_only_are_told_once() -> None:
    words = ("lie in {} directions of 192", "{} of the constant's loss")
    events = [
        Alarm(step=step, pass_=step, message=text.format(number))
        for step, number in ((3, "7.5"), (4, "1.2e-05"), (6, "-3"))
        for text in words
    ]
    first, second = group_alarms(events)
    assert (first.message, first.times, first.first, first.last) == (
        "lie in -3 directions of 192",
        3,
        3,
        6,
    )
    assert second.message == "-3 of the constant's loss"


def test_changes_are_the_settings_that_differ() -> None:
    assert list_changes(PretrainSettings()) == []
    settings = PretrainSettings(seed=5, train=Train(batch=16, clip=1.0))
    assert list_changes(settings) == [("seed", 5, 0), ("train.batch", 16, None)]
