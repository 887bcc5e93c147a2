"""The group level: from datasets to a model package."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch

from slimbrain_app.bids.dataset import open_output, read_licence
from slimbrain_app.device import choose_device
from slimbrain_app.files import lock
from slimbrain_app.model.packages import Package
from slimbrain_app.records import Recording, Refusal
from slimbrain_app.settings import PretrainSettings
from slimbrain_app.training.corpus import Corpus
from slimbrain_app.training.design import make_design
from slimbrain_app.training.distributed import Processes, join_processes
from slimbrain_app.training.log import Event
from slimbrain_app.training.manifest import read_manifest
from slimbrain_app.training.memory import Load, choose_load, measure_free
from slimbrain_app.training.optimiser import choose_precision
from slimbrain_app.training.pretraining import Pretraining, train_encoder
from slimbrain_app.training.publishing import find_finished, publish
from slimbrain_app.training.settling import settle_corpus
from slimbrain_app.workflow.corpus import CorpusPlan, Refused, name_datasets, plan_corpus
from slimbrain_app.workflow.outcome import Page, list_sources, write_corpus
from slimbrain_app.workflow.plan import list_software
from slimbrain_app.workflow.preparing import Gathering, gather_runs
from slimbrain_app.workflow.probing import Prober
from slimbrain_app.workflow.resources import (
    Limits,
    count_threads,
    count_workers,
    find_limits,
    share_limits,
)


class Watch(Protocol):
    """Who is told how a pretraining goes."""

    def show_plan(self, plan: CorpusPlan) -> None:
        """Tell what was found and what is to be prepared."""

    def count(self, what: str, done: int, total: int) -> None:
        """Tell how far preparing or ranking is."""

    def say(self, text: str) -> None:
        """Tell a sentence."""

    def tell(self, event: Event) -> None:
        """Tell what has happened in the training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCall(Gathering):
    """What a pretraining is asked for on the command line."""

    settings: PretrainSettings

    @property
    def pretraining(self) -> Pretraining:
        settings = self.settings
        folder = self.output / "models" / (settings.package_name or settings.preset)
        return Pretraining(folder, settings, make_design(settings))


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a call would do, as far as can be told before runs are prepared and ranked.

    ``steps`` are the most there can be.
    """

    plan: CorpusPlan
    people: int
    held_out: int
    steps: int
    batch: int
    load: Load


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrained:
    """How a pretraining ended. ``before`` if an earlier call had made the package."""

    package: Package
    refusals: tuple[Refusal, ...]
    before: bool


def forecast(call: GroupCall) -> Forecast:
    """Look at everything and write nothing.

    Raises
    ------
    CallRefused
        Whatever would keep the call from starting.
    """
    settings, design = call.settings, call.pretraining.design
    plan = plan_corpus(call.datasets, call.output, settings, design.contract)
    runs = [(one.dataset, one.participant) for one in plan.recordings]
    runs += [(one.dataset, one.run.participant) for one in plan.todo]
    people, share, each = len(set(runs)), settings.corpus.validation, settings.rank.windows
    held_out = min(max(round(share * people), 1), people - 1) if share and people else 0
    kept = round(len(runs) * (1 - held_out / people)) if people else 0
    drawn = design.windows_per_run if each == "all" else min(design.windows_per_run, each)
    device = torch.device(choose_device(settings.compute.device))
    return Forecast(
        plan=plan,
        people=people,
        held_out=held_out,
        steps=-(-kept * drawn // design.batch) * settings.train.passes,
        batch=design.batch,
        load=choose_own_load(call, Processes(device=device), find_limits(settings.compute)),
    )


def carry_out(call: GroupCall, watch: Watch) -> Pretrained | None:
    """Prepare, settle the corpus, train, publish; or go on where an earlier call has stopped.

    Under ``torchrun`` all processes call it. The first one does everything but train while the
    others wait, and it alone returns something.

    Raises
    ------
    SlimBrainError
        Whatever ends the call.
    """
    with join_processes(call.settings.compute.device) as processes, ExitStack() as stack:
        conductor = _Conductor(call, processes, watch, stack)
        processes.run_first("settle the corpus", conductor.settle)
        (before,) = processes.any(conductor.package is not None)
        if not before:
            conductor.train()
        if conductor.package is None:
            return None
        return Pretrained(
            package=conductor.package, refusals=conductor.list_refusals(), before=before
        )


@dataclass(slots=True, eq=False)
class _Conductor:
    """A call in one process, and what is known of it so far."""

    call: GroupCall
    processes: Processes
    watch: Watch
    stack: ExitStack
    corpus: Corpus | None = None
    refusals: Mapping[str, Sequence[Refusal]] = field(default_factory=dict)
    package: Package | None = None

    def list_refusals(self) -> tuple[Refusal, ...]:
        return tuple(refusal for many in self.refusals.values() for refusal in many)

    def settle(self) -> None:
        """Lock what will be written; prepare, split and rank runs. In the first process only."""
        call, pretraining = self.call, self.call.pretraining
        open_output(call.output, call.datasets[0])
        name = pretraining.folder.name
        self.stack.enter_context(lock(call.output / "logs" / f"{name}.lock", f"models/{name}"))
        recordings = self._prepare()
        self.package = find_finished(pretraining, recordings)
        if self.package is not None:
            return
        if not pretraining.manifest.exists():  # What can't be used is told even if nothing can.
            empty = Corpus((), (), pretraining.design.contract)
            write_corpus(call.output, empty, self.refusals)
        torch.set_num_threads(find_limits(call.settings.compute).threads)
        settled = settle_corpus(
            pretraining,
            recordings,
            self.refusals,
            self.processes.device,
            self.watch.tell,
            self.watch.count,
        )
        self.corpus, self.refusals = settled.gather(recordings), settled.refusals
        write_corpus(call.output, self.corpus, self.refusals)

    def train(self) -> None:
        """Train with the other processes; the first one publishes what comes of it."""
        call, first = self.call, self.processes.first
        corpus = self.corpus or read_manifest(call.pretraining.manifest).gather()
        limits = share_limits(find_limits(call.settings.compute))
        workers = count_workers(call.settings.pace, limits)
        torch.set_num_threads(count_threads(limits, workers))
        with self._page(corpus) if first else nullcontext() as page:
            objective = train_encoder(
                call.pretraining,
                corpus,
                self.processes,
                choose_own_load(call, self.processes, limits),
                workers,
                self._make_prober(corpus) if first else None,
                page.follow if page else self.watch.tell,
            )
            if page:
                licences = {
                    dataset.name: read_licence(dataset.folder)
                    for dataset in name_datasets(call.datasets)
                }
                sources = list_sources(corpus, licences)
                self.package = publish(
                    call.pretraining, objective, corpus, sources, list_software()
                )
                page.weights = self.package.sha256

    def _prepare(self) -> tuple[Recording, ...]:
        call, limits = self.call, find_limits(self.call.settings.compute)
        contract, watch = call.pretraining.design.contract, self.watch
        recordings, refused = gather_runs(
            call, contract, limits, watch.show_plan, watch.count, self.stack
        )
        self.refusals = group_refusals(refused)
        return recordings

    def _page(self, corpus: Corpus) -> AbstractContextManager[Page]:
        call = self.call
        page = Page(
            output=call.output,
            pretraining=call.pretraining,
            corpus=corpus,
            refusals=self.list_refusals(),
            device=str(self.processes.device),
            command=call.command,
            tell=self.watch.tell,
        )
        return page.kept()

    def _make_prober(self, corpus: Corpus) -> Prober:
        prober = Prober.of(corpus.validation, corpus.contract, self.call.settings.seed)
        for reason in prober.missing:
            self.watch.say(f"Note: {reason}")
        return prober


def group_refusals(refused: Sequence[Refused]) -> dict[str, list[Refusal]]:
    """Return the refusals of each dataset."""
    grouped: dict[str, list[Refusal]] = defaultdict(list)
    for one in refused:
        grouped[one.dataset].append(one.refusal)
    return dict(grouped)


def choose_own_load(call: GroupCall, processes: Processes, limits: Limits) -> Load:
    """Return how many windows this process holds at once."""
    settings, device = call.settings, processes.device
    return choose_load(
        settings.preset,
        -(-call.pretraining.design.batch // processes.size),
        choose_precision(settings.train.precision, device),
        measure_free(device, limits.memory_gb * 1e9 / 2**30),
        device.type == "cuda",
        settings.pace,
    )
