"""Runs to train on: found in datasets, prepared by an earlier call or still to be prepared."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from slimbrain_app.bids.discover import check_dataset, discover, list_participants
from slimbrain_app.bids.outputs import name_output
from slimbrain_app.bids.participants import read_sites
from slimbrain_app.bids.prepared import list_prepared
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.prepare import check_length
from slimbrain_app.prepare.reuse import find_prepared, open_prepared
from slimbrain_app.records import Contract, Notice, PreparedRun, Recording, Refusal, Run
from slimbrain_app.settings import EvaluateSettings, Prepare, PretrainSettings, Select
from slimbrain_app.training.corpus import check_recordings
from slimbrain_app.workflow.plan import check_folders


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder to train on, and the name that tells it from the others."""

    folder: Path
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Todo:
    """A run that is to be prepared, into ``folder``."""

    dataset: str
    site: str | None
    run: Run
    folder: Path

    def record(self, prepared: PreparedRun) -> Recording:
        return Recording(
            dataset=self.dataset,
            participant=self.run.participant,
            run=self.run.name,
            prepared=prepared,
            site=self.site,
            confounds=self.run.confounds,
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """A run of a dataset that can't be used."""

    dataset: str
    refusal: Refusal


Finding = Recording | Todo | Refused


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusPlan:
    """Every run that was found, and what is odd about the datasets."""

    recordings: tuple[Recording, ...]
    todo: tuple[Todo, ...]
    refused: tuple[Refused, ...]
    notices: tuple[Notice, ...]

    @classmethod
    def of(
        cls, findings: Iterable[Finding], notices: Iterable[Notice], contract: Contract
    ) -> CorpusPlan:
        """Sort findings; prepared runs must be whole and long enough."""
        every = list(findings)
        usable, unusable = check_recordings(
            [one for one in every if isinstance(one, Recording)], contract
        )
        refused = [one for one in every if isinstance(one, Refused)]
        refused += [Refused(one.dataset, refusal) for one, refusal in unusable]
        return cls(
            recordings=tuple(usable),
            todo=tuple(one for one in every if isinstance(one, Todo)),
            refused=tuple(refused),
            notices=tuple(notices),
        )


GroupSettings = PretrainSettings | EvaluateSettings


def plan_corpus(
    folders: Sequence[Path], output: Path, settings: GroupSettings, contract: Contract
) -> CorpusPlan:
    """Find the runs of all datasets, and what of them is prepared. Nothing is written.

    Parameters
    ----------
    folders : sequence of Path
        Derivatives, or outputs of SlimBrain with prepared runs. What ``--save-prepared`` left in
        ``output`` counts for the first one.

    Raises
    ------
    CallRefused
        Whatever keeps the whole call from starting.
    """
    datasets = name_datasets(folders)
    for dataset in datasets:
        check_folders(dataset.folder, output)
    notices = [notice for dataset in datasets for notice in check_dataset(dataset.folder)]
    _require_participants(datasets, settings.select)
    places = {
        dataset: [output / "prepared" / _name_store(dataset, settings)] for dataset in datasets
    }
    places[datasets[0]].append(output)
    findings = (
        finding
        for dataset in datasets
        for finding in _search(dataset, places[dataset], settings, contract)
    )
    return CorpusPlan.of(findings, notices, contract)


def name_datasets(folders: Sequence[Path]) -> tuple[Dataset, ...]:
    """Name each folder by as much of the end of its path as tells it from the others.

    Splits and masks hang on these names, and shall not change when data move to another machine.

    Raises
    ------
    CallRefused
        ``usage`` if a folder is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    twice = [folder for folder, count in Counter(whole).items() if count > 1]
    if twice:
        raise CallRefused(
            "usage",
            file=twice[0],
            expected="each dataset once",
            found="this one more than once",
            advice="leave out the second one",
        )
    names = [folder.name for folder in whole]
    length, longest = 1, max(len(folder.parts) for folder in whole)
    while len(set(names)) < len(names):
        length += 1
        # Once no more parts are left, /a_b and /a/b differ by how they are joined. A name becomes a
        # folder's, hence none has the root in it.
        joint = "_" * max(1, length - longest + 1)
        names = [joint.join(folder.parts[1:][-length:]) for folder in whole]
    return tuple(Dataset(folder, name) for folder, name in zip(whole, names, strict=True))


def _name_store(dataset: Dataset, settings: GroupSettings) -> str:
    """Name the place of a dataset's prepared runs: another one if they are prepared otherwise."""
    making = json.dumps([str(dataset.folder), asdict(settings.prepare)])
    return f"{dataset.folder.name}-{hashlib.sha256(making.encode()).hexdigest()[:8]}"


def _require_participants(datasets: Iterable[Dataset], select: Select) -> None:
    """Refuse a label that no dataset has."""
    there = {label for dataset in datasets for label in list_participants(dataset.folder)}
    unknown = [label for label in select.participants if label not in there]
    if unknown:
        raise CallRefused(
            "no-participant",
            file=f"sub-{unknown[0]}",
            expected="labels of participants in at least one of the datasets",
            found=f"{len(there)} participants, without {', '.join(unknown)}",
            advice="check the labels; in a container, check that the right folders are mounted",
        )


def _search(
    dataset: Dataset, places: Sequence[Path], settings: GroupSettings, contract: Contract
) -> Iterator[Finding]:
    select = settings.select
    if select.participants:
        here = set(list_participants(dataset.folder)).intersection(select.participants)
        if not here:
            return
        select = replace(select, participants=tuple(sorted(here)))
    if list_prepared(dataset.folder, Select()):
        yield from _search_prepared(dataset, select)
        return
    found = discover(dataset.folder, select, settings.prepare)
    yield from (Refused(dataset.name, refusal) for refusal in found.refused)
    sites = read_sites(dataset.folder)
    for run in found.runs:
        names = [place / name_output(run, contract, "prepared", "") for place in places]
        site = sites.get(run.participant)
        todo = Todo(dataset=dataset.name, site=site, run=run, folder=names[0])
        yield _sort_out(todo, names, settings.prepare, contract)


def _sort_out(todo: Todo, places: Iterable[Path], prepare: Prepare, contract: Contract) -> Finding:
    """Take a prepared run that is up to date, or see whether there can be one."""
    found = (find_prepared(todo.run, place, prepare) for place in places)
    prepared = next((one for one in found if one is not None), None)
    if prepared is not None:
        return todo.record(prepared)
    try:
        check_length(todo.run, prepare, contract.span_seconds)
    except RunRefused as error:
        return Refused(todo.dataset, Refusal.of(todo.run.name, error))
    return todo


def _search_prepared(dataset: Dataset, select: Select) -> Iterator[Finding]:
    found = list_prepared(dataset.folder, select)
    if not found:
        raise CallRefused(
            "no-runs",
            file=dataset.folder,
            expected="prepared runs that the filters let pass",
            found="none",
            advice="leave a filter out",
        )
    sites = read_sites(dataset.folder)
    for one in found:
        try:
            prepared = open_prepared(one.folder, one.folder.relative_to(dataset.folder).as_posix())
            yield Recording(
                dataset=dataset.name,
                participant=one.participant,
                run=one.run,
                prepared=prepared,
                site=sites.get(one.participant),
            )
        except RunRefused as error:
            yield Refused(dataset.name, Refusal.of(one.run, error))
