"""A pretraining in its folder, and the training of its encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from slimbrain_app.errors import CallRefused
from slimbrain_app.model.batches import Batch
from slimbrain_app.records import Recording
from slimbrain_app.settings import PretrainSettings
from slimbrain_app.training.checkpoint import Identity
from slimbrain_app.training.corpus import Corpus, Item
from slimbrain_app.training.design import Design, make_objective
from slimbrain_app.training.distributed import Processes
from slimbrain_app.training.folder import Tell, TrainingFolder, under_way
from slimbrain_app.training.loader import make_loader
from slimbrain_app.training.log import Start
from slimbrain_app.training.loop import train
from slimbrain_app.training.memory import Load
from slimbrain_app.training.optimiser import (
    choose_precision,
    group_parameters,
    make_optimiser,
    make_scaler,
)
from slimbrain_app.training.samples import Sample, cut_steps, draw_pass, share_step
from slimbrain_app.training.schedule import make_schedule, scale_rate
from slimbrain_app.training.state import TrainingState
from slimbrain_app.training.step import Plan, Share
from slimbrain_app.training.supervision import ProbeEncoder, Supervisor, Wishes
from slimbrain_app.training.windows import Windows

if TYPE_CHECKING:
    import torch

    from slimbrain_app.model.objective import Objective

# Of people kept out: enough for a mean, few enough to cost little.
_VALIDATION_WINDOWS = 64


@dataclass(frozen=True, slots=True)
class Pretraining(TrainingFolder):
    """A pretraining in its folder."""

    settings: PretrainSettings
    design: Design

    @property
    def extractor(self) -> Path:
        return self.checkpoints / "extractor.safetensors"

    @property
    def extractor_state(self) -> Path:
        return self.checkpoints / "extractor.pt"


def train_encoder(
    pretraining: Pretraining,
    corpus: Corpus,
    processes: Processes,
    load: Load,
    workers: int,
    probe: ProbeEncoder | None,
    tell: Tell,
) -> Objective:
    """Train, from the last checkpoint if there is one, to the end.

    Parameters
    ----------
    load : Load
        As of `choose_load`.
    workers : int
        Processes that read windows for this one.
    probe : callable or None
        Looks at the encoder between passes.
    tell : callable
        Takes every event, besides the log. In the first process only.

    Raises
    ------
    CallRefused
        As of `train` and `resume`; ``collapsed`` where that was to end the training.
    """
    settings = pretraining.settings
    per_pass = pretraining.design.count_steps(corpus.train)
    plan = _make_plan(pretraining, settings.train.passes * per_pass, processes)
    start = _describe_start(pretraining, plan)
    state, supervisor = _make_state(pretraining, start, plan, processes, load)
    if processes.first:
        supervisor.wishes = _make_wishes(pretraining, corpus, load, probe, processes.device)
    identity = Identity(settings=settings.fingerprint(), corpus=corpus.fingerprint)
    tensorboard = settings.pace.tensorboard
    with under_way(
        pretraining, state, identity, start, processes.first, tensorboard, tell
    ) as course:
        supervisor.tell = course.tell
        shares = _list_shares(pretraining, corpus, processes, load, workers, state.done)
        if not train(state, shares, plan, processes, course.save, supervisor.end_step):
            raise _collapsed()
    return state.objective


def describe_origin(settings: PretrainSettings, recordings: Sequence[Recording]) -> dict[str, str]:
    """Return what tells a training from another one, without anybody's label."""
    runs = sorted((one.dataset, one.run, one.prepared.fingerprint) for one in recordings)
    return {
        "settings": settings.fingerprint(),
        "recordings": hashlib.sha256(json.dumps(runs).encode()).hexdigest(),
    }


def _make_plan(pretraining: Pretraining, steps: int, processes: Processes) -> Plan:
    settings, train = pretraining.settings, pretraining.settings.train
    return Plan(
        schedule=make_schedule(steps, train.warm_up, train.last_rate / pretraining.design.rate),
        clip=train.clip,
        precision=choose_precision(train.precision, processes.device),
        seed=settings.seed,
        checkpoint_minutes=settings.pace.checkpoint_minutes,
    )


def _describe_start(pretraining: Pretraining, plan: Plan) -> Start:
    design = pretraining.design
    return Start(
        passes=pretraining.settings.train.passes,
        steps=plan.schedule.steps,
        batch=design.batch,
        windows_per_run=design.windows_per_run,
        warm_up=plan.schedule.warm_up,
        frames=design.contract.frames,
        width=design.sizes.embedding_width,
    )


def _make_state(
    pretraining: Pretraining, start: Start, plan: Plan, processes: Processes, load: Load
) -> tuple[TrainingState, Supervisor]:
    """Return a training at its beginning, and who watches it."""
    train, device = pretraining.settings.train, processes.device
    objective = make_objective(pretraining.settings, pretraining.design).to(device)
    objective.recompute(load.recompute)
    supervisor = Supervisor(objective=objective, start=start, precision=plan.precision)
    state = TrainingState(
        objective=objective,
        optimiser=make_optimiser(
            group_parameters(objective, train.weight_decay),
            scale_rate(pretraining.design.rate, pretraining.design.batch),
        ),
        scaler=make_scaler(plan.precision, device),
        observer=supervisor,
    )
    return state, supervisor


def _make_wishes(
    pretraining: Pretraining,
    corpus: Corpus,
    load: Load,
    probe: ProbeEncoder | None,
    device: torch.device,
) -> Wishes:
    pace, items = pretraining.settings.pace, corpus.validation
    every = -(-len(items) // _VALIDATION_WINDOWS) if items else 1
    # Pass 0 draws the masks: in training there is none of this number.
    samples = [
        Sample(item, items[item].starts[0], pass_=0, number=number)
        for number, item in enumerate(range(0, len(items), every))
    ]

    def read() -> Iterator[Batch]:
        windows = _make_windows(pretraining, items)
        return make_loader(windows, cut_steps(samples, load.at_once), workers=0, device=device)

    return Wishes(
        held_out=read if samples else None,
        probe=probe,
        probe_passes=pace.probe_passes,
        stop_on_collapse=pace.stop_on_collapse,
    )


def _make_windows(pretraining: Pretraining, items: Sequence[Item]) -> Windows:
    settings, design = pretraining.settings, pretraining.design
    return Windows(items, design.contract, design.sizes, settings.hide, settings.seed)


def _list_shares(
    pretraining: Pretraining,
    corpus: Corpus,
    processes: Processes,
    load: Load,
    workers: int,
    done: int,
) -> Iterator[Share]:
    """Yield this process's share of each step that is left, its batches still to be read."""

    def list_parts() -> Iterator[tuple[int, bool, Sequence[Sample], list[Sequence[Sample]]]]:
        for pass_, ends_pass, step in _list_steps(pretraining, corpus.train, done):
            parts = share_step(step, processes.rank, processes.size, load.at_once)
            yield pass_, ends_pass, step, parts

    batches = make_loader(
        _make_windows(pretraining, corpus.train),
        (part for *_, parts in list_parts() for part in parts),
        workers,
        processes.device,
    )
    for pass_, ends_pass, step, parts in list_parts():
        yield Share(
            pass_=pass_,
            ends_pass=ends_pass,
            views=len(step),
            batches=islice(batches, len(parts)),
            names=[_name(corpus.train[sample.item], sample) for part in parts for sample in part],
        )


def _list_steps(
    pretraining: Pretraining, items: Sequence[Item], done: int
) -> Iterator[tuple[int, bool, Sequence[Sample]]]:
    """Yield pass, whether it ends, and samples of each step after those done."""
    settings, design = pretraining.settings, pretraining.design
    whole, part = divmod(done, design.count_steps(items))
    for pass_ in range(whole + 1, settings.train.passes + 1):
        samples = draw_pass(items, design.windows_per_run, settings.seed, pass_)
        steps = cut_steps(samples, design.batch)
        for number, step in enumerate(steps[part:], start=part + 1):
            yield pass_, number == len(steps), step
        part = 0


def _name(item: Item, sample: Sample) -> str:
    return f"{item.recording.dataset}/{item.recording.run} at frame {sample.start}"


def _collapsed() -> CallRefused:
    return CallRefused(
        "collapsed",
        expected="a training that learns, since pace.stop_on_collapse is on",
        found="an alarm of the monitors; the last ones stand in the log and in group.html",
        advice="try a lower train.rate or another seed; or switch the setting off to go on",
    )
