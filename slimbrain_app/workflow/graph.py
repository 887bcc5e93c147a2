"""The graphs: one chain of verbs for each run, one report for each participant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nipype.interfaces.utility import Merge
from nipype.pipeline import engine as pe
from niworkflows.engine.workflows import LiterateWorkflow

from slimbrain_app.costs import MEMORY_GB
from slimbrain_app.records import Run
from slimbrain_app.workflow.interfaces import (
    Encode,
    Explain,
    Prepare,
    Rank,
    Report,
    Step,
    Write,
)
from slimbrain_app.workflow.plan import Participant
from slimbrain_app.workflow.state import Call, ParticipantCall, RunState

STEPS = (Prepare, Rank, Encode, Explain, Write)
SERIAL = (Write,)
ON_DEVICE = (Encode, Explain)


def build_corpus(states: Sequence[RunState], call: Call) -> pe.Workflow:
    """Lay ``prepare`` for each run, and nothing more."""
    graph = pe.Workflow(name="slimbrain_corpus", base_dir=str(call.work))
    for number, state in enumerate(states, start=1):
        step = _make_step(Prepare, state.run, number, call)
        step.inputs.state = state
        graph.add_nodes([step])
    return graph


def build_graph(participants: Sequence[Participant], call: ParticipantCall) -> LiterateWorkflow:
    """Lay one sub-graph for each participant.

    Its description is the methods text, which ``visit_desc`` gives back.
    """
    graph = LiterateWorkflow(name="slimbrain", base_dir=str(call.work))
    graph.__desc__ = call.methods
    for participant in participants:
        graph.add_nodes([build_participant(participant, call)])
    return graph


def build_participant(participant: Participant, call: ParticipantCall) -> pe.Workflow:
    """Lay ``prepare``, ``rank``, ``encode``, ``write`` for each run, then their ``report``.

    Between the last two of a run there is ``explain``, if that is wished.
    """
    graph = pe.Workflow(name=f"sub_{participant.label}")
    report = _make_node(
        Report(participant=participant, call=call, states=[]), "report", depth=len(STEPS)
    )
    if not participant.todo:
        graph.add_nodes([report])
        return graph
    merge = _make_node(
        Merge(len(participant.todo)), "merge", depth=len(STEPS), run_without_submitting=True
    )
    graph.connect(merge, "out", report, "states")
    for number, run in enumerate(participant.todo, start=1):
        kinds = [kind for kind in STEPS if kind is not Explain or call.explains]
        steps = [_make_step(kind, run, number, call) for kind in kinds]
        steps[0].inputs.state = RunState(run=run, folder=call.work / run.name)
        for before, after in pairwise(steps):
            graph.connect(before, "state", after, "state")
        graph.connect(steps[-1], "state", merge, f"in{number}")
    return graph


def _make_step(kind: type[Step], run: Run, number: int, call: Call) -> pe.Node:
    label = "".join(letter if letter.isalnum() else "_" for letter in run.name)
    verb = kind.__name__.lower()
    on_gpu = kind in ON_DEVICE and isinstance(call, ParticipantCall) and call.device != "cpu"
    node = _make_node(
        kind(call=call, use_gpu=on_gpu),
        f"{verb}_{number}_{label}",
        n_procs=1 if kind in SERIAL else call.threads,
        mem_gb=MEMORY_GB[verb],
        depth=STEPS.index(kind),
    )
    node.verb, node.run_name = verb, run.name
    return node


def _make_node(interface: Any, name: str, *, depth: int, **options: Any) -> pe.Node:
    # A node's hash knows nothing of an input file's content, so nothing is ever taken from before.
    node = pe.Node(interface, name=name, overwrite=True, **options)
    node.depth = depth
    return node
