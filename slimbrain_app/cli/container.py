"""``slimbrain-tools container``: a call of ``slimbrain`` within an image."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from slimbrain_app.cli.arguments import WRITTEN, Parser, normalise
from slimbrain_app.cluster.containers import PASSED, Container, Engine, enter, hides_image
from slimbrain_app.errors import CallRefused

NVIDIA = Path("/dev/nvidiactl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What goes into an image.

    Attributes
    ----------
    words : list of list of str
        The call's, by option.
    read, made : list of Path
        What it reads, and the folders that it writes, made before.
    variables : dict of str to str
        By which templates and packages are found.
    """

    words: list[list[str]]
    read: list[Path]
    made: list[Path]
    variables: dict[str, str]


def add_container(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "container",
        help="show how slimbrain is called in an image, or call it",
        usage="%(prog)s --engine ENGINE --image IMAGE [--run] -- BIDS_DIR OUTPUT_DIR "
        "{participant,group} [OPTION ...]",
        epilog="What stands after -- is the call of slimbrain.",
    )
    parser.add_argument(
        "--engine", choices=get_args(Engine), required=True, help="what runs the image"
    )
    parser.add_argument(
        "--image",
        required=True,
        metavar="IMAGE",
        help="the image's name; for Apptainer a file, or an address such as docker://NAME",
    )
    parser.add_argument("--run", dest="at_once", action="store_true", help="make the call at once")
    parser.add_argument("call", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=_enter)


def _enter(options: argparse.Namespace) -> None:
    from slimbrain_app.cli.app import read_options
    from slimbrain_app.cluster.doctor import find_work
    from slimbrain_app.files import writing

    passed = options.call[1:] if options.call[:1] == ["--"] else options.call
    call = read_options(passed)
    settings = read_configured(call)
    _check(call)
    container = Container(
        engine=options.engine,
        image=_find_image(options.engine, options.image),
        gpu=_wants_gpu(call, settings),
    )
    entry = gather(call, passed, settings)
    # A dry run writes nothing, nor are folders made for it.
    work = find_work(None if call.dry_run else call.work_dir).resolve()
    passed_on = {name: os.environ[name] for name in PASSED if name in os.environ}
    variables = {"TMPDIR": str(work), **passed_on, **entry.variables}
    arguments = [word for words in entry.words for word in words]
    command = enter(container, arguments, entry.read, [*entry.made, work], variables)
    if not options.at_once:
        print(_spell(command[: len(command) - len(arguments)], entry))
        return
    if shutil.which(options.engine) is None:
        raise CallRefused(
            "extra-missing",
            file=options.engine,
            expected="the program that runs the image",
            found="none of that name",
            advice="install it, or name another with --engine",
        )
    for folder in entry.made:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    os.execvp(command[0], command)


def gather(call: argparse.Namespace, passed: Sequence[str], settings: Mapping[str, Any]) -> Entry:
    """Return what a call takes into an image.

    Parameters
    ----------
    call : argparse.Namespace
    passed : sequence of str
        The words that it was read from.
    settings : mapping
        The settings file's.
    """
    words: list[list[str]] = []
    read, made = list(_list_named(settings)), list[Path]()
    for option, told, paths in rewrite(passed, Path.resolve):
        words.append(told)
        (made if option in WRITTEN else read).extend(paths)
    for dataset in _list_datasets(call):
        read.extend(_list_linked(dataset))
    caches, variables = _find_caches()
    return Entry(
        words=words,
        read=[*read, *caches],
        made=[path for path in made if path.exists() or not call.dry_run],
        variables=variables,
    )


def rewrite(
    passed: Sequence[str], whole: Callable[[Path], Path]
) -> Iterator[tuple[str, list[str], list[Path]]]:
    """Yield of each option of a call its name, its words with whole paths, and these paths."""
    from slimbrain_app.cli.parser import make_parser

    for action, values in make_parser().take_apart(normalise(passed)):
        named = [_find_path(action, value, whole) for value in values]
        told = [str(path or value) for path, value in zip(named, values, strict=True)]
        yield action.dest, _write_option(action, told), [path for path in named if path]


def _list_linked(dataset: Path) -> list[Path]:
    """Return the folders that a dataset links to, but those that would lie on an image's own."""
    from slimbrain_app.bids.derivatives import find_linked

    linked = (folder.resolve() for folder in find_linked(dataset).values())
    return [folder for folder in linked if not hides_image(folder)]


def _find_caches() -> tuple[list[Path], dict[str, str]]:
    """Return the folders of templates and packages, and the variables that lead to them."""
    from slimbrain_app.bids.spaces import find_templates
    from slimbrain_app.files import cached_packages

    variables: dict[str, str] = {}
    templates, packages = find_templates().resolve(), cached_packages()
    if templates.is_dir():
        variables["TEMPLATEFLOW_HOME"] = str(templates)
    if packages.is_dir():
        variables["XDG_CACHE_HOME"] = str(packages.parents[1])
    return [folder for folder in (templates, packages) if folder.is_dir()], variables


def _find_path(action: argparse.Action, value: str, whole: Callable[[Path], Path]) -> Path | None:
    """Return the path that a value names, whole, if it names one."""
    there = os.access(value, os.F_OK)
    if action.type is not Path:
        # A model may be a name or a folder.
        return whole(Path(value)) if action.type is None and "/" in value and there else None
    # Datasets are checked apart: those of a job may still be made.
    if not there and action.dest not in (*WRITTEN, "bids_dir", "dataset"):
        raise CallRefused(
            "usage",
            file=value,
            expected=f"what {action.option_strings[-1]} leads to",
            found="nothing of that name",
            advice="check the path",
        )
    return whole(Path(value))


def _write_option(action: argparse.Action, values: list[str]) -> list[str]:
    option = next((name for name in action.option_strings if name.startswith("--")), None)
    if option is None:
        return values
    return [f"{option}={values[0]}"] if action.nargs is None else [option, *values]


def read_configured(call: argparse.Namespace) -> dict[str, Any]:
    """Return what a call's settings file says."""
    from slimbrain_app.settings import read_table

    return read_table(call.config) if call.config else {}


def _list_named(settings: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files and folders that a settings file names.

    Raises
    ------
    CallRefused
        ``settings-bad`` if one is named from the folder that the caller is in.
    """
    for text in _list_texts(settings):
        path = Path(text)
        if not text.isprintable() or not os.access(path, os.F_OK):
            continue
        if path.is_absolute():
            yield path
        elif "/" in text or path.is_file():
            raise CallRefused(
                "settings-bad",
                file=text,
                expected="whole paths in a settings file, as an image is entered from elsewhere",
                found="a path from here",
                advice=f"write {path.absolute()}",
            )


def _list_texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _list_texts(below)


def _list_datasets(call: argparse.Namespace) -> list[Path]:
    return [folder.resolve() for folder in (call.bids_dir, *(call.dataset or ()))]


def _check(call: argparse.Namespace) -> None:
    """Refuse what the call itself would refuse, and what can't be mounted."""
    from slimbrain_app.bids.derivatives import require_folder
    from slimbrain_app.cluster.doctor import check_output, check_writing, find_work
    from slimbrain_app.workflow.plan import check_folders, check_work

    work = find_work(call.work_dir)
    for dataset in _list_datasets(call):
        require_folder(dataset)
        check_work(dataset, work)
    check_folders(call.bids_dir, call.output_dir)
    if not call.dry_run:
        check_output(call.output_dir)
        check_writing(work)


def _find_image(engine: str, image: str) -> str:
    """Return an image's name; of a file, which only Apptainer takes, its whole path."""
    if engine != "apptainer" or "://" in image:
        return image
    if not os.access(image, os.F_OK):
        raise CallRefused(
            "usage",
            file=image,
            expected="an image of Apptainer's",
            found="no such file",
            advice="give its path with --image",
        )
    return str(Path(image).resolve())


def _wants_gpu(call: argparse.Namespace, settings: Mapping[str, Any]) -> bool:
    from slimbrain_app.cli.parser import SETTINGS, name_verb

    if "device" not in SETTINGS[name_verb(call)]:
        return False
    compute = settings.get("compute")
    configured = compute.get("device") if isinstance(compute, dict) else None
    device = str(call.device or configured or "auto")
    return device.startswith("cuda") or (device == "auto" and NVIDIA.exists())


def _spell(head: Sequence[str], entry: Entry) -> str:
    """Return a command for a shell, an option on each line."""
    lines = [head[:2], *([word] for word in head[2:]), *entry.words]
    command = " \\\n    ".join(map(shlex.join, lines))
    made = shlex.join(str(folder) for folder in dict.fromkeys(entry.made))
    return f"mkdir -p -- {made} &&\n{command}" if made else command
