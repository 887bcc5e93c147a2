"""``slimbrain-tools slurm participant``, ``status``, ``retry``: many participants by Slurm."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from slimbrain_app.cli.arguments import (
    PassingParser,
    label,
    misfit,
    number_from,
    slurm_size,
)
from slimbrain_app.cli.jobs import add_call, add_limits, make_command
from slimbrain_app.cli.terminal import Terminal
from slimbrain_app.errors import CallRefused, count

if TYPE_CHECKING:
    from slimbrain_app.cluster.cohort import Cohort
    from slimbrain_app.cluster.progress import Standing
    from slimbrain_app.settings import ParticipantSettings, Select

    Actions = argparse._SubParsersAction[PassingParser]

# On a GPU, loading the model once for several pays, and some are prepared while one is encoded.
_ON_GPU, _ON_CPU = 8, 1
_REQUESTS = ("time", "gpu", "at_once", "partition", "account", "after")
_STYLES = {"done": "green", "refused": "bold red", "failed": "bold red", "lost": "bold red"}


def add_participant(actions: Actions) -> None:
    parser = actions.add_parser(
        "participant",
        help="write the jobs that work on many participants",
        usage="%(prog)s BIDS_DIR OUTPUT_DIR --time HH:MM:SS --output JOBS [options] "
        "[-- OPTION ...]",
        epilog="Options after -- are slimbrain's, for the participant level.",
    )
    add_call(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="JOBS",
        help="a new or empty folder, outside BIDS_DIR, for the jobs",
    )
    _add_division(parser.add_argument_group("who is worked on"))
    _add_requests(parser.add_argument_group("what Slurm is asked for"))
    parser.set_defaults(run=_write_jobs)


def _add_division(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--participants",
        type=Path,
        metavar="FILE",
        help="a label on each line, in this order; they need not be in BIDS_DIR yet "
        "(default: all there)",
    )
    group.add_argument(
        "--participants-per-task",
        type=number_from(1),
        metavar="N",
        help=f"participants of a task (default: {_ON_CPU}, or {_ON_GPU} with --gpu)",
    )
    group.add_argument(
        "--after",
        type=number_from(1),
        metavar="JOBID",
        help="an array of fMRIPrep with a task for each line of FILE, from 1: each task waits "
        "until that of the same number has ended well (default: none)",
    )


def _add_requests(group: argparse._ArgumentGroup) -> None:
    add_limits(group, "task")
    group.add_argument(
        "--at-once", type=number_from(1), metavar="N", help="tasks at any time (default: no limit)"
    )
    group.add_argument(
        "--cpus",
        type=number_from(1),
        metavar="N",
        help="processors of a task (default: 4, or 8 with --gpu)",
    )
    group.add_argument(
        "--mem",
        type=slurm_size,
        metavar="SIZE",
        help="memory of a task, as Slurm spells it (default: 2G per processor)",
    )
    group.add_argument(
        "--gpu", action="store_true", help="a GPU for each task; one that finds none ends with 69"
    )


def add_status(actions: Actions) -> None:
    parser = actions.add_parser("status", help="tell how far the jobs are")
    _add_jobs(parser)
    parser.set_defaults(run=_tell_status)


def add_retry(actions: Actions) -> None:
    parser = actions.add_parser("retry", help="submit again what is lost, stopped or failed")
    _add_jobs(parser)
    parser.add_argument(
        "--refused", action="store_true", help="also tasks whose data were refused, now mended"
    )
    parser.set_defaults(run=_retry)


def _add_jobs(parser: PassingParser) -> None:
    parser.add_argument(
        "jobs", type=Path, metavar="JOBS", help="as slimbrain-tools slurm participant has written"
    )


def _write_jobs(options: argparse.Namespace) -> None:
    from slimbrain_app.cli.parser import make_settings
    from slimbrain_app.cluster.cohort import SUBMIT, write_jobs
    from slimbrain_app.settings import ParticipantSettings

    call = _read_call(options)
    settings, notices = make_settings(ParticipantSettings, call)
    if options.image is not None:  # In there a folder is where it really is.
        for name in ("bids_dir", "output_dir", "output"):
            setattr(options, name, getattr(options, name).resolve())
    jobs = options.output.absolute()
    _check_folders(options, jobs)
    labels = _choose_labels(options, settings.select)
    flags = ["-v"] * call.verbose + ["-q"] * call.quiet
    cohort = _make_cohort(options, jobs, _settle(settings, options.gpu), labels, flags)
    write_jobs(jobs, cohort)
    terminal = Terminal()
    terminal.say_notices(notices)
    tasks = count(len(cohort.tasks), "task")
    terminal.say(f"{tasks} for {count(len(labels), 'participant')}; submit them with")
    print(shlex.join(["bash", str(jobs / SUBMIT)]))


def _read_call(options: argparse.Namespace) -> argparse.Namespace:
    """Parse the call of a task, and refuse what has no place in one."""
    from slimbrain_app.cli.app import read_options

    folders = (options.bids_dir, options.output_dir)
    call = read_options([*map(str, folders), "participant", *options.passed])
    if call.work_dir is not None:
        found = "--work-dir: each task makes one on its own node, below SLURM_TMPDIR or TMPDIR"
        raise misfit("slurm participant", found)
    if call.dry_run:
        raise misfit("slurm participant", "--dry-run: jobs that do nothing would pass for done")
    if options.participants is not None and call.participant_label is not None:
        raise misfit(
            "slurm participant", "--participant-label and --participants, which both say who it is"
        )
    if options.after is not None and options.participants is None:
        raise misfit(
            "slurm participant",
            "--after without --participants: who is whose task, only a list can tell",
        )
    if options.after is not None and (options.participants_per_task or 1) > 1:
        raise misfit(
            "slurm participant",
            "--after with several participants in a task, where each waits for one task",
        )
    return call


def _check_folders(options: argparse.Namespace, jobs: Path) -> None:
    """Refuse folders that the jobs would refuse, or that they can't be written into."""
    from slimbrain_app.bids.discover import check_dataset
    from slimbrain_app.cluster.cohort import check_name
    from slimbrain_app.cluster.doctor import check_output
    from slimbrain_app.files import check_empty
    from slimbrain_app.workflow.plan import check_folders

    dataset, output = options.bids_dir, options.output_dir
    if options.participants is None or dataset.exists():
        check_dataset(dataset)
    check_folders(dataset, output)
    check_name(jobs)
    check_empty(jobs)
    if jobs.resolve().is_relative_to(dataset.resolve()) or jobs.resolve() == output.resolve():
        raise CallRefused(
            "same-folder",
            file=jobs,
            expected="a folder for the jobs outside BIDS_DIR, and another one than OUTPUT_DIR",
            found="one inside the input, or the output folder itself",
            advice="name another folder with --output",
        )
    check_output(output)


def _choose_labels(options: argparse.Namespace, select: Select) -> tuple[str, ...]:
    from slimbrain_app.bids.discover import list_selected

    if options.participants is None:
        return list_selected(options.bids_dir, select)
    return _read_labels(options.participants)


def _read_labels(file: Path) -> tuple[str, ...]:
    """Return the labels of a file, one on each line, in its order."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        labels = tuple(map(label("sub"), lines))
    except (OSError, UnicodeDecodeError) as error:
        raise _misfit_file(file, getattr(error, "strerror", None) or str(error)) from error
    except argparse.ArgumentTypeError as error:
        raise _misfit_file(file, str(error)) from error
    if not labels:
        raise _misfit_file(file, "nothing")
    twice, times = Counter(labels).most_common(1)[0]
    if times > 1:
        raise _misfit_file(file, f"sub-{twice} {times} times")
    return labels


def _settle(settings: ParticipantSettings, gpu: bool) -> ParticipantSettings:
    """Return settings that hold for each task, from wherever it starts."""
    model, compute = settings.model, settings.compute
    return replace(
        settings,
        model=str(Path(model).absolute()) if "/" in model else model,
        select=replace(settings.select, participants=()),
        # Without the GPU that was asked for a task is to end, not to be slow.
        compute=replace(compute, device="cuda") if gpu and compute.device == "auto" else compute,
    )


def _make_cohort(
    options: argparse.Namespace,
    jobs: Path,
    settings: ParticipantSettings,
    labels: tuple[str, ...],
    flags: Sequence[str],
) -> Cohort:
    from slimbrain_app.cluster.cohort import Cohort, place_settings
    from slimbrain_app.settings import write_settings

    size = options.participants_per_task or (_ON_GPU if options.gpu and not options.after else 1)
    cpus = options.cpus or (8 if options.gpu else 4)
    dataset, output = options.bids_dir.absolute(), options.output_dir.absolute()
    config, model = place_settings(jobs), Path(settings.model)
    read = [config, *([model] if model.is_absolute() else [])]
    embed = [str(dataset), str(output), "participant", *flags]
    tabulate = [str(dataset), str(output), "group", f"--model={model.name}", *flags]
    gpu, image = options.gpu, options.image
    command, _ = make_command(image, embed, gpu=gpu, read=read)
    return Cohort(
        output=output,
        tasks=tuple(labels[first : first + size] for first in range(0, len(labels), size)),
        settings=write_settings(settings),
        command=[*command, f"--config={config}"],
        group_command=make_command(image, tabulate, gpu=gpu)[0],
        mem=options.mem or f"{2 * cpus}G",
        cpus=cpus,
        **{name: getattr(options, name) for name in _REQUESTS},
    )


def _misfit_file(file: Path, found: str) -> CallRefused:
    return CallRefused(
        "usage",
        file=file,
        expected="a label on each line, everybody once",
        found=found,
        advice="mend the file, or name another one with --participants",
    )


def _tell_status(options: argparse.Namespace) -> int:
    from slimbrain_app.cluster.progress import decide_exit, read_standings

    standings = read_standings(options.jobs)
    Terminal().print_table(_draw(standings))
    return decide_exit(standings)


def _draw(standings: Sequence[Standing]) -> Table:
    """Return a table with a row for all tasks that stand alike."""
    from slimbrain_app.cluster.progress import join_numbers

    table = Table(
        "state", "code", "tasks", "participants", "which", "why", box=None, pad_edge=False
    )
    alike: dict[tuple[object, ...], list[Standing]] = {}
    for one in standings:
        key = (one.task.isdecimal(), one.state, one.code, one.why)
        alike.setdefault(key, []).append(one)
    for (numbered, state, code, why), group in alike.items():
        style = _STYLES.get(str(state), "default")
        which = join_numbers(int(one.task) for one in group) if numbered else group[0].task
        table.add_row(
            f"[{style}]{state}[/]",
            "" if code is None else str(code),
            str(len(group)) if numbered else "",
            str(sum(len(one.participants) for one in group)) if numbered else "",
            which,
            escape(str(why)),
        )
    return table


def _retry(options: argparse.Namespace) -> None:
    from slimbrain_app.cluster.progress import choose_missing, read_standings, submit_again

    missing = choose_missing(read_standings(options.jobs), refused=options.refused)
    if not missing:
        print("nothing to submit: all is done, refused, waiting or running")
        return
    states = Counter(one.state for one in missing)
    told = ", ".join(f"{number} {state}" for state, number in states.items())
    print(f"submits {told}, and the group level")
    print(submit_again(options.jobs, missing), end="")
