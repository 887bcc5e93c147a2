"""A folder of derivatives in, runs out, or reasons why not.

Participants are looked up one by one: their own folders are listed, names are compared, headers and
sidecars are read of the chosen files only. Nothing is indexed, so a folder of ten thousand costs no
more than the participants that were asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slimbrain_app.bids.derivatives import (
    Description,
    check_dataset,
    list_participants,
    read_description,
)
from slimbrain_app.bids.entities import Name, strip_prefix
from slimbrain_app.bids.filters import Filter, build_filter, list_values, read_filter_file
from slimbrain_app.bids.folders import File, Participant
from slimbrain_app.bids.headers import require_content, require_series
from slimbrain_app.bids.masks import choose_confounds, choose_mask
from slimbrain_app.bids.metadata import (
    Origin,
    first_timing,
    inherited_sidecars,
    own_sidecar,
    raw_sidecars,
    read_sidecar,
    resolve_repetition_time,
)
from slimbrain_app.bids.runs import (
    RunFiles,
    gather_runs,
    is_another_tools,
    is_concatenation,
    other_spellings,
)
from slimbrain_app.bids.series import list_series, require_every_volume
from slimbrain_app.bids.spaces import (
    Way,
    Wish,
    choose_grid,
    choose_way,
    lies_on_model_grid,
    parse_wish,
    space_of,
)
from slimbrain_app.errors import CallRefused, RunRefused, count
from slimbrain_app.records import Notice, Refusal, Run
from slimbrain_app.settings import Prepare, Select

__all__ = [
    "Found",
    "check_dataset",
    "discover",
    "discover_participant",
    "list_participants",
    "list_selected",
    "no_participant",
    "no_runs_left",
    "read_filter_file",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What was found: each run is in ``runs`` or, with a reason, in ``refused``."""

    runs: tuple[Run, ...] = ()
    refused: tuple[Refusal, ...] = ()
    seen_bold: bool = False


@dataclass(frozen=True, slots=True)
class _Query:
    """What is asked of a dataset, and what is known of it."""

    wanted: Filter
    wish: Wish | None
    tr: float | None
    description: Description
    stay: bool = False


def discover(dataset: Path, select: Select, prepare: Prepare, *, stay: bool = False) -> Found:
    """Find all runs that are selected, participants in the order asked for.

    Whether the folder is there and holds derivatives, `check_dataset` tells beforehand. Runs that
    are to ``stay`` in the space asked for need no way from there to the model's.

    Raises
    ------
    CallRefused
        ``no-participant``, ``no-bold``, or ``no-runs``, which says which filter left nothing.
    """
    query = replace(_make_query(dataset, select, prepare), stay=stay)
    participants = _choose_participants(dataset, select)
    found = [_search(participant, query) for participant in participants]
    together = Found(
        runs=tuple(run for one in found for run in one.runs),
        refused=tuple(refusal for one in found for refusal in one.refused),
        seen_bold=any(one.seen_bold for one in found),
    )
    if not together.runs and not together.refused:
        raise _nothing_found(dataset, participants, query.wanted)
    return together


def list_selected(dataset: Path, select: Select) -> tuple[str, ...]:
    """List participants of whom the filters leave a run, by names alone: no file is opened.

    Who has folders that may not be listed is among them: whoever reads them will say so.

    Raises
    ------
    CallRefused
        As `discover`.
    """
    query = _make_query(dataset, select, Prepare())
    participants = _choose_participants(dataset, select)
    found = tuple(person.label for person in participants if _is_selected(person, query))
    if not found:
        raise _nothing_found(dataset, participants, query.wanted)
    return found


def _is_selected(participant: Participant, query: _Query) -> bool:
    try:
        return any(_select_runs(gather_runs(_list_functional(participant, query.wanted)), query))
    except PermissionError:
        return True


def discover_participant(
    dataset: Path, participant: str, select: Select, prepare: Prepare
) -> Found:
    """Find the selected runs of one participant; ``select.participants`` does not count.

    Reads nothing of any other participant. An unknown label, or filters that leave nothing, give
    an empty answer: what that means, only the whole call can tell.
    """
    person = Participant(dataset, strip_prefix("sub", participant))
    return _search(person, _make_query(dataset, select, prepare))


def _make_query(dataset: Path, select: Select, prepare: Prepare) -> _Query:
    return _Query(
        wanted=build_filter(select),
        wish=parse_wish(prepare.space) if prepare.space else None,
        tr=prepare.tr,
        description=read_description(dataset) or Description(),
    )


def _search(participant: Participant, query: _Query) -> Found:
    try:
        every = gather_runs(_list_functional(participant, query.wanted))
    except PermissionError as error:
        refusal = Refusal.of(f"sub-{participant.label}", _denied(participant, error))
        return Found(refused=(refusal,))
    runs: list[Run] = []
    refused: list[Refusal] = []
    for run in _select_runs(every, query):
        try:
            resolved = _resolve(run, participant, query)
            runs.append(replace(resolved, notices=(*_spellings(run, every), *resolved.notices)))
        except RunRefused as refused_run:
            refused.append(Refusal.of(run.name, refused_run))
        except PermissionError as error:
            refused.append(Refusal.of(run.name, _denied(participant, error)))
    return Found(runs=tuple(runs), refused=tuple(refused), seen_bold=bool(every))


def _list_functional(participant: Participant, wanted: Filter) -> Iterator[File]:
    for session in (None, *participant.sessions):
        if wanted.admits_session(session):
            files = participant.list_files("func", session)
            yield from (file for file in files if file.name.get("sub") == participant.label)


def _select_runs(runs: tuple[RunFiles, ...], query: _Query) -> Iterator[RunFiles]:
    wanted = query.wanted
    for run in runs:
        bold_left = not run.bold or any(wanted.admits_bold(file.name) for file in run.bold)
        parts_there = query.description.made_by_xcp_d and is_concatenation(run, runs)
        left_out = parts_there or is_another_tools(run, runs)
        if wanted.admits_run(Name(run.entities, "bold", "")) and bold_left and not left_out:
            yield run


def _resolve(run: RunFiles, participant: Participant, query: _Query) -> Run:
    """Choose the files of a run, and read what their headers and sidecars say."""
    series = list_series(run, participant, query.wanted, query.description, query.wish)
    spaces = [space_of(file.name) for file in series]
    way = Way(spaces[0], 0, ()) if query.stay else choose_way(spaces, run, participant)
    for transform in way.transforms:
        require_content(transform, participant.show(transform))
    grids = [file for file in series if space_of(file.name) == way.space]
    bold, header = choose_grid(grids, participant)
    shown = participant.show(bold.path)
    require_series(header, shown)
    mask = choose_mask(bold, header, run, participant)
    sidecars = _list_sidecars(bold, run, participant, query.description)
    stated, read = first_timing(sidecars, participant.dataset)
    tr, tr_notices = resolve_repetition_time(query.tr, stated, header, shown)
    cropped_only = way.rung == 0 and lies_on_model_grid(header.affine)
    return Run(
        entities=run.entities,
        dataset=participant.dataset,
        bold=bold.path,
        mask=mask.path,
        confounds=choose_confounds(run, participant),
        sidecars=read,
        transforms=way.transforms,
        mask_transforms=mask.transforms,
        space=way.space,
        rung=way.rung,
        interpolations=1 if cropped_only else 2,  # the first one is fMRIPrep's
        repetition_time=tr,
        notices=(
            *_several_grids(bold, grids, participant),
            *require_every_volume(bold, header, run, participant),
            *mask.notices,
            *tr_notices,
        ),
    )


def _list_sidecars(
    bold: File, run: RunFiles, participant: Participant, description: Description
) -> Iterator[tuple[Origin, Path]]:
    """Yield the sidecars that may state the repetition time, the most trusted first."""
    own = own_sidecar(bold.path)
    listed = [file.path for file in run.sidecars]
    if own in listed:
        yield "sidecar", own
    for path in inherited_sidecars(participant.dataset, bold.path, bold.name):
        yield "inherited sidecar", path
    for path in listed:
        if path != own:
            yield "other grid", path
    if own in listed:
        content = read_sidecar(own, participant.show(own))
        for path in raw_sidecars(content, participant.dataset, description.links):
            yield "raw", path


def _several_grids(bold: File, grids: list[File], participant: Participant) -> Iterator[Notice]:
    if len(grids) > 1:
        others = ", ".join(file.path.name for file in grids if file != bold)
        message = f"{bold.path.name} is used; there is also {others}"
        yield Notice(code="several-grids", message=message, file=participant.show(bold.path))


def _spellings(run: RunFiles, runs: tuple[RunFiles, ...]) -> Iterator[Notice]:
    others = other_spellings(run, runs)
    if others:
        message = f"{run.name} stands beside {', '.join(others)}: both are done"
        yield Notice(code="several-spellings", message=message)


def _choose_participants(dataset: Path, select: Select) -> list[Participant]:
    asked = [strip_prefix("sub", label) for label in select.participants]
    if not asked:
        return [Participant(dataset, label) for label in list_participants(dataset)]
    participants = [Participant(dataset, label) for label in dict.fromkeys(asked)]
    unknown = [person.label for person in participants if not person.folder.is_dir()]
    if unknown:
        raise no_participant(dataset, unknown, list_participants(dataset))
    return participants


def no_participant(dataset: Path, unknown: list[str], there: Sequence[str]) -> CallRefused:
    """Return why the call can't go on, with the labels of ``there`` most like the unknown ones."""
    near = dict.fromkeys(label for one in unknown for label in _list_nearest(one, there))
    nearest = ", ".join(list(near)[:5]) or "none"
    return CallRefused(
        "no-participant",
        file=dataset,
        expected=", ".join(f"sub-{label}" for label in unknown),
        found=f"{count(len(there), 'participant')}, the nearest {nearest}",
        advice="check the label; in a container, check that the right folder is mounted",
    )


def _list_nearest(label: str, there: Iterable[str]) -> list[str]:
    """List the five labels most like one; 01 is most like 1."""

    def unlikeness(other: str) -> tuple[bool, float, str]:
        numbers = label.isdecimal() and other.isdecimal()
        same_number = numbers and int(label) == int(other)
        return not same_number, -difflib.SequenceMatcher(None, label, other).ratio(), other

    return sorted(there, key=unlikeness)[:5]


def _nothing_found(dataset: Path, participants: list[Participant], wanted: Filter) -> CallRefused:
    anything = Filter(())
    names = [
        file.name
        for participant in participants
        for run in gather_runs(_list_functional(participant, anything))
        for file in (run.bold or run.files)
    ]
    return no_runs_left(dataset, names, wanted) if names else _no_bold(dataset, participants)


def _no_bold(dataset: Path, participants: list[Participant]) -> CallRefused:
    found = f"none in the folders of {count(len(participants), 'participant')}"
    return CallRefused(
        "no-bold",
        file=dataset,
        expected="BOLD series in sub-*/func or sub-*/ses-*/func",
        found=found if participants else "no folder sub-*",
        advice="check that this is fMRIPrep's output folder and that it ran to its end",
    )


def no_runs_left(dataset: Path, names: list[Name], wanted: Filter) -> CallRefused:
    """Return why nothing is left of ``names``: which condition admits none of them."""
    left = names
    for condition in wanted.conditions:
        kept = [name for name in left if condition.admits_name(name)]
        if not kept:
            break
        left = kept
    values = "; ".join(f"{key}: {list_values(key, names)}" for key in wanted.keys)
    return CallRefused(
        "no-runs",
        file=dataset,
        expected=f"a run with {condition}",
        found=f"{condition.key} {list_values(condition.key, left)} after the filters before it",
        advice=f"choose among what is there ({values}), or leave the filter out",
    )


def _denied(participant: Participant, error: PermissionError) -> RunRefused:
    folder = Path(error.filename or participant.folder)
    return RunRefused(
        "denied",
        file=participant.show(folder),
        expected="permission to list the folder",
        found=error.strerror or "none",
        advice="ask its owner, or start as a user who may read it",
    )
