"""``slimbrain-tools slurm``: job scripts for a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slimbrain_app.cli.arguments import (
    Parser,
    PassingParser,
    number_from,
    slurm_name,
    slurm_time,
)
from slimbrain_app.cli.cohort import add_participant, add_retry, add_status

if TYPE_CHECKING:
    Actions = argparse._SubParsersAction[Parser]


def add_slurm(commands: Actions) -> None:
    parser = commands.add_parser("slurm", help="job scripts for Slurm")
    actions = parser.add_subparsers(
        required=True, metavar="ACTION", title="actions", parser_class=PassingParser
    )
    add_participant(actions)
    add_status(actions)
    add_retry(actions)
    _add_pretrain(actions)


def _add_pretrain(actions: argparse._SubParsersAction[PassingParser]) -> None:
    parser = actions.add_parser(
        "pretrain",
        help="train a model package on one node or several",
        usage="%(prog)s BIDS_DIR OUTPUT_DIR --nodes N --gpus-per-node G --time HH:MM:SS [options] "
        "[-- OPTION ...]",
        epilog="Options after -- are passed on to slimbrain.",
    )
    parser.add_argument("bids_dir", type=Path, metavar="BIDS_DIR", help="as for slimbrain")
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="as for slimbrain")
    parser.add_argument(
        "--nodes", type=number_from(1), default=1, metavar="N", help="nodes (default: 1)"
    )
    parser.add_argument(
        "--gpus-per-node",
        type=number_from(0),
        default=1,
        metavar="G",
        help="GPUs and processes on each node; 0 for one process without a GPU (default: 1)",
    )
    parser.add_argument(
        "--time",
        type=slurm_time,
        required=True,
        metavar="HH:MM:SS",
        help="limit of the job, in any of Slurm's spellings",
    )
    parser.add_argument(
        "--partition", type=slurm_name, metavar="NAME", help="partition (default: the cluster's)"
    )
    parser.add_argument(
        "--account", type=slurm_name, metavar="NAME", help="account (default: the cluster's)"
    )
    parser.add_argument(
        "--image", type=Path, metavar="SIF", help="run in this Apptainer image (default: none)"
    )
    parser.add_argument(
        "--config", type=Path, metavar="TOML", help="settings, as for slimbrain (default: none)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="where the script goes (default: standard output)",
    )
    parser.set_defaults(run=_write_pretraining)


def _write_pretraining(options: argparse.Namespace) -> None:
    from slimbrain_app.cli.app import read_options
    from slimbrain_app.cluster.containers import Container, enter
    from slimbrain_app.cluster.slurm import Job, write_pretraining
    from slimbrain_app.files import write_text

    command = _make_command(options)
    call = read_options(command[1:])  # Better refused now than when the job has waited its turn.
    folders = [path.absolute() for path in (call.output_dir, call.work_dir) if path]
    if options.image is not None:
        given = (call.bids_dir, *(call.dataset or ()), call.config, call.bids_filter_file)
        files = [path.absolute() for path in given if path]
        image, gpu = str(options.image.absolute()), options.gpus_per_node > 0
        container = Container(engine="apptainer", image=image, gpu=gpu, network=True)
        command = enter(container, command[1:], files, folders)
    names = ("nodes", "gpus_per_node", "time", "partition", "account")
    job = Job(**{name: getattr(options, name) for name in names})
    script = write_pretraining(job, command, folders)
    if options.output is None:
        print(script, end="")
    else:
        write_text(options.output, script)


def _make_command(options: argparse.Namespace) -> list[str]:
    folders = [str(folder.absolute()) for folder in (options.bids_dir, options.output_dir)]
    command = ["slimbrain", *folders, "group", "--action=pretrain"]
    if options.config is not None:
        command.append(f"--config={options.config.absolute()}")
    return [*command, *options.passed]
