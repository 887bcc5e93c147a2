"""Tables over a cohort: of runs, their embeddings, and people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from slimbrain_app.bids.cohort import CohortRun, Making, PersonPredictions, levels_of
from slimbrain_app.bids.outputs import write_table
from slimbrain_app.bids.sidecars import COLUMNS, FLAGS, describe_columns
from slimbrain_app.files import whole_file, write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RUNS = "desc-slimbrain_runs.tsv"
EMBEDDINGS = "desc-slimbrain_embeddings.tsv"
PEOPLE = "phenotype/slimbrain.tsv"

Description = Mapping[str, Any]
# Of the columns of runs that come from a sidecar: its key, or a part of `Ladder`.
_FIGURES: Mapping[str, str] = {
    "space": "Space",
    "rung": "Rung",
    "interpolations": "Interpolations",
    "repetition_time": "RepetitionTime",
    "repetition_time_origin": "RepetitionTimeOrigin",
    "volumes": "Volumes",
    "dummy_scans": "DummyScans",
    "voxels": "Voxels",
    "coverage": "Coverage",
    "constant_voxels": "ConstantVoxels",
    "clipped_values": "ClippedValues",
    "replaced_values": "ReplacedValues",
    "mean_framewise_displacement": "MeanFramewiseDisplacement",
    "windows": "Windows",
    "selected_windows": "SelectedWindows",
}
RUN_COLUMNS: Mapping[str, Description] = {
    "state": {
        "Description": "How the run has ended",
        "Levels": {
            "done": "Embedded",
            "refused": "Not embedded, for the reason given",
            "left-out": "Embedded by another model than that of the tables",
        },
    },
    "reason": {"Description": "Why it was refused, as a reason code"},
    "warnings": {"Description": "Codes of the warnings about it, separated by commas"},
    "model": {"Description": "Package by which it was embedded"},
    "model_sha256": {"Description": "SHA-256 over all files of the package"},
    "space": {"Description": "Space that the series was taken from"},
    "rung": {"Description": "Rung of the ladder of spaces, 0 for the model's own"},
    "interpolations": {"Description": "Times the series was interpolated, by fMRIPrep and after"},
    "repetition_time": {"Description": "Repetition time as used", "Units": "s"},
    "repetition_time_origin": {"Description": "Where that was read"},
    "volumes": {"Description": "Volumes, dummy scans left out"},
    "dummy_scans": {"Description": "Volumes left out at the start"},
    "voxels": {"Description": "Brain voxels on the model grid"},
    "coverage": {"Description": "Share of the template's brain inside the mask"},
    "constant_voxels": {"Description": "Voxels in the mask that never change"},
    "clipped_values": {"Description": "Values over 4 deviations of their voxel, clipped"},
    "replaced_values": {"Description": "Single non-finite values, replaced by the voxel's mean"},
    "mean_framewise_displacement": {
        "Description": "Mean framewise displacement over volumes but the first",
        "Units": "mm",
    },
    "windows": {"Description": "Windows of the run"},
    "selected_windows": {"Description": "Windows that were encoded"},
}
PERSON_COLUMNS: Mapping[str, Description] = {
    "participant_id": {"Description": "Participant"},
    "runs": {"Description": "Runs that were embedded"},
    "refused_runs": {"Description": "Runs that were refused"},
    "coverage": {
        "Description": "Share of the template's brain inside the mask, the mean over runs"
    },
    "mean_framewise_displacement": {
        "Description": "Mean framewise displacement, the mean over runs where it is known",
        "Units": "mm",
    },
    "predicted_runs": {"Description": "Runs whose mean embedding the predictions are made from"},
    "flag": {
        "Description": "Why not to trust the predictions, separated by commas",
        "Levels": dict(FLAGS),
    },
}
_FIELDS = ("value", "lower", "upper", "percentile")
_IDS = {"sub": "participant_id", "ses": "session_id"}
_ENTITIES = {"sub": "Participant", "ses": "Session", "task": "Task", "run": "Number of the run"}


@dataclass(frozen=True, slots=True)
class _Cell:
    """Which part of which prediction stands in a column."""

    outcome: str
    level: str | None
    field: str
    description: Description


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Table:
    """A table with what its JSON says of columns and of the whole."""

    frame: pd.DataFrame
    columns: Mapping[str, Description]
    facts: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the table, then its JSON."""
        write_table(path, self.frame)
        write_json(path.with_suffix(".json"), {**self.columns, **self.facts})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Embeddings:
    """Embeddings of all runs that are done, as text, which has every digit, and (runs, width)."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[str, ...]
    numbers: NDArray[np.float32]
    columns: Mapping[str, Description]
    facts: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the table, the same numbers as an array (runs, width), then the JSON."""
        import numpy as np

        with whole_file(path) as temporary:
            lines = map("\t".join, zip(self.labels, self.rows, strict=True))
            temporary.write_text("\n".join(("\t".join(self.names), *lines, "")), encoding="utf-8")
        with whole_file(path.with_suffix(".npy")) as temporary:
            np.save(temporary, self.numbers)
        write_json(path.with_suffix(".json"), {**self.columns, **self.facts})


def tabulate_runs(runs: Sequence[CohortRun], making: Making | None) -> Table:
    """Return a row for each run: entities, how it ended, and quality figures.

    ``making`` is that of the tables; runs that were embedded otherwise are left out of the others.
    """
    import pandas as pd

    keys = _list_entities(runs)
    rows = [[*_list_labels(run, keys), *_list_figures(run, making)] for run in runs]
    names = [_name_entity(key) for key in keys]
    frame = pd.DataFrame(rows, columns=[*names, *RUN_COLUMNS])
    return Table(
        frame=frame,
        columns={**_describe_entities(keys), **RUN_COLUMNS},
        facts={"Description": "All runs that were found, with quality figures"},
    )


def tabulate_embeddings(runs: Sequence[CohortRun], making: Making) -> Embeddings:
    """Return a row for each run of ``making``: entities, and the dimensions of its embedding."""
    import numpy as np

    done = [run for run in runs if run.making is making]
    keys, names = _list_entities(runs), done[0].columns.split("\t")
    labels = ("\t".join(label or "n/a" for label in _list_labels(run, keys)) for run in done)
    return Embeddings(
        names=(*map(_name_entity, keys), *names),
        labels=tuple(labels),
        rows=tuple(run.embedding for run in done),
        numbers=np.stack([run.numbers for run in done if run.numbers is not None]),
        columns={**_describe_entities(keys), **describe_columns(names)},
        facts={
            "Description": "Embeddings of runs: the numbers of the array beside, row by row",
            "Sources": [f"bids::{run.source}" for run in done],
            **_describe_making(making),
        },
    )


def tabulate_people(
    runs: Sequence[CohortRun],
    making: Making | None,
    told: Mapping[str, PersonPredictions],
) -> Table:
    """Return a row for each participant: runs, mean quality figures, and what is predicted.

    Parameters
    ----------
    told : mapping of str to PersonPredictions
        By participant; there may be none of some.
    """
    import pandas as pd

    own: dict[str, list[CohortRun]] = {}
    for run in runs:
        own.setdefault(run.participant, []).append(run)
    cells = _lay_cells(making.heads if making else [], told.values())
    rows = [
        {
            "participant_id": f"sub-{label}",
            **_summarise(found, making),
            **(_spread(told[label], cells) if label in told else {}),
        }
        for label, found in own.items()
    ]
    shared = [name for name in PERSON_COLUMNS if cells or name not in ("predicted_runs", "flag")]
    return Table(
        frame=pd.DataFrame(rows, columns=[*shared, *cells]),
        columns={
            **{name: PERSON_COLUMNS[name] for name in shared},
            **{name: cell.description for name, cell in cells.items()},
        },
        facts={
            "Description": "What the embeddings of participants' runs tell of them",
            **(_describe_making(making) if making else {}),
        },
    )


def _list_entities(runs: Iterable[CohortRun]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key, _ in run.entities)
    return [key for key in ("sub", "ses") if key in keys] + [
        key for key in keys if key not in ("sub", "ses")
    ]


def _list_labels(run: CohortRun, keys: Iterable[str]) -> list[str | None]:
    labels = dict(run.entities)
    labels |= {key: f"{key}-{labels[key]}" for key in _IDS if key in labels}
    return [labels.get(key) for key in keys]


def _name_entity(key: str) -> str:
    return _IDS.get(key, key)


def _describe_entities(keys: Iterable[str]) -> dict[str, Description]:
    return {
        _name_entity(key): {"Description": _ENTITIES.get(key, f"Entity {key}- of the run's name")}
        for key in keys
    }


def _list_figures(run: CohortRun, making: Making | None) -> list[Any]:
    facts = {**run.facts, **(run.facts.get("Ladder") or {})}
    warnings = dict.fromkeys(notice.code for notice in facts.get("Warnings") or ())
    state = "refused" if run.refusal else "done" if run.making is making else "left-out"
    return [
        state,
        run.refusal.code if run.refusal else None,
        ",".join(warnings) or None,
        run.making.name if run.making else None,
        run.making.sha256 if run.making else None,
        *(facts.get(key) for key in _FIGURES.values()),
    ]


def _describe_making(making: Making) -> dict[str, Any]:
    return {
        "Model": making.model,
        "Settings": making.settings,
        "SettingsFingerprint": making.fingerprint,
        "Seed": making.seed,
    }


def _summarise(runs: Sequence[CohortRun], making: Making | None) -> dict[str, Any]:
    done = [run for run in runs if run.making and run.making is making]
    return {
        "runs": len(done),
        "refused_runs": sum(run.refusal is not None for run in runs),
        "coverage": _average(run.facts["Coverage"] for run in done),
        "mean_framewise_displacement": _average(
            run.facts["MeanFramewiseDisplacement"] for run in done
        ),
    }


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _lay_cells(
    heads: Iterable[Mapping[str, Any]], told: Iterable[PersonPredictions]
) -> dict[str, _Cell]:
    """Return the columns of predictions by name, without those that nobody has a value for."""
    known = {
        (one.outcome, one.level, field)
        for person in told
        for one in person.predictions
        for field in _FIELDS
        if getattr(one, field) is not None
    }
    cells: dict[str, _Cell] = {}
    for head in heads:
        for level in levels_of(head):
            for field in _FIELDS:
                if field == "value" or (head["Outcome"], level, field) in known:
                    name = _name_prediction(head["Outcome"], level, field)
                    while name in cells or name in PERSON_COLUMNS:
                        name = f"predicted_{name}"
                    cells[name] = _Cell(
                        head["Outcome"], level, field, _describe(head, level, field)
                    )
    return cells


def _name_prediction(outcome: str, level: str | None, field: str) -> str:
    parts = (outcome, level, None if field == "value" else field)
    return "_".join(part for part in parts if part is not None)


def _describe(head: Mapping[str, Any], level: str | None, field: str) -> Description:
    outcome = head["Outcome"]
    if level is None:
        what, units = outcome, head["Units"] or "unknown"
    else:
        what, units = f"{outcome} {level} ({head['Levels'][level]})", "probability"
    if field == "value":
        known = f"fitted to {head['People']} people; {head['Performance']}"
        return {"Description": f"What is predicted of {what}: {known}", "Units": units}
    text = f"{COLUMNS[field]['Description']}: {what}"
    return {"Description": text, "Units": COLUMNS[field].get("Units", units)}


def _spread(told: PersonPredictions, cells: Mapping[str, _Cell]) -> dict[str, Any]:
    """Return one row of what is predicted of a person."""
    by_level = {(one.outcome, one.level): one for one in told.predictions}
    flags = dict.fromkeys(flag for one in told.predictions for flag in one.flags)
    return {
        "predicted_runs": len(told.runs),
        "flag": ",".join(flags) or None,
        **{
            name: getattr(by_level[cell.outcome, cell.level], cell.field)
            for name, cell in cells.items()
        },
    }
