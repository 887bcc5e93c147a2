"""``group --action evaluate`` and ``finetune``, and what they say on their way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from rich.markup import escape

from slimbrain_app.cli.group import show_runs, watch_group
from slimbrain_app.errors import worst
from slimbrain_app.evaluation.comparison import Judgement
from slimbrain_app.evaluation.judging import Score
from slimbrain_app.report.group import EVALUATION_PAGE
from slimbrain_app.workflow.evaluating import Evaluated, carry_out
from slimbrain_app.workflow.finetuning import FinetuneCall
from slimbrain_app.workflow.finetuning import carry_out as put_heads_on
from slimbrain_app.workflow.group import PeopleCall, foresee_group
from slimbrain_app.workflow.tuning import carry_out as train_heads
from slimbrain_app.workflow.tuning import describe_verdict

if TYPE_CHECKING:
    from slimbrain_app.cli.terminal import Terminal
    from slimbrain_app.records import Notice


def foresee(call: PeopleCall, notices: Sequence[Notice], terminal: Terminal) -> int:
    """Say what would be done, write nothing, and return the exit code of the real call."""
    terminal.say_notices(notices)
    plan, notes = foresee_group(call)
    code = show_runs(plan, terminal)
    for note in notes:
        terminal.say(f"Note: {note}")
    return code


def evaluate(call: PeopleCall, notices: Sequence[Notice], terminal: Terminal) -> int:
    """Do what the command line asks for and return the exit code."""
    terminal.say_notices(notices)
    with watch_group(terminal) as watch:
        done = carry_out(call, watch)
    for note in done.notes:
        terminal.say(f"Note: {note}")
    terminal.show_refusals(done.refusals)
    terminal.results.print(escape(_tabulate(done)))
    terminal.say(f"Page: {call.output / EVALUATION_PAGE}")
    terminal.say(f"Tables: {call.output / 'desc-slimbrain_metrics.tsv'} and those beside it")
    return worst(refusal.exit_code for refusal in done.refusals)


def finetune(call: FinetuneCall, notices: Sequence[Notice], terminal: Terminal) -> int:
    """Do what the command line asks for and return the exit code."""
    if os.environ.get("RANK", "0") != "0":
        terminal.quiet = True  # One of several processes speaks for all.
    terminal.say_notices(notices)
    with watch_group(terminal) as watch:
        tune = train_heads if call.settings.tune.by_gradient else put_heads_on
        done = tune(call, watch)
    if done is None:
        return 0
    for note in done.notes:
        terminal.say(f"Note: {note}")
    terminal.show_refusals(done.refusals)
    if done.before:
        terminal.say("Nothing was done: the package is there, made of these people and settings")
    for head in done.heads.heads if done.heads else ():
        terminal.say(f"{head.outcome}: fitted to {head.people} people")
        if (score := head.score) and not done.verdicts:
            told = f"{score.metric} {score.value:.2f} [{score.lower:.2f}, {score.upper:.2f}]"
            terminal.say(f"  of people left out by {score.scheme}: {told}")
    for verdict in done.verdicts:
        terminal.say(f"Test part, {describe_verdict(verdict)}")
    terminal.results.print(escape(f"{done.package.folder}"))
    name, place = done.package.name, call.output
    terminal.say(f"To use it: slimbrain DERIVATIVES {place} participant --model {name}")
    return worst(refusal.exit_code for refusal in done.refusals)


def _tabulate(done: Evaluated) -> str:
    rows = [_describe(one) for one in done.judgements]
    rows += [
        (score.name, str(score.people), "", "model", *_describe_score(score), "", "")
        for score in done.identities
    ]
    headings = ["outcome", "people", "left out", "by", "score", "95 %", "model above by", "p"]
    table = pd.DataFrame([headings, *rows])
    widths = table.map(len).max()
    lines = (
        "  ".join(cell.ljust(widths[column]) for column, cell in enumerate(row)).rstrip()
        for row in table.itertuples(index=False)
    )
    return "\n".join(lines)


def _describe(one: Judgement) -> tuple[str, ...]:
    score = one.scores[0]
    above = (f"{gain.value:+.2f} [{gain.lower:+.2f}, {gain.upper:+.2f}]" for gain in one.above)
    return (
        one.outcome.name,
        str(score.people),
        one.scheme.name,
        one.features,
        *_describe_score(score),
        next(above, ""),
        "" if one.chance is None else f"{one.chance:.2g}",
    )


def _describe_score(score: Score) -> tuple[str, str]:
    return f"{score.metric} {score.value:.2f}", f"[{score.lower:.2f}, {score.upper:.2f}]"
