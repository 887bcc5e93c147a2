"""What a participant-level call will do: decided before anything is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING

from slimbrain_app import __version__
from slimbrain_app.bids.discover import Found, check_dataset, discover
from slimbrain_app.bids.outputs import is_current, is_whole
from slimbrain_app.bids.sidecars import Provenance
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.prepare import check_length
from slimbrain_app.records import Notice, Refusal, Run
from slimbrain_app.settings import ParticipantSettings

if TYPE_CHECKING:
    from slimbrain_app.model.packages import Package

TOLD = ("numpy", "scipy", "torch", "nibabel", "nitransforms", "Nipype", "isal")


@dataclass(frozen=True, kw_only=True, slots=True)
class Participant:
    """A participant's runs: to be done, done by an earlier call, refused."""

    label: str
    todo: tuple[Run, ...]
    current: tuple[Run, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every run that was found, and what will become of it."""

    dataset: Path
    output: Path
    participants: tuple[Participant, ...]
    notices: tuple[Notice, ...]
    package: Package
    device: str
    provenance: Provenance

    @property
    def todo(self) -> tuple[Run, ...]:
        return tuple(run for participant in self.participants for run in participant.todo)


def make_plan(dataset: Path, output: Path, settings: ParticipantSettings) -> Plan:
    """Find the runs, the weights and the device, and decide on each run. Nothing is written.

    Raises
    ------
    CallRefused
        Whatever keeps the whole call from starting.
    """
    check_folders(dataset, output)
    notices = check_dataset(dataset)
    found = discover(dataset, settings.select, settings.prepare)

    # Loads torch, which takes longer than all of the above: not before there is something to do.
    from slimbrain_app.model.packages import load_package

    package = load_package(settings.model, [output / "models"])
    _check_heads(package, settings)
    provenance = Provenance(
        model=package.identity,
        settings=settings,
        software=list_software(),
    )
    return Plan(
        dataset=dataset,
        output=output,
        participants=tuple(_sort_out(found, output, provenance)),
        notices=(*notices, *package.identity.notices),
        package=package,
        device=_choose_device(settings.compute.device),
        provenance=provenance,
    )


def review(participant: Participant, plan: Plan) -> Participant:
    """Return what is still to be done: another call may have worked since the plan was made."""
    done = tuple(run for run in participant.todo if _is_done(plan.output, run, plan.provenance))
    return replace(
        participant,
        todo=tuple(run for run in participant.todo if run not in done),
        current=(*participant.current, *done),
    )


def _check_heads(package: Package, settings: ParticipantSettings) -> None:
    """Refuse to explain predictions that are not made."""
    if settings.output.attribution and not package.heads:
        raise CallRefused(
            "no-head",
            file=package.folder.name,
            expected="a model package with heads, since output.attribution is true",
            found="one without",
            advice="give a package that group --action finetune has made with --model, or set "
            "output.attribution to false",
        )


def list_software() -> dict[str, str]:
    versions = {name: version(name) for name in TOLD}
    return {"SlimBrain": __version__, "Python": python_version(), **versions}


def check_folders(dataset: Path, output: Path) -> None:
    """Refuse an output at the dataset, above it, or inside one of its participants."""
    inside, outside = output.resolve(), dataset.resolve()
    below = inside.relative_to(outside).parts if inside.is_relative_to(outside) else None
    if outside.is_relative_to(inside) or (below and below[0].startswith("sub-")):
        raise CallRefused(
            "same-folder",
            file=output,
            expected="an output folder beside the input, or at derivatives/ inside it",
            found="one at, above or among the inputs",
            advice="name another output folder",
        )


def check_work(dataset: Path, work_dir: Path | None) -> None:
    """Refuse a work folder inside the dataset, which is only read."""
    if work_dir and work_dir.resolve().is_relative_to(dataset.resolve()):
        raise CallRefused(
            "work-in-input",
            file=work_dir,
            expected="a work folder outside the input",
            found="one inside it",
            advice="name another folder with --work-dir",
        )


def _sort_out(found: Found, output: Path, provenance: Provenance) -> Iterable[Participant]:
    runs_of, refused_of = defaultdict(list), defaultdict(list)
    for run in found.runs:
        runs_of[run.participant].append(run)
    for refusal in found.refused:
        refused_of[_participant_of(refusal)].append(refusal)
    for label in sorted({*runs_of, *refused_of}):
        todo, current, refused = [], [], refused_of[label]
        for run in runs_of[label]:
            if _is_done(output, run, provenance):
                current.append(run)
            elif too_short := _refuse_short(run, provenance):
                refused.append(too_short)
            else:
                todo.append(run)
        yield Participant(
            label=label, todo=tuple(todo), current=tuple(current), refused=tuple(refused)
        )


def _is_done(output: Path, run: Run, provenance: Provenance) -> bool:
    match provenance.settings.output.overwrite:
        case "always":
            return False
        case "never":
            return is_whole(output, run, provenance.model.contract)
        case "changed":
            return is_current(output, run, provenance)


def _refuse_short(run: Run, provenance: Provenance) -> Refusal | None:
    contract = provenance.model.contract
    try:
        check_length(run, provenance.settings.prepare, contract.span_seconds)
    except RunRefused as error:
        return Refusal.of(run.name, error)
    return None


def _participant_of(refusal: Refusal) -> str:
    return refusal.run.split("_")[0].removeprefix("sub-")


def _choose_device(name: str) -> str:
    if name == "cpu":
        return name  # Known without loading torch.
    from slimbrain_app.device import choose_device

    return choose_device(name)
