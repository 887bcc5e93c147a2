"""Sidecars and the repetition time.

The repetition time is, in this order: what the command line says, the BOLD's own JSON, an inherited
one, that of another grid of the same run, the raw file's, the header. Headers are last because
theirs was lost or wrong in several releases of fMRIPrep.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from slimbrain_app.bids.entities import Name, parse_name
from slimbrain_app.bids.headers import Header, reading
from slimbrain_app.errors import RunRefused
from slimbrain_app.files import parse_json
from slimbrain_app.records import Notice, RepetitionTime

Origin = Literal["sidecar", "inherited sidecar", "other grid", "raw"]

TOLERANCE = 0.01
"""Share by which two statements of the same time may differ."""

_SHORTEST, _LONGEST = 0.1, 10.0
_LIKELY_MS = (20.0, 20_000.0)


@dataclass(frozen=True, slots=True)
class Statement:
    """A repetition time (s) that a sidecar states."""

    seconds: float
    origin: Origin
    file: str


def read_sidecar(path: Path, shown: object = None) -> Mapping[str, Any]:
    """Read a JSON sidecar.

    Raises
    ------
    RunRefused
        ``bad-sidecar`` where it is broken or no object, ``missing-content`` or ``denied``.
    """
    shown = path.name if shown is None else shown
    with reading(path, shown):
        content = path.read_bytes()
    try:
        table = parse_json(content)
    except ValueError as error:
        raise _bad_sidecar(shown, "a JSON object", str(error)) from error
    if not isinstance(table, dict):
        raise _bad_sidecar(shown, "a JSON object", f"a {type(table).__name__}")
    return table


def inherited_sidecars(dataset: Path, image: Path, name: Name) -> Iterator[Path]:
    """Yield the JSONs that hold for an image by BIDS' inheritance, the nearest first.

    The image's own is not among them. At most one listing for each folder above the image.
    """
    for folder in image.parents:
        applying = [
            (len(other.entities), path)
            for path, other in _list_jsons(folder, name.suffix)
            if set(other.entities) <= set(name.entities) and path.name != own_sidecar(image).name
        ]
        yield from (path for _, path in sorted(applying, reverse=True))
        if folder == dataset:
            return


def own_sidecar(image: Path) -> Path:
    """Return where the JSON of an image would be."""
    name = image.name.removesuffix(".gz").removesuffix(".nii")
    return image.with_name(f"{name}.json")


def raw_sidecars(
    sidecar: Mapping[str, Any], dataset: Path, links: Mapping[str, str]
) -> Iterator[Path]:
    """Yield the JSONs of the raw BOLD files that a derivative names as its sources.

    ``Sources`` and ``RawSources`` are a string or a list of BIDS URIs, relative paths, or paths of
    the machine or container that made them; what can't be found is passed over.
    """
    for source in _listed(sidecar.get("Sources")) + _listed(sidecar.get("RawSources")):
        found = _locate_source(source, dataset, links)
        if found is None:
            continue
        root, image = found
        name = parse_name(image.name)
        if name is None or name.suffix != "bold":
            continue
        if os.path.isfile(own_sidecar(image)):  # noqa: PTH113 - as below
            yield own_sidecar(image)
        yield from inherited_sidecars(root, image, name)


def read_timing(path: Path, origin: Origin, shown: str) -> Statement | None:
    """Return the repetition time that a sidecar states; None if it is silent.

    Raises
    ------
    RunRefused
        ``bad-sidecar``, ``irregular-timing``, or ``tr-conflict`` where ``RepetitionTime`` and
        ``VolumeTiming`` contradict one another.
    """
    table = read_sidecar(path, shown)
    spacing = _spacing(table["VolumeTiming"], shown) if "VolumeTiming" in table else None
    if "RepetitionTime" not in table:
        return None if spacing is None else Statement(spacing, origin, shown)
    stated = table["RepetitionTime"]
    if not _is_number(stated):
        raise _bad_sidecar(shown, "RepetitionTime as a number of seconds", json.dumps(stated))
    if spacing is not None and not _close(stated, spacing):
        raise _conflict(shown, f"RepetitionTime {stated:g} s", f"VolumeTiming {spacing:g} s")
    return Statement(float(stated), origin, shown)


def first_timing(
    sidecars: Iterable[tuple[Origin, Path]], dataset: Path
) -> tuple[Statement | None, tuple[Path, ...]]:
    """Read sidecars until one states the repetition time.

    Returns
    -------
    statement : Statement or None
    read : tuple of Path
        The BOLD's own, where it has one, and the one that states the time.
    """
    read: tuple[Path, ...] = ()
    for origin, path in sidecars:
        statement = read_timing(path, origin, relative(path, dataset))
        if statement is not None:
            return statement, (*read, path)
        if origin == "sidecar":
            read = (path,)
    return None, read


def resolve_repetition_time(
    forced: float | None, stated: Statement | None, header: Header, bold: str
) -> tuple[RepetitionTime, tuple[Notice, ...]]:
    """Decide on the repetition time.

    Parameters
    ----------
    forced : float or None
        Seconds given by the user.
    stated : Statement or None
        What the sidecars say.
    header : Header
        The BOLD's.
    bold : str
        What messages call the BOLD file.

    Raises
    ------
    RunRefused
        ``no-tr``, ``tr-conflict`` or ``tr-range``.
    """
    if stated is not None:
        stated = _read_as_milliseconds(stated, forced, header)
    if forced is not None:
        if stated is not None and not _close(forced, stated.seconds):
            raise _conflict(bold, f"{forced:g} s by --tr", f"{stated.seconds:g} s in the sidecar")
        return RepetitionTime(seconds=forced, origin="command line"), ()
    if stated is None:
        return _from_header(header, bold)
    seconds = _within_range(stated.seconds, stated.file)
    notices = () if _close(seconds, header.seconds) else (_disagreement(seconds, header, bold),)
    return RepetitionTime(seconds=seconds, origin=stated.origin), notices


def linked_folder(link: str, dataset: Path) -> Path | None:
    """Return the folder that one of ``DatasetLinks`` leads to; None if it isn't on a disk."""
    try:
        parts = urlparse(link)
    except ValueError:
        return None  # Not even an address.
    if not link or parts.scheme not in ("", "file") or "\0" in unquote(parts.path):
        return None
    return Path(os.path.normpath(dataset / unquote(parts.path)))


def relative(path: Path, dataset: Path) -> str:
    """Return a path below the dataset with slashes; of one outside, its name."""
    return path.relative_to(dataset).as_posix() if path.is_relative_to(dataset) else path.name


def _list_jsons(folder: Path, suffix: str) -> Iterator[tuple[Path, Name]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(f"{suffix}.json"):
                continue
            name = parse_name(entry.name)
            if name is not None and name.suffix == suffix:
                yield folder / entry.name, name


def _listed(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]


def _locate_source(
    source: str, dataset: Path, links: Mapping[str, str]
) -> tuple[Path, Path] | None:
    """Return dataset and file of a source, if its folder is there."""
    linked, path = "raw", source
    if source.startswith("bids:"):
        _, linked, path = source.split(":", 2) if source.count(":") > 1 else ("", "", source)
    root = linked_folder(links.get(linked, ""), dataset)
    if root is None or not (root / path).is_relative_to(root):
        return None
    # Not Path.is_dir, which fails where a name is too long to be one.
    return (root, root / path) if os.path.isdir((root / path).parent) else None  # noqa: PTH112


def _spacing(times: Any, shown: object) -> float:
    if not isinstance(times, list) or len(times) < 2 or not all(map(_is_number, times)):
        raise _bad_sidecar(shown, "VolumeTiming as a list of seconds", json.dumps(times)[:80])
    steps = [later - earlier for earlier, later in pairwise(times)]
    mean = (times[-1] - times[0]) / len(steps)
    if not all(_close(mean, step) for step in steps):
        raise RunRefused(
            "irregular-timing",
            file=shown,
            expected="volumes equally spaced in time, within 1 %",
            found=f"steps from {min(steps):g} to {max(steps):g} s in VolumeTiming",
            advice="leave the run out",
        )
    return float(mean)


def _read_as_milliseconds(stated: Statement, forced: float | None, header: Header) -> Statement:
    """Read a sidecar's 2000 as 2 s where a second witness says so."""
    if not _LIKELY_MS[0] <= stated.seconds <= _LIKELY_MS[1]:
        return stated
    seconds = stated.seconds / 1000
    second_witness = _close(stated.seconds, header.time_step) or _close(seconds, forced or 0)
    return Statement(seconds, stated.origin, stated.file) if second_witness else stated


def _from_header(header: Header, bold: str) -> tuple[RepetitionTime, tuple[Notice, ...]]:
    if not math.isfinite(header.seconds) or header.seconds <= 0:
        raise RunRefused(
            "no-tr",
            file=bold,
            expected="a repetition time in a sidecar or in the header",
            found=f"no sidecar that states one, and {header.timing}",
            advice="state it with --tr, if you know it",
        )
    seconds = _within_range(header.seconds, bold, header.timing)
    message = f"TR {seconds:g} s: no sidecar states it, the header has {header.timing}"
    notice = Notice(code="tr-from-header", message=message, file=bold)
    return RepetitionTime(seconds=seconds, origin="header"), (notice,)


def _within_range(seconds: float, shown: str, raw: str = "") -> float:
    if _SHORTEST <= seconds <= _LONGEST:
        return seconds
    likely_ms = _LIKELY_MS[0] <= seconds <= _LIKELY_MS[1]
    guess = f", most likely {seconds:g} ms" if likely_ms else ""
    raise RunRefused(
        "tr-range",
        file=shown,
        expected=f"a repetition time from {_SHORTEST:g} to {_LONGEST:g} s",
        found=f"{seconds:g} s{f' ({raw})' if raw else ''}{guess}",
        advice=f"state it with --tr{f' {seconds / 1000:g}' if likely_ms else ''}",
    )


def _disagreement(seconds: float, header: Header, bold: str) -> Notice:
    message = f"the sidecar's TR of {seconds:g} s is used; the header has {header.timing}"
    return Notice(code="tr-disagrees", message=message, file=bold)


def _is_number(value: Any) -> bool:
    # A whole number may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE * abs(one)


def _bad_sidecar(shown: object, expected: str, found: str) -> RunRefused:
    return RunRefused(
        "bad-sidecar",
        file=shown,
        expected=expected,
        found=found,
        advice="mend the file, or make it again",
    )


def _conflict(shown: object, one: str, other: str) -> RunRefused:
    return RunRefused(
        "tr-conflict",
        file=shown,
        expected="one repetition time",
        found=f"{one}, but {other}",
        advice="find out which one is right, and correct the other",
    )
