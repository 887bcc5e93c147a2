"""Nipype interfaces: each takes a run's state one step further by one call into a room below."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, SimpleInterface, TraitedSpec, traits
from threadpoolctl import threadpool_limits

from slimbrain_app.errors import SlimBrainError
from slimbrain_app.records import Refusal
from slimbrain_app.workflow.reporting import report_participant
from slimbrain_app.workflow.state import Call, ParticipantCall, RunState


class StepInputSpec(BaseInterfaceInputSpec):  # type: ignore[misc]
    """A run's state and the call it belongs to; ``use_gpu`` is for Nipype, which counts them."""

    state = traits.Any(mandatory=True)
    call = traits.Any(mandatory=True)
    use_gpu = traits.Bool(False)


class StepOutputSpec(TraitedSpec):  # type: ignore[misc]
    """The run's state after the step."""

    state = traits.Any()


class Step(SimpleInterface):  # type: ignore[misc]
    """One verb on one run; a refusal becomes part of the state, so that the others go on."""

    input_spec = StepInputSpec
    output_spec = StepOutputSpec

    def advance(self, state: RunState, call: Any) -> RunState:
        raise NotImplementedError

    def _run_interface(self, runtime: Any) -> Any:
        state, call = self.inputs.state, self.inputs.call
        if state.refusal is None:
            state = self._try(state, call)
        self._results["state"] = state
        return runtime

    def _try(self, state: RunState, call: Call) -> RunState:
        start = time.perf_counter()
        try:
            with threadpool_limits(call.threads):
                state = self.advance(state, call)
        except SlimBrainError as error:
            state = replace(state, refusal=Refusal.of(state.run.name, error))
        except Exception as error:
            state = replace(state, refusal=self._report_fault(state, call, error))
        step = (type(self).__name__.lower(), time.perf_counter() - start)
        return replace(state, spent=(*state.spent, step), peak_mib=_measure_peak())

    def _report_fault(self, state: RunState, call: Call, error: Exception) -> Refusal:
        step = type(self).__name__.lower()
        if isinstance(error, MemoryError):
            return Refusal(
                run=state.run.name,
                code="out-of-memory",
                file=state.run.relative(state.run.bold),
                expected=f"memory to {step} the run",
                found=str(error) or "none left",
                advice="start again with more memory, or with a lower --nprocs",
            )
        crash = call.logs / f"crash-{state.run.name}-{step}.txt"
        crash.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return Refusal(
            run=state.run.name,
            code="internal",
            file=state.run.relative(state.run.bold),
            expected=f"to {step} the run",
            found=f"{type(error).__name__}: {error}",
            advice=f"send us {crash.relative_to(call.output)}",
        )


class Prepare(Step):
    """Bring the run's brain voxels onto the model grid."""

    def advance(self, state: RunState, call: Call) -> RunState:
        from slimbrain_app.prepare import prepare_run

        prepared = prepare_run(state.run, state.folder, call.prepare, call.span_seconds)
        return replace(state, prepared=prepared)


class Rank(Step):
    """Order the run's windows by saliency and select the best."""

    def advance(self, state: RunState, call: ParticipantCall) -> RunState:
        from slimbrain_app.model.packages import load_extractor, note_seen
        from slimbrain_app.ranking import rank_run

        settings = call.provenance.settings
        assert state.prepared is not None
        ranked = rank_run(
            state.prepared,
            call.package.contract,
            load_extractor(call.package),
            settings.rank,
            settings.seed,
            state.run.name,
        )
        notices = (*ranked.notices, *note_seen(call.package, state.prepared))
        return replace(state, ranked=replace(ranked, notices=notices))


class Encode(Step):
    """Embed the selected windows, and predict from the run's embedding what heads tell."""

    def advance(self, state: RunState, call: ParticipantCall) -> RunState:
        from slimbrain_app.embedding import embed_run, list_notices
        from slimbrain_app.prediction import predict_by_package

        assert state.prepared is not None and state.ranked is not None
        settings = call.provenance.settings
        embedding = embed_run(
            state.prepared,
            state.ranked,
            call.package,
            settings.encode,
            call.device,
            or_cpu=settings.compute.device == "auto",
        )
        notices = list_notices(embedding, call.package, call.device)
        ranked = replace(state.ranked, notices=(*state.ranked.notices, *notices))
        predictions = predict_by_package(
            call.package,
            embedding.mean,
            ranked.notices,
            embedding.views,
            embedding.covariance,
        )
        return replace(state, ranked=ranked, embedding=embedding, predictions=predictions)


class Explain(Step):
    """Find where in the brain, and when, what heads tell of the run comes from."""

    def advance(self, state: RunState, call: ParticipantCall) -> RunState:
        from slimbrain_app.device import hold_device
        from slimbrain_app.evaluation.explanation import explain_run

        assert state.prepared and state.ranked and state.embedding
        device = state.embedding.device
        with hold_device(device):
            explanations = explain_run(
                state.prepared,
                state.ranked,
                state.embedding,
                call.package,
                call.provenance.settings.encode,
                device,
            )
        return replace(state, explanations=explanations)


class Write(Step):
    """Write the run's outputs; its figures are drawn with the report."""

    def advance(self, state: RunState, call: ParticipantCall) -> RunState:
        from slimbrain_app.bids.outputs import write_run
        from slimbrain_app.prepare.store import mask_image

        assert state.prepared and state.ranked and state.embedding
        outputs = write_run(
            call.output,
            state.run,
            state.prepared,
            state.ranked,
            state.embedding,
            mask_image(state.prepared),
            call.provenance,
            state.predictions,
            state.explanations,
        )
        return replace(state, outputs=outputs)


class ReportInputSpec(BaseInterfaceInputSpec):  # type: ignore[misc]
    """The states of all the participant's runs that were to be done."""

    states = traits.List(traits.Any())
    participant = traits.Any(mandatory=True)
    call = traits.Any(mandatory=True)


class Report(SimpleInterface):  # type: ignore[misc]
    """Write the participant's page and status file."""

    input_spec = ReportInputSpec
    output_spec = TraitedSpec

    def _run_interface(self, runtime: Any) -> Any:
        report_participant(self.inputs.participant, self.inputs.call, self.inputs.states)
        return runtime


def _measure_peak() -> float:
    """Return this process's highest resident memory so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
