"""What a training trains on: recordings split by person, each with its selected windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.prepare.store import count_frames
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import Contract, PreparedRun, Recording, Refusal
from slimbrain_app.settings import Rank

if TYPE_CHECKING:
    import pandas as pd

    from slimbrain_app.model.extractor import TemporalExtractor

FEWEST_PEOPLE = 2


@dataclass(frozen=True, slots=True)
class Item:
    """A recording and the first frames, at model time, of its selected windows, best first."""

    recording: Recording
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything that is read in a training; no person is on both sides."""

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    contract: Contract

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides what can be drawn, whatever the order of items."""
        rows = sorted(
            (
                item.recording.person,
                item.recording.run,
                item.recording.prepared.fingerprint,
                list(item.starts),
                split,
            )
            for split, items in (("train", self.train), ("validation", self.validation))
            for item in items
        )
        telling = {"rows": rows, "contract": asdict(self.contract)}
        return hashlib.sha256(json.dumps(telling, sort_keys=True).encode()).hexdigest()


def check_recordings(
    recordings: Sequence[Recording], contract: Contract
) -> tuple[list[Recording], list[tuple[Recording, Refusal]]]:
    """Tell recordings that can be read from those that can't, each with its reason.

    Of the signal only header and size are looked at, not the numbers.
    """
    usable, refused = [], []
    for recording in recordings:
        try:
            _check_arrays(recording.prepared)
            _check_places(recording.prepared)
            _check_length(recording.prepared, contract)
        except RunRefused as error:
            refused.append((recording, Refusal.of(recording.run, error)))
        else:
            usable.append(recording)
    return usable, refused


def split_people(
    recordings: Sequence[Recording], share: float, seed: int
) -> tuple[list[Recording], list[Recording]]:
    """Keep a share of the people out of training, with all their runs.

    People are ordered by a hash of their name and the seed, so that neither the order of the
    recordings nor how many runs somebody has plays a part, and others who join move few.

    Parameters
    ----------
    recordings : sequence of Recording
    share : float
        Of the people, rounded to at least one where it isn't 0.
    seed : int

    Returns
    -------
    train, validation : list of Recording
        Each by dataset, participant and run.

    Raises
    ------
    CallRefused
        ``too-few`` where there aren't two people.
    """
    people = sorted({recording.person for recording in recordings})
    _require_people(people)
    people.sort(key=lambda person: hashlib.sha256(f"{seed} {person}".encode()).digest())
    count = min(max(round(share * len(people)), 1), len(people) - 1) if share else 0
    kept_out = set(people[:count])
    ordered = sorted(recordings, key=lambda recording: (recording.person, recording.run))
    return (
        [recording for recording in ordered if recording.person not in kept_out],
        [recording for recording in ordered if recording.person in kept_out],
    )


def rank_corpus(
    recordings: Sequence[Recording],
    contract: Contract,
    extractor: TemporalExtractor | None,
    rank: Rank,
    seed: int,
    watch: Callable[[int, int], None],
) -> list[Item]:
    """Select the windows of each recording, as the participant level does.

    Parameters
    ----------
    recordings : sequence of Recording
    contract : Contract
    extractor : TemporalExtractor or None
    rank : Rank
    seed : int
    watch : callable
        Called after each recording with how many are done, and of how many.
    """
    items = []
    for number, recording in enumerate(recordings, 1):
        name = f"{recording.dataset}/{recording.run}"
        ranked = rank_run(recording.prepared, contract, extractor, rank, seed, name)
        items.append(Item(recording, tuple(window.start for window in ranked.selected)))
        watch(number, len(recordings))
    return items


def tabulate_corpus(corpus: Corpus, refusals: Mapping[str, Sequence[Refusal]]) -> pd.DataFrame:
    """List every run that was found: used for what, or why not.

    Parameters
    ----------
    corpus : Corpus
    refusals : mapping of str to sequence of Refusal
        Of each dataset.
    """
    import pandas as pd

    used = [
        _row_of(item, split)
        for split, items in (("train", corpus.train), ("validation", corpus.validation))
        for item in items
    ]
    refused = [
        {"dataset": dataset, "run": refusal.run, "code": refusal.code, "message": refusal.message}
        for dataset, rows in refusals.items()
        for refusal in rows
    ]
    table = pd.DataFrame([*used, *refused], columns=list(COLUMNS))
    table = table.astype({"volumes": "Int64", "windows": "Int64"})
    return table.sort_values(["dataset", "run"], kind="stable", ignore_index=True)


COLUMNS: Mapping[str, str] = {
    "dataset": "Dataset that the run comes from",
    "participant_id": "Participant, as in that dataset",
    "site": "Where the run was recorded, if participants.tsv says so",
    "run": "Name of the run, or its file where it has none",
    "split": "What the run is for: train, or validation; n/a where it isn't used",
    "windows": "Number of selected windows",
    "starts": "First frames of the selected windows at model time, best first",
    "volumes": "Number of volumes, dummy scans left out",
    "repetition_time": "Time between volumes in s",
    "coverage": "Share of the template's brain inside the mask",
    "fingerprint": "SHA-256 of what the prepared run was made from",
    "code": "Why the run isn't used",
    "message": "The same in words",
}


def _row_of(item: Item, split: str) -> dict[str, Any]:
    recording, prepared = item.recording, item.recording.prepared
    return {
        "dataset": recording.dataset,
        "participant_id": f"sub-{recording.participant}",
        "site": recording.site,
        "run": recording.run,
        "split": split,
        "windows": len(item.starts),
        "starts": " ".join(str(start) for start in item.starts),
        "volumes": prepared.volumes,
        "repetition_time": prepared.tr,
        "coverage": prepared.coverage,
        "fingerprint": prepared.fingerprint,
    }


def _require_people(people: Sequence[str]) -> None:
    if len(people) < FEWEST_PEOPLE:
        raise CallRefused(
            "too-few",
            expected=f"runs of at least {FEWEST_PEOPLE} people to train on",
            found=f"runs of one person, {people[0]}" if people else "no usable run",
            advice="add datasets with --dataset; desc-slimbrain_corpus.tsv says which runs were "
            "left out and why",
        )


def _check_arrays(prepared: PreparedRun) -> None:
    expected = {
        "signal": (np.dtype(np.int8), (prepared.volumes, prepared.voxels)),
        "scale": (np.dtype(np.float32), (prepared.voxels,)),
        "mean": (np.dtype(np.float32), (prepared.voxels,)),
        "voxels": (np.dtype(np.int32), (prepared.voxels,)),
    }
    for name, (dtype, shape) in expected.items():
        path = prepared.folder / f"{name}.npy"
        found = _describe_array(path)
        if found != f"{dtype} of shape {shape}":
            raise RunRefused(
                "prepared-bad",
                file=f"{prepared.folder.name}/{path.name}",
                expected=f"{dtype} of shape {shape}",
                found=found,
                advice="remove this folder and prepare the run again",
            )


def _check_places(prepared: PreparedRun) -> None:
    """Refuse voxels that are not on the grid, or statistics that are not finite."""
    voxels = np.load(prepared.folder / "voxels.npy")
    rises = bool((np.diff(voxels) > 0).all())
    on_grid = voxels[0] >= 0 and voxels[-1] < np.prod(Contract().shape)
    statistics = (np.load(prepared.folder / f"{name}.npy") for name in ("scale", "mean"))
    if not (rises and on_grid and all(np.isfinite(values).all() for values in statistics)):
        raise RunRefused(
            "prepared-bad",
            file=prepared.folder.name,
            expected="ascending places on the model grid, with finite means and scales",
            found="others",
            advice="remove this folder and prepare the run again",
        )


def _describe_array(path: Path) -> str:
    try:
        # Mapping it compares the file's size with its header; pickles can't be mapped.
        array = np.lib.format.open_memmap(path, mode="r")
    # A damaged header makes numpy stumble in any way.
    except Exception as error:
        return getattr(error, "strerror", None) or f"no whole array ({error})"
    return f"{array.dtype} of shape {array.shape}"


def _check_length(prepared: PreparedRun, contract: Contract) -> None:
    frames = count_frames(prepared, contract.frame_time)
    if frames < contract.frames:
        raise RunRefused(
            "too-short",
            file=prepared.folder.name,
            expected=f"at least {contract.span_seconds:.2f} s from first to last volume",
            found=f"{(prepared.volumes - 1) * prepared.tr:.2f} s",
            advice="leave this run out",
        )
