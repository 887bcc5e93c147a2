"""What keeps a call from ending well on this machine: one finding for each thing that it needs."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from slimbrain_app.bids.dataset import refuse_foreign
from slimbrain_app.bids.derivatives import read_description, require_folder
from slimbrain_app.bids.discover import (
    Found,
    check_dataset,
    discover,
    discover_participant,
    list_participants,
)
from slimbrain_app.bids.headers import read_header
from slimbrain_app.bids.spaces import MODEL, choose_template_transform
from slimbrain_app.cluster.mounts import find_mount, find_place
from slimbrain_app.costs import RUN_BYTES, RUN_FILES, VOLUME_BYTES, WHILE_MADE, tell_size
from slimbrain_app.device import (
    DRIVER,
    choose_device,
    describe_build,
    find_hindrance,
    read_driver,
)
from slimbrain_app.errors import CallRefused, Exit, RunRefused, SlimBrainError, count
from slimbrain_app.files import TEMPORARY, lock, sha256_of, whole_file, writing
from slimbrain_app.locks import HELD, SILENCE_SECONDS
from slimbrain_app.records import Run, decide_exit
from slimbrain_app.settings import Prepare, Select

State = Literal["well", "mind", "fails"]

DATA = Path(str(files("slimbrain_app"))) / "data"

# Mount options by which a lock holds among the processes of one node only.
LOCAL_LOCKS = {"nolock", "localflock", "local_lock=flock", "local_lock=all"}
SHIPPED = {
    "schaefer200.npz": "a1ab2d48b073b8dd8585377d44bf44474736a001acf6c27bb937c0ac930d965c",
    "template_brain.npy": "7c85e9c1f23719ed5342edeb9ae7e646d9199841d432064aaa2571914dd522da",
}
# The one MNI152 variant from which TemplateFlow has a transform to the model's template.
OTHER_TEMPLATE = "MNI152NLin6Asym"

_PASS_ON = (
    "in a container pass the GPU on (apptainer --nv, docker --gpus all); in a job ask for one"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found, and what to do about it where it isn't well."""

    state: State
    found: str
    advice: str = ""
    exit_code: Exit = Exit.DONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What is to be worked on: people, runs of each, volumes of a run."""

    participants: int = 1
    runs: int = 1
    volumes: int = 1200

    @property
    def prepared_bytes(self) -> int:
        """Size of a prepared run."""
        return self.volumes * VOLUME_BYTES


def examine(check: Callable[[], Finding]) -> Finding:
    """Return what a check finds. Whatever it meets becomes a finding: the other checks go on."""
    try:
        return check()
    except SlimBrainError as error:
        place = f"{error.file}: " if error.file else ""
        found = f"{place}expected {error.expected}; found {error.found}"
        return Finding("fails", found, error.advice, error.exit_code)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return Finding("fails", found, "nothing that we foresaw: please send us this", Exit.FAULT)


def check_input(dataset: Path) -> Finding:
    """See whether the folder can be read and holds derivatives, and on what it lies."""
    notices = check_dataset(dataset)
    description = read_description(dataset)
    makers = " and ".join(map(" ".join, description.tools)) if description else ""
    people = count(len(list_participants(dataset)), "participant")
    found = f"{people}, made by {makers or 'an unknown tool'}; {find_mount(dataset)}"
    if notices:
        return Finding("mind", found, "; ".join(notice.message for notice in notices))
    return Finding("well", found)


def check_first(dataset: Path) -> Finding:
    """See which runs of the first participant can be used."""
    found = find_first(dataset)
    total = len(found.runs) + len(found.refused)
    if not total:
        return Finding("mind", "no BOLD series", "see whether the other participants have any")
    told = f"{len(found.runs)} of {count(total, 'run')} can be used"
    if found.refused:
        first = found.refused[0]
        told += f"; {first.file or first.run} [{first.code}]: {first.found}"
        if found.runs:
            return Finding("mind", told, first.advice)
        return Finding("fails", told, first.advice, Exit(decide_exit(found.refused, total)))
    closed = [run.relative(path) for run in found.runs for path in _list_closed(run)]
    if closed:
        told += f", but {closed[0]} may not be read"
        return Finding("mind", told, "ask its owner, or start as a user who may read it")
    return Finding("well", f"{told}, from {', '.join(sorted({run.space for run in found.runs}))}")


def find_first(dataset: Path) -> Found:
    """Find the runs of the first participant: of 10,000 the others are not looked at.

    Raises
    ------
    CallRefused
        ``no-input`` if the folder is not there; ``no-bold`` without any participant.
    """
    require_folder(dataset)
    labels = list_participants(dataset)
    if not labels:
        return discover(dataset, Select(), Prepare())
    return discover_participant(dataset, labels[0], Select(), Prepare())


def measure_demand(dataset: Path) -> Demand:
    """Return what a dataset asks for if all people are like the first, its longest run counting.

    What can't be told is as usual.
    """
    try:
        volumes = [read_header(run.bold).shape[3] for run in find_first(dataset).runs]
        participants = len(list_participants(dataset))
    except Exception:  # Met again, and said, by `check_input` or `check_first`.
        return Demand()
    if not volumes:
        return Demand(participants=participants)
    return Demand(participants=participants, runs=len(volumes), volumes=max(volumes))


def check_output(output: Path) -> Finding:
    """See whether a folder can be made and written: what stands there already, and in fact."""
    with writing(output):
        refuse_foreign(output)
    return check_writing(output)


def check_writing(folder: Path) -> Finding:
    """See whether a folder can be made and written, in fact.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full`` if not.
    """
    with _probe(folder) as probe, whole_file(probe / "file") as temporary:
        temporary.write_bytes(bytes(4096))
    made = "" if folder.exists() else ", will be made"
    return Finding("well", f"{folder}{made}: written, renamed, removed; {find_mount(folder)}")


def check_locks(folder: Path) -> Finding:
    """See whether a lock keeps others off, and whether it is the kernel's."""
    elsewhere = "put OUTPUT_DIR on another file system"
    with _probe(folder) as probe, lock(probe / "lock", "lock"):
        held, is_kernels = _is_locked(probe / "lock"), not (probe / HELD).exists()
    if not held:
        return Finding("fails", "a lock keeps nobody off", elsewhere, Exit.CANNOT_WRITE)
    local = find_mount(folder).options & LOCAL_LOCKS
    if local:
        found = f"they hold on this node only (mount option {', '.join(sorted(local))})"
        return Finding("mind", found, "never start two jobs on the same participant")
    if not is_kernels:
        silence = SILENCE_SECONDS / 60
        found = (
            "the file system has none; a folder with a heart-beat keeps others off, "
            f"up to {silence:.0f} min longer than its process lives"
        )
        return Finding("mind", found, "mount it in the same way on all nodes, best with locks")
    return Finding("well", "a lock keeps others off")


def _is_locked(path: Path) -> bool:
    try:
        with lock(path, "lock"):
            return False
    except RunRefused:
        return True


def check_space(output: Path, demand: Demand) -> Finding:
    """Hold free space and files against what all runs take."""
    runs = demand.participants * demand.runs
    size, number = runs * RUN_BYTES, runs * RUN_FILES
    kept = runs * demand.prepared_bytes
    free = os.statvfs(find_place(output))
    space = free.f_bavail * free.f_frsize
    # Some file systems don't count their files.
    left = free.f_favail if free.f_files else None
    found = f"{tell_size(space)} free" + ("" if left is None else f", room for {left:,} files")
    found += f"; about {tell_size(size)} and {number:,} files for {count(runs, 'run')}"
    if space < size or (left is not None and left < number):
        return Finding("fails", found, "free some space, or more files", Exit.CANNOT_WRITE)
    found += f", {tell_size(kept)} more with --save-prepared"
    if space < size + kept:
        return Finding("mind", found, "leave out --save-prepared, or free some space")
    return Finding("well", found)


def find_work(work_dir: Path | None) -> Path:
    """Return where a call puts its work folder.

    Raises
    ------
    CallRefused
        ``not-writable`` if there is no temporary folder.
    """
    try:
        return work_dir or Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise CallRefused(
            "not-writable",
            expected="a temporary folder",
            found=error.strerror or "none",
            advice="set TMPDIR, or name a folder with --work-dir",
        ) from error


def check_work(folder: Path, demand: Demand, at_once: int) -> Finding:
    """See whether work folders can be written and have room for runs that are prepared at once."""
    written = check_writing(folder)
    one = demand.prepared_bytes * WHILE_MADE
    free = os.statvfs(find_place(folder))
    space = free.f_bavail * free.f_frsize
    found = f"{written.found}; {tell_size(space)} free, a run takes {tell_size(one)}"
    found += f", {at_once} at once"
    if space < one:
        return Finding("fails", found, "name a larger place with --work-dir", Exit.CANNOT_WRITE)
    if find_mount(folder).kind in ("tmpfs", "ramfs"):
        found += "; it is memory and counts against the limit"
        return Finding("mind", found, "name a disk with --work-dir, or allow for it")
    if space < one * at_once:
        return Finding("mind", found, "name a larger place with --work-dir, or a lower --nprocs")
    return Finding("well", found)


def check_processors(limits: Mapping[str, int], threads: int) -> Finding:
    """Say how many processors a job may use, and by which limit; ``limits`` are by origin."""
    told = ", ".join(f"{limits[origin]} by {origin}" for origin in _sort_origins(limits))
    return Finding("well", f"{told}; {count(threads, 'thread')} in a step")


def check_memory(limits: Mapping[str, float], needed: float, at_once: int) -> Finding:
    """Hold memory (GB) against what a step needs; ``limits`` are by origin.

    Parameters
    ----------
    limits : mapping of str to float
    needed : float
        GB of the step that needs most.
    at_once : int
        Steps that the processors allow.
    """
    least = min(limits.values())
    told = ", ".join(f"{limits[origin]:.1f} GB by {origin}" for origin in _sort_origins(limits))
    found = f"{told}; a step takes up to {needed:g} GB"
    if least < needed:
        return Finding("mind", found, f"ask for {needed:g} GB or more: a step may be killed")
    together = min(at_once, int(least / needed))
    return Finding("well", f"{found}: {together} at once, of {at_once} by processors")


def check_device(name: str, driver_file: Path = DRIVER) -> Finding:
    """See which device is taken, and compute on it."""
    import torch

    driver = read_driver(driver_file)
    device = choose_device(name, driver_file)
    hindrance = find_hindrance(torch.version.cuda, driver)
    try:
        _compute(device)
    except RuntimeError as error:
        found, advice = hindrance or (str(error).splitlines()[0], "use --device cpu")
        return Finding("fails", f"{describe_build()}: {found}", advice, Exit.UNAVAILABLE)
    found = f"{device} computes as it should; {describe_build()}"
    found += f", driver {driver}" if driver else ""
    if device == "cpu" and name == "auto" and driver:
        cause, advice = hindrance or ("no card answers", _PASS_ON)
        return Finding("mind", f"{found}; {cause}", advice)
    return Finding("well", found + _tell_free(device))


def _compute(device: str) -> None:
    """Compare a product of matrices with that of the CPU."""
    import torch

    numbers = torch.linspace(-1, 1, 256 * 256).reshape(256, 256).sin()
    there = numbers.to(device)
    # Cards may round factors to ten bits.
    apart = float(((there @ there).cpu() - numbers @ numbers).abs().max())
    if not apart < 0.1:
        raise RuntimeError(f"{device} computes wrongly: a product is {apart:g} off the CPU's")


def _tell_free(device: str) -> str:
    import torch

    if not device.startswith("cuda"):
        return ""
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return f"; {name}, {tell_size(free)} of {tell_size(total)} free"


def check_model(name: str, output: Path | None) -> Finding:
    """See whether the package is whole, and what is to be known of it."""
    from slimbrain_app.model.packages import load_package

    package = load_package(name, [output / "models"] if output else [])
    contract, trained = package.contract, "trained" if package.trained else "untrained"
    channels = " and ".join(contract.channels)
    found = (
        f"{package.name}, of preset {package.preset}, {trained}, whole; {contract.frames} frames "
        f"of {contract.frame_time:g} s, {channels} channel, {contract.space}"
    )
    if not package.trained:
        return Finding("mind", found, "train or fetch weights: its embeddings mean nothing yet")
    if notices := package.identity.notices:
        return Finding("mind", found, "; ".join(notice.message for notice in notices))
    return Finding("well", found)


def check_templates(data: Path = DATA) -> Finding:
    """See whether the templates that ship are whole, and which others there are."""
    for name, stated in SHIPPED.items():
        if not (data / name).is_file() or sha256_of(data / name) != stated:
            found = f"{name} is missing or damaged"
            return Finding("fails", found, "install SlimBrain again", Exit.UNAVAILABLE)
    there = "is" if choose_template_transform(OTHER_TEMPLATE) else "is not"
    needed = f"{OTHER_TEMPLATE}, needed only for runs that have no other way to {MODEL.space}"
    found = f"what ships is whole; there {there} TemplateFlow's transform from {needed}"
    return Finding("well", found)


def check_home() -> Finding:
    """See whether matplotlib has a place for its list of fonts: nothing else needs a home."""
    import matplotlib

    place = Path(matplotlib.get_cachedir())
    if place.parent == Path(tempfile.gettempdir()) and place.name.startswith("matplotlib-"):
        found = "no place that lasts for matplotlib's list of fonts: each process makes it anew"
        return Finding("mind", found, "set MPLCONFIGDIR to a folder that can be written")
    return Finding("well", "matplotlib's list of fonts has a place; nothing else needs a home")


def _list_closed(run: Run) -> Iterator[Path]:
    for path in (run.mask, run.confounds, *run.transforms):
        if path is not None and not os.access(path, os.R_OK):
            yield path


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """Yield a folder within a hidden one, made as another would be; nothing is left of it."""
    place, whole = find_place(folder).absolute(), folder.absolute()
    names = whole.relative_to(place).parts
    hidden = place / f"{TEMPORARY}doctor-{uuid.uuid4().hex[:12]}"
    try:
        with writing(whole):
            if names and (place / names[0]).is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, "a link that leads nowhere", str(whole))
        yield hidden.joinpath(*(name for name in names if name != ".."))
    except CallRefused as error:
        raise CallRefused(
            error.reason,
            file=folder,
            expected=error.expected,
            found=error.found,
            advice=error.advice,
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _sort_origins(limits: Mapping[str, float]) -> list[str]:
    """Return who sets a limit, the narrowest first; one above what the host has is none."""
    real = [origin for origin in limits if limits[origin] < limits["host"]]
    return [*sorted(real, key=lambda origin: limits[origin]), "host"]
