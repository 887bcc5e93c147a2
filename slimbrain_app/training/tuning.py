"""The training of heads, and of the encoder below them, by labelled people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.heads import (
    Head,
    HeadedEncoder,
    add_low_rank,
    group_parameters,
    merge_low_rank,
)
from slimbrain_app.model.objective import Loss
from slimbrain_app.model.tuning import Tuning
from slimbrain_app.settings import FinetuneSettings, Tune
from slimbrain_app.training.checkpoint import Identity
from slimbrain_app.training.distributed import Processes
from slimbrain_app.training.folder import Tell, TrainingFolder, under_way
from slimbrain_app.training.lesson import Bag, Labels, Lesson, draw_windows, label_views
from slimbrain_app.training.log import Start, Step, Validation
from slimbrain_app.training.loop import train
from slimbrain_app.training.optimiser import choose_precision, make_optimiser, make_scaler
from slimbrain_app.training.samples import cut_steps, share_step
from slimbrain_app.training.schedule import make_schedule
from slimbrain_app.training.state import TrainingState
from slimbrain_app.training.step import Plan, Progress, Share
from slimbrain_app.training.views import Views


@dataclass(frozen=True, slots=True)
class FineTuning(TrainingFolder):
    """A fine-tuning in its folder."""

    settings: FinetuneSettings

    @property
    def labels(self) -> Path:
        return self.checkpoints / "labels.npz"


def tune_heads(
    tuning: FineTuning,
    lesson: Lesson,
    encoder: Encoder,
    views: Views,
    processes: Processes,
    at_once: int,
    recompute: bool,
    tell: Tell,
) -> HeadedEncoder:
    """Train, from the last checkpoint if there is one, until people kept out are told no better.

    Parameters
    ----------
    encoder : Encoder
        Learns as the settings say, in place.
    views : Views
        Of the lesson's people.
    at_once : int
        Windows that a process holds at once; those of one person at least.
    recompute : bool
        Whether activations are computed again on the way back.
    tell : callable
        Takes every event, besides the log. In the first process only.

    Returns
    -------
    HeadedEncoder
        With the weights that told people kept out best. In the first process only; in others they
        are those of the last step.

    Raises
    ------
    CallRefused
        As of `train` and `resume`.
    """
    settings, tune = tuning.settings, tuning.settings.tune
    people = lesson.train
    per_pass = -(-len(people) // tune.people)
    objective = make_tuning(encoder, lesson.labels, tune, settings.seed).to(processes.device)
    objective.recompute(recompute)
    plan = _make_plan(settings, tune.passes * per_pass, processes)
    state, best = _make_state(objective, tune, plan, lesson, processes)
    identity = Identity(settings=settings.fingerprint(), corpus=lesson.fingerprint)
    tensorboard = settings.pace.tensorboard
    with under_way(
        tuning, state, identity, best.start, processes.first, tensorboard, tell
    ) as course:
        if processes.first:
            best.watch(lesson.validation, views, lesson.labels, course.tell)
            if not course.resumed:
                best.end_pass(0)
        shares = _list_shares(people, settings, views, processes, at_once, state.done)
        train(state, shares, plan, processes, course.save, best.end_step)
    best.restore()
    if tune.encoder == "lora":
        merge_low_rank(encoder)
    return objective.network


def make_tuning(encoder: Encoder, labels: Labels, tune: Tune, seed: int) -> Tuning:
    """Return what is trained: heads at their starts, and what may learn of the encoder below."""
    if tune.encoder == "lora":
        add_low_rank(encoder, tune.rank, seed)
    else:
        encoder.requires_grad_(tune.encoder == "full")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        heads = [_start_head(*start, tune.head == "attentive") for start in labels.starts]
    return Tuning(HeadedEncoder(encoder, heads), labels.outcomes, labels.classes)


def _start_head(weight: Any, bias: Any, attentive: bool) -> Head:
    outputs, width = weight.shape
    head = Head(width, outputs, attentive=attentive)
    head.linear.weight.data = torch.from_numpy(weight)
    head.linear.bias.data = torch.from_numpy(bias)
    return head


def _make_plan(settings: FinetuneSettings, steps: int, processes: Processes) -> Plan:
    tune = settings.tune
    return Plan(
        schedule=make_schedule(steps, tune.warm_up, tune.last_rate / tune.rate),
        clip=tune.clip,
        precision=choose_precision(tune.precision, processes.device),
        seed=settings.seed,
        checkpoint_minutes=settings.pace.checkpoint_minutes,
    )


def _make_state(
    objective: Tuning, tune: Tune, plan: Plan, lesson: Lesson, processes: Processes
) -> tuple[TrainingState, Best]:
    start = Start(
        passes=tune.passes,
        steps=plan.schedule.steps,
        batch=tune.people * tune.windows,
        windows_per_run=tune.windows,
        warm_up=plan.schedule.warm_up,
        frames=lesson.corpus.contract.frames,
        width=objective.trained.sizes.embedding_width,
        kinds=objective.kinds,
    )
    best = Best(objective=objective, start=start, patience=tune.patience)
    groups = group_parameters(
        objective.network,
        rate=tune.rate,
        head_rate=tune.head_rate,
        decay=tune.decay if tune.encoder == "full" else 1.0,
        weight_decay=tune.weight_decay,
    )
    state = TrainingState(
        objective=objective,
        optimiser=make_optimiser(groups, tune.rate),
        scaler=make_scaler(plan.precision, processes.device),
        observer=best,
    )
    return state, best


def _list_shares(
    people: Sequence[Bag],
    settings: FinetuneSettings,
    views: Views,
    processes: Processes,
    at_once: int,
    done: int,
) -> Iterator[Share]:
    """Yield this process's share of each step that is left, its batches still to be read."""
    tune = settings.tune

    def list_parts() -> Iterator[tuple[int, bool, int, list[Sequence[Bag]]]]:
        whole, part = divmod(done, -(-len(people) // tune.people))
        for pass_ in range(whole + 1, tune.passes + 1):
            drawn = draw_windows(people, tune.windows, settings.seed, pass_)
            steps = cut_steps(drawn, tune.people)
            for number, step in enumerate(steps[part:], start=part + 1):
                few = max(at_once // tune.windows, 1)
                parts = share_step(step, processes.rank, processes.size, few)
                yield pass_, number == len(steps), len(step), parts
            part = 0

    batches = views.read(bags for *_, parts in list_parts() for bags in parts)
    for pass_, ends_pass, count, parts in list_parts():
        yield Share(
            pass_=pass_,
            ends_pass=ends_pass,
            views=count,
            batches=(next(batches) for _ in parts),
            names=[f"person {bag.person}" for bags in parts for bag in bags],
        )


@dataclass(slots=True, eq=False)
class Best:
    """The observer of a fine-tuning: keeps the weights that told people kept out best.

    One in each process; only the first one's watches, once `watch` was called.

    Attributes
    ----------
    objective : Tuning
    start : Start
    patience : int
        Passes without a lower loss after which there is an end.
    loss, pass_ : float and int
        The lowest so far, and after which pass; 0 for the weights begun with.
    weights : dict of Tensor
        By name, of all that learns, as they were then.
    enough : bool
        Whether patience is at an end.
    """

    objective: Tuning
    start: Start
    patience: int
    loss: float = math.inf
    pass_: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    validate: Callable[[], tuple[float, tuple[float, ...]]] | None = None
    tell: Tell = lambda _: None
    enough: bool = False
    _step: int = 0

    def watch(self, bags: Sequence[Bag], views: Views, labels: Labels, tell: Tell) -> None:
        """Begin to watch the people of bags."""
        self.tell = tell
        blank = label_views(torch.empty(0), bags, labels)

        @torch.no_grad()
        def validate() -> tuple[float, tuple[float, ...]]:
            objective = self.objective.eval()
            embeddings = views.embed(objective.trained, bags)
            batch = blank.to(embeddings.device)
            said = objective.network.read(embeddings, batch.lengths)
            errors = objective.find_errors(said, batch.targets) * batch.weights
            known = (batch.weights > 0).sum(0).clamp(min=1)
            means = (errors.sum(0) / known).tolist()
            objective.train()
            return sum(means) / len(means), tuple(means)

        self.validate = validate

    def see(self, loss: Loss) -> None:
        """Nothing is read from a micro-batch."""

    def end_step(self, progress: Progress) -> None:
        self._step = progress.step
        if self.validate is not None:
            self.tell(Step.of(progress, windows=self.start.windows_per_run))

    def end_pass(self, number: int) -> None:
        if self.validate is None:
            return
        loss, kinds = self.validate()
        if loss < self.loss:
            self.loss, self.pass_ = loss, number
            self.weights = {
                name: parameter.detach().cpu().clone() for name, parameter in self._list_learning()
            }
        self.enough = number - self.pass_ >= self.patience
        self.tell(
            Validation(
                step=self._step,
                pass_=number,
                loss=loss,
                kinds=kinds,
                over_constant=math.nan,
                over_position=math.nan,
            )
        )

    def wants_end(self) -> bool:
        return self.enough

    @torch.no_grad()
    def restore(self) -> None:
        """Take the best weights back."""
        for name, parameter in self._list_learning():
            if name in self.weights:
                parameter.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "pass": self.pass_,
            "weights": self.weights,
            "enough": self.enough,
            "step": self._step,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.loss, self.pass_ = state_dict["loss"], state_dict["pass"]
        self.weights = dict(state_dict["weights"])
        self.enough, self._step = state_dict["enough"], state_dict["step"]

    def _list_learning(self) -> Iterator[tuple[str, nn.Parameter]]:
        return (
            (name, parameter)
            for name, parameter in self.objective.named_parameters()
            if parameter.requires_grad
        )
