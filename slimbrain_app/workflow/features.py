"""What the group level knows of each run: its embedding and its parcels, made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.embedding import embed_run
from slimbrain_app.errors import RunRefused
from slimbrain_app.evaluation.atlas import Atlas
from slimbrain_app.evaluation.connectivity import clean_series, read_parcels, summarise_parcels
from slimbrain_app.files import whole_file
from slimbrain_app.model.packages import Package, load_extractor, note_seen
from slimbrain_app.prepare.confounds import read_nuisance
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import Recording, Refusal
from slimbrain_app.settings import ParticipantSettings

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunFeatures:
    """A run and what it is told by.

    Attributes
    ----------
    recording : Recording
    seen : bool
        Whether the package's weights were trained on it, or chosen by it.
    embedding : array, (width,)
    halves : array, (2, width), or (0, width)
        Mean embeddings of the earlier and the later selected windows, where there are two.
    series : array, (volumes, parcels)
        Cleaned.
    summary : array, (2 parcels,)
        Mean and deviation of each parcel.
    confounds : tuple of str
        What was removed from the series.
    """

    recording: Recording
    seen: bool
    embedding: NDArray[np.float32]
    halves: NDArray[np.float32]
    series: NDArray[np.float64]
    summary: NDArray[np.float64]
    confounds: tuple[str, ...]

    @property
    def motion(self) -> float:
        """The mean framewise displacement in mm; NaN where unknown."""
        displacement = self.recording.prepared.displacement
        return float(np.mean(displacement)) if displacement else float("nan")


def describe_runs(
    recordings: Sequence[Recording],
    package: Package,
    settings: ParticipantSettings,
    atlas: Atlas,
    device: str,
    output: Path,
    count: Callable[[str, int, int], None],
) -> tuple[tuple[RunFeatures, ...], tuple[tuple[str, Refusal], ...]]:
    """Describe each run; those that can't be are refused, with their dataset's name.

    What was found is kept below ``output/features`` and read again while the run, the weights and
    the settings are the same.
    """
    described: list[RunFeatures] = []
    refused: list[tuple[str, Refusal]] = []
    for number, recording in enumerate(recordings, start=1):
        try:
            described.append(_describe(recording, package, settings, atlas, device, output))
        except RunRefused as error:
            refused.append((recording.dataset, Refusal.of(recording.run, error)))
        count("describe", number, len(recordings))
    return tuple(described), tuple(refused)


def _describe(
    recording: Recording,
    package: Package,
    settings: ParticipantSettings,
    atlas: Atlas,
    device: str,
    output: Path,
) -> RunFeatures:
    place = output / "features" / recording.dataset / recording.run
    whole = hashlib.sha256(atlas.numbers.tobytes()).hexdigest()
    making = (recording.prepared.fingerprint, package.sha256, settings.fingerprint())
    parcelled = (recording.prepared.fingerprint, whole)
    embedded = _keep(
        place.with_name(f"{recording.run}_embedding-{_digest(making)}.npz"),
        partial(_embed, recording, package, settings, device),
    )
    parcels = _keep(
        place.with_name(f"{recording.run}_parcels-{_digest(parcelled)}.npz"),
        partial(_read_parcels, recording, atlas),
    )
    return RunFeatures(
        recording=recording,
        seen=bool(note_seen(package, recording.prepared)),
        embedding=np.asarray(embedded["mean"], np.float32),
        halves=np.asarray(embedded["halves"], np.float32),
        series=np.asarray(parcels["series"], np.float64),
        summary=np.asarray(parcels["summary"], np.float64),
        confounds=tuple(str(name) for name in parcels["confounds"]),
    )


def _keep(file: Path, make: Callable[[], Arrays]) -> Arrays:
    """Return arrays from their file, or make them and write it."""
    if not file.exists():
        arrays = make()
        with whole_file(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
    with np.load(file) as archive:
        return dict(archive)


def _embed(
    recording: Recording, package: Package, settings: ParticipantSettings, device: str
) -> Arrays:
    prepared = recording.prepared
    ranked = rank_run(
        prepared,
        package.contract,
        load_extractor(package),
        settings.rank,
        settings.seed,
        recording.run,
    )
    embedding = embed_run(prepared, ranked, package, settings.encode, device)
    order = np.argsort(embedding.onsets, kind="stable")
    parts = np.array_split(embedding.views[order], 2) if len(order) > 1 else []
    halves = np.array([part.mean(axis=0) for part in parts], np.float32)
    return {"mean": embedding.mean, "halves": halves.reshape(-1, len(embedding.mean))}


def _read_parcels(recording: Recording, atlas: Atlas) -> Arrays:
    prepared = recording.prepared
    series = read_parcels(prepared, atlas)
    path = recording.confounds
    volumes = prepared.volumes + prepared.dummy_scans
    nuisance = read_nuisance(path, path.name if path else None, volumes, prepared.dummy_scans)
    cleaned = clean_series(series, prepared.tr, nuisance.values)
    return {
        "series": cleaned.astype(np.float32),
        "summary": summarise_parcels(series),
        "confounds": np.array(nuisance.names, str),
    }


def _digest(making: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(making)).encode()).hexdigest()[:16]
