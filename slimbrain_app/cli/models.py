"""``slimbrain-tools models``: model packages made, listed, fetched, converted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from slimbrain_app.cli.arguments import Parser
from slimbrain_app.errors import CallRefused
from slimbrain_app.model.presets import PRESETS, Deletion

if TYPE_CHECKING:
    from slimbrain_app.model.packages import Package

    Actions = argparse._SubParsersAction[Parser]


def add_models(commands: Actions) -> None:
    parser = commands.add_parser("models", help="model packages")
    actions = parser.add_subparsers(required=True, metavar="ACTION", title="actions")
    _add_list(actions)
    _add_fetch(actions)
    _add_create(actions)
    _add_convert(actions)
    _add_export(actions)
    _add_copy(actions)


def _add_list(actions: Actions) -> None:
    parser = actions.add_parser("list", help="show the packages at hand")
    parser.add_argument(
        "folders",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="look here too, for instance in OUTPUT_DIR/models",
    )
    parser.set_defaults(run=_list_models)


def _list_models(options: argparse.Namespace) -> None:
    from slimbrain_app.model.packages import list_packages

    for found in list_packages(options.folders):
        print(found if isinstance(found, Exception) else _describe(found))


def _add_fetch(actions: Actions) -> None:
    parser = actions.add_parser("fetch", help="fetch a package from a hub")
    parser.add_argument("identifier", help="OWNER/NAME or OWNER/NAME@REVISION")
    parser.add_argument(
        "--sha256", metavar="SUM", help="accept only the package with this checksum"
    )
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="the hub's address (default: that in HF_ENDPOINT, else https://huggingface.co)",
    )
    parser.set_defaults(run=_fetch_model)


def _fetch_model(options: argparse.Namespace) -> None:
    from slimbrain_app.model.hub import fetch_package

    package = fetch_package(options.identifier, sha256=options.sha256, endpoint=options.endpoint)
    print(_describe(package))


def _add_create(actions: Actions) -> None:
    parser = actions.add_parser("create", help="make an untrained package from a preset")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path, help="a new folder; its name is the package's")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--seed", type=int, default=0, metavar="N", help="of weights (default: 0)")
    start.add_argument(
        "--start-from",
        metavar="PACKAGE",
        help="base only: take the weights of a package with the sizes of official",
    )
    parser.set_defaults(run=_create_model)


def _create_model(options: argparse.Namespace) -> None:
    from slimbrain_app.model.official import create_base
    from slimbrain_app.model.packages import create_package, load_package

    if options.start_from is None:
        package = create_package(options.folder, options.preset, options.seed)
    elif options.preset == "base":
        package = create_base(options.folder, load_package(options.start_from))
    else:
        raise CallRefused(
            "usage",
            expected="--start-from with the preset base",
            found=f"it with {options.preset}",
            advice="leave it out, or make a base package",
        )
    print(_describe(package))


def _add_convert(actions: Actions) -> None:
    parser = actions.add_parser(
        "convert", help="make a package from a checkpoint in the released layout"
    )
    parser.add_argument("checkpoint", type=Path, help="a file such as best_model.pth")
    parser.add_argument("folder", type=Path, help="a new folder; its name is the package's")
    parser.add_argument(
        "--deletion",
        choices=get_args(Deletion),
        default="unit",
        help="what is left out where there is no brain: whole mask units, nothing, or single "
        "tokens, which the weights were not trained for (default: unit)",
    )
    parser.set_defaults(run=_convert_checkpoint)


def _convert_checkpoint(options: argparse.Namespace) -> None:
    from slimbrain_app.model.official import convert_checkpoint

    package, checkpoint = convert_checkpoint(options.checkpoint, options.folder, options.deletion)
    print(_describe(package))
    print(f"taken from {checkpoint.place or 'the top level'}; licence unknown, see the card")
    for name in checkpoint.ignored:
        print(f"ignored: {name}")


def _add_export(actions: Actions) -> None:
    parser = actions.add_parser("export", help="write a package in the released layout")
    parser.add_argument("package", help="a name, or a folder with a slash in it")
    parser.add_argument("file", type=Path, help="a new file")
    parser.set_defaults(run=_export_checkpoint)


def _export_checkpoint(options: argparse.Namespace) -> None:
    from slimbrain_app.model.official import export_checkpoint
    from slimbrain_app.model.packages import load_package

    export_checkpoint(load_package(options.package), options.file)
    print(options.file)


def _add_copy(actions: Actions) -> None:
    parser = actions.add_parser("copy", help="write a package anew, to pass it on")
    parser.add_argument("package", help="a name, or a folder with a slash in it")
    parser.add_argument("folder", type=Path, help="a new folder; its name is the package's")
    parser.add_argument("--half", action="store_true", help="in float16: half the size")
    parser.add_argument(
        "--caution", metavar="TEXT", help="to be said wherever it is used, in place of its own"
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="FILE",
        help="Markdown, in place of its card: say who may use the weights",
    )
    parser.set_defaults(run=_copy_model)


def _copy_model(options: argparse.Namespace) -> None:
    import torch

    from slimbrain_app.model.packages import copy_package, load_package

    copy = copy_package(
        load_package(options.package),
        options.folder,
        caution=options.caution,
        card=options.card and _read_card(options.card),
        dtype=torch.float16 if options.half else torch.float32,
    )
    print(_describe(copy))


def _read_card(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CallRefused(
            "usage",
            file=file,
            expected="a text file in UTF-8",
            found=str(error),
            advice="give the card as Markdown",
        ) from error


def _describe(package: Package) -> str:
    trained = "trained" if package.trained else "untrained"
    return f"{package.folder}: {package.name}, {package.preset}, {trained}, {package.sha256}"
