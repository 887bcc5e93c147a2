"""How a command enters an image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slimbrain_app.errors import CallRefused

Engine = Literal["docker", "podman", "apptainer"]

# How much is used, and of what: an image learns it by nothing else.
PASSED = (
    "CUDA_VISIBLE_DEVICES",
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPUS_ON_NODE",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_NODE",
)
# What an image can't do without.
_NEEDED = tuple(
    map(Path, ("/opt/slimbrain", "/usr/bin", "/usr/lib", "/usr/local/lib", "/bin", "/lib", "/etc"))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """An image whose entry point is ``slimbrain``, and how it is run.

    Attributes
    ----------
    engine : {"docker", "podman", "apptainer"}
    image : str
        A name, or for Apptainer the path of a file.
    gpu : bool
    network : bool
        The host's; Apptainer then keeps the environment, too. By both the processes of a training
        on several nodes find one another.
    """

    engine: Engine
    image: str
    gpu: bool = False
    network: bool = False


def enter(
    container: Container,
    arguments: Sequence[str],
    read: Iterable[Path],
    written: Iterable[Path],
    environment: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the words that run ``slimbrain`` in an image, seeing of the host what it needs.

    Parameters
    ----------
    container : Container
    arguments : sequence of str
        Of ``slimbrain``.
    read, written : iterable of Path
        Files and folders, whole and without links; each is there under its own path. They must be
        there before.
    environment : mapping of str to str
        Variables to be set.

    Raises
    ------
    CallRefused
        ``usage`` if a path can't be mounted, or would lie on what the image needs.
    """
    start = _start_apptainer if container.engine == "apptainer" else _start_oci
    variables = [f"--env={name}={value}" for name, value in (environment or {}).items()]
    return [*start(container, [*variables, *_list_mounts(read, written)]), *arguments]


def _start_oci(container: Container, more: Sequence[str]) -> Iterator[str]:
    podman = container.engine == "podman"
    yield from (container.engine, "run", "--rm")
    yield f"--network={'host' if container.network else 'none'}"
    yield from ("--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only")
    if podman:
        yield "--security-opt=label=disable"  # SELinux would hide the folders of users.
        if os.getuid():
            yield "--userns=keep-id"
    yield f"--user={os.getuid()}:{os.getgid()}"
    yield "--shm-size=8g"  # A bound: processes that read windows pass them on in it.
    if container.gpu:
        yield "--device=nvidia.com/gpu=all" if podman else "--gpus=all"
    yield from (*more, container.image)


def _start_apptainer(container: Container, more: Sequence[str]) -> Iterator[str]:
    # With run, or without --no-eval, a shell would read words and values once more.
    yield from ("apptainer", "exec", "--no-eval")
    if not container.network:
        yield from ("--containall", "--no-home", "--net", "--network=none")
    if container.gpu:
        yield "--nv"
    yield from (*more, container.image, "slimbrain")


def _list_mounts(read: Iterable[Path], written: Iterable[Path]) -> Iterator[str]:
    """Yield mounts, outer ones first: the inner ones lie on them."""
    writable = {**dict.fromkeys(read, False), **dict.fromkeys(written, True)}
    done: dict[Path, bool] = {}
    for path in sorted(writable, key=lambda path: len(path.parts)):
        above = next((done[parent] for parent in path.parents if parent in done), None)
        if above is not writable[path]:
            done[path] = writable[path]
            yield _mount(path, "" if writable[path] else "ro")


def hides_image(path: Path) -> bool:
    """Whether a folder, under its own path, would lie on what an image needs."""
    return any(needed.is_relative_to(path) for needed in _NEEDED)


def _mount(path: Path, *options: str) -> str:
    # Unlike with --volume and --bind, any path can be written, and none is made if absent.
    if hides_image(path) or {"\n", "\r"} & set(str(path)):
        raise CallRefused(
            "usage",
            file=ascii(str(path)),
            expected="a path that can be mounted",
            found="one of the image's own" if hides_image(path) else "line breaks",
            advice="use another folder, or give it another name",
        )
    line = io.StringIO()
    fields = ("type=bind", f"source={path}", f"destination={path}", *filter(None, options))
    csv.writer(line, lineterminator="").writerow(fields)
    return f"--mount={line.getvalue()}"
