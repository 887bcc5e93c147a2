"""``slimbrain-tools slurm``: job scripts for a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slimbrain_app.cli.arguments import Parser, PassingParser, number_from
from slimbrain_app.cli.cohort import add_participant, add_retry, add_status
from slimbrain_app.cli.jobs import add_call, add_limits, make_command

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
    add_call(parser)
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
    add_limits(parser, "job")
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
    from slimbrain_app.cluster.slurm import Job, write_pretraining
    from slimbrain_app.files import write_text

    folders = [str(options.bids_dir), str(options.output_dir)]
    config = [f"--config={options.config}"] if options.config else []
    words = [*folders, "group", "--action=pretrain", *config, *options.passed]
    gpu = options.gpus_per_node > 0
    command, made = make_command(options.image, words, gpu=gpu, network=True)
    names = ("nodes", "gpus_per_node", "time", "partition", "account")
    job = Job(**{name: getattr(options, name) for name in names})
    script = write_pretraining(job, command, made)
    if options.output is None:
        print(script, end="")
    else:
        write_text(options.output, script)
