"""``group --action tabulate``, and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from slimbrain_app.bids.tables import EMBEDDINGS, PEOPLE, RUNS
from slimbrain_app.errors import count, worst
from slimbrain_app.workflow.tabulating import Tables, TabulateCall, make_tables, write_tables

if TYPE_CHECKING:
    from slimbrain_app.cli.terminal import Terminal
    from slimbrain_app.records import Notice


def tabulate(
    call: TabulateCall, notices: Sequence[Notice], terminal: Terminal, *, dry_run: bool
) -> int:
    """Do what the command line asks for and return the exit code."""
    terminal.say_notices(notices)
    tables = make_tables(call)
    for note in tables.notes:
        terminal.say(f"Note: {note}")
    terminal.show_refusals(tables.damaged)
    if not dry_run:
        write_tables(call, tables)
    verb = "would write " if dry_run else ""
    for name, rows in _list_tables(tables):
        terminal.results.print(escape(f"{verb}{call.output / name}: {rows}"))
    return worst(refusal.exit_code for refusal in tables.damaged)


def _list_tables(tables: Tables) -> list[tuple[str, str]]:
    refused = f", {tables.refused} of them refused" if tables.refused else ""
    listed = [(RUNS, f"{count(len(tables.runs.frame), 'run')}{refused}")]
    if tables.embeddings:
        embedded = count(len(tables.embeddings.rows), "run")
        listed.append((EMBEDDINGS, f"{embedded}, {tables.embeddings.numbers.shape[1]} dimensions"))
    return [*listed, (PEOPLE, count(len(tables.people.frame), "participant"))]
