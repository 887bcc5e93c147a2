"""The options of ``slimbrain``, and the settings that they make."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from slimbrain_app import __version__
from slimbrain_app.cli.arguments import (
    ACTIONS,
    LEVELS,
    Parser,
    count_or_all,
    gigabytes,
    label,
    memory,
)
from slimbrain_app.errors import Exit
from slimbrain_app.settings import Overwrite, Preset, Ranking, Settings, read_settings

if TYPE_CHECKING:
    from slimbrain_app.records import Notice

Keys = tuple[str, ...]

# Which option makes which setting, on both levels and on one: tables and key.
_SELECTION: Mapping[str, Keys] = {
    "participant_label": ("select", "participants"),
    "session_id": ("select", "sessions"),
    "task_id": ("select", "tasks"),
    "run_id": ("select", "runs"),
}
_SHARED: Mapping[str, Keys] = {
    **_SELECTION,
    "seed": ("seed",),
    "space": ("prepare", "space"),
    "tr": ("prepare", "tr"),
    "dummy_scans": ("prepare", "dummy_scans"),
    "ranking": ("rank", "mode"),
    "windows": ("rank", "windows"),
    "fd_threshold": ("rank", "fd_threshold"),
    "device": ("compute", "device"),
    "nprocs": ("compute", "nprocs"),
    "omp_nthreads": ("compute", "omp_nthreads"),
    "mem_gb": ("compute", "mem_gb"),
    "stop_on_first_crash": ("compute", "stop_on_first_crash"),
}
_EMBEDDING: Mapping[str, Keys] = {"model": ("model",), "views": ("encode", "views")}
_PREDICTION: Mapping[str, Keys] = {
    "outcome": ("predict", "outcomes"),
    "phenotype": ("predict", "phenotype"),
}
# By verb: the level, or the action on the group level.
SETTINGS: Mapping[str, Mapping[str, Keys]] = {
    "participant": {
        **_SHARED,
        **_EMBEDDING,
        "save_views": ("output", "save_views"),
        "save_prepared": ("output", "save_prepared"),
        "overwrite": ("output", "overwrite"),
    },
    "tabulate": {**_SELECTION, "model": ("model",)},
    "pretrain": {**_SHARED, "preset": ("preset",), "package_name": ("package_name",)},
    "evaluate": {**_SHARED, **_EMBEDDING, **_PREDICTION},
    "finetune": {**_SHARED, **_EMBEDDING, **_PREDICTION, "package_name": ("package_name",)},
}
# Options that make no setting, by verb.
_OTHERS: Mapping[str, Keys] = {
    "participant": (),
    "tabulate": ("action",),
    **dict.fromkeys(("pretrain", "evaluate", "finetune"), ("action", "dataset")),
}

EXITS: Mapping[Exit, str] = {
    Exit.DONE: "done",
    Exit.USAGE: "usage",
    Exit.DATA: "data",
    Exit.NO_INPUT: "no input",
    Exit.UNAVAILABLE: "unavailable",
    Exit.FAULT: "our fault",
    Exit.CANNOT_WRITE: "cannot write",
    Exit.TRY_AGAIN: "start again",
    Exit.CONFIGURATION: "configuration",
}


def make_parser() -> Parser:
    parser = Parser(
        prog="slimbrain",
        description="Embeddings of fMRI runs from fMRIPrep derivatives, and models to make them.",
        epilog=f"Exit codes: {', '.join(f'{code} {meaning}' for code, meaning in EXITS.items())}.",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, help="fMRIPrep derivatives; only read")
    parser.add_argument("output_dir", type=Path, help="where SlimBrain's derivatives go")
    parser.add_argument("analysis_level", choices=LEVELS, help="level of the analysis")
    parser.add_argument(
        "--version",
        action="version",
        version=_describe_version(),
        help="show the version, and what its models want as input, and exit",
    )
    parser.add_argument(
        "--bids-exec-spec",
        action=_DescribeAction,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show the command line as a Boutiques descriptor and exit",
    )
    _add_selection(parser.add_argument_group("which runs"))
    _add_processing(parser.add_argument_group("what is computed"))
    _add_group(parser.add_argument_group("on the group level"))
    _add_output(parser.add_argument_group("what is written"))
    _add_resources(parser.add_argument_group("where it runs"))
    _add_ignored(parser)
    return parser


class _DescribeAction(argparse.Action):
    """Print the parser's own descriptor, whatever else is there."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from slimbrain_app.cli.descriptor import describe

        print(json.dumps(describe(parser), indent=2))
        parser.exit()


def _add_selection(group: argparse._ArgumentGroup) -> None:
    lists: dict[str, Any] = {"nargs": "+", "action": "extend", "metavar": "LABEL"}
    group.add_argument(
        "--participant-label",
        "--participant-id",
        type=label("sub"),
        help="participants, with or without sub- (default: all)",
        **lists,
    )
    group.add_argument(
        "--session-id",
        "--session-label",
        type=label("ses"),
        help="sessions, with or without ses- (default: all)",
        **lists,
    )
    group.add_argument(
        "--task-id", type=label("task"), help="tasks, with or without task- (default: all)", **lists
    )
    group.add_argument(
        "--run-id",
        type=label("run"),
        help="runs by number: 1 and 01 are the same (default: all)",
        **lists,
    )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="JSON",
        help='filters on any entity, in fMRIPrep\'s form, {"bold": {"acquisition": "a"}}; only the '
        "block bold is read (default: none)",
    )


def _add_processing(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="NAME|DIR",
        help="model package: a name, looked for in OUTPUT_DIR/models and then among the installed "
        "ones; or a folder, with a slash in it (default: tiny)",
    )
    group.add_argument(
        "--space",
        metavar="S[:res-R][:cohort-C]",
        help="source space to start from, as files name it; also T1w or anat, and native, boldref "
        "or func for the run's own (default: the best there is)",
    )
    group.add_argument(
        "--windows",
        type=count_or_all,
        metavar="K",
        help="selected windows per run; all takes every one that the motion guard lets pass "
        "(default: 8)",
    )
    group.add_argument(
        "--ranking", choices=get_args(Ranking), help="what orders the windows (default: mutual)"
    )
    group.add_argument(
        "--views",
        type=int,
        metavar="N",
        help="encoder inputs per selected window: the window itself, or N onsets spread evenly "
        "over 7.2 s to either side (default: 1)",
    )
    group.add_argument(
        "--tr",
        type=float,
        metavar="SECONDS",
        help="repetition time where the data do not state it; over 1 %% away from a sidecar it is "
        "refused (default: from the data)",
    )
    group.add_argument(
        "--dummy-scans",
        type=int,
        metavar="N",
        help="volumes left out at the start (default: as marked in the confounds)",
    )
    group.add_argument(
        "--fd-threshold",
        type=float,
        metavar="MM",
        help="framewise displacement above which the motion guard censors; 0 switches it off "
        "(default: 0.5)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="of everything random (default: 0)")
    group.add_argument(
        "--config",
        type=Path,
        metavar="TOML",
        help="settings, as an earlier call wrote them into logs/; the command line wins "
        "(default: none)",
    )


def _add_group(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--action", choices=ACTIONS, help="what to do with all runs (default: tabulate)"
    )
    group.add_argument(
        "--dataset",
        type=Path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="other datasets, to train on or to judge: derivatives, or prepared runs "
        "(default: none)",
    )
    group.add_argument(
        "--preset", choices=get_args(Preset), help="size of the model (default: tiny)"
    )
    group.add_argument(
        "--outcome",
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="what evaluate and finetune predict: columns of participants.tsv or of --phenotype",
    )
    group.add_argument(
        "--phenotype",
        type=Path,
        metavar="TSV",
        help="another table of the participants, with a column participant_id (default: the "
        "dataset's participants.tsv)",
    )
    group.add_argument(
        "--package-name",
        metavar="NAME",
        help="of the package that pretrain or finetune makes in OUTPUT_DIR/models (default: the "
        "preset's name, or the model's with -tuned)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--save-views",
        action="store_const",
        const=True,
        help="also write the embeddings of single windows or views",
    )
    group.add_argument(
        "--save-prepared", action="store_const", const=True, help="also keep the prepared runs"
    )
    group.add_argument(
        "--overwrite",
        choices=get_args(Overwrite),
        help="which finished runs are done again (default: changed)",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and write nothing"
    )
    group.add_argument(
        "-v", "--verbose", action="count", default=0, help="say more; -vv still more"
    )
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="say nothing but the table at the end, and errors",
    )


def _add_resources(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        metavar="D",
        help="auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one (default: auto)",
    )
    group.add_argument(
        "--nprocs",
        "--n-cpus",
        "--nthreads",
        type=int,
        metavar="N",
        help="processors in all; 1 works in a single process (default: the job's own)",
    )
    group.add_argument(
        "--omp-nthreads", type=int, metavar="N", help="threads of one step (default: up to 4)"
    )
    group.add_argument(
        "--mem",
        "--mem-mb",
        type=memory,
        metavar="N[GB]",
        dest="mem_gb",
        help="memory for all steps at work together; without a unit in megabytes, as in fMRIPrep "
        "(default: the job's own)",
    )
    group.add_argument("--mem-gb", type=gigabytes, dest="mem_gb", help=argparse.SUPPRESS)
    group.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="for intermediate files; not inside BIDS_DIR (default: a temporary folder)",
    )
    group.add_argument(
        "--stop-on-first-crash",
        action="store_const",
        const=True,
        help="end at the first fault of SlimBrain's own",
    )


def _add_ignored(parser: Parser) -> None:
    """Accept options of fMRIPrep's that have no meaning here, so that scripts need no change."""
    for option in ("--skip-bids-validation", "--notrack"):
        parser.add_argument(
            option, action="append_const", dest="ignored", const=option, help=argparse.SUPPRESS
        )
    for option in ("--fs-license-file", "--bids-database-dir"):
        name_it = partial(_name, option)
        parser.add_argument(
            option, action="append", dest="ignored", type=name_it, help=argparse.SUPPRESS
        )


def _name(option: str, _: str) -> str:
    return option


def _describe_version() -> str:
    from slimbrain_app.records import Contract

    contract = Contract()
    grid = " x ".join(str(edge) for edge in contract.shape)
    return (
        f"slimbrain {__version__} (model contract {contract.version}: {contract.frames} frames of "
        f"{contract.frame_time} s, {grid} voxels of {contract.voxel_size:g} mm, {contract.space})"
    )


def name_verb(options: argparse.Namespace) -> str:
    """Return what is to be done: the level, or the action on the group level."""
    level: str = options.analysis_level
    return (options.action or "tabulate") if level == "group" else level


def check_verb(parser: Parser, options: argparse.Namespace) -> None:
    """Refuse options of another verb."""
    level, verb = options.analysis_level, name_verb(options)
    known = {*SETTINGS[verb], *_OTHERS[verb]}
    every = {dest for table in SETTINGS.values() for dest in table}
    for dest in (*sorted(every), "action", "dataset"):
        if dest not in known and getattr(options, dest) is not None:
            spelling = f"--{dest.replace('_', '-')}"
            where = f"--action {verb}" if level == "group" else "the participant level"
            parser.error(f"{spelling} with {where}, where it has no meaning")


def make_settings(
    kind: type[Settings], options: argparse.Namespace
) -> tuple[Settings, tuple[Notice, ...]]:
    """Merge defaults, ``--config`` and the command line; notices come from the filter file."""
    given: dict[str, Any] = {}
    for option, (*tables, key) in SETTINGS[name_verb(options)].items():
        if (value := getattr(options, option)) is not None:
            table = given
            for name in tables:
                table = table.setdefault(name, {})
            table[key] = value
    notices: tuple[Notice, ...] = ()
    if options.bids_filter_file:
        from slimbrain_app.bids.discover import read_filter_file

        filters, notices = read_filter_file(options.bids_filter_file)
        given.setdefault("select", {})["filters"] = filters
    return read_settings(kind, options.config, given), notices
