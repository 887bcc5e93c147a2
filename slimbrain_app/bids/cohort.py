"""A cohort in an output folder: every run and person, read back from what was written of them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from slimbrain_app.bids.discover import list_participants, no_participant, no_runs_left
from slimbrain_app.bids.entities import VARIANT, Entities, Name, parse_name, strip_prefix
from slimbrain_app.bids.filters import Filter, build_filter
from slimbrain_app.bids.outputs import name_person_output, read_predictions
from slimbrain_app.bids.status import describe_fault, has_status, list_told, load_status
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.files import parse_json
from slimbrain_app.records import Prediction, Refusal
from slimbrain_app.settings import Select

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydantic import TypeAdapter

Told = TypeVar("Told")


@dataclass
class _Head:
    """What a sidecar says of a head, as far as it is read."""

    Outcome: str
    Units: str | None
    Levels: dict[str, str]
    People: int
    Performance: str


@dataclass
class _Model:
    Name: str
    SHA256: str
    Heads: list[_Head] = field(default_factory=list)


@dataclass
class _Warning:
    code: str


@dataclass(kw_only=True)
class _Figures:
    """What is kept of a run's sidecar: how it was prepared, and figures of quality."""

    RepetitionTime: float | None = None
    RepetitionTimeOrigin: str | None = None
    Ladder: dict[str, str | int] | None = None
    Volumes: int | None = None
    DummyScans: int | None = None
    Voxels: int | None = None
    Coverage: float | None = None
    ConstantVoxels: int | None = None
    ClippedValues: int | None = None
    ReplacedValues: int | None = None
    MeanFramewiseDisplacement: float | None = None
    Windows: int | None = None
    SelectedWindows: int | None = None
    Warnings: list[_Warning] | None = None


@dataclass(kw_only=True)
class _Sidecar(_Figures):
    Model: _Model
    Settings: dict[str, dict[str, Any]]
    SettingsFingerprint: str
    Seed: int
    Outputs: dict[str, str]


_FIGURES = tuple(figure.name for figure in fields(_Figures))


@dataclass
class _PersonSidecar:
    Model: _Model
    Runs: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """With which weights and settings runs were embedded, as their sidecars say it."""

    name: str
    sha256: str
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    fingerprint: str
    seed: int

    @property
    def heads(self) -> list[Mapping[str, Any]]:
        return list(self.model.get("Heads", ()))


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortRun:
    """A run that was found by an earlier call.

    Attributes
    ----------
    name : str
        Or what stands for it: ``sub-01`` where nothing else is known.
    refusal : Refusal or None
        Why it isn't done, or why what was written of it can't be used.
    making : Making or None
        Of a run that is done.
    facts : mapping
        What its sidecar says of quality, by the sidecar's keys.
    embedding : str
        The row of its table; ``columns`` is the header.
    numbers : ndarray, float32, shape (width,), or None
        That row.
    source : str
        That table, below the output folder.
    """

    participant: str
    name: str
    entities: Entities
    refusal: Refusal | None = None
    making: Making | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: str = ""
    embedding: str = ""
    numbers: NDArray[np.float32] | None = field(default=None, compare=False)
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PersonPredictions:
    """What is predicted of a person, by the package of which checksum, from which runs."""

    sha256: str
    runs: tuple[str, ...]
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trace:
    """A run before its outputs are read: how it ended, its sidecar below the output, or both."""

    participant: str
    run: str
    name: Name
    sidecar: str | None
    refusal: Refusal | None


def read_cohort(output: Path, select: Select) -> tuple[CohortRun, ...]:
    """Read every selected run, whether its participant's status file or only a sidecar tells of it.

    A run whose outputs are damaged is returned with a refusal, as is a participant whose status
    file is.

    Raises
    ------
    CallRefused
        ``no-runs``: no participant-level call has written here, or the filters leave no run;
        ``no-participant``.
    """
    traces = [
        trace for label in _choose_labels(output, select) for trace in _trace_runs(output, label)
    ]
    if not traces:
        raise _nothing_written(output)
    wanted = _of_runs(build_filter(select))
    chosen = [trace for trace in traces if _is_wanted(trace, wanted)]
    if not chosen:
        raise no_runs_left(output, [trace.name for trace in traces], wanted)
    makings: dict[tuple[str, str], Making] = {}
    return tuple(_read_run(output, trace, makings) for trace in chosen)


def read_person(output: Path, participant: str) -> PersonPredictions | None:
    """Read what is predicted of a person; None where nothing is.

    Raises
    ------
    RunRefused
        ``output-bad``
    """
    name = name_person_output(participant, "predictions", ".json")
    if not (output / name).exists():
        return None
    try:
        facts = _read_as(_PersonSidecar, (output / name).read_bytes())
        told = PersonPredictions(
            sha256=facts.Model.SHA256,
            runs=tuple(facts.Runs),
            predictions=read_predictions((output / name).with_suffix(".tsv")),
        )
        levels = {
            (h.Outcome, level) for h in facts.Model.Heads for level in tuple(h.Levels) or (None,)
        }
        if {(one.outcome, one.level) for one in told.predictions} != levels:
            raise ValueError("rows of other outcomes than the heads'")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunRefused(
            "output-bad",
            file=name,
            expected="what is predicted of a person, with its sidecar",
            found=describe_fault(error),
            advice="remove the two files and start the participant level again",
        ) from error
    return told


def levels_of(head: Mapping[str, Any]) -> tuple[str | None, ...]:
    """Return the classes of a head as a sidecar describes it; of a number, None alone."""
    return tuple(head["Levels"]) or (None,)


def _choose_labels(output: Path, select: Select) -> list[str]:
    there = sorted({*list_told(output), *(list_participants(output) if output.is_dir() else ())})
    if not there:
        raise _nothing_written(output)
    asked = dict.fromkeys(strip_prefix("sub", label) for label in select.participants)
    unknown = [label for label in asked if label not in there]
    if unknown:
        raise no_participant(output, unknown, there)
    return sorted(asked) or there


def _nothing_written(output: Path) -> CallRefused:
    return CallRefused(
        "no-runs",
        file=output,
        expected="what the participant level writes",
        found="no run in logs/sub-*_status.json or sub-*",
        advice="run the participant level into this folder first",
    )


def _of_runs(wanted: Filter) -> Filter:
    """Leave out conditions on what tells files of a run apart: all were made from one of them."""
    return Filter(tuple(condition for condition in wanted.conditions if condition.on_run))


def _is_wanted(trace: _Trace, wanted: Filter) -> bool:
    of_person = trace.refusal is not None and len(trace.name.entities) == 1
    return of_person or wanted.admits_run(trace.name)


def _trace_runs(output: Path, label: str) -> Iterator[_Trace]:
    trace = partial(_Trace, participant=label)
    refusals: dict[str, Refusal | None] = {}
    try:
        if has_status(output, label):
            refusals = {status.run: status.refusal for status in load_status(output, label)}
    except RunRefused as error:
        refusals = {f"sub-{label}": Refusal.of(f"sub-{label}", error)}
    sidecars = {run: (name, path) for run, name, path in _list_sidecars(output, label)}
    for run in sorted({*refusals, *sidecars}):
        name, path = sidecars.get(run) or (parse_name(f"{run}_bold.nii.gz"), None)
        name = name or Name((("sub", label),), "bold", ".nii.gz")
        yield trace(run=run, name=name, sidecar=path, refusal=refusals.get(run))


def _list_sidecars(output: Path, label: str) -> Iterator[tuple[str, Name, str]]:
    """Yield runs, their names taken apart, and the sidecars by which they count as done.

    Paths are text here: of tens of thousands they would take most of the time.
    """
    own = f"sub-{label}"
    sessions = [name for name in _list_names(f"{output}/{own}") if name.startswith("ses-")]
    for func in (f"{own}/func", *(f"{own}/{session}/func" for session in sessions)):
        for file in _list_names(f"{output}/{func}"):
            told = "_stat-mean_" in file and file.endswith("_embeddings.json")
            name = parse_name(file) if told else None
            if name:
                entities = name.without((*VARIANT, "stat"))
                run = "_".join(f"{key}-{value}" for key, value in entities)
                yield run, Name(entities, "bold", ".nii.gz"), f"{func}/{file}"


def _list_names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - that makes a Path of each name
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_run(output: Path, trace: _Trace, makings: dict[tuple[str, str], Making]) -> CohortRun:
    run = partial(
        CohortRun, participant=trace.participant, name=trace.run, entities=trace.name.entities
    )
    if trace.refusal:
        return run(refusal=trace.refusal)
    try:
        if trace.sidecar is None:
            raise _damaged(trace.run, "no file of that name")
        return run(**_read_outputs(output, trace.sidecar, makings))
    except RunRefused as error:
        return run(refusal=Refusal.of(trace.run, error))


def _read_outputs(
    output: Path, sidecar: str, makings: dict[tuple[str, str], Making]
) -> dict[str, Any]:
    """Return what a run's sidecar and the table of its embedding say, once they agree."""
    source = f"{sidecar.removesuffix('.json')}.tsv"
    try:
        told, content = (Path(f"{output}/{name}").read_bytes() for name in (sidecar, source))
        facts = _read_as(_Sidecar, told)
        if hashlib.sha256(content).hexdigest() != facts.Outputs[source]:
            raise ValueError("a table that is not the one written with it")
        columns, row = content.decode().splitlines()
        numbers = _read_numbers(columns, row)
        key = (facts.Model.SHA256, facts.SettingsFingerprint)
        if key not in makings:
            makings[key] = _read_making(told)
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(sidecar, describe_fault(error)) from error
    return {
        "making": makings[key],
        "facts": {name: getattr(facts, name) for name in _FIGURES},
        "columns": columns,
        "embedding": row,
        "numbers": numbers,
        "source": source,
    }


def _read_making(sidecar: bytes) -> Making:
    facts = parse_json(sidecar)
    json.dumps([facts["Model"], facts["Settings"]], allow_nan=False)  # They are written again.
    return Making(
        name=facts["Model"]["Name"],
        sha256=facts["Model"]["SHA256"],
        model=facts["Model"],
        settings=facts["Settings"],
        fingerprint=facts["SettingsFingerprint"],
        seed=facts["Seed"],
    )


def _read_numbers(columns: str, row: str) -> NDArray[np.float32]:
    import numpy as np

    numbers = np.fromstring(row, sep="\t")
    if columns != _name_columns(len(numbers)):
        raise ValueError("a table that is not a row of numbers below their columns")
    return numbers.astype(np.float32)


@cache
def _name_columns(width: int) -> str:
    return "\t".join(f"e{place:04d}" for place in range(width))


def _read_as(kind: type[Told], sidecar: bytes) -> Told:
    """Return what is read of a sidecar, once it has that form: nobody knows what became of it."""
    from pydantic import ValidationError

    try:
        told: Told = _make_readers()[kind].validate_json(sidecar, strict=True)
        return told
    except ValidationError as error:
        faults = error.errors(include_url=False)
        lines = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        raise ValueError("; ".join(lines).removeprefix(": ")) from error


@cache
def _make_readers() -> Mapping[type, TypeAdapter[Any]]:
    from pydantic import TypeAdapter

    return {kind: TypeAdapter(kind) for kind in (_Sidecar, _PersonSidecar)}


def _damaged(file: str, found: str) -> RunRefused:
    return RunRefused(
        "output-bad",
        file=file,
        expected="the run's embedding with its sidecar",
        found=found,
        advice="start the participant level again: it makes anew what is damaged",
    )
