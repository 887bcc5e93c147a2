"""Fine-tuning by gradient: who is trained on, what heads begin with, and what comes of them.

People are in three parts. Of those in *train*, windows are learnt; those of *validation* say when
to stop, and how far what is said is to be trusted; those of *test* are told once, at the end,
beside a linear head on the encoder as it was, fitted to everybody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.features import Fixed
from slimbrain_app.evaluation.finetuning import describe_head, describe_score, fold_priors
from slimbrain_app.evaluation.judging import (
    INNER_FOLDS,
    Score,
    answer_by,
    answer_left_out,
    compare_answers,
    score_answers,
)
from slimbrain_app.evaluation.linear import (
    LinearModel,
    calibrate,
    encode_classes,
    find_margin,
    fit_linear,
    refuse_few,
)
from slimbrain_app.evaluation.metrics import Answers, list_metrics
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.people import People
from slimbrain_app.evaluation.split_file import PARTS, Split, cut_by_file, refuse_kin
from slimbrain_app.model.heads import Head as TrainedHead
from slimbrain_app.model.heads import HeadedEncoder
from slimbrain_app.model.package_heads import Attention, Heads
from slimbrain_app.prediction import fit_reference
from slimbrain_app.records import Head
from slimbrain_app.training.lesson import Labels

Floats = NDArray[np.float64]

SCHEME = "test part"
# Two in each part, to tell apart.
_FEWEST = 6


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """How well a head tells the test part, how well the linear one did, and how much better."""

    own: Score
    frozen: Score
    above: Score


def cut_parts(
    outcomes: Sequence[Outcome], people: People, validation: float, test: float, seed: int
) -> Split:
    """Put people into parts, families whole, alike in the first outcome.

    Families are put in the order of their mean outcome, and every so many of them are taken.
    Whoever lacks the outcome is trained on, or goes with the family.

    Raises
    ------
    CallRefused
        ``too-few`` with fewer than six families.
    """
    first, draw = outcomes[0], np.random.default_rng(seed)
    family_of = dict(zip(people.labels, people.families or people.labels, strict=True))
    ranks = np.unique(first.values, return_inverse=True)[1]
    names, among = np.unique([family_of[one] for one in first.people], return_inverse=True)
    if len(names) < _FEWEST:
        raise refuse_few(first, "six people or more, of six families, for three parts")
    shuffled = draw.permutation(len(names))
    means = np.bincount(among, ranks) / np.bincount(among)
    order = shuffled[np.argsort(means[shuffled], kind="stable")]
    part_of: dict[str, str] = {}
    for part, share in (("test", test), ("validation", validation)):
        count = max(round(share * len(names)), 2)
        places = ((np.arange(count) + draw.random()) * len(order) / count).astype(int)
        part_of |= dict.fromkeys(names[order[places]], part)
        order = np.delete(order, places)
    return Split(
        {label: part_of.get(family, "train") for label, family in family_of.items()},
        parts=True,
        name="the parts that tune.validation and tune.test make",
    )


def require_parts(outcomes: Sequence[Outcome], people: People, split: Split) -> None:
    """Refuse parts that can't be learnt from, or judged by.

    Raises
    ------
    CallRefused
        ``usage`` for folds in the place of parts; ``leak`` for a family in two parts; ``too-few``
        if a part has fewer than two values of an outcome, or lacks a class.
    """
    if not split.parts:
        raise CallRefused(
            "usage",
            file=split.name,
            expected=f"a column part, of {', '.join(PARTS)}, to train by gradient",
            found="folds",
            advice="write parts, or leave out judge.split to have them drawn",
        )
    for outcome in outcomes:
        thin = []
        some = outcome.take(_find(outcome, split, PARTS))
        cut = np.array([PARTS.index(split.of[label]) for label in some.people])
        refuse_kin(replace(some, sites=people.list_families(some.people)), cut, split)
        for number, part in enumerate(PARTS):
            values = set(some.values[cut == number])
            if len(values) < (len(outcome.classes) if outcome.kind == "class" else 2):
                thin.append(f"{part} with {(cut == number).sum()} people and {len(values)}")
        if thin:
            raise CallRefused(
                "too-few",
                file=outcome.name,
                expected="all classes, or two numbers, in each of train, validation and test",
                found=f"{'; '.join(thin)}, by {split.name}",
                advice="take more people, set tune.validation and tune.test higher, or leave this "
                "outcome out",
            )


def make_labels(
    outcomes: Sequence[Outcome], people: People, split: Split, embeddings: Floats, seed: int
) -> Labels:
    """Return what is to be learnt of people; of those of test, nothing.

    Parameters
    ----------
    embeddings : array, (people, width)
        Each person's mean by the encoder as it is: heads begin as linear models of them, fitted to
        train (Kumar and others 2022, arXiv 2202.10054).

    Raises
    ------
    CallRefused
        As of `require_parts`.
    """
    require_parts(outcomes, people, split)
    labels = [label for label in people.labels if label in split.of]
    place = {label: row for row, label in enumerate(labels)}
    targets, weights = (np.zeros((len(labels), len(outcomes)), np.float32) for _ in range(2))
    classes, starts = [], []
    for column, outcome in enumerate(outcomes):
        coded, count = encode_classes(outcome), _count_classes(outcome)
        train = _find(coded, split, ["train"])
        own = coded.take(train)
        start = fit_linear(embeddings[people.find(own.people)], own, count, INNER_FOLDS, seed)
        weight, bias = start.weight, start.bias
        rows = _find(coded, split, ["train", "validation"])
        values = coded.values[rows]
        among = np.array([place[label] for label in coded.take(rows).people])
        if count:
            share = len(own.values) / (count * np.bincount(own.values.astype(int)))
            weights[among, column] = share[values.astype(int)]
        else:
            mean, deviation = own.values.mean(), own.values.std()
            values = (values - mean) / deviation
            weight, bias = weight / deviation, (bias - mean) / deviation
            weights[among, column] = 1
        targets[among, column] = values
        weights[:, column] *= sum(split.of[label] == "train" for label in labels) / len(train)
        classes.append(count)
        starts.append((weight.astype(np.float32), bias.astype(np.float32)))
    return Labels(
        people=tuple(labels),
        outcomes=tuple(outcome.name for outcome in outcomes),
        classes=tuple(classes),
        targets=targets,
        weights=weights,
        starts=tuple(starts),
    )


def finish_heads(
    network: HeadedEncoder,
    outcomes: Sequence[Outcome],
    people: People,
    split: Split,
    views: Mapping[str, NDArray[np.float32]],
    frozen: Floats,
    seed: int,
) -> tuple[Heads, tuple[Verdict, ...]]:
    """Calibrate trained heads by the people of validation, and judge them by those of test.

    Parameters
    ----------
    views : mapping of str to array, (views, width)
        Of each person in a part, by the trained encoder.
    frozen : array, (people, width)
        Each person's mean by the encoder as it was.
    """
    heads, verdicts = list[Head](), []
    weights, biases, attention = {}, {}, {}
    for trained, outcome in zip(network.heads, outcomes, strict=True):
        assert isinstance(trained, TrainedHead)
        looks = _take_attention(trained)
        pooled = {label: _pool(own, looks) for label, own in views.items()}
        coded, count = encode_classes(outcome), _count_classes(outcome)
        model = _calibrate(trained, coded, count, split, pooled)
        test = coded.take(_find(coded, split, ["test"]))
        answers = answer_by(model, test, count, _stack(pooled, test))
        verdict = _judge(outcome, answers, people, split, frozen, seed)
        verdicts.append(verdict)
        name = outcome.name
        weight, bias = fold_priors(model)
        weights[name], biases[name] = weight.astype(np.float32), bias.astype(np.float32)
        if looks is not None:
            attention[name] = looks
        heads.append(
            describe_head(
                outcome,
                model,
                len(_find(coded, split, ["train", "validation"])),
                [str(value) for value in outcome.classes] if count else [],
                describe_score(verdict.own, SCHEME),
                "mean" if looks is None else "attention",
            )
        )
    fitted = [own.mean(axis=0) for label, own in views.items() if split.of[label] != "test"]
    return (
        Heads(
            heads=tuple(heads),
            weights=weights,
            biases=biases,
            reference=fit_reference(np.stack(fitted)),
            attention=attention,
        ),
        tuple(verdicts),
    )


def _find(outcome: Outcome, split: Split, parts: Sequence[str]) -> NDArray[np.int64]:
    return np.flatnonzero([split.of.get(label) in parts for label in outcome.people])


def _count_classes(outcome: Outcome) -> int:
    return len(outcome.classes) if outcome.kind == "class" else 0


def _take_attention(head: TrainedHead) -> Attention | None:
    pooling = head.pooling
    if pooling is None:
        return None
    return Attention(*map(_move, (pooling.map.weight, pooling.map.bias, pooling.query)))


def _move(parameter: Tensor) -> NDArray[np.float32]:
    return np.asarray(parameter.detach().cpu().numpy(), np.float32)


def _pool(views: NDArray[np.float32], looks: Attention | None) -> Floats:
    if looks is None:
        return np.asarray(views.mean(axis=0, dtype=np.float64))
    return looks.pool(views)


def _stack(pooled: Mapping[str, Floats], outcome: Outcome) -> Floats:
    return np.stack([pooled[label] for label in outcome.people])


def _calibrate(
    head: TrainedHead, coded: Outcome, classes: int, split: Split, pooled: Mapping[str, Floats]
) -> LinearModel:
    """Return a trained head in the outcome's own units, and how far it is to be trusted."""
    train, validation = (coded.take(_find(coded, split, [part])) for part in PARTS[:2])
    weight, bias = (_move(one).astype(np.float64) for one in (head.linear.weight, head.linear.bias))
    centre = 0.0
    if not classes:
        centre, deviation = float(train.values.mean()), train.values.std()
        weight, bias = weight * deviation, bias * deviation + centre
    said = _stack(pooled, train) @ weight.T + bias
    model = LinearModel(
        weight=weight,
        bias=bias,
        penalty=float("nan"),
        middle=said.mean(axis=0),
        spread=said.std(axis=0),
        held_out=_stack(pooled, validation) @ weight.T + bias,
        centre=centre,
    )
    if classes:
        slope, intercept = calibrate(model.held_out, validation)
        return replace(model, slope=slope, intercept=intercept)
    return replace(model, margin=find_margin(np.abs(model.held_out[:, 0] - validation.values)))


def _judge(
    outcome: Outcome, answers: Answers, people: People, split: Split, frozen: Floats, seed: int
) -> Verdict:
    """Judge answers for the test part, in the order of the outcome's people."""
    some = outcome.take(_find(outcome, split, PARTS))
    parts = cut_by_file(some, split)
    below = answer_left_out(Fixed(frozen), some, parts, seed, people.find(some.people))
    test = outcome.take(_find(outcome, split, ["test"]))
    metric = list_metrics(outcome)[0]
    return Verdict(
        own=score_answers(test, answers, metric, seed),
        frozen=score_answers(test, below, metric, seed),
        above=compare_answers(test, below, answers, metric, seed),
    )
