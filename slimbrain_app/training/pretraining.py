"""A pretraining from prepared runs to a model package.

Everything of a training under way lies in ``checkpoints/`` inside the package's folder: the corpus
as it was settled, the temporal extractor, the last checkpoint, the log. It goes once the package
is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbrain_app.errors import REASONS, CallRefused
from slimbrain_app.files import whole_file
from slimbrain_app.model.batches import Batch
from slimbrain_app.model.packages import (
    CHECKPOINTS,
    CHECKSUMS,
    SEEN,
    Config,
    Package,
    describe_seen,
    load_package,
    save_package,
)
from slimbrain_app.ranking import JUDGED
from slimbrain_app.records import Recording, Refusal
from slimbrain_app.settings import PretrainSettings
from slimbrain_app.training.card import Facts, Source, write_card
from slimbrain_app.training.checkpoint import (
    Identity,
    read_content,
    require_same_corpus,
    require_same_settings,
    resume,
    write_checkpoint,
    write_content,
)
from slimbrain_app.training.corpus import Corpus, Item, rank_corpus, split_people
from slimbrain_app.training.design import Design, make_objective
from slimbrain_app.training.distributed import Processes
from slimbrain_app.training.loader import make_loader
from slimbrain_app.training.log import (
    Checkpoint,
    End,
    Event,
    Extract,
    Resume,
    Start,
    open_log,
    pick,
    read_log,
)
from slimbrain_app.training.loop import train
from slimbrain_app.training.manifest import (
    Manifest,
    read_manifest,
    require_same_runs,
    write_manifest,
)
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

    from slimbrain_app.model.extractor import TemporalExtractor
    from slimbrain_app.model.objective import Objective

RECORD = "training.json"
# Of people kept out: enough for a mean, few enough to cost little.
_VALIDATION_WINDOWS = 64

Tell = Callable[[Event], None]
# Says what is counted, how many are done, and of how many.
Count = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Pretraining:
    """A pretraining in its folder, which will be the package's."""

    folder: Path
    settings: PretrainSettings
    design: Design

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def manifest(self) -> Path:
        return self.checkpoints / "corpus.json"

    @property
    def log(self) -> Path:
        return self.checkpoints / "training.jsonl"

    @property
    def finished_log(self) -> Path:
        return self.folder / self.log.name

    @property
    def extractor(self) -> Path:
        return self.checkpoints / "extractor.safetensors"

    @property
    def extractor_state(self) -> Path:
        return self.checkpoints / "extractor.pt"

    @property
    def state(self) -> Path:
        return self.checkpoints / "state.pt"


def find_finished(pretraining: Pretraining, recordings: Sequence[Recording]) -> Package | None:
    """Return the package if an earlier call has made it of the same runs and settings.

    Raises
    ------
    CallRefused
        ``usage`` if another package stands in its place.
    """
    folder = pretraining.folder
    if pretraining.checkpoints.exists() or not (folder / CHECKSUMS).exists():
        return None
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = None
    if record != _describe_origin(pretraining.settings, recordings):
        raise CallRefused(
            "usage",
            file=folder,
            expected="no package of this name, or one made of the same runs with these settings",
            found="another one",
            advice="choose another --package-name, or remove the folder",
        )
    return load_package(folder)


def settle_corpus(
    pretraining: Pretraining,
    recordings: Sequence[Recording],
    refusals: Mapping[str, Sequence[Refusal]],
    device: torch.device,
    tell: Tell,
    count: Count,
) -> Manifest:
    """Split, train the temporal extractor, select windows; or take what an earlier call settled.

    For the first process only.

    Raises
    ------
    CallRefused
        ``too-few``; ``settings-changed`` or ``corpus-changed`` if an earlier call began otherwise.
    """
    settings, path = pretraining.settings, pretraining.manifest
    fingerprint = settings.fingerprint()
    if path.exists():
        earlier = read_manifest(path)
        require_same_settings(path, earlier.settings, fingerprint)
        require_same_runs(earlier, recordings, path)
        corpus, refusals = earlier.gather(recordings), earlier.refusals
    else:
        corpus = _make_corpus(pretraining, recordings, device, tell, count)
    manifest = Manifest.of(corpus, refusals, fingerprint)
    write_manifest(path, manifest)
    return manifest


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
    resumed = resume(pretraining.state, state, identity)
    shares = _list_shares(pretraining, corpus, processes, load, workers, state.done)
    telling = _telling(pretraining, state.done, tell) if processes.first else nullcontext(tell)
    with telling as log, _ending(log, state, per_pass):

        def save() -> None:
            write_checkpoint(pretraining.state, state, identity)
            log(Checkpoint(**_place(state, per_pass)))

        supervisor.tell = log
        log(start)
        if resumed:
            log(Resume(**_place(state, per_pass)))
        if not train(state, shares, plan, processes, save, supervisor.end_step):
            raise _collapsed()
    return state.objective


def publish(
    pretraining: Pretraining,
    objective: Objective,
    corpus: Corpus,
    sources: Sequence[Source],
    software: Mapping[str, str],
) -> Package:
    """Make a package of what was trained; the checkpoints go. For the first process only.

    Parameters
    ----------
    sources : sequence of Source
        The corpus dataset by dataset, for the card.
    software : mapping of str to str
        Package and version, for the card.
    """
    settings, design, folder = pretraining.settings, pretraining.design, pretraining.folder
    recordings = [item.recording for item in (*corpus.train, *corpus.validation)]
    extractor = load_trained_extractor(pretraining)
    config = Config(
        preset=settings.preset,
        trained=True,
        seed=settings.seed,
        contract=design.contract,
        encoder=design.sizes,
        extractor=None if extractor is None else extractor.sizes,
    )
    facts = Facts(
        sources=sources,
        validation_people=len({item.recording.person for item in corpus.validation}),
        settings=settings,
        events=read_log(pretraining.log),
        licence="not stated; what the terms of the data allow",
        software=software,
    )
    # Beside the package, not part of it: it tells times, which are never the same.
    shutil.copyfile(pretraining.log, pretraining.finished_log)
    origin = json.dumps(_describe_origin(settings, recordings), indent=2) + "\n"
    seen = describe_seen(recording.prepared for recording in recordings)
    return save_package(
        folder,
        config,
        objective.trained.cpu(),
        extractor,
        card=write_card(folder.name, config, facts),
        records={RECORD: origin, SEEN: seen},
    )


def load_trained_extractor(pretraining: Pretraining) -> TemporalExtractor | None:
    """Return the extractor of a training under way, or None if it has none."""
    if not pretraining.extractor.exists():
        return None
    from safetensors.torch import load_file

    from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor

    extractor = TemporalExtractor(ExtractorSizes())
    extractor.load_state_dict(load_file(pretraining.extractor))
    return extractor


def _describe_origin(settings: PretrainSettings, recordings: Sequence[Recording]) -> dict[str, str]:
    """Return what tells a training from another one, without anybody's label."""
    runs = sorted((one.dataset, one.run, one.prepared.fingerprint) for one in recordings)
    return {
        "settings": settings.fingerprint(),
        "recordings": hashlib.sha256(json.dumps(runs).encode()).hexdigest(),
    }


def _make_corpus(
    pretraining: Pretraining,
    recordings: Sequence[Recording],
    device: torch.device,
    tell: Tell,
    count: Count,
) -> Corpus:
    settings, contract = pretraining.settings, pretraining.design.contract
    kept, held_out = split_people(recordings, settings.corpus.validation, settings.seed)
    pretraining.extractor.unlink(missing_ok=True)  # Of a call that ended before this.
    extractor = None
    if settings.extract.passes and settings.rank.mode in JUDGED:
        extractor = _train_extractor(pretraining, kept, held_out, device, tell)
    items = rank_corpus(
        [*kept, *held_out],
        contract,
        extractor,
        settings.rank,
        settings.seed,
        lambda done, total: count("rank", done, total),
    )
    return Corpus(tuple(items[: len(kept)]), tuple(items[len(kept) :]), contract)


def _train_extractor(
    pretraining: Pretraining,
    recordings: Sequence[Recording],
    held_out: Sequence[Recording],
    device: torch.device,
    tell: Tell,
) -> TemporalExtractor | None:
    """Train the temporal extractor, from its last pass if an earlier call made some.

    One that tells next to nothing about people kept out is not kept: windows are ranked better
    without.
    """
    from safetensors.torch import save_file

    from slimbrain_app.training.temporal import is_useful, train_extractor

    path = pretraining.extractor_state
    origin = _describe_origin(pretraining.settings, [*recordings, *held_out])
    begun = _read_begun(path, origin)

    def save(state: dict[str, Any]) -> None:
        write_content(path, {**origin, "state": state})

    with _telling(pretraining, None if begun is None else 0, tell) as log:
        extractor = train_extractor(
            recordings,
            pretraining.design.contract,
            pretraining.settings.extract,
            pretraining.settings.seed,
            log,
            validation=held_out,
            device=str(device),
            work=pretraining.checkpoints / "cells",
            state=begun,
            save=save,
        )
    if not is_useful(pick(read_log(pretraining.log), Extract)[-1]):
        return None
    with whole_file(pretraining.extractor) as temporary:
        save_file(extractor.state_dict(), temporary)
    return extractor


def _read_begun(path: Path, origin: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Return the state of an extractor that an earlier call of this training began, if any."""
    if not path.exists():
        return None
    content = read_content(path)
    require_same_settings(path, content["settings"], origin["settings"])
    require_same_corpus(path, content["recordings"], origin["recordings"])
    state: Mapping[str, Any] = content["state"]
    return state


@contextmanager
def _telling(pretraining: Pretraining, step: int | None, tell: Tell) -> Iterator[Tell]:
    """Yield a function that logs an event and tells it; the log is cut as by `open_log`."""
    with open_log(pretraining.log, step, pretraining.settings.pace.tensorboard) as write:

        def log(event: Event) -> None:
            write(event)
            tell(event)

        yield log


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


@contextmanager
def _ending(log: Tell, state: TrainingState, per_pass: int) -> Iterator[None]:
    """Log how the block ends."""
    try:
        yield
    except CallRefused as error:
        log(
            End(
                **_place(state, per_pass),
                finished=False,
                reason=f"{REASONS[error.reason].meaning.capitalize()}.",
            )
        )
        raise
    log(End(**_place(state, per_pass), finished=True))


def _place(state: TrainingState, per_pass: int) -> dict[str, Any]:
    return {"step": state.done, "pass_": -(-state.done // per_pass)}


def _collapsed() -> CallRefused:
    return CallRefused(
        "collapsed",
        expected="a training that learns, since pace.stop_on_collapse is on",
        found="an alarm of the monitors; the last ones stand in the log and in group.html",
        advice="try a lower train.rate or another seed; or switch the setting off to go on",
    )
