"""What goes along with a pretraining: monitors, validation, probes, and what they tell the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from slimbrain_app.model.batches import Batch
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.jepa import Jepa
from slimbrain_app.model.monitors import (
    PositionMeans,
    Reading,
    find_alarms,
    measure,
    measure_distance,
    start_means,
    update_means,
)
from slimbrain_app.model.objective import Evidence, Loss, Objective
from slimbrain_app.training.log import Alarm, Event, Probe, Start, Step, Validation
from slimbrain_app.training.step import Progress

# Steps from one reading of the monitors to the next.
STEPS_PER_READING = 50

# Takes the encoder, the step and the pass.
ProbeEncoder = Callable[[Encoder, int, int], Iterable[Probe]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """How closely a pretraining is watched.

    Attributes
    ----------
    held_out : callable
        Returns the batches to validate on, always the same; None for no validation.
    probe : callable or None
    probe_passes : int
        A probe after so many passes; 0 for none.
    stop_on_collapse : bool
    """

    held_out: Callable[[], Iterable[Batch]] | None
    probe: ProbeEncoder | None
    probe_passes: int
    stop_on_collapse: bool


@dataclass(slots=True, eq=False)
class Supervisor:
    """The observer of a pretraining, one in each process; only the first one's tells.

    Attributes
    ----------
    objective : Objective
    start : Start
    precision : torch.dtype
        Of the encoder's products, for validation.
    wishes : Wishes or None
        None in all processes but the first, which have nothing to do here.
    tell : callable
        Takes events for the log.
    """

    objective: Objective
    start: Start
    precision: torch.dtype
    wishes: Wishes | None = None
    tell: Callable[[Event], None] = lambda _: None
    means: PositionMeans | None = None
    readings: list[Reading] = field(default_factory=list)
    alarmed: bool = False
    # Of the step under way: its first evidence, and the means before it.
    _fresh: tuple[Evidence, PositionMeans] | None = None
    _step: int = 0

    def see(self, loss: Loss) -> None:
        if self.wishes is None or loss.evidence is None:
            return
        means = self.means or self._start_means(loss.evidence)
        self._fresh = self._fresh or (loss.evidence, means)
        self.means = update_means(means, loss.evidence)

    def end_step(self, progress: Progress) -> None:
        """Log a step, and read the monitors now and then."""
        if self.wishes is None:
            return
        self._step = progress.step
        self.tell(_describe_step(progress, self.objective))
        if progress.step % STEPS_PER_READING == 0 or progress.step == self.start.steps:
            self._read_monitors(progress)
        self._fresh = None

    def end_pass(self, number: int) -> None:
        if self.wishes is None:
            return
        if self.wishes.held_out is not None:
            self.tell(self._validate(self.wishes.held_out(), number))
        every = self.wishes.probe_passes
        last = number == self.start.passes
        if self.wishes.probe and every and (number % every == 0 or last):
            for probe in self.wishes.probe(self.objective.trained, self._step, number):
                self.tell(probe)

    def wants_end(self) -> bool:
        return self.wishes is not None and self.wishes.stop_on_collapse and self.alarmed

    def state_dict(self) -> dict[str, Any]:
        means = self.means
        return {
            "means": None if means is None else {"sums": means.sums, "weights": means.weights},
            "readings": [asdict(reading) for reading in self.readings],
            "alarmed": self.alarmed,
            "step": self._step,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        device = next(self.objective.parameters()).device
        means = state_dict["means"]
        self.means = means and PositionMeans(means["sums"].to(device), means["weights"].to(device))
        self.readings = [
            Reading(**{**reading, "kinds": tuple(reading["kinds"])})
            for reading in state_dict["readings"]
        ]
        self.alarmed = state_dict["alarmed"]
        self._step = state_dict["step"]

    def _start_means(self, evidence: Evidence) -> PositionMeans:
        cells = torch.Size(self.objective.trained.sizes.final_grid).numel()
        return start_means(cells, evidence.truths.shape[1], evidence.truths.device)

    def _read_monitors(self, progress: Progress) -> None:
        if self._fresh is None or not isinstance(self.objective, Jepa):
            return  # Another objective can't collapse.
        distance = measure_distance(self.objective.context, self.objective.target)
        reading = measure(progress.step, *self._fresh, distance)
        self.readings.append(reading)
        self.tell(reading)
        start = self.start
        for message in find_alarms(self.readings, start.width, start.warm_up, start.steps):
            self.alarmed = True
            self.tell(Alarm(step=progress.step, pass_=progress.pass_, message=message))

    @torch.no_grad()
    def _validate(self, batches: Iterable[Batch], pass_: int) -> Validation:
        """Take the mean loss over views of people kept out, and the monitors' guesses on them."""
        device = next(self.objective.parameters()).device
        cast = torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32)
        losses, readings = [], []
        self.objective.eval()
        with cast:
            for batch in batches:
                loss = self.objective(batch.to(device))
                losses.append((loss.views, float(loss.total), loss.kinds.tolist()))
                if loss.evidence is not None and self.means is not None:
                    reading = measure(self._step, loss.evidence, self.means, 0.0)
                    readings.append((loss.views, reading.over_constant, reading.over_position))
        self.objective.train()
        views = sum(count for count, *_ in losses)
        columns = zip(*(kinds for *_, kinds in losses), strict=True)
        return Validation(
            step=self._step,
            pass_=pass_,
            loss=sum(total for _, total, _ in losses) / views,
            kinds=tuple(sum(column) / views for column in columns),
            over_constant=_average(readings, 1),
            over_position=_average(readings, 2),
        )


def _average(readings: Sequence[tuple[float, ...]], column: int) -> float:
    """Return the mean of a column, weighted by views; NaN of nothing."""
    views = sum(reading[0] for reading in readings)
    return sum(one[0] * one[column] for one in readings) / views if views else float("nan")


def _describe_step(progress: Progress, objective: Objective) -> Step:
    momentum = float("nan")
    if isinstance(objective, Jepa):
        momentum = objective.settings.momentum(progress.step / progress.of)
    return Step.of(progress, momentum=momentum)
