"""What the JSON beside each output says, and what of it tells whether a run is up to date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from slimbrain_app.bids.derivatives import LINK, find_linked
from slimbrain_app.bids.metadata import read_sidecar
from slimbrain_app.files import sha256_of
from slimbrain_app.records import (
    Embedding,
    Explanation,
    Flag,
    Head,
    ModelIdentity,
    PreparedRun,
    RankedRun,
    Run,
)
from slimbrain_app.settings import ParticipantSettings

TEMPLATEFLOW = "https://templateflow.s3.amazonaws.com/tpl-MNI152NLin2009cAsym/"
TEMPLATE = f"{TEMPLATEFLOW}tpl-MNI152NLin2009cAsym_res-02_T1w.nii.gz"
PASSED_ON = ("StartTime", "SliceTimingCorrected")
MASK: Mapping[str, Any] = {
    "Description": "Brain voxels that were encoded, on the model grid",
    "Type": "Brain",
}
DIMENSIONS: Mapping[str, str] = {
    "Description": "Dimensions of the embedding",
    "Units": "arbitrary",
}
COVARIANCE: dict[str, Any] = {
    "Description": "Which places of the encoder's final grid move together: the covariance of "
    "their signals over all frames of selected windows, in the tangent space of the people that "
    "the package was trained on; its upper triangle by rows, off the diagonal times the square "
    "root of 2"
}
ATTRIBUTION: Mapping[str, Any] = {
    "Description": "What each voxel adds to outputs of linear heads, over the same brain standing "
    "still: integrated gradients, summed over frames, mean over views; a volume for each of Maps",
    "Type": "Brain",
}
FLAGS: Mapping[Flag, str] = {
    "untrained": "The encoder's weights have not learned from any data",
    "seen-in-training": "Weights were fitted to a run of this person, or chosen by it",
    "out-of-distribution": "The embedding lies apart from those of the people fitted to",
}
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "onset": {"Description": "Start, from the first volume of the source", "Units": "s"},
    "duration": {"Description": "Length", "Units": "s"},
    "saliency": {"Description": "Score by which windows are ordered", "Units": "arbitrary"},
    "rank": {"Description": "Place in the order of choice: 1 is chosen first"},
    "selected": {"Description": "Whether the window was encoded"},
    "censored_frames": {"Description": "Frames above the framewise displacement threshold"},
    "window": {"Description": "Row of the window in the table of windows, from 0"},
    "view": {"Description": "Number of the view of its window, from 0"},
    "outcome": {"Description": "What is predicted"},
    "level": {"Description": "Class that the row is about; n/a for a number"},
    "value": {"Description": "The number predicted, or the probability of the class"},
    "lower": {"Description": "Lower end of a 90 % interval of the number"},
    "upper": {"Description": "Upper end of a 90 % interval of the number"},
    "percentile": {
        "Description": "Place of the value among those told of the people fitted to, each left out",
        "Units": "%",
    },
    "calibrated": {
        "Description": "Whether people left out say how far to trust the probability or interval"
    },
    "parcel": {"Description": "Number of the parcel in the atlas; 0 is outside all parcels"},
    "name": {"Description": "Name of the parcel"},
    "network": {"Description": "Network of the parcel"},
    "voxels": {"Description": "Brain voxels of the run in the parcel"},
    "attribution": {"Description": "Sum of the parcel's voxels in the map"},
    "share": {"Description": "Part of all voxels' absolute attributions that is the parcel's"},
    "contribution": {
        "Description": "The window's part of the output; with the bias, they sum to it"
    },
    "over_baseline": {
        "Description": "What of the contribution the brain standing still would not have given"
    },
    "flag": {"Description": "Why not to trust the value, separated by commas"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What the sidecars of a call have in common."""

    model: ModelIdentity
    settings: ParticipantSettings
    software: Mapping[str, str]


def describe_columns(columns: Iterable[str], heads: Sequence[Head] = ()) -> dict[str, Any]:
    """Return description and units of each column; ``e0000`` and on, the embedding's, as one.

    ``heads`` are those that the columns of predictions are made by.
    """
    columns = list(columns)
    if columns[0] == "c0000":
        return COVARIANCE
    more = _describe_predictions(heads)
    known = [column for column in columns if column in COLUMNS]
    described: dict[str, Any] = {
        column: {**COLUMNS[column], **more.get(column, {})} for column in known
    }
    # Hundreds, of one kind: one by one they would be most of what a cohort has to read.
    if dimensions := columns[len(known) :]:
        described[f"{dimensions[0]} to {dimensions[-1]}"] = DIMENSIONS
    return described


def describe_run(
    run: Run,
    prepared: PreparedRun,
    ranked: RankedRun,
    embedding: Embedding,
    provenance: Provenance,
) -> dict[str, Any]:
    """Return what every sidecar of a run says: sources, model, settings and quality figures."""
    notices = (*run.notices, *prepared.notices, *ranked.notices)
    return {
        "Sources": [_uri(run, path) for path in run.sources],
        "SpatialReference": TEMPLATE,
        **describe_call(provenance),
        "Device": embedding.device,
        "InputChecksums": _describe_inputs(run, prepared),
        "RepetitionTime": prepared.tr,
        "RepetitionTimeOrigin": run.repetition_time.origin,
        **_pass_on(run),
        "Ladder": {
            "Rung": run.rung,
            "Space": run.space,
            "Interpolations": run.interpolations,
        },
        "Volumes": prepared.volumes,
        "DummyScans": prepared.dummy_scans,
        "Voxels": prepared.voxels,
        "Coverage": round(prepared.coverage, 4),
        "ConstantVoxels": prepared.constant_voxels,
        "ClippedValues": prepared.clipped_values,
        "ReplacedValues": prepared.replaced_values,
        "MeanFramewiseDisplacement": _average(prepared.displacement),
        "Windows": len(ranked.windows),
        "SelectedWindows": len(ranked.selected),
        "RankingMethod": ranked.method,
        "Warnings": [asdict(notice) for notice in notices],
    }


def describe_call(provenance: Provenance) -> dict[str, Any]:
    """Return what every sidecar of a call says: model, settings and software."""
    settings = provenance.settings
    return {
        "Model": describe_model(provenance.model),
        "Settings": {
            "prepare": asdict(settings.prepare),
            "rank": asdict(settings.rank),
            "encode": asdict(settings.encode),
        },
        "SettingsFingerprint": settings.fingerprint(),
        "Seed": settings.seed,
        "Software": dict(provenance.software),
    }


def describe_explanations(explanations: Sequence[Explanation]) -> dict[str, Any]:
    """Return what each volume of a map is, in order, and how far it is to be trusted."""
    return {
        "Method": "integrated gradients from each voxel's mean over the run, by a path for each "
        "view, or for all views together where the pooling is covariance",
        "Atlas": "Schaefer 2018, 200 parcels, 7 networks",
        "Maps": [
            {
                "Outcome": one.outcome,
                "Level": one.level,
                "Units": one.units,
                "Output": one.output,
                "Baseline": one.baseline,
                "Gap": one.gap,
                "Points": one.points,
                "Pooling": one.pooling,
            }
            for one in explanations
        ],
    }


def describe_model(model: ModelIdentity) -> dict[str, Any]:
    return {
        "Name": model.name,
        "Preset": model.preset,
        "SHA256": model.sha256,
        "Trained": model.trained,
        "Contract": asdict(model.contract),
        "Heads": [_describe_head(head) for head in model.heads],
        "Warnings": [asdict(notice) for notice in model.notices],
    }


def inputs_agree(run: Run, known: Mapping[str, Any]) -> bool:
    """Whether the run's sources are those of ``InputChecksums``, by size and time or checksum."""
    sources = {_uri(run, path): path for path in run.sources}
    return sources.keys() == known.keys() and all(
        _is_unchanged(path, known[uri]) for uri, path in sources.items()
    )


def _average(displacement: Sequence[float] | None) -> float | None:
    """Return the mean in mm; the first volume has none before it to move from."""
    if displacement is None or len(displacement) < 2:
        return None
    return round(fmean(displacement[1:]), 4)


def _describe_head(head: Head) -> dict[str, Any]:
    return {
        "Outcome": head.outcome,
        "Kind": head.kind,
        "People": head.people,
        "Units": head.units,
        "Levels": {level: head.levels.get(level, level) for level in head.classes},
        "Performance": head.performance,
    }


def _describe_predictions(heads: Sequence[Head]) -> dict[str, Any]:
    """Return what columns of predictions say besides, by these heads."""
    units = {head.outcome: head.units or "unknown" for head in heads if head.kind == "number"}
    units |= {head.outcome: "probability" for head in heads if head.kind == "class"}
    told = {"Units": ", ".join(f"{unit} ({outcome})" for outcome, unit in units.items())}
    odds = {"Units": told["Units"].replace("probability (", "log odds (")}
    levels: dict[str, list[str]] = {}
    for head in heads:
        for level in head.classes:
            levels.setdefault(level, []).append(f"{head.outcome}: {head.levels.get(level, level)}")
    return {
        "outcome": {
            "Levels": {
                head.outcome: f"fitted to {head.people} people; {head.performance}"
                for head in heads
            }
        },
        "level": {"Levels": {level: ", ".join(meanings) for level, meanings in levels.items()}},
        "value": told,
        "lower": told,
        "upper": told,
        "attribution": odds,
        "contribution": odds,
        "over_baseline": odds,
        "calibrated": {"Levels": {"yes": "They do", "no": "They don't"}},
        "flag": {"Levels": dict(FLAGS)},
    }


def _describe_inputs(run: Run, prepared: PreparedRun) -> dict[str, Any]:
    """Return what the sources were when they were read, whatever has become of them since."""
    checksums = dict(prepared.checksums)
    uris = {run.relative(path): _uri(run, path) for path in run.sources}
    return {
        uris[name]: {"SHA256": checksums[name], "Size": size, "ModifiedNanoseconds": changed}
        for name, size, changed in prepared.stamps
    }


def _is_unchanged(path: Path, known: Mapping[str, Any]) -> bool:
    facts = path.stat()
    if facts.st_size != known["Size"]:
        return False
    same_time: bool = facts.st_mtime_ns == known["ModifiedNanoseconds"]
    return same_time or sha256_of(path) == known["SHA256"]


def _pass_on(run: Run) -> dict[str, Any]:
    """Return what the source's sidecars say of its volumes' timing, the nearest first."""
    told: dict[str, Any] = {}
    for path in run.sidecars:
        told = {**read_sidecar(path, run.relative(path)), **told}
    return {key: told[key] for key in PASSED_ON if key in told}


def _uri(run: Run, path: Path) -> str:
    """Return where a source is, by the links of the output's description.

    Outside of the dataset lie sidecars of raw data, which it links to, and TemplateFlow's.
    """
    if path.is_relative_to(run.dataset):
        return f"bids:{LINK}:{run.relative(path)}"
    for name, folder in find_linked(run.dataset).items():
        if path.is_relative_to(folder):
            return f"bids:{name}:{path.relative_to(folder).as_posix()}"
    return f"{TEMPLATEFLOW}{path.name}"
