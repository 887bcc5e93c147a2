"""What the group level knows of each run: its embedding and its parcels, made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.embedding import embed_run
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.evaluation.atlas import Atlas
from slimbrain_app.evaluation.connectivity import clean_series, read_parcels, summarise_parcels
from slimbrain_app.files import sha256_of, whole_file
from slimbrain_app.model.packages import Package, load_extractor
from slimbrain_app.model.readout import FEWEST_WINDOWS
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
    embedding : array, (width,)
        The mean over views.
    views : array, (views, width)
        Best window first.
    onsets : array, (views,)
        In s.
    starts : tuple of int
        First frames, at model time, of the selected windows, best first.
    covariance : array, (covariance width,)
        Which places move together; empty where that isn't known.
    series : array, (volumes, parcels)
        Cleaned; without volumes if parcels were not asked for.
    summary : array, (2 parcels,)
        Mean and deviation of each parcel.
    confounds : tuple of str
        What was removed from the series.
    """

    recording: Recording
    embedding: NDArray[np.float32]
    views: NDArray[np.float32]
    onsets: NDArray[np.float64]
    starts: tuple[int, ...]
    covariance: NDArray[np.float32]
    series: NDArray[np.float64]
    summary: NDArray[np.float64]
    confounds: tuple[str, ...]

    @property
    def halves(self) -> NDArray[np.float32]:
        """Mean embeddings of the earlier and the later views, (2, width); (0, width) of one."""
        if len(self.views) < 2:
            return self.views[:0]
        parts = np.array_split(self.views[np.argsort(self.onsets, kind="stable")], 2)
        return np.stack([part.mean(axis=0) for part in parts])

    @property
    def motion(self) -> float:
        """The mean framewise displacement in mm, of all volumes but the first; NaN if unknown."""
        displacement = self.recording.prepared.displacement
        return float(np.mean(displacement[1:])) if displacement else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Describer:
    """How runs are described.

    Attributes
    ----------
    package : Package
    settings : ParticipantSettings
        Of the embedding.
    pooling : {"mean", "covariance"}
        What is wanted of a run, besides.
    device : str
    atlas : Atlas or None
        None where parcels are not asked for.
    motion : {6, 24}
        Motion parameters to remove from the parcels' series.
    output : Path
        What was found is kept below its ``features``, and read again while the run, the weights
        and the settings are the same.
    """

    package: Package
    settings: ParticipantSettings
    pooling: Literal["mean", "covariance"]
    device: str
    atlas: Atlas | None
    motion: Literal[6, 24]
    output: Path

    def describe(self, recording: Recording) -> RunFeatures:
        """Describe a run.

        Raises
        ------
        RunRefused
            ``too-short`` or ``bad-confounds`` from its parcels; ``out-of-memory``; ``too-short`` or
            ``low-coverage`` where its covariance is wanted and can't be told.
        """
        parcels = self._keep_parcels(recording) if self.atlas else _NO_PARCELS
        whole = (recording.prepared.fingerprint, self.package.sha256, self.settings.fingerprint())
        embedded = _keep(
            self._name(recording, "embeddings", whole), partial(self._embed, recording)
        )
        if self.pooling == "covariance" and not embedded["covariance"].size:
            raise _refuse_covariance(recording, len(embedded["starts"]))
        return RunFeatures(
            recording=recording,
            embedding=np.asarray(embedded["mean"], np.float32),
            views=np.asarray(embedded["views"], np.float32),
            onsets=np.asarray(embedded["onsets"], np.float64),
            starts=tuple(int(start) for start in embedded["starts"]),
            covariance=np.asarray(embedded["covariance"], np.float32),
            series=np.asarray(parcels["series"], np.float64),
            summary=np.asarray(parcels["summary"], np.float64),
            confounds=tuple(str(name) for name in parcels["confounds"]),
        )

    def _keep_parcels(self, recording: Recording) -> Arrays:
        assert self.atlas is not None
        atlas = hashlib.sha256(self.atlas.numbers.tobytes()).hexdigest()
        table = sha256_of(recording.confounds) if recording.confounds else ""
        making = (recording.prepared.fingerprint, atlas, str(self.motion), table)
        return _keep(
            self._name(recording, "parcels", making), partial(self._read_parcels, recording)
        )

    def _name(self, recording: Recording, what: str, making: Iterable[str]) -> Path:
        digest = hashlib.sha256(json.dumps(list(making)).encode()).hexdigest()[:16]
        folder = self.output / "features" / recording.dataset
        return folder / f"{recording.run}_{what}-{digest}.npz"

    def _embed(self, recording: Recording) -> Arrays:
        prepared, package, settings = recording.prepared, self.package, self.settings
        ranked = rank_run(
            prepared,
            package.contract,
            load_extractor(package),
            settings.rank,
            settings.seed,
            recording.run,
        )
        embedding = embed_run(prepared, ranked, package, settings.encode, self.device)
        return {
            "mean": embedding.mean,
            "views": embedding.views,
            "onsets": np.array(embedding.onsets),
            "starts": np.array([window.start for window in ranked.selected]),
            "covariance": np.array([] if embedding.covariance is None else embedding.covariance),
        }

    def _read_parcels(self, recording: Recording) -> Arrays:
        assert self.atlas is not None
        prepared, path = recording.prepared, recording.confounds
        series = read_parcels(prepared, self.atlas)
        nuisance = read_nuisance(
            path,
            path.name if path else None,
            prepared.volumes + prepared.dummy_scans,
            prepared.dummy_scans,
            self.motion,
        )
        return {
            "series": clean_series(series, prepared.tr, nuisance.values).astype(np.float32),
            "summary": summarise_parcels(series),
            "confounds": np.array(nuisance.names, str),
        }


_NO_PARCELS: Arrays = {
    "series": np.empty((0, 0)),
    "summary": np.empty(0),
    "confounds": np.empty(0, str),
}


def _refuse_covariance(recording: Recording, windows: int) -> RunRefused:
    short = windows < FEWEST_WINDOWS
    return RunRefused(
        "too-short" if short else "low-coverage",
        file=recording.run,
        expected=f"{FEWEST_WINDOWS} windows or more"
        if short
        else "brain in all places that the model compares",
        found=f"{windows}" if short else "some outside the mask",
        advice='set predict.pooling to "mean" in a --config file, or leave the run out',
    )


def describe_runs(
    recordings: Sequence[Recording],
    describer: Describer,
    count: Callable[[str, int, int], None],
) -> tuple[tuple[RunFeatures, ...], tuple[Refusal, ...]]:
    """Describe each run, or say why it can't be.

    Raises
    ------
    CallRefused
        ``no-runs`` if none can be.
    """
    described: list[RunFeatures] = []
    refused: list[Refusal] = []
    for number, recording in enumerate(recordings, start=1):
        try:
            described.append(describer.describe(recording))
        except RunRefused as error:
            refused.append(Refusal.of(recording.run, error))
        count("describe", number, len(recordings))
    if not described:
        raise CallRefused(
            "no-runs",
            expected="a run that can be described",
            found=f"{len(refused)} that can't" + (f": {refused[0].message}" if refused else ""),
            advice="see the reasons, and take other runs or settings",
        )
    return tuple(described), tuple(refused)


def _keep(file: Path, make: Callable[[], Arrays]) -> Arrays:
    """Return arrays from their file, or make them and write it."""
    if not file.exists():
        arrays = make()
        with whole_file(file) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)
    with np.load(file) as archive:
        return dict(archive)
