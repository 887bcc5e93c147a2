"""Prepared runs of earlier calls: whether they are what would be made now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimbrain_app.errors import RunRefused
from slimbrain_app.files import parse_json, sha256_of
from slimbrain_app.prepare.grid import model_grid
from slimbrain_app.prepare.preparation import sign
from slimbrain_app.prepare.store import load_prepared
from slimbrain_app.records import Contract, PreparedRun, Run
from slimbrain_app.settings import Prepare


def open_prepared(folder: Path, name: str) -> PreparedRun:
    """Return a prepared run as it stands, whoever made it.

    Parameters
    ----------
    name : str
        What messages call the folder.

    Raises
    ------
    RunRefused
        ``unreadable``; ``other-contract`` if it was prepared for another grid.
    """
    try:
        making = _read_making(folder)
        prepared = load_prepared(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunRefused(
            "unreadable",
            file=name,
            expected="a prepared run with its run.json",
            found=str(error),
            advice="prepare the run again",
        ) from error
    _require_contract(making, name)
    return prepared


def find_prepared(run: Run, folder: Path, settings: Prepare) -> PreparedRun | None:
    """Return what stands in ``folder`` if it was made from the same inputs, in the same way.

    Inputs are compared by size and time, or by checksum where the time differs.
    """
    try:
        making = _read_making(folder)
        prepared = load_prepared(folder)
        same_inputs = _inputs_agree(run, making["sources"], dict(prepared.checksums))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # Nothing there, or written by a version that said less.
    same_making = sign(prepared, asdict(settings)).fingerprint == prepared.fingerprint
    same_time = prepared.tr == run.repetition_time.seconds
    return prepared if same_inputs and same_making and same_time else None


def _read_making(folder: Path) -> dict[str, Any]:
    content = parse_json((folder / "run.json").read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("run.json is not an object")
    return content


def _inputs_agree(run: Run, known: list[dict[str, Any]], checksums: Mapping[str, str]) -> bool:
    sources = {run.relative(path): path for path in run.sources}
    facts = {source["file"]: source for source in known}
    return sources.keys() == facts.keys() == checksums.keys() and all(
        _is_unchanged(path, facts[name], checksums[name]) for name, path in sources.items()
    )


def _is_unchanged(path: Path, known: Mapping[str, Any], checksum: str) -> bool:
    facts = path.stat()
    if facts.st_size != known["size"]:
        return False
    same_time: bool = facts.st_mtime == known["modified"]
    return same_time or sha256_of(path) == checksum


def _require_contract(making: Mapping[str, Any], name: str) -> None:
    grid, version = model_grid(), Contract().version
    expected = {"shape": list(grid.shape), "affine": grid.affine.tolist()}
    if making.get("contract") != version or making.get("grid") != expected:
        raise RunRefused(
            "other-contract",
            file=name,
            expected=f"a run prepared for model contract {version} and its grid",
            found=f"contract {making.get('contract')}"
            + ("" if making.get("grid") == expected else " on another grid"),
            advice="prepare the run again with this version of SlimBrain",
        )
