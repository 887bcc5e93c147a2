"""``slimbrain-tools``: everything that isn't a BIDS-App call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimbrain_app import __version__
from slimbrain_app.cli.arguments import Parser, misfit
from slimbrain_app.cli.container import add_container
from slimbrain_app.cli.doctor import add_doctor
from slimbrain_app.cli.export import add_export
from slimbrain_app.cli.models import add_models
from slimbrain_app.cli.recipe import add_recipe
from slimbrain_app.cli.slurm import add_slurm
from slimbrain_app.errors import CallRefused, Exit
from slimbrain_app.settings import Compute


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = make_parser().parse_strictly(words)
        return options.run(options) or Exit.DONE
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
    add_export(commands)
    add_recipe(commands)
    add_container(commands)
    add_slurm(commands)
    add_doctor(commands)
    return parser


def _add_simulate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "simulate", help="write an fMRIPrep-like dataset of simulated people, or of real series"
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument(
        "--participants",
        type=int,
        metavar="N",
        help="people, from 1; of real series the first so many, else all (default: 3)",
    )
    parser.add_argument(
        "--voxel-size", type=float, metavar="MM", help="edge of a voxel, 1 to 6 (default: 3.0)"
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of everything that is drawn (default: 0)"
    )
    invented = parser.add_argument_group("people who don't exist")
    invented.add_argument("--runs", type=int, metavar="N", help="of each, from 1 (default: 1)")
    invented.add_argument(
        "--volumes", type=int, metavar="N", help="of each run, from 2 (default: 100)"
    )
    invented.add_argument(
        "--tr", type=float, metavar="SECONDS", help="repetition time, 0.1 to 10 (default: 2.0)"
    )
    real = parser.add_argument_group("real series, all three files needed")
    real.add_argument(
        "--roi-timeseries",
        type=Path,
        metavar="NPZ",
        help="for each person an array of volumes by regions, called as in the phenotypes",
    )
    real.add_argument(
        "--atlas", type=Path, metavar="NIFTI", help="the regions in MNI space, as whole numbers"
    )
    real.add_argument(
        "--phenotype",
        type=Path,
        metavar="CSV",
        help="a row for each person; commas or, in a file called .tsv, tabs",
    )
    real.add_argument(
        "--moments",
        type=Path,
        metavar="NPZ",
        help="arrays file_id and std (people by regions): how strong each region is "
        "(default: all equally)",
    )
    real.add_argument(
        "--tsnr",
        type=float,
        metavar="X",
        help="mean over deviation in time of the median grey voxel, 10 to 80 (default: 60.0)",
    )
    real.add_argument("--prepared", action="store_true", help="write prepared runs, no NIfTI")
    real.add_argument(
        "--nprocs", type=int, metavar="N", help="people at once (default: the job's own)"
    )
    parser.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> None:
    files = {name: getattr(options, name) for name in ("roi_timeseries", "atlas", "phenotype")}
    others = ("moments", "tsnr", "prepared", "nprocs")
    if not any(files.values()):
        _refuse_options(options, others, "only go with --roi-timeseries, --atlas and --phenotype")
        _simulate_invented(options)
        return
    missing = ", ".join(_spell(name) for name, file in files.items() if file is None)
    if missing:
        raise misfit(
            "simulate", f"--roi-timeseries, --atlas and --phenotype together, without {missing}"
        )
    _refuse_options(options, ("runs", "volumes", "tr"), "are what the real series say")
    _simulate_real(options)


def _simulate_invented(options: argparse.Namespace) -> None:
    from slimbrain_app.simulation import SimulationSettings, simulate_dataset

    names = ("participants", "runs", "volumes", "tr", "voxel_size", "seed")
    for bold in simulate_dataset(options.folder, SimulationSettings(**_given(options, names))):
        print(bold)


def _simulate_real(options: argparse.Namespace) -> None:
    from slimbrain_app.simulation import CohortSettings, Inputs, simulate_cohort
    from slimbrain_app.workflow.resources import find_limits

    names = ("participants", "voxel_size", "tsnr", "seed")
    settings = CohortSettings(**_given(options, names))
    inputs = Inputs(
        series=options.roi_timeseries,
        atlas=options.atlas,
        phenotype=options.phenotype,
        moments=options.moments,
    )
    if options.nprocs is not None and options.nprocs < 1:
        raise misfit("simulate", f"--nprocs {options.nprocs}")
    nprocs = find_limits(Compute(nprocs=options.nprocs)).processes
    simulate_cohort(options.folder, inputs, settings, options.prepared, nprocs, print)


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _refuse_options(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    given = [_spell(name) for name in names if getattr(options, name)]
    if given:
        raise misfit("simulate", f"{', '.join(given)}, which {why}")


def _spell(name: str) -> str:
    return f"--{name.replace('_', '-')}"
