"""The group level: what the participant level has written, collected into tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimbrain_app.bids.cohort import (
    CohortRun,
    Making,
    PersonPredictions,
    read_cohort,
    read_person,
)
from slimbrain_app.bids.derivatives import require_folder
from slimbrain_app.bids.participants import read_labels
from slimbrain_app.bids.status import join_status
from slimbrain_app.bids.tables import (
    EMBEDDINGS,
    PEOPLE,
    RUNS,
    Embeddings,
    Table,
    tabulate_embeddings,
    tabulate_people,
    tabulate_runs,
)
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.files import lock
from slimbrain_app.records import Refusal
from slimbrain_app.settings import TabulateSettings
from slimbrain_app.workflow.running import LOGGER, open_logs

_DAMAGED = "output-bad"
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class TabulateCall:
    """What is asked for on the command line. Of ``dataset`` only the order of people is read."""

    dataset: Path
    output: Path
    settings: TabulateSettings
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tables:
    """What is to be written, and what is to be said of it.

    Attributes
    ----------
    embeddings : Embeddings or None
        None where no run is done.
    damaged : tuple of Refusal
        Outputs that could not be read.
    refused : int
        Runs that the participant level has refused.
    """

    runs: Table
    embeddings: Embeddings | None
    people: Table
    notes: tuple[str, ...]
    damaged: tuple[Refusal, ...]
    refused: int


def make_tables(call: TabulateCall) -> Tables:
    """Read what there is. Nothing is written.

    Raises
    ------
    CallRefused
        ``no-input``, ``no-runs``, ``no-participant``; ``several-models`` if runs were embedded by
        several models or settings and none is chosen.
    """
    require_folder(call.dataset)
    order = {label: place for place, label in enumerate(read_labels(call.dataset))}
    found = read_cohort(call.output, call.settings.select)
    runs = sorted(found, key=lambda run: order.get(run.participant, len(order)))
    making = choose_making(runs, call.settings.model)
    told, apart, damaged = _read_people(call.output, runs, making)
    return Tables(
        runs=tabulate_runs(runs, making),
        embeddings=tabulate_embeddings(runs, making) if making else None,
        people=tabulate_people(runs, making, told),
        notes=tuple(_list_notes(runs, making, apart)),
        damaged=(*_list_damaged(runs), *damaged),
        refused=sum(run.refusal is not None and run.refusal.code != _DAMAGED for run in runs),
    )


def write_tables(call: TabulateCall, tables: Tables) -> None:
    """Write the tables, the union of the status files, and what the call started from.

    Raises
    ------
    RunRefused
        ``locked``
    """
    with (
        lock(call.output / "logs" / "tables.lock", "the tables"),
        open_logs(call.output, call.settings, call.command),
    ):
        for note in tables.notes:
            LOGGER.info("%s", note)
        for refusal in tables.damaged:
            LOGGER.warning("%s: %s", refusal.run, refusal.message)
        tables.runs.write(call.output / RUNS)
        if tables.embeddings:
            tables.embeddings.write(call.output / EMBEDDINGS)
        else:
            for ending in (".json", ".npy", ".tsv"):
                (call.output / EMBEDDINGS).with_suffix(ending).unlink(missing_ok=True)
        tables.people.write(call.output / PEOPLE)
        join_status(call.output)


def choose_making(runs: Sequence[CohortRun], model: str | None) -> Making | None:
    """Return the model and settings whose runs go side by side; None if no run is done.

    Parameters
    ----------
    model : str or None
        A package's name or folder, or the start of its checksum.

    Raises
    ------
    CallRefused
        ``several-models``, with all there are; ``no-runs`` if none is of ``model``.
    """
    counts = Counter(id(run.making) for run in runs if run.making)
    makings = {id(run.making): run.making for run in runs if run.making}
    listed = {key: f"{text}: {counts[key]}" for key, text in _tell_apart(makings).items()}
    chosen = [key for key, making in makings.items() if model is None or _is_of(making, model)]
    if len(chosen) == 1 or not makings:
        return makings[chosen[0]] if makings else None
    if not chosen:
        raise CallRefused(
            "no-runs",
            expected=f"runs embedded by {model}",
            found=f"runs by {'; '.join(listed.values())}",
            advice="name one of these with --model, or run the participant level with yours",
        )
    raise CallRefused(
        "several-models",
        expected="runs that were embedded by one model with one set of settings",
        found="; ".join(listed[key] for key in chosen),
        advice="name a model or the start of its checksum with --model, or start the participant "
        "level again for all runs, which embeds anew what was embedded otherwise",
    )


def _is_of(making: Making, model: str) -> bool:
    return Path(model).name == making.name or (len(model) > 7 and making.sha256.startswith(model))


def _tell_apart(makings: Mapping[int, Making]) -> dict[int, str]:
    """Name each model, with the settings in which they differ."""
    flat = {
        key: {"seed": making.seed, **_flatten(making.settings)} for key, making in makings.items()
    }
    names = dict.fromkeys(name for settings in flat.values() for name in settings)
    differ = [name for name in names if len({repr(one.get(name)) for one in flat.values()}) > 1]
    return {
        key: ", ".join(
            (
                f"{making.name} ({making.sha256[:12]})",
                *(f"{name} {flat[key].get(name)}" for name in differ),
            )
        )
        for key, making in makings.items()
    }


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{table}.{key}": value for table, below in settings.items() for key, value in below.items()
    }


def _read_people(
    output: Path, runs: Sequence[CohortRun], making: Making | None
) -> tuple[dict[str, PersonPredictions], list[str], list[Refusal]]:
    """Return what is predicted of people, whose is made from runs not chosen, what is damaged."""
    told: dict[str, PersonPredictions] = {}
    apart: list[str] = []
    damaged: list[Refusal] = []
    if making is None or not making.heads:
        return told, apart, damaged
    names: dict[str, set[str]] = {}
    for run in runs:
        if run.making is making:
            names.setdefault(run.participant, set()).add(run.name)
    for label, own in names.items():
        try:
            person = read_person(output, label)
        except RunRefused as error:
            damaged.append(Refusal.of(f"sub-{label}", error))
            continue
        if person and person.sha256 == making.sha256 and own.issuperset(person.runs):
            told[label] = person
        else:
            apart.append(label)
    return told, apart, damaged


def _list_damaged(runs: Sequence[CohortRun]) -> Iterator[Refusal]:
    for run in runs:
        if run.refusal and run.refusal.code == _DAMAGED:
            yield run.refusal


def _list_notes(
    runs: Sequence[CohortRun], making: Making | None, apart: Sequence[str]
) -> Iterator[str]:
    done = [run for run in runs if run.making and run.making is making]
    tasks = sorted({dict(run.entities).get("task", "n/a") for run in done})
    if len(tasks) > 1:
        yield (
            f"the tables mix tasks ({', '.join(tasks)}), and what stands of a person is over all "
            "of them: tell them apart by the column task, or choose one with --task-id"
        )
    embedded = sum(run.making is not None for run in runs)
    if others := embedded - len(done):
        yield f"left out, for another model or other settings: {others} of {embedded} runs"
    if apart:
        some = ", ".join(f"sub-{label}" for label in apart[:_SHOWN])
        more = f" and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
        yield (
            f"no predictions of {some}{more} here: there are none, or they are by another "
            "model, or made from runs that these tables leave out"
        )
