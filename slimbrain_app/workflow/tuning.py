"""The group level: heads, and the encoder below them, trained by labelled people."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slimbrain_app.bids.dataset import open_output
from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.split_file import PARTS, Split
from slimbrain_app.evaluation.tuning import (
    Verdict,
    finish_heads,
    make_labels,
)
from slimbrain_app.files import lock, whole_file
from slimbrain_app.model.heads import HeadedEncoder
from slimbrain_app.model.package_heads import Heads
from slimbrain_app.model.packages import (
    SEEN,
    Package,
    add_heads,
    describe_seen,
    load_encoder,
    load_package,
)
from slimbrain_app.settings import Tune
from slimbrain_app.training.corpus import Corpus, Item
from slimbrain_app.training.distributed import Processes, join_processes
from slimbrain_app.training.lesson import BagReader, Lesson, read_labels, write_labels
from slimbrain_app.training.log import Event
from slimbrain_app.training.manifest import Manifest, read_manifest, write_manifest
from slimbrain_app.training.memory import Load, choose_load, measure_free
from slimbrain_app.training.optimiser import choose_precision
from slimbrain_app.training.tuning import FineTuning, tune_heads
from slimbrain_app.training.views import KeptEmbeddings, StoredWindows, Views
from slimbrain_app.workflow.finetuning import (
    RECORD,
    FinetuneCall,
    Finetuned,
    describe_origin,
    find_finished,
    write_card,
)
from slimbrain_app.workflow.group import Group, gather_group
from slimbrain_app.workflow.group import Watch as GroupWatch
from slimbrain_app.workflow.resources import (
    Limits,
    count_threads,
    count_workers,
    find_limits,
    share_limits,
)


class Watch(GroupWatch, Protocol):
    """Who is told how a training goes, besides."""

    def tell(self, event: Event) -> None:
        """Tell what has happened in the training."""


def carry_out(call: FinetuneCall, watch: Watch) -> Finetuned | None:
    """Train heads, and the encoder as the settings say; or go on where an earlier call has stopped.

    Under ``torchrun`` all processes call it. The first one does everything but train while the
    others wait, and it alone returns something.

    Raises
    ------
    CallRefused
        As of `gather_group`, `make_labels` and `tune_heads`; ``usage`` if another package has the
        name, or several processes are to train by embeddings at hand.
    """
    with join_processes(call.settings.compute.device) as processes, ExitStack() as stack:
        if processes.size > 1 and call.settings.tune.encoder == "frozen":
            raise _needless()
        conductor = _Conductor(call, processes, watch, stack)
        processes.run_first("settle who learns", conductor.settle)
        (before,) = processes.any(conductor.done is not None)
        if not before:
            conductor.train()
        return conductor.done


@dataclass(slots=True, eq=False)
class _Conductor:
    """A call in one process, and what is known of it so far."""

    call: FinetuneCall
    processes: Processes
    watch: Watch
    stack: ExitStack
    group: Group | None = None
    split: Split | None = None
    lesson: Lesson | None = None
    done: Finetuned | None = None

    @property
    def tuning(self) -> FineTuning:
        return FineTuning(self.call.folder, self.call.settings)

    def settle(self) -> None:
        """Lock what will be written; prepare and embed runs, cut parts. In the first process."""
        call, tuning, settings = self.call, self.tuning, self.call.settings
        open_output(call.output, call.datasets[0])
        name = tuning.folder.name
        self.stack.enter_context(lock(call.output / "logs" / f"{name}.lock", f"models/{name}"))
        group = gather_group(call, self.watch, self.stack, atlas=None)
        if not tuning.checkpoints.exists():
            before = find_finished(tuning.folder, describe_origin(group, settings))
            if before is not None:
                self.done = _finish(group, before)
                return
        split = call.cut_parts(group.outcomes, group.people)
        self.group, self.split = group, split
        labels = make_labels(group.outcomes, group.people, split, group.cohort.means, settings.seed)
        corpus = Corpus(
            self._list_items("train"), self._list_items("validation"), group.package.contract
        )
        self.lesson = Lesson(corpus=corpus, labels=labels)
        tuning.checkpoints.mkdir(parents=True, exist_ok=True)
        write_labels(tuning.labels, labels)
        write_manifest(tuning.manifest, Manifest.of(corpus, {}, settings.fingerprint()))
        _write_split(call.output / "logs" / f"{name}_split.tsv", group, split)

    def train(self) -> None:
        """Train with the other processes; the first one publishes what comes of it."""
        call, tuning = self.call, self.tuning
        package = load_package(call.settings.model, [call.output / "models"])
        lesson = self.lesson or Lesson(
            corpus=read_manifest(tuning.manifest).gather(), labels=read_labels(tuning.labels)
        )
        limits = share_limits(find_limits(call.settings.compute))
        workers = count_workers(call.settings.pace, limits)
        torch.set_num_threads(count_threads(limits, workers))
        load = self._choose_load(package, limits)
        network = tune_heads(
            tuning,
            lesson,
            load_encoder(package),
            self._open_views(lesson, package, load, workers),
            self.processes,
            load.at_once,
            load.recompute,
            self.watch.tell,
        )
        if self.processes.first:
            self.done = self._publish(network, load)

    def _choose_load(self, package: Package, limits: Limits) -> Load:
        settings, processes = self.call.settings, self.processes
        return choose_load(
            package.preset,
            -(-settings.tune.people * settings.tune.windows // processes.size),
            choose_precision(settings.tune.precision, processes.device),
            measure_free(processes.device, limits.memory_gb * 1e9 / 2**30),
            processes.device.type == "cuda",
            settings.pace,
            whole=True,
        )

    def _list_items(self, *parts: str) -> tuple[Item, ...]:
        """Return the runs of people in these parts; windows of a frozen encoder are its views."""
        assert self.group is not None and self.split is not None
        frozen = self.call.settings.tune.encoder == "frozen"
        return tuple(
            Item(run.recording, tuple(range(len(run.views))) if frozen else run.starts)
            for run in self.group.runs
            if self.split.of.get(run.recording.participant) in parts
        )

    def _open_views(
        self,
        lesson: Lesson,
        package: Package,
        load: Load,
        workers: int,
        precision: torch.dtype | None = None,
    ) -> Views:
        settings, device = self.call.settings, self.processes.device
        if settings.tune.encoder == "frozen":
            assert self.group is not None
            kept = {run.recording.prepared.folder: run.views for run in self.group.runs}
            items = [kept[item.recording.prepared.folder] for item in lesson.items]
            return KeptEmbeddings(items=items, labels=lesson.labels, device=device)
        return StoredWindows(
            reader=BagReader(lesson, package.contract, package.config.encoder),
            workers=workers,
            device=device,
            at_once=load.at_once,
            precision=precision or choose_precision(settings.tune.precision, device),
        )

    def _publish(self, network: HeadedEncoder, load: Load) -> Finetuned:
        """Embed everybody anew, calibrate and judge, and write the package."""
        group, split, lesson = self.group, self.split, self.lesson
        assert group is not None and split is not None and lesson is not None
        call, tuning, frozen = self.call, self.tuning, self.call.settings.tune.encoder == "frozen"
        whole = Corpus(self._list_items(*PARTS), (), group.package.contract)
        everybody = Lesson(corpus=whole, labels=lesson.labels)
        views = self._open_views(everybody, group.package, load, 0, torch.float32)
        heads, verdicts = finish_heads(
            network,
            group.outcomes,
            group.people,
            split,
            _embed(network, everybody, views),
            group.cohort.means,
            call.settings.seed,
        )
        # Beside the package, not part of it: it tells times, which are never the same.
        shutil.copyfile(tuning.log, tuning.finished_log)
        learnt = (item.recording.prepared for item in lesson.items)
        package = add_heads(
            group.package,
            tuning.folder,
            heads,
            encoder=None if frozen else network.encoder.cpu(),
            card=write_card(
                group.package,
                tuning.folder.name,
                heads,
                _describe_making(call.settings.tune),
                _describe_meaning(verdicts),
            ),
            records={
                RECORD: json.dumps(describe_origin(group, call.settings), indent=2) + "\n",
                SEEN: describe_seen(learnt, group.package),
            },
        )
        return _finish(group, package, heads, verdicts)


def _embed(network: HeadedEncoder, lesson: Lesson, views: Views) -> dict[str, NDArray[np.float32]]:
    """Return the embeddings of each person's views, by label."""
    bags = lesson.train
    rows = views.embed(network.encoder.eval(), bags).cpu().numpy()
    ends = np.cumsum([len(bag.windows) for bag in bags])[:-1]
    parts = np.split(rows, ends)
    return {lesson.labels.people[bag.person]: own for bag, own in zip(bags, parts, strict=True)}


def _finish(
    group: Group,
    package: Package,
    heads: Heads | None = None,
    verdicts: tuple[Verdict, ...] = (),
) -> Finetuned:
    return Finetuned(
        package=package,
        heads=heads,
        notes=group.notes,
        refusals=group.refusals,
        before=heads is None,
        verdicts=verdicts,
    )


def _describe_making(tune: Tune) -> str:
    weights = {
        "frozen": "Its weights are as they were.",
        "lora": f"Of its weights, the maps of attention have learnt with them, by changes of rank "
        f"{tune.rank}.",
        "full": "All of its weights have learnt with them.",
    }[tune.encoder]
    heads = {
        "linear": "linear models of the mean over a person's windows",
        "attentive": "linear models of a mean over a person's windows, each weighed by attention",
    }[tune.head]
    return f"{heads}, trained by gradient. {weights}"


def _describe_meaning(verdicts: Sequence[Verdict]) -> str:
    told = "\n".join(f"- {describe_verdict(one)}" for one in verdicts)
    return f"""People of the test part were told once, when everything was chosen, and nothing was
fitted to them.

{told}
"""


def describe_verdict(verdict: Verdict) -> str:
    """Say how a trained head compares with the linear one on the encoder as it was."""
    own, below, above = verdict.own, verdict.frozen, verdict.above
    return (
        f"{own.name}: {own.metric} {own.value:.2f} [{own.lower:.2f}, {own.upper:.2f}] of "
        f"{own.people} people; a linear head on the encoder as it was, {below.value:.2f} "
        f"[{below.lower:.2f}, {below.upper:.2f}]; above it by {above.value:+.2f} "
        f"[{above.lower:+.2f}, {above.upper:+.2f}]"
    )


def _needless() -> CallRefused:
    return CallRefused(
        "usage",
        expected="one process, where the encoder stays as it is",
        found="several: heads alone take seconds",
        advice="start without torchrun",
    )


def _write_split(file: Path, group: Group, split: Split) -> None:
    """Write who was in which part, as `judge.split` takes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary, temporary.open("w", newline="") as stream:
        rows = csv.writer(stream, delimiter="\t", lineterminator="\n")
        rows.writerow(["participant_id", "part"])
        rows.writerows(
            (f"sub-{label}", split.of[label]) for label in group.people.labels if label in split.of
        )
