"""Functional files, gathered into runs by the entities of their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from slimbrain_app.bids.entities import VARIANT, Entities, Name
from slimbrain_app.bids.folders import File

_SIGNS_OF_A_RUN = ("bold", "boldref")
_NAMED_SIGNS = {("mask", "brain"), ("timeseries", "confounds"), ("regressors", "confounds")}

# What tells raw BOLD files apart.
_KEYS = frozenset(("sub", "ses", "sample", "task", "acq", "ce", "rec", "dir", "run", "mod", "trc"))


@dataclass(frozen=True, slots=True)
class RunFiles:
    """All files of one run. ``entities`` keep order and spelling: run-1 is not run-01."""

    entities: Entities
    files: tuple[File, ...]

    @property
    def name(self) -> str:
        return "_".join(f"{key}-{value}" for key, value in self.entities)

    @property
    def session(self) -> str | None:
        return dict(self.entities).get("ses")

    @property
    def bold(self) -> tuple[File, ...]:
        """Every BOLD file, surfaces and single echoes included, without sidecars."""
        return tuple(file for file in self.files if is_bold(file))

    @property
    def sidecars(self) -> tuple[File, ...]:
        """JSONs of all BOLD files."""
        return tuple(
            file
            for file in self.files
            if file.name.suffix == "bold" and file.name.extension.endswith(".json")
        )


def gather_runs(files: Iterable[File]) -> tuple[RunFiles, ...]:
    """Gather files by run; runs are in the order of their names.

    A run is there as soon as anything speaks of it, so that one without a BOLD series can be
    told from one that doesn't exist.
    """
    groups: dict[frozenset[tuple[str, str]], list[File]] = {}
    for file in files:
        groups.setdefault(frozenset(file.name.without(VARIANT)), []).append(file)
    runs = [
        RunFiles(_name_of(members).without(VARIANT), tuple(members))
        for members in groups.values()
        if any(is_bold(file) or _speaks_of_run(file.name) for file in members)
    ]
    return tuple(sorted(runs, key=lambda run: run.entities))


def is_bold(file: File) -> bool:
    return file.name.suffix == "bold" and not file.name.extension.endswith(".json")


def other_spellings(run: RunFiles, runs: Iterable[RunFiles]) -> list[str]:
    """Name the runs that differ from this one by zeros before the run's number only."""
    return [other.name for other in runs if other != run and _plain(other) == _plain(run)]


def is_concatenation(run: RunFiles, runs: Iterable[RunFiles]) -> bool:
    """Whether others are this run's parts: all its entities, and a run's number besides."""
    entities = dict(run.entities)
    return "run" not in entities and any(
        _without_parts(dict(other.entities)) == entities
        for other in runs
        if "run" in dict(other.entities)
    )


def is_another_tools(run: RunFiles, runs: Iterable[RunFiles]) -> bool:
    """Whether what tells it from another run is nothing that BIDS knows of BOLD.

    halfpipe writes ``setting-`` and ``feature-`` into the names of what it makes of a run.
    """
    known = tuple(entity for entity in run.entities if entity[0] in _KEYS)
    return known != run.entities and any(other.entities == known for other in runs)


def _name_of(members: list[File]) -> Name:
    return next((file.name for file in members if is_bold(file)), members[0].name)


def _speaks_of_run(name: Name) -> bool:
    """Whether a file is there for a run of its own; a JSON may be inherited, or mriqc's figures."""
    sign = name.suffix in _SIGNS_OF_A_RUN or (name.suffix, name.get("desc")) in _NAMED_SIGNS
    return sign and name.extension != ".json" and name.get("task") is not None


def _plain(run: RunFiles) -> dict[str, str]:
    entities = dict(run.entities)
    number = entities.get("run", "")
    return entities | {"run": str(int(number)) if number.isdecimal() else number}


def _without_parts(entities: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in entities.items() if key not in ("run", "dir")}
