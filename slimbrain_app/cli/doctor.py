"""``slimbrain-tools doctor``: what keeps a call from ending well, before a cohort is started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from slimbrain_app.cli.arguments import Parser, refuse_loops
from slimbrain_app.cli.terminal import Terminal
from slimbrain_app.costs import MEMORY_GB
from slimbrain_app.errors import worst
from slimbrain_app.settings import Compute, ParticipantSettings

if TYPE_CHECKING:
    from slimbrain_app.cluster.doctor import Demand, Finding

    Actions = argparse._SubParsersAction[Parser]
    Checks = Iterator[tuple[str, Callable[[], Finding]]]

STYLES = {"well": "green", "mind": "yellow", "fails": "bold red"}


def add_doctor(commands: Actions) -> None:
    parser = commands.add_parser(
        "doctor", help="see whether this machine has all that a call needs"
    )
    parser.add_argument(
        "bids_dir", type=Path, nargs="?", metavar="BIDS_DIR", help="as for slimbrain"
    )
    parser.add_argument(
        "output_dir", type=Path, nargs="?", metavar="OUTPUT_DIR", help="as for slimbrain"
    )
    defaults = ParticipantSettings()
    parser.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="as for slimbrain (default: a temporary folder)",
    )
    parser.add_argument(
        "--model",
        default=defaults.model,
        metavar="NAME|DIR",
        help="as for slimbrain (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default=defaults.compute.device,
        metavar="D",
        help="as for slimbrain (default: %(default)s)",
    )
    parser.set_defaults(run=_examine)


def _examine(options: argparse.Namespace) -> int:
    from slimbrain_app.cluster.doctor import examine

    terminal = Terminal(verbosity=-1)
    findings = [(name, examine(check)) for name, check in _list_checks(options)]
    rows = ((name, one.state, one.found, one.advice) for name, one in findings)
    terminal.results.print(draw_findings(rows))
    return worst(finding.exit_code for _, finding in findings)


def draw_findings(rows: Iterable[tuple[str, str, str, str]]) -> Table:
    """Draw a row for each check: its name, its state, what was found, what to do."""
    table = Table("check", "state", "finding", "what to do", box=None, pad_edge=False)
    for name, state, found, advice in rows:
        table.add_row(name, f"[{STYLES[state]}]{state}[/]", escape(found), escape(advice))
    return table


def _list_checks(options: argparse.Namespace) -> Checks:
    from slimbrain_app.cluster import doctor

    dataset, output = options.bids_dir, options.output_dir
    if output:  # A call, too, follows links to their end, where it makes a folder.
        output = Path(os.path.realpath(output))
    demand = doctor.measure_demand(dataset) if dataset else doctor.Demand()
    if dataset:
        yield "input", partial(doctor.check_input, dataset)
        yield "first participant", partial(doctor.check_first, dataset)
    if output:
        yield "output", partial(_check_output, dataset, output)
        yield "locks", partial(doctor.check_locks, output)
        yield "space", partial(doctor.check_space, output, demand)
    yield "work folder", partial(_check_work, dataset, options.work_dir, demand)
    yield "processors", _check_processors
    yield "memory", _check_memory
    yield "device", partial(doctor.check_device, options.device)
    yield "model", partial(doctor.check_model, options.model, output)
    yield "templates", doctor.check_templates
    yield "home", doctor.check_home


def _check_output(dataset: Path | None, output: Path) -> Finding:
    from slimbrain_app.cluster.doctor import check_output
    from slimbrain_app.workflow.plan import check_folders

    refuse_loops(dataset, output)
    if dataset:
        check_folders(dataset, output)
    return check_output(output)


def _check_work(dataset: Path | None, work_dir: Path | None, demand: Demand) -> Finding:
    from slimbrain_app.cluster import doctor
    from slimbrain_app.workflow.plan import check_work

    folder = doctor.find_work(work_dir)
    refuse_loops(dataset, folder)
    if dataset:
        check_work(dataset, folder)
    return doctor.check_work(folder, demand, _count_at_once())


def _check_processors() -> Finding:
    from slimbrain_app.cluster.doctor import check_processors
    from slimbrain_app.workflow.resources import CGROUP, find_limits, list_processors

    threads = find_limits(Compute()).threads
    return check_processors(list_processors(os.environ, CGROUP), threads)


def _check_memory() -> Finding:
    from slimbrain_app.cluster.doctor import check_memory
    from slimbrain_app.workflow.resources import CGROUP, list_memory

    # Predictions are only explained if that is wished.
    needed = max(size for verb, size in MEMORY_GB.items() if verb != "explain")
    return check_memory(list_memory(os.environ, CGROUP), needed, _count_at_once())


def _count_at_once() -> int:
    from slimbrain_app.workflow.resources import find_limits

    limits = find_limits(Compute())
    return limits.processes // limits.threads
