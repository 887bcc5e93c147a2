"""``slimbrain BIDS_DIR OUTPUT_DIR {participant,group}``: parse, plan, carry out, tell."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from slimbrain_app.cli.arguments import normalise, refuse_loops
from slimbrain_app.cli.parser import check_verb, make_parser, make_settings, name_verb
from slimbrain_app.errors import Exit, SlimBrainError
from slimbrain_app.training.stopping import SIGNALS

if TYPE_CHECKING:
    from slimbrain_app.cli.terminal import Terminal
    from slimbrain_app.records import RunStatus
    from slimbrain_app.workflow.corpus import GroupSettings
    from slimbrain_app.workflow.preparing import Gathering

# About folders, even if they are there.
PLACES = ("no-input", "no-participant", "no-bold", "not-writable")

Call = TypeVar("Call", bound="Gathering")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        return _run(read_options(words), words)
    except SlimBrainError as error:
        print(f"slimbrain: {error}", file=sys.stderr)
        _tell_mounts(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("slimbrain: stopped; start the same command again to go on", file=sys.stderr)
        return Exit.TRY_AGAIN
    except Exception:
        traceback.print_exc()
        print("slimbrain: a fault of ours; please send us the lines above", file=sys.stderr)
        return Exit.FAULT
    finally:
        if arguments is None:  # What is said is said: Python would let a late one kill its end.
            _ignore_stops()


def _tell_mounts(error: SlimBrainError) -> None:
    """Say what an image sees of the host, where the error is about a place."""
    from slimbrain_app.bids.dataset import IMAGE
    from slimbrain_app.cluster.mounts import tell_mounts

    # Not Path.exists, which fails where a name is too long to be one.
    missing = error.file is not None and not os.path.exists(error.file)  # noqa: PTH110
    if IMAGE in os.environ and (missing or error.reason in PLACES):
        print(f"slimbrain: {tell_mounts()}", file=sys.stderr)


def _stop(*_: object) -> NoReturn:
    """End the call, once: what comes later must not stop the clearing up."""
    _ignore_stops()
    raise KeyboardInterrupt


def _ignore_stops() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def read_options(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; options must have a meaning on its level."""
    parser = make_parser()
    options = parser.parse_strictly(normalise(words))
    check_verb(parser, options)
    refuse_loops(options.bids_dir, options.output_dir, options.work_dir, *(options.dataset or ()))
    return options


def _run(options: argparse.Namespace, words: Sequence[str]) -> int:
    from slimbrain_app.cli.terminal import Terminal
    from slimbrain_app.workflow.plan import check_work

    terminal = Terminal(verbosity=-1 if options.quiet else options.verbose)
    for option in options.ignored or ():
        terminal.say(f"{option} has no meaning here and is ignored")
    datasets = [folder.resolve() for folder in (options.bids_dir, *(options.dataset or ()))]
    for dataset in datasets:
        check_work(dataset, options.work_dir)
    verbs = {
        "participant": _embed,
        "pretrain": _pretrain,
        "evaluate": _evaluate,
        "finetune": _finetune,
        "tabulate": _tabulate,
    }
    return verbs[name_verb(options)](options, datasets, anonymise(words), terminal)


def _pretrain(
    options: argparse.Namespace, datasets: list[Path], command: list[str], terminal: Terminal
) -> int:
    from slimbrain_app.settings import PretrainSettings

    settings, notices = make_settings(PretrainSettings, options)

    from slimbrain_app.cli.group import pretrain
    from slimbrain_app.workflow.pretraining import GroupCall

    call = _gather(GroupCall, settings, options, datasets, command)
    return pretrain(call, notices, terminal, dry_run=options.dry_run)


def _evaluate(
    options: argparse.Namespace, datasets: list[Path], command: list[str], terminal: Terminal
) -> int:
    from slimbrain_app.settings import EvaluateSettings

    settings, notices = make_settings(EvaluateSettings, options)

    from slimbrain_app.cli.evaluation import evaluate, foresee
    from slimbrain_app.workflow.group import PeopleCall

    call = _gather(PeopleCall, settings, options, datasets, command)
    return (foresee if options.dry_run else evaluate)(call, notices, terminal)


def _finetune(
    options: argparse.Namespace, datasets: list[Path], command: list[str], terminal: Terminal
) -> int:
    from slimbrain_app.settings import FinetuneSettings

    settings, notices = make_settings(FinetuneSettings, options)

    from slimbrain_app.cli.evaluation import finetune, foresee
    from slimbrain_app.workflow.finetuning import FinetuneCall

    call = _gather(FinetuneCall, settings, options, datasets, command)
    return (foresee if options.dry_run else finetune)(call, notices, terminal)


def _gather(
    kind: type[Call],
    settings: GroupSettings,
    options: argparse.Namespace,
    datasets: list[Path],
    command: list[str],
) -> Call:
    """Return a call of the group level on runs."""
    return kind(
        datasets=tuple(datasets),
        output=options.output_dir.resolve(),
        settings=settings,
        work_dir=options.work_dir,
        command=tuple(command),
    )


def _tabulate(
    options: argparse.Namespace, datasets: list[Path], command: list[str], terminal: Terminal
) -> int:
    from slimbrain_app.settings import TabulateSettings

    settings, notices = make_settings(TabulateSettings, options)

    from slimbrain_app.cli.tabulating import tabulate
    from slimbrain_app.workflow.tabulating import TabulateCall

    (dataset,), output = datasets, options.output_dir.resolve()
    call = TabulateCall(dataset=dataset, output=output, settings=settings, command=tuple(command))
    return tabulate(call, notices, terminal, dry_run=options.dry_run)


def _embed(
    options: argparse.Namespace, datasets: list[Path], command: list[str], terminal: Terminal
) -> int:
    from slimbrain_app.settings import ParticipantSettings
    from slimbrain_app.workflow.plan import make_plan

    settings, notices = make_settings(ParticipantSettings, options)
    (dataset,), output = datasets, options.output_dir.resolve()
    plan = make_plan(dataset, output, settings)
    terminal.show_plan(plan, notices)
    if options.dry_run:
        from slimbrain_app.workflow.forecast import forecast

        rows = forecast(plan)
        terminal.show_dry_run(rows, plan.device)
        return _exit_code([row.status for row in rows])

    from slimbrain_app.workflow.participant import carry_out

    with terminal.progress(plan) as watch:
        statuses = carry_out(plan, options.work_dir, command, watch)
    terminal.show_results(plan, statuses)
    return _exit_code(statuses)


def anonymise(words: Sequence[str]) -> list[str]:
    """Return the command line with the last parts of absolute paths only."""
    return ["slimbrain", *map(_shorten, words)]


def _shorten(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{Path(value).name if value.startswith('/') else value}"


def _exit_code(statuses: Sequence[RunStatus]) -> int:
    from slimbrain_app.records import decide_exit

    return decide_exit([status.refusal for status in statuses if status.refusal], len(statuses))
