"""What is said on the terminal: the plan, progress, and one row for each run at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from slimbrain_app.costs import Cost, tell_size
from slimbrain_app.errors import count
from slimbrain_app.records import Notice, Refusal, RunStatus

if TYPE_CHECKING:
    from slimbrain_app.workflow.forecast import Row
    from slimbrain_app.workflow.plan import Plan

VERBS = ("prepare", "rank", "encode", "write")
LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
ACTIONS = {"do": "green", "redo": "green", "skip": "dim", "refuse": "bold red"}
_ANY_WIDTH = 10_000
STYLES = {"done": "green", "current": "dim", "refused": "bold red"}
WORDS = {"done": "done", "current": "up to date", "refused": "refused"}


class Terminal:
    """Standard error for what happens, standard output for what has come of it.

    Parameters
    ----------
    verbosity : int
        -1 for the result only, 0 for progress, 1 for the log as well, 2 for its details.
    """

    def __init__(self, verbosity: int = 0) -> None:
        self.quiet = verbosity < 0
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.results = Console(highlight=False, soft_wrap=True)
        log = logging.StreamHandler()
        log.setLevel(LEVELS.get(verbosity, logging.DEBUG))
        logging.basicConfig(handlers=[log], format="%(levelname)s %(name)s: %(message)s")
        # It warns where there is no home, as in a container; what it lacks takes half a second.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)

    def say(self, text: str) -> None:
        if not self.quiet:
            self.errors.print(escape(text))

    def say_notices(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            self.say(f"Note [{notice.code}]: {notice.message}")

    def show_refusals(self, refusals: Iterable[Refusal]) -> None:
        """Print why runs were refused, even where all else is quiet."""
        for refusal in refusals:
            self.errors.print(escape(f"{refusal.run} [{refusal.code}] {refusal.message}"))

    def show_plan(self, plan: Plan, notices: Sequence[Notice]) -> None:
        """Say what was found and what will be done with it."""
        current = sum(len(participant.current) for participant in plan.participants)
        refused = sum(len(participant.refused) for participant in plan.participants)
        found = len(plan.todo) + current + refused
        self.say(
            f"{count(found, 'run')} of {count(len(plan.participants), 'participant')}: "
            f"{len(plan.todo)} to do, {current} up to date, {refused} refused"
        )
        model = plan.provenance.model
        trained = "" if model.trained else ", UNTRAINED: its embeddings mean nothing yet"
        self.say(f"Model {model.name} ({model.sha256[:12]}{trained}) on {plan.device}")
        self.say_notices((*notices, *plan.notices))

    def show_dry_run(self, rows: Sequence[Row], device: str) -> None:
        """Print one line for each run, then why runs would be refused, and what the rest costs."""
        table = Table(
            "action", "run", "time", "memory", "disk", "why", "file", box=None, pad_edge=False
        )
        for row in rows:
            table.add_row(
                f"[{ACTIONS[row.action]}]{row.action}[/]",
                escape(row.run),
                *_tell_cost(row.cost),
                escape(row.why),
                escape(row.file),
            )
        self.print_table(table)
        self.show_refusals(row.refusal for row in rows if row.refusal)
        costs = [row.cost for row in rows if row.cost]
        if costs:
            seconds = sum(cost.seconds for cost in costs)
            work = max(cost.work_bytes for cost in costs)
            self.say(
                f"About {_tell_seconds(seconds)} of one processor"
                f"{'' if device == 'cpu' else ', or less: ' + device + ' does the encoding'}; "
                f"up to {tell_size(work)} of the work folder for each run under way"
            )

    @contextmanager
    def progress(self, plan: Plan) -> Iterator[Callable[[str, str], None]]:
        """Yield the watcher of steps: a bar on a terminal, plain lines elsewhere."""
        steps = len(VERBS) + plan.provenance.settings.output.attribution
        total = len(plan.todo) * steps
        if self.quiet or not total:
            yield lambda *_: None
        elif self.errors.is_terminal:
            with make_bar(self.errors) as bar:
                task = bar.add_task("", total=total)
                yield lambda run, verb: bar.update(task, advance=1, description=f"{run} {verb}")
        else:
            yield _PlainProgress(total, self.say)

    def show_results(self, plan: Plan, statuses: Sequence[RunStatus]) -> None:
        """Print the table of runs, then the messages of those that were refused."""
        table = Table("run", "state", "reason", "seconds", box=None, pad_edge=False)
        for status in statuses:
            reason = status.refusal.code if status.refusal else _list_codes(status.notices)
            seconds = f"{status.seconds:.1f}" if status.state == "done" else ""
            state = f"[{STYLES[status.state]}]{WORDS[status.state]}[/]"
            table.add_row(escape(status.run), state, escape(reason), seconds)
        self.print_table(table)
        for status in statuses:
            if status.refusal:
                self.errors.print(escape(f"{status.run} [{status.refusal.code}]"), end=" ")
                self.errors.print(escape(status.refusal.message))
        if not plan.todo and any(participant.current for participant in plan.participants):
            self.say(
                "Nothing was done: what can be done is up to date (--overwrite always redoes it)"
            )
        self.say(f"Reports and tables: {plan.output}")

    def print_table(self, table: Table) -> None:
        """Print all of a table: a name that is cut short would be of no use."""
        Console(highlight=False, width=_ANY_WIDTH).print(table, soft_wrap=True)


class _PlainProgress:
    """One line for each step that has ended."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.ended, self.say = total, 0, say

    def __call__(self, run: str, verb: str) -> None:
        self.ended += 1
        self.say(f"[{self.ended}/{self.total}] {verb} {run}")


def make_bar(console: Console) -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
    )


def _tell_cost(cost: Cost | None) -> tuple[str, str, str]:
    if cost is None:
        return "", "", ""
    return _tell_seconds(cost.seconds), f"{cost.memory_gb:g} GB", tell_size(cost.kept_bytes)


def _tell_seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.0f} h"


def _list_codes(notices: Sequence[Notice]) -> str:
    return ", ".join(dict.fromkeys(notice.code for notice in notices))
