"""The folder of derivatives as a whole: who made it, what it links to, whether it is one."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimbrain_app.bids.entities import Name, parse_name
from slimbrain_app.bids.metadata import linked_folder
from slimbrain_app.errors import CallRefused
from slimbrain_app.files import parse_json
from slimbrain_app.records import Notice

DESCRIPTION = "dataset_description.json"
LINK = "preprocessed"
"""What our outputs call the dataset that they were made from."""

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """A published fault of a release, from ``first`` up to, but without, ``mended``."""

    tool: str
    first: Version
    mended: Version
    what: str
    source: str


FAULTS = (
    Fault(
        "fmriprep",
        (23, 2, 0),
        (23, 2, 1),
        "brain masks in template spaces were resampled with their transforms in the wrong order",
        "release notes of fMRIPrep 23.2.1, nipreps/fmriprep#3238",
    ),
    Fault(
        "fmriprep",
        (23, 2, 0),
        (23, 2, 1),
        "the repetition time is missing from the headers of the BOLD series",
        "release notes of fMRIPrep 23.2.1, nipreps/fmriprep#3239",
    ),
    Fault(
        "fmriprep",
        (25, 1, 0),
        (25, 2, 0),
        "interpolation at the border of the field of view leaves artefacts in some datasets",
        "release notes of fMRIPrep 25.2.0, nipreps/fmriprep#3516",
    ),
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a ``dataset_description.json`` says.

    Attributes
    ----------
    kind : str or None
        ``DatasetType``, where it is stated.
    tools : tuple of (str, str)
        Name and version of what made the folder, the latest first; ``GeneratedBy``, or
        ``PipelineDescription`` before 2020.
    links : mapping
        ``DatasetLinks``: name to address.
    """

    kind: str | None = None
    tools: tuple[tuple[str, str], ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def made_by_xcp_d(self) -> bool:
        return any(plain_tool(name).startswith("xcp") for name, _ in self.tools)


def read_description(dataset: Path) -> Description | None:
    """Read the folder's description; None where there is none that can be read."""
    try:
        table = parse_json((dataset / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(table, dict):
        return None
    kind, links = table.get("DatasetType"), table.get("DatasetLinks")
    return Description(
        kind=kind if isinstance(kind, str) else None,
        tools=tuple(_list_tools(table)),
        links={
            name: link
            for name, link in (links.items() if isinstance(links, dict) else ())
            if isinstance(link, str)
        },
    )


def find_linked(dataset: Path) -> dict[str, Path]:
    """Return the folders that a dataset links to and that are there, by the names our outputs use.

    What a source itself calls `LINK`, as xcp_d does, is another dataset than ours of that name.
    """
    description = read_description(dataset) or Description()
    folders = {
        f"{LINK}-source" if name == LINK else name: linked_folder(link, dataset)
        for name, link in description.links.items()
    }
    # Not Path.is_dir, which fails where a name is too long to be one.
    return {name: folder for name, folder in folders.items() if folder and os.path.isdir(folder)}  # noqa: PTH112


def plain_tool(name: str) -> str:
    """Return a tool's name without case and marks: fMRIPrep, XCP-D and xcp_d vary."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def check_dataset(dataset: Path) -> tuple[Notice, ...]:
    """See whether a folder can hold derivatives; what is odd about it, but no hindrance.

    Raises
    ------
    CallRefused
        ``no-input`` if it is not there, ``raw-dataset`` if it holds raw data, or is the folder
        above the derivatives.
    """
    require_folder(dataset)
    description = read_description(dataset)
    if _looks_raw(dataset, description):
        raise _raw_dataset(dataset)
    if description is None:
        message = "no readable dataset_description.json: who made the derivatives is unknown"
        return (Notice(code="no-description", message=message, file=DESCRIPTION),)
    return tuple(_list_faults(description))


def list_participants(dataset: Path) -> tuple[str, ...]:
    """List the labels of all participants, sorted. One listing of the folder, names only."""
    with os.scandir(dataset) as entries:
        # A link to a folder is one as well; the reports sub-*.html are not.
        folders = [entry.name for entry in entries if _is_participant(entry)]
    return tuple(sorted(name.removeprefix("sub-") for name in folders))


def _is_participant(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("sub-") and entry.is_dir()


def _list_tools(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    makers = table.get("GeneratedBy", table.get("PipelineDescription"))
    for maker in makers if isinstance(makers, list) else [makers]:
        if isinstance(maker, dict) and "Name" in maker:
            yield str(maker["Name"]), str(maker.get("Version", ""))


def _list_faults(description: Description) -> Iterator[Notice]:
    for tool, text in description.tools:
        version = tuple(int(part) for part in re.findall(r"\d{1,9}", text)[:3])
        for fault in FAULTS:
            if plain_tool(tool) == fault.tool and fault.first <= version < fault.mended:
                mended = ".".join(map(str, fault.mended))
                yield Notice(
                    code="known-fault",
                    message=f"{tool} {text}: {fault.what}; mended in {mended} ({fault.source})",
                    file=DESCRIPTION,
                )


def require_folder(dataset: Path) -> None:
    """Refuse as ``no-input`` what isn't there, or is no folder that may be listed and entered."""
    try:
        with os.scandir(dataset):
            if os.access(dataset, os.X_OK):
                return
        raise PermissionError(errno.EACCES, "it may be listed, but not entered")
    except OSError as error:
        raise CallRefused(
            "no-input",
            file=dataset,
            expected="a folder of fMRIPrep derivatives",
            found=error.strerror or str(error),
            advice="check the path; in a container, check that the folder is mounted",
        ) from error


def _looks_raw(dataset: Path, description: Description | None) -> bool:
    if description is not None and description.kind is not None:
        return description.kind == "raw"
    # Before 2020 derivatives did not say so, and raw data may name the tool that converted them.
    participants = list_participants(dataset)
    if not participants:
        return bool(_list_fitting(dataset))
    bold = list(_list_bold(dataset / f"sub-{participants[0]}"))
    return bool(bold) and all(_is_raw(name) for name in bold)


def _list_bold(folder: Path) -> Iterator[Name]:
    sessions = [path for path in folder.iterdir() if path.name.startswith("ses-")]
    for above in (folder, *sessions):
        names = (parse_name(path.name) for path in (above / "func").glob("*.nii*"))
        yield from (name for name in names if name is not None and name.suffix == "bold")


def _is_raw(name: Name) -> bool:
    return name.get("desc") is None and name.get("space") is None and name.get("hemi") is None


def _list_fitting(dataset: Path) -> list[Path]:
    """List folders below that hold derivatives: those of a raw dataset, or of the old layout."""
    below = [*sorted((dataset / "derivatives").glob("fmriprep*")), dataset / "fmriprep"]
    return [folder for folder in below if folder.is_dir() and list_participants(folder)]


def _raw_dataset(dataset: Path) -> CallRefused:
    fitting = _list_fitting(dataset)
    if fitting:
        advice = f"give {' or '.join(str(folder) for folder in fitting)} instead"
    else:
        advice = "run fMRIPrep first and give its output folder"
    return CallRefused(
        "raw-dataset",
        file=dataset,
        expected="a folder of fMRIPrep derivatives",
        found="a raw dataset" if list_participants(dataset) else "a folder above derivatives",
        advice=advice,
    )
