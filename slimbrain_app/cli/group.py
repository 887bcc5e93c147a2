"""``slimbrain BIDS_DIR OUTPUT_DIR group --action pretrain``, and what it says on its way."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import Progress, TaskID

from slimbrain_app.cli.terminal import Terminal, make_bar
from slimbrain_app.errors import count, worst
from slimbrain_app.training.log import (
    Alarm,
    Event,
    Extract,
    Probe,
    Resume,
    Start,
    Step,
    Validation,
)
from slimbrain_app.training.throughput import measure_throughput
from slimbrain_app.workflow.pretraining import Forecast, GroupCall, Pretrained, carry_out, forecast

if TYPE_CHECKING:
    from slimbrain_app.records import Notice
    from slimbrain_app.workflow.corpus import CorpusPlan


def pretrain(
    call: GroupCall, notices: Sequence[Notice], terminal: Terminal, *, dry_run: bool
) -> int:
    """Do what the command line asks for and return the exit code."""
    if os.environ.get("RANK", "0") != "0":
        terminal.quiet = True  # One of several processes speaks for all.
    terminal.say_notices(notices)
    if dry_run:
        return _show_forecast(forecast(call), terminal)
    with watch_group(terminal) as watch:
        done = carry_out(call, watch)
    if done is None:
        return 0
    _show_end(done, watch, call, terminal)
    return worst(refusal.exit_code for refusal in done.refusals)


class Narrator:
    """Tells a call of the group level: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, terminal: Terminal, bar: Progress | None) -> None:
        self.terminal, self.bar = terminal, bar
        self.task: TaskID | None = None
        self.start: Start | None = None
        self.steps: list[Step] = []
        self.losses: list[str] = []

    def say(self, text: str) -> None:
        self.terminal.say(text)

    def show_plan(self, plan: CorpusPlan) -> None:
        _show_plan(plan, self.terminal)

    def count(self, what: str, done: int, total: int) -> None:
        self._advance(what, done, total)
        if self.bar is None and (done == total or done % max(1, total // 10) == 0):
            self.say(f"[{done}/{total}] {what}")

    def tell(self, event: Event) -> None:
        match event:
            case Start():
                self.start = event
                self.say(
                    f"Training: {count(event.steps, 'step')} of {count(event.batch, 'window')} "
                    f"in {event.passes} passes"
                )
            case Resume():
                self.say(f"Going on after step {event.step}")
            case Extract():
                self.say(f"Temporal extractor, pass {event.pass_}: loss {event.loss:.4f}")
            case Step():
                self._follow(event)
            case Validation():
                self.say(f"  validation {event.loss:.4f}{_describe_guesses(event)}")
            case Probe():
                self.say(
                    f"  probe of {event.name}: {event.metric} {event.score:.2f} "
                    f"[{event.lower:.2f}, {event.upper:.2f}], by chance {event.chance:.2f}"
                )
            case Alarm():
                self.say(f"  ALARM: {event.message}")

    def _follow(self, step: Step) -> None:
        assert self.start is not None
        if self.steps and self.steps[-1].pass_ != step.pass_:
            self.steps = []
        self.steps.append(step)
        pace = measure_throughput(self.steps, self.start)
        told = (
            f"{pace.windows_per_second:.2g} windows/s, waiting for windows "
            f"{pace.loader_share:.0%}, {_describe_time(pace.seconds_left)} left"
        )
        self._advance(
            f"pass {step.pass_}, loss {step.loss:.4f}, {told}", step.step, self.start.steps
        )
        if step.step * self.start.passes % self.start.steps == 0:
            loss = math.fsum(one.loss for one in self.steps) / len(self.steps)
            self.losses.append(f"{loss:.4f}")
            self.say(f"Pass {step.pass_} of {self.start.passes}: loss {loss:.4f}, {told}")

    def _advance(self, what: str, done: int, total: int) -> None:
        if self.bar is None:
            return
        if self.task is None:
            self.task = self.bar.add_task("")
        self.bar.update(self.task, completed=done, total=total, description=escape(what))


@contextmanager
def watch_group(terminal: Terminal) -> Iterator[Narrator]:
    """Yield who tells how a call on the group level goes."""
    if terminal.quiet or not terminal.errors.is_terminal:
        yield Narrator(terminal, None)
    else:
        with make_bar(terminal.errors) as bar:
            yield Narrator(terminal, bar)


def _show_plan(plan: CorpusPlan, terminal: Terminal) -> None:
    found = len(plan.recordings) + len(plan.todo) + len(plan.refused)
    terminal.say(
        f"{count(found, 'run')}: {len(plan.recordings)} prepared, {len(plan.todo)} to prepare, "
        f"{len(plan.refused)} refused"
    )
    terminal.say_notices(plan.notices)


def _show_forecast(told: Forecast, terminal: Terminal) -> int:
    code = show_runs(told.plan, terminal)
    terminal.results.print(
        f"would train on {told.people - told.held_out} people and keep {told.held_out} out: at "
        f"most {count(told.steps, 'step')} of {count(told.batch, 'window')}, "
        f"{told.load.at_once} at once in each process, about {told.load.gib:.1f} GiB"
    )
    return code


def show_runs(plan: CorpusPlan, terminal: Terminal) -> int:
    """Say what would be done with each run, and return the exit code of that."""
    _show_plan(plan, terminal)
    say = terminal.results.print
    for todo in plan.todo:
        say(
            escape(
                f"would prepare {todo.dataset}/{todo.run.name}: {todo.run.relative(todo.run.bold)}"
            )
        )
    for recording in plan.recordings:
        say(escape(f"would use     {recording.dataset}/{recording.run}: prepared"))
    for one in plan.refused:
        refusal = one.refusal
        say(escape(f"would refuse  {one.dataset}/{refusal.run}: {refusal.code}: {refusal.message}"))
    return worst(one.refusal.exit_code for one in plan.refused)


def _show_end(done: Pretrained, watch: Narrator, call: GroupCall, terminal: Terminal) -> None:
    name, place = done.package.name, call.output
    terminal.show_refusals(done.refusals)
    if done.before:
        terminal.say("Nothing was done: the package is there, made of these runs and settings")
    elif watch.losses:
        terminal.say(f"Losses of the passes: {', '.join(watch.losses)}")
    terminal.results.print(escape(f"{done.package.folder}"))
    terminal.say(f"Curves and corpus: {place / 'group.html'}")
    terminal.say(f"To use it: slimbrain {call.datasets[0]} {place} participant --model {name}")


def _describe_guesses(event: Validation) -> str:
    if math.isnan(event.over_constant):
        return ""
    return (
        f", {event.over_constant:.2f} of the best constant's, {event.over_position:.2f} of the "
        "mean's at each place"
    )


def _describe_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
