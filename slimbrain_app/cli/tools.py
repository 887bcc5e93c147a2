"""``slimbrain-tools``: everything that isn't a BIDS-App call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slimbrain_app import __version__
from slimbrain_app.cli.arguments import Parser
from slimbrain_app.cli.models import add_models
from slimbrain_app.errors import CallRefused, Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = make_parser().parse_strictly(words)
        options.run(options)
        return Exit.DONE
    except CallRefused as error:
        print(f"slimbrain-tools: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("slimbrain-tools: stopped", file=sys.stderr)
        return Exit.TRY_AGAIN


def make_parser() -> Parser:
    parser = Parser(prog="slimbrain-tools", description="Tools around SlimBrain.")
    parser.add_argument("--version", action="version", version=f"slimbrain {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_simulate(commands)
    add_models(commands)
    return parser


def _add_simulate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "simulate", help="write a small fMRIPrep-like dataset of simulated people"
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--participants", type=int, metavar="N")
    parser.add_argument("--runs", type=int, metavar="N", help="of each participant")
    parser.add_argument("--volumes", type=int, metavar="N", help="of each run")
    parser.add_argument("--tr", type=float, metavar="SECONDS")
    parser.add_argument("--voxel-size", type=float, metavar="MM")
    parser.add_argument("--seed", type=int)
    parser.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> None:
    from slimbrain_app.simulation import SimulationSettings, simulate_dataset

    names = ("participants", "runs", "volumes", "tr", "voxel_size", "seed")
    given = {name: getattr(options, name) for name in names}
    settings = SimulationSettings(**{k: value for k, value in given.items() if value is not None})
    for bold in simulate_dataset(options.folder, settings):
        print(bold)
