"""The group level: heads on a package's embeddings, into a package of their own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

from slimbrain_app.bids.dataset import open_output
from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.comparison import MODEL, Judgement
from slimbrain_app.evaluation.features import Fixed
from slimbrain_app.evaluation.finetuning import describe_score, fit_heads
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.people import People
from slimbrain_app.evaluation.split_file import TEST, Split
from slimbrain_app.evaluation.tuning import Verdict, cut_parts, require_parts
from slimbrain_app.files import lock
from slimbrain_app.model.package_heads import Heads
from slimbrain_app.model.packages import (
    CARD,
    SEEN,
    Package,
    add_heads,
    describe_seen,
    find_made,
)
from slimbrain_app.records import HeadScore, Refusal
from slimbrain_app.settings import FinetuneSettings
from slimbrain_app.workflow.evaluating import judge_outcome
from slimbrain_app.workflow.group import Group, PeopleCall, Watch, gather_group

RECORD = "finetuning.json"

# Of the card.
_MAKING = "linear models that read its embeddings. Its weights are as they were."
_MEANING = """People were left out of everything that led to their prediction. The heads were then
fitted to all of them but those of a test part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneCall(PeopleCall):
    """What a fine-tuning is asked for on the command line."""

    settings: FinetuneSettings

    @property
    def folder(self) -> Path:
        """Where the new package goes."""
        name = self.settings.package_name or f"{Path(self.settings.model).name}-tuned"
        return self.output / "models" / name

    def choose_pooling(self, package: Package) -> Literal["mean", "covariance"]:
        """As of any call; but a training by gradient knows means of views only."""
        if not self.settings.tune.by_gradient:
            return PeopleCall.choose_pooling(self, package)
        if self.settings.predict.pooling == "covariance":
            raise CallRefused(
                "usage",
                expected="a linear head on a frozen encoder, since predict.pooling is covariance",
                found=f"tune.encoder {self.settings.tune.encoder}, tune.head "
                f"{self.settings.tune.head}",
                advice="leave one of these out",
            )
        return "mean"

    def require_people(self, outcomes: Sequence[Outcome], people: People) -> None:
        if self.settings.tune.by_gradient:
            require_parts(outcomes, people, self.cut_parts(outcomes, people))

    def cut_parts(self, outcomes: Sequence[Outcome], people: People) -> Split:
        """Return the parts that a training by gradient has of people: those given, or drawn."""
        tune = self.settings.tune
        return people.split or cut_parts(
            outcomes, people, tune.validation, tune.test, self.settings.seed
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Finetuned:
    """What came of a fine-tuning. ``before`` if an earlier call had made the package.

    ``verdicts`` are those of heads that were trained by gradient.
    """

    package: Package
    heads: Heads | None
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]
    before: bool
    verdicts: tuple[Verdict, ...] = ()


def carry_out(call: FinetuneCall, watch: Watch) -> Finetuned:
    """Fit heads, once it is known how well they tell people left out.

    To everybody; or, where a split is given, to all of it but its test part.

    Raises
    ------
    CallRefused
        As of `gather_group`; ``usage`` if another package has the name.
    """
    open_output(call.output, call.datasets[0])
    folder = call.folder
    with ExitStack() as stack:
        name = f"models/{folder.name}"
        stack.enter_context(lock(call.output / "logs" / f"{folder.name}.lock", name))
        group = gather_group(call, watch, stack, atlas=None)
        origin = describe_origin(group, call.settings)
        before = find_finished(folder, origin)
        if before is not None:
            return Finetuned(
                package=before, heads=None, notes=group.notes, refusals=group.refusals, before=True
            )
        judgements = _judge(group, call.settings, watch)
        scores = dict(_list_scores(judgements))
        fitted = _list_fitted(group.people)
        heads = fit_heads(
            group.cohort, group.people, fitted, group.outcomes, scores, call.settings.seed
        )
        learnt = (
            run.recording.prepared for run in group.runs if run.recording.participant in fitted
        )
        package = add_heads(
            group.package,
            folder,
            heads,
            card=write_card(group.package, folder.name, heads, _MAKING, _MEANING),
            records={
                RECORD: json.dumps(origin, indent=2) + "\n",
                SEEN: describe_seen(learnt, group.package),
            },
        )
    return Finetuned(
        package=package, heads=heads, notes=group.notes, refusals=group.refusals, before=False
    )


def find_finished(folder: Path, origin: dict[str, object]) -> Package | None:
    """Return the package if an earlier call has made it of the same weights, people and settings.

    Raises
    ------
    CallRefused
        ``usage`` if another package stands in its place.
    """
    return find_made(folder, RECORD, origin, "people")


def _judge(group: Group, settings: FinetuneSettings, watch: Watch) -> Iterator[Judgement]:
    """Judge the model alone, without permutations."""
    settings = replace(settings, judge=replace(settings.judge, permutations=0))
    features = {MODEL: Fixed(group.cohort.told_by)}
    for outcome in group.outcomes:
        yield from judge_outcome(outcome, features, group.people, settings, watch)


def describe_origin(group: Group, settings: FinetuneSettings) -> dict[str, object]:
    outcomes = {
        outcome.name: {
            label: str(value) for label, value in zip(outcome.people, outcome.values, strict=True)
        }
        for outcome in group.outcomes
    }
    text, split = json.dumps(outcomes, sort_keys=True), group.people.split
    return {
        "weights": group.package.sha256,
        "settings": replace(settings, package_name=None).fingerprint(),
        "outcomes": sha256(text.encode()).hexdigest(),
        "split": sha256(json.dumps(split and sorted(split.of.items())).encode()).hexdigest(),
        "runs": sorted(run.recording.prepared.fingerprint for run in group.runs),
    }


def _list_fitted(people: People) -> frozenset[str]:
    """Return whom heads are fitted to: everybody, or those of a split who are not to be tested."""
    of = people.split.of if people.split else dict.fromkeys(people.labels, "")
    return frozenset(label for label in people.labels if of.get(label, TEST) != TEST)


def _list_scores(judgements: Iterable[Judgement]) -> Iterable[tuple[str, HeadScore]]:
    """Yield the model's scores by outcome; the one with sites left out comes last, and counts."""
    for one in judgements:
        if one.features == MODEL:
            yield one.outcome.name, describe_score(one.scores[0], one.scheme.name)


def write_card(package: Package, name: str, heads: Heads, making: str, meaning: str) -> str:
    """Return the card of the package that heads were put on, with what they tell.

    ``making`` says what they are, ``meaning`` what their scores are.
    """
    lines = "\n".join(
        f"| {head.outcome} | {head.people} | {_describe_score(head.score)} |"
        for head in heads.heads
    )
    own = (package.folder / CARD).read_text(encoding="utf-8").partition("\n")[2].strip()
    return f"""# {name}

`{package.name}` with heads: {making}

## Heads

| outcome | people | of people left out | 95 % interval | left out |
| --- | --- | --- | --- | --- |
{lines}

{meaning}
`seen.json` tells the runs that they were fitted to, and SlimBrain warns where it meets one. A
prediction is no diagnosis. Compare with what functional connectivity tells before you use it:
`--action evaluate`.

## The package below

{own}
"""


def _describe_score(score: HeadScore | None) -> str:
    if score is None:
        return "unknown | n/a | n/a"
    interval = f"{score.lower:.3f} to {score.upper:.3f}"
    return f"{score.metric} {score.value:.3f} | {interval} | {score.scheme}"
