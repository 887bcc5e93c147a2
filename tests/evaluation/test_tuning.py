"""Parts, labels and verdicts of a fine-tuning by gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.judging import INNER_FOLDS, answer_by
from slimbrain_app.evaluation.linear import encode_classes, fit_linear
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.people import People
from slimbrain_app.evaluation.split_file import Split
from slimbrain_app.evaluation.tuning import cut_parts, finish_heads, make_labels, require_parts
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.heads import Head, HeadedEncoder
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.prediction import predict


def gather(count: int, families: list[str] | None = None) -> People:
    labels = tuple(f"{number:03}" for number in range(count))
    return People(
        labels=labels,
        sites=(None,) * count,
        families=families and tuple(families),
        covariates=pd.DataFrame(index=list(labels)),
    )


def tell(people: People, values, kind="class", name="sex") -> Outcome:
    return Outcome(name, kind, np.asarray(values), people.labels)


def count(split: Split) -> dict[str, int]:
    return pd.Series(split.of).value_counts().to_dict()


def test_parts_have_their_shares_and_as_many_of_each_class():
    people = gather(200)
    sex = tell(people, ["F", "M", "M", "M"] * 50)
    split = cut_parts([sex], people, 0.1, 0.2, seed=3)
    assert count(split) == {"train": 140, "validation": 20, "test": 40}
    for part, women in (("validation", 5), ("test", 10)):
        own = [
            value
            for label, value in zip(people.labels, sex.values, strict=True)
            if split.of[label] == part
        ]
        assert abs(own.count("F") - women) <= 1


def test_parts_are_alike_in_a_number():
    people = gather(200)
    age = tell(people, np.random.default_rng(0).normal(40, 10, 200), "number", "age")
    split = cut_parts([age], people, 0.15, 0.15, seed=0)
    for part in ("train", "validation", "test"):
        own = age.values[[split.of[label] == part for label in people.labels]]
        assert abs(own.mean() - age.values.mean()) < 2


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 30), min_size=40, max_size=80), st.integers(0, 10), st.integers(0, 30)
)
def test_no_family_is_in_two_parts_whatever_is_known_of_whom(families, seed, unknown):
    people = gather(len(families), [f"f{number}" for number in families])
    known = len(families) - unknown
    labels = people.labels[:known]
    age = Outcome("age", "number", np.arange(known, dtype=float), labels)
    if len({people.families[row] for row in range(known)}) < 6:
        with pytest.raises(CallRefused, match="six families"):
            cut_parts([age], people, 0.2, 0.2, seed)
        return
    split = cut_parts([age], people, 0.2, 0.2, seed)
    parts = pd.DataFrame(
        {"family": people.families, "part": [split.of[one] for one in people.labels]}
    )
    assert (parts.groupby("family")["part"].nunique() == 1).all()
    assert set(split.of) == set(people.labels)


def test_seeds_draw_other_parts():
    people = gather(100)
    sex = tell(people, ["F", "M"] * 50)
    assert cut_parts([sex], people, 0.2, 0.2, 0).of != cut_parts([sex], people, 0.2, 0.2, 1).of


@pytest.fixture
def cohort():
    """People whose sex and age two features tell, of some unknown, and a split."""
    people, draw = gather(120), np.random.default_rng(1)
    features = draw.standard_normal((120, 192))
    sex = tell(people, np.where(features[:, 0] + draw.standard_normal(120) > 0.5, "M", "F"))
    numbers = 40 + 10 * features[:, 1] + draw.standard_normal(120)
    age = tell(people, numbers, "number", "age").take(np.arange(90))
    return people, features, (sex, age), cut_parts([sex], people, 0.2, 0.2, 0)


def test_heads_begin_as_linear_models_of_the_train_part(cohort):
    people, features, outcomes, split = cohort
    labels = make_labels(outcomes, people, split, features, seed=0)
    age = outcomes[1]
    train = age.take(np.flatnonzero([split.of[one] == "train" for one in age.people]))
    model = fit_linear(features[people.find(train.people)], train, 0, INNER_FOLDS, 0)
    weight, bias = labels.starts[1]
    mean, deviation = train.values.mean(), train.values.std()
    np.testing.assert_allclose(
        (features @ weight.T + bias) * deviation + mean, model.decide(features), rtol=1e-3
    )


def test_targets_are_standardised_by_the_train_part_and_unknown_of_test(cohort):
    people, features, outcomes, split = cohort
    labels = make_labels(outcomes, people, split, features, seed=0)
    part = np.array([split.of[one] for one in labels.people])
    known = np.arange(120) < 90
    own = labels.targets[(part == "train") & known, 1]
    assert own.mean() == pytest.approx(0, abs=1e-6)
    assert own.std() == pytest.approx(1, abs=1e-6)
    assert not labels.targets[part == "test"].any()
    assert not labels.weights[part == "test"].any()
    assert not labels.weights[~known, 1].any()


def test_classes_and_outcomes_weigh_the_same_in_train(cohort):
    people, features, outcomes, split = cohort
    labels = make_labels(outcomes, people, split, features, seed=0)
    train = np.array([split.of[one] == "train" for one in labels.people])
    np.testing.assert_allclose(labels.weights[train].mean(axis=0), 1, rtol=1e-6)
    sums = [labels.weights[train & (outcomes[0].values == one), 0].sum() for one in "FM"]
    assert sums[0] == pytest.approx(sums[1])


def test_what_is_told_of_people_is_what_the_verdict_was_on(cohort):
    people, features, outcomes, split = cohort
    labels = make_labels(outcomes, people, split, features, seed=0)
    network = HeadedEncoder(Encoder(PRESETS["tiny"]), [Head(192, 1), Head(192, 1)])
    for head, (weight, bias) in zip(network.heads, labels.starts, strict=True):
        head.linear.weight.data[:] = head.linear.weight.new_tensor(weight)
        head.linear.bias.data[:] = head.linear.bias.new_tensor(bias)
    views = {
        label: np.stack([row - 1, row + 1]).astype(np.float32)
        for label, row in zip(people.labels, features, strict=True)
    }
    heads, verdicts = finish_heads(network, outcomes, people, split, views, features, seed=0)
    told = {
        label: predict(heads, own.mean(0), own, trained=True, seen=False)
        for label, own in views.items()
    }
    age = outcomes[1]
    tests = [row for row, label in enumerate(age.people) if split.of[label] == "test"]
    said = [
        next(one.value for one in told[age.people[row]] if one.outcome == "age") for row in tests
    ]
    r = np.corrcoef(said, age.values[tests])[0, 1]
    assert verdicts[1].own.value == pytest.approx(r, abs=1e-3)
    assert verdicts[1].own.people == len(tests)
    assert verdicts[1].own.value - verdicts[1].frozen.value == pytest.approx(
        verdicts[1].above.value
    )
    assert heads.heads[1].score.scheme == "test part"
    # Its margin held nine in ten of validation.
    held = [row for row, label in enumerate(age.people) if split.of[label] == "validation"]
    errors = [
        abs(
            next(one.value for one in told[age.people[row]] if one.outcome == "age")
            - age.values[row]
        )
        for row in held
    ]
    assert np.mean(np.array(errors) <= heads.heads[1].margin + 1e-6) >= 0.9


def test_answers_of_one_model_are_those_of_its_decisions(cohort):
    _, features, (sex, _), _ = cohort
    coded = encode_classes(sex)
    model = fit_linear(features, coded, 2, INNER_FOLDS, 0)
    answers = answer_by(model, coded, 2, features)
    said = model.decide(features)[:, 0]
    assert np.array_equal(answers.predicted[0], said > 0)
    np.testing.assert_allclose(answers.probability[0], model.judge(said[:, None]))


def test_a_family_in_two_parts_is_refused_by_name(cohort):
    people, _, outcomes, split = cohort
    of = dict(split.of)
    train = next(one for one, part in of.items() if part == "train")
    other = next(one for one, part in of.items() if part == "validation")
    families = ["smith" if one in (train, other) else one for one in people.labels]
    with pytest.raises(CallRefused, match="smith") as caught:
        require_parts(outcomes, replace(people, families=tuple(families)), split)
    assert caught.value.reason == "leak"


def test_a_part_that_lacks_a_class_is_refused(cohort):
    people, _, outcomes, split = cohort
    sex = outcomes[0]
    values = [
        "F" if split.of[label] == "validation" else value
        for label, value in zip(sex.people, sex.values, strict=True)
    ]
    with pytest.raises(CallRefused, match="validation") as caught:
        require_parts([tell(people, values)], people, split)
    assert caught.value.reason == "too-few"
