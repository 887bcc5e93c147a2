"""What the page of a pretraining tells: records, filled by whoever has trained."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from slimbrain_app.model.monitors import Reading
from slimbrain_app.records import Contract, Notice, Recording, Refusal
from slimbrain_app.settings import EvaluateSettings, PretrainSettings, flatten_settings
from slimbrain_app.training.log import (
    Alarm,
    Checkpoint,
    End,
    Event,
    Resume,
    Start,
    Step,
    Validation,
    pick,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Story:
    """A pretraining as far as it has come.

    Attributes
    ----------
    name : str
        Of the package.
    weights : str or None
        SHA-256 of its weights, once it is whole.
    training, validation : tuple of Recording
        Runs to learn from, and runs of people kept out.
    refusals : tuple of Refusal
        Runs left out.
    fingerprint : str
        Of the corpus.
    events : tuple of Event
        The log.
    software : mapping of str to str
        Package and version.
    command : tuple of str
        The command line, without absolute paths.
    methods : str
        The text of `slimbrain_app.report.methods.describe_pretraining`.
    """

    name: str
    weights: str | None
    contract: Contract
    training: tuple[Recording, ...]
    validation: tuple[Recording, ...]
    refusals: tuple[Refusal, ...]
    fingerprint: str
    events: tuple[Event, ...]
    settings: PretrainSettings
    device: str
    software: Mapping[str, str]
    command: tuple[str, ...]
    methods: str
    notices: tuple[Notice, ...] = ()

    @property
    def recordings(self) -> tuple[Recording, ...]:
        return (*self.training, *self.validation)

    @property
    def hours(self) -> float:
        return sum(_seconds(recording) for recording in self.recordings) / 3600

    @property
    def start(self) -> Start | None:
        """The last beginning; none if there was no step to be made yet."""
        return next(reversed(pick(self.events, Start)), None)

    @property
    def passes(self) -> int:
        return self.start.passes if self.start else self.settings.train.passes

    @property
    def reached(self) -> int:
        """The pass that was reached; 0 before the first."""
        return max((step.pass_ for step in pick(self.events, Step)), default=0)

    @property
    def end(self) -> End | None:
        """How the last call ended; none if it still runs or was killed."""
        last = next(reversed(pick(self.events, (End, Resume))), None)
        return last if isinstance(last, End) else None

    @property
    def state(self) -> Literal["finished", "stopped", "open"]:
        if self.end is None:
            return "open"
        return "finished" if self.end.finished else "stopped"

    def place(self, steps: Iterable[int]) -> list[float]:
        """Return in passes where steps lie."""
        start = self.start
        return [step * start.passes / start.steps if start else 0.0 for step in steps]


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The runs of one site of a dataset. TRs and lengths in s, displacement in mm."""

    dataset: str
    site: str | None
    people: int
    runs: int
    hours: float
    trs: tuple[float, ...]
    shortest: float
    longest: float
    coverage: float
    displacement: float | None


def list_origins(recordings: Sequence[Recording]) -> list[Origin]:
    """Sum the runs of each site up; coverage and displacement are medians over runs."""
    groups: dict[tuple[str, str | None], list[Recording]] = defaultdict(list)
    for recording in recordings:
        groups[recording.dataset, recording.site].append(recording)
    ordered = sorted(groups, key=lambda key: (key[0], key[1] or ""))
    return [_sum_up(dataset, site, groups[dataset, site]) for dataset, site in ordered]


def _sum_up(dataset: str, site: str | None, runs: Sequence[Recording]) -> Origin:
    lengths = [_seconds(run) for run in runs]
    moved = [motion for motion in map(mean_displacement, runs) if motion is not None]
    return Origin(
        dataset=dataset,
        site=site,
        people=count_people(runs),
        runs=len(runs),
        hours=sum(lengths) / 3600,
        trs=tuple(sorted({round(run.prepared.tr, 4) for run in runs})),
        shortest=min(lengths),
        longest=max(lengths),
        coverage=median(run.prepared.coverage for run in runs),
        displacement=median(moved) if moved else None,
    )


def count_people(recordings: Sequence[Recording]) -> int:
    return len({recording.person for recording in recordings})


def mean_displacement(recording: Recording) -> float | None:
    """Return a run's mean framewise displacement (mm); the first volume has none."""
    series = recording.prepared.displacement
    return None if series is None or len(series) < 2 else math.fsum(series[1:]) / (len(series) - 1)


def _seconds(recording: Recording) -> float:
    return recording.prepared.volumes * recording.prepared.tr


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One pass in numbers: means over its steps, the last reading of the monitors."""

    number: int
    loss: float
    windows_per_second: float
    loader_share: float
    seconds: float
    validation: Validation | None
    reading: Reading | None


def list_passes(story: Story) -> list[Pass]:
    """Sum the steps of each pass up, in order."""
    steps: dict[int, list[Step]] = defaultdict(list)
    for step in pick(story.events, Step):
        steps[step.pass_].append(step)
    validations = {event.pass_: event for event in pick(story.events, Validation)}
    taken = pick(story.events, Reading)
    places = story.place(reading.step for reading in taken)
    # Rounded, for three of nine steps are a whole pass of three, not a little more.
    readings = {
        math.ceil(round(place, 6)): reading for place, reading in zip(places, taken, strict=True)
    }
    return [
        _sum_steps(number, several, validations.get(number), readings.get(number))
        for number, several in sorted(steps.items())
    ]


def _sum_steps(
    number: int, steps: Sequence[Step], validation: Validation | None, reading: Reading | None
) -> Pass:
    seconds = math.fsum(step.seconds for step in steps)
    windows = math.fsum(step.windows_per_second * step.seconds for step in steps)
    waited = math.fsum(step.loader_seconds for step in steps)
    return Pass(
        number=number,
        loss=math.fsum(step.loss for step in steps) / len(steps),
        windows_per_second=windows / seconds if seconds else math.nan,
        loader_share=waited / seconds if seconds else math.nan,
        seconds=seconds,
        validation=validation,
        reading=reading,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmGroup:
    """Alarms that differ in their numbers only: the last one's words, and when they rang."""

    message: str
    times: int
    first: int
    last: int


def group_alarms(events: Sequence[Event]) -> list[AlarmGroup]:
    """Join alarms of the same kind, which ring at each reading; first heard comes first."""
    groups: dict[str, list[Alarm]] = defaultdict(list)
    for alarm in pick(events, Alarm):
        groups[re.sub(r"[-+\d.e]*\d", "#", alarm.message)].append(alarm)
    return [
        AlarmGroup(
            message=alarms[-1].message,
            times=len(alarms),
            first=alarms[0].pass_,
            last=alarms[-1].pass_,
        )
        for alarms in groups.values()
    ]


def list_incidents(story: Story) -> list[Start | Resume | Alarm | End]:
    """Return what happened besides steps, in order."""
    return pick(story.events, (Start, Resume, Alarm, End))


def count_checkpoints(story: Story) -> int:
    return len(pick(story.events, Checkpoint))


def list_changes(settings: PretrainSettings | EvaluateSettings) -> list[tuple[str, Any, Any]]:
    """Return key, value and default of each setting that isn't the default."""
    defaults = dict(flatten_settings(type(settings)()))
    return [
        (key, value, defaults.get(key))
        for key, value in flatten_settings(settings)
        if value != defaults.get(key)
    ]
