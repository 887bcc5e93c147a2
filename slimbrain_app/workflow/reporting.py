"""A participant's page and status file, from what this call did and what earlier ones left."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from slimbrain_app.bids.outputs import (
    is_by_model,
    name_output,
    read_covariance,
    read_explanations,
    read_facts,
    read_predictions,
    read_views,
    write_person,
)
from slimbrain_app.bids.status import write_status
from slimbrain_app.prediction import predict_by_package
from slimbrain_app.prepare.confounds import read_confounds
from slimbrain_app.prepare.store import mask_image, mean_image
from slimbrain_app.records import Notice, Prediction, RepetitionTime, Run, RunStatus, Window
from slimbrain_app.report import ReportContext, ReportedRun, write_report
from slimbrain_app.workflow.plan import Participant
from slimbrain_app.workflow.state import ParticipantCall, RunState

if TYPE_CHECKING:
    import pandas as pd


def report_participant(
    participant: Participant, call: ParticipantCall, states: Sequence[RunState]
) -> None:
    """Write what is predicted of a person, their page and status; prepared runs are let go.

    Parameters
    ----------
    states : sequence of RunState
        Runs of this call. Those done before are read from their outputs.
    """
    done = [state for state in states if state.refusal is None]
    refused = [state.refusal for state in states if state.refusal is not None]
    reported = [_report_done(state) for state in done]
    contract = call.package.contract
    current = [(run, read_facts(call.output, run, contract)) for run in participant.current]
    reported += [_report_current(run, facts, call) for run, facts in current]
    reported.sort(key=lambda run: run.name)
    runs = (*(state.run for state in done), *participant.current)
    predictions = _predict_person(participant.label, reported, runs, call)
    write_report(
        call.output / f"sub-{participant.label}.html",
        f"sub-{participant.label}",
        reported,
        (*refused, *participant.refused),
        _describe_context(call),
        predictions,
    )
    for state in states:
        if state.prepared is not None:
            shutil.rmtree(state.prepared.folder, ignore_errors=True)
    statuses = [state.summarise() for state in states]
    statuses += [_summarise_current(run, facts) for run, facts in current]
    statuses += [RunStatus.of_refusal(refusal) for refusal in participant.refused]
    write_status(call.output, participant.label, statuses)


def _predict_person(
    label: str, reported: Sequence[ReportedRun], runs: Sequence[Run], call: ParticipantCall
) -> tuple[Prediction, ...]:
    """Predict, and write, from the embeddings of all runs that these heads were read on."""
    told = [run for run in reported if run.predictions]
    by_name = {run.name: run for run in runs}
    sources = [by_name[run.name] for run in told]
    predictions: tuple[Prediction, ...] = ()
    if told:
        mean = np.stack([run.embedding for run in told]).mean(axis=0, dtype=np.float64)
        views = None
        if call.provenance.model.reads_views:
            contract = call.package.contract
            views = np.concatenate([read_views(call.output, run, contract) for run in sources])
        covariances = [
            covariance
            for run in sources
            if (covariance := read_covariance(call.output, run, call.package.contract)) is not None
        ]
        covariance = np.mean(covariances, axis=0, dtype=np.float64) if covariances else None
        notices = [notice for run in told for notice in run.notices]
        predictions = predict_by_package(call.package, mean, notices, views, covariance)
    write_person(call.output, label, sources, predictions, call.provenance)
    return predictions


def _report_done(state: RunState) -> ReportedRun:
    assert state.prepared and state.ranked and state.embedding
    return ReportedRun.of(
        state.run,
        state.prepared,
        state.ranked,
        state.embedding,
        mean_image=mean_image(state.prepared),
        mask=mask_image(state.prepared),
        predictions=state.predictions,
        explanations=state.explanations,
    )


def _report_current(run: Run, facts: Any, call: ParticipantCall) -> ReportedRun:
    contract = call.package.contract
    windows = _read_table(call, name_output(run, contract, "windows", ".tsv"))
    predictions = _read_predictions(run, facts, call)
    mean = _read_table(call, name_output(run, contract, "embeddings", ".tsv", stat="mean"))
    return ReportedRun(
        name=run.name,
        source=run.relative(run.bold),
        space=facts["Ladder"]["Space"],
        rung=facts["Ladder"]["Rung"],
        interpolations=facts["Ladder"]["Interpolations"],
        repetition_time=RepetitionTime(
            seconds=facts["RepetitionTime"], origin=facts["RepetitionTimeOrigin"]
        ),
        volumes=facts["Volumes"],
        voxels=facts["Voxels"],
        dummy_scans=facts["DummyScans"],
        coverage=facts["Coverage"],
        constant_voxels=facts["ConstantVoxels"],
        clipped_values=facts["ClippedValues"],
        replaced_values=facts["ReplacedValues"],
        displacement=_read_displacement(run, facts),
        windows=tuple(_restore_window(row, facts) for row in windows.to_dict("records")),
        method=facts["RankingMethod"],
        embedding=mean.to_numpy(np.float32)[0],
        views=None,
        notices=_list_notices(facts),
        checksums=tuple((uri, known["SHA256"]) for uri, known in facts["InputChecksums"].items()),
        mean_image=None,
        mask=None,
        predictions=predictions,
        explanations=read_explanations(call.output, run, contract) if predictions else (),
        done_before=True,
    )


def _read_predictions(run: Run, facts: Any, call: ParticipantCall) -> tuple[Prediction, ...]:
    # By --overwrite never, a run may be that of another model.
    if not call.package.heads or not is_by_model(facts, call.provenance):
        return ()
    name = name_output(run, call.package.contract, "predictions", ".tsv")
    return read_predictions(call.output / name)


def _read_displacement(run: Run, facts: Any) -> tuple[float, ...] | None:
    name = run.relative(run.confounds) if run.confounds else None
    confounds = read_confounds(run.confounds, name, facts["Volumes"] + facts["DummyScans"])
    return replace(confounds, dummy_scans=facts["DummyScans"]).kept_displacement


def _read_table(call: ParticipantCall, name: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(call.output / name, sep="\t", na_values="n/a")


def _restore_window(row: Any, facts: Any) -> Window:
    offset = facts["DummyScans"] * facts["RepetitionTime"]
    frame_time = facts["Model"]["Contract"]["frame_time"]
    return Window(start=round((row["onset"] - offset) / frame_time), **row)


def _list_notices(facts: Any) -> tuple[Notice, ...]:
    return tuple(Notice(**notice) for notice in facts["Warnings"])


def _summarise_current(run: Run, facts: Any) -> RunStatus:
    return RunStatus(
        run=run.name,
        state="current",
        outputs=tuple(facts["Outputs"]),
        notices=_list_notices(facts),
    )


def _describe_context(call: ParticipantCall) -> ReportContext:
    return ReportContext(
        settings=call.provenance.settings,
        model=call.provenance.model,
        device=call.device,
        software=call.provenance.software,
        command=call.command,
        methods=call.methods,
        notices=call.notices,
    )
