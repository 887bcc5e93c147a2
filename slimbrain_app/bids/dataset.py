"""The files that make the output folder a BIDS derivative."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from slimbrain_app import __version__
from slimbrain_app.bids.derivatives import DESCRIPTION, LINK, find_linked
from slimbrain_app.errors import CallRefused
from slimbrain_app.files import lock, parse_json, remove_leftovers, write_text

# A folder's name goes without a slash: with one, the validator reports the folder itself.
IGNORED = (
    "*.html",
    "figures",
    "*_windows.*",
    "*_embeddings.*",
    "*_predictions.*",
    "*_attribution.*",
    "*_contributions.*",
    "desc-slimbrain_runs.*",
    "desc-slimbrain_metrics.*",
    "desc-slimbrain_splits.*",
    "desc-slimbrain_scores.*",
    "desc-slimbrain_calibration.*",
    "desc-slimbrain_people.*",
    "desc-slimbrain_corpus.*",
    "models",
    "prepared",
    "*_prepared",
)
README = """# SlimBrain derivatives

Embeddings of preprocessed BOLD runs, made by SlimBrain {version}.

- `sub-*/[ses-*/]func/*_stat-mean_desc-slimbrain_embeddings.tsv`: one row, the run's embedding
- `*_desc-slimbrain_windows.tsv`: every window with its saliency and whether it was selected
- `*_desc-slimbrain_mask.nii.gz`: the brain voxels that were used, on the model grid
- `sub-*.html`: a report for each participant
- `logs/`: how each run ended, the settings, and the methods text to cite

Every table and image has a JSON beside it that says what its columns mean, from which files it was
made, with which weights and settings.
"""
# The variable by which an image tells its name.
IMAGE = "SLIMBRAIN_IMAGE"
# At the end of the name of a call's folder below logs/.
CALL_ID = "_????????"


def open_output(output: Path, dataset: Path) -> None:
    """Write description, ``.bidsignore`` and README, where absent or out of date.

    What calls left that were killed while they wrote shared files goes first.

    Raises
    ------
    CallRefused
        ``same-folder`` if ``output`` is the dataset of another tool.
    """
    refuse_foreign(output)
    folders = {**find_linked(dataset), LINK: dataset}
    links = {name: _lead_to(folder, output) for name, folder in folders.items()}
    description = json.dumps(_describe(_read_description(dataset), links), indent=2) + "\n"
    with lock_shared(output):
        for name in (DESCRIPTION, ".bidsignore", "README.md"):
            remove_leftovers(output, f"-{name}")
        for name in ("-CITATION.md", "-status.json", CALL_ID):
            remove_leftovers(output / "logs", name)
        _write_if_different(output / DESCRIPTION, description)
        _write_if_different(output / ".bidsignore", _merge_ignored(output / ".bidsignore"))
        if not (output / "README.md").exists():
            write_text(output / "README.md", README.format(version=__version__))


def lock_shared(output: Path) -> AbstractContextManager[None]:
    """Wait for the lock on what calls for any participants write, and hold it."""
    return lock(output / "logs" / "shared.lock", "shared files", wait=True)


def read_licence(dataset: Path) -> str | None:
    """Return the licence that a dataset's description states, if it does."""
    licence = _read_description(dataset).get("License")
    return licence if isinstance(licence, str) else None


def _lead_to(folder: Path, output: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), output.resolve())).as_posix()


def _describe(source: Mapping[str, Any], links: Mapping[str, str]) -> dict[str, Any]:
    earlier = source.get("SourceDatasets")
    nearest = {"DOI": source["DatasetDOI"]} if "DatasetDOI" in source else {"URL": links[LINK]}
    description: dict[str, Any] = {
        "Name": "SlimBrain: embeddings of BOLD runs",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [_describe_self(), *_list_makers(source)],
        "SourceDatasets": [nearest, *(earlier if isinstance(earlier, list) else [])],
        "DatasetLinks": dict(links),
    }
    kept = {key: source[key] for key in ("Authors", "License") if key in source}
    return {**description, **kept}


def _describe_self() -> dict[str, Any]:
    """Return who makes the output: this version, and the image that it is run in, if it is."""
    maker = {"Name": "SlimBrain", "Version": __version__}
    if image := os.environ.get(IMAGE):
        within = {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & os.environ.keys()
        kind = "singularity" if within else "docker"
        return {**maker, "Container": {"Type": kind, "Tag": image}}
    return maker


def _list_makers(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    makers = description.get("GeneratedBy") or description.get("PipelineDescription")
    listed = makers if isinstance(makers, list) else [makers]
    return [one for one in listed if isinstance(one, dict) and isinstance(one.get("Name"), str)]


def refuse_foreign(output: Path) -> None:
    """Refuse as ``same-folder`` an output that is the dataset of another tool."""
    description = output / DESCRIPTION
    names = [maker["Name"] for maker in _list_makers(_read_description(output))]
    if os.access(description, os.F_OK) and "SlimBrain" not in names:
        raise CallRefused(
            "same-folder",
            file=output,
            expected="a new folder, or an earlier output of SlimBrain",
            found=f"a dataset of {', '.join(names) or 'another tool'}",
            advice="name another output folder, derivatives/slimbrain for example",
        )


def _read_description(dataset: Path) -> dict[str, Any]:
    try:
        content = parse_json((dataset / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # Said as a notice where the dataset is checked.
    return content if isinstance(content, dict) else {}


def _merge_ignored(path: Path) -> str:
    present = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines = [*present, *(line for line in IGNORED if line not in present)]
    return "".join(f"{line}\n" for line in lines)


def _write_if_different(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
