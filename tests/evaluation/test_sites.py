from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from slimbrain_app.evaluation.comparison import Judgement, Scheme
from slimbrain_app.evaluation.metrics import Answers
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.sites import score_sites

SITES = ["b"] * 30 + ["a"] * 20 + [None] * 4 + ["few"] * 9 + ["one sex"] * 12


@pytest.fixture
def judgement():
    """Answers to an outcome of two classes, in two repeats; one site has hardly anyone of one."""
    draw, people = np.random.default_rng(0), len(SITES)
    truth = draw.integers(0, 2, people)
    truth[-12:] = [0, 0, *[1] * 10]
    score = truth[None, :, None] + draw.standard_normal((2, people, 1))
    outcome = Outcome("sex", "class", np.array(["F", "M"])[truth], [str(n) for n in range(people)])
    parts = np.tile(np.arange(people) % 5, (2, 1))
    answers = Answers(
        truth=np.tile(truth.astype(float), (2, 1)),
        predicted=(score[..., 0] > 0.5).astype(float),
        score=score,
        centre=np.zeros((2, people)),
        probability=np.full((2, people, 2), 0.5),
        margin=np.zeros((2, people)),
        fold=parts,
    )
    scheme = Scheme(name="person", outcome=outcome, parts=parts)
    return Judgement(features="model", scheme=scheme, answers=answers, scores=())


def test_everybody_is_at_one_site(judgement):
    told = score_sites(judgement, SITES, 0)
    assert [site for site, _, _ in told] == ["a", "b", "few", "one sex", None]
    assert sum(people for _, people, _ in told) == len(SITES)


def test_a_site_is_scored_by_its_own_people(judgement):
    answers = judgement.answers
    for site, people, score in score_sites(judgement, SITES, 0)[:2]:
        rows = np.array([name == site for name in SITES])
        areas = [roc_auc_score(answers.truth[0, rows], answers.score[r, rows, 0]) for r in (0, 1)]
        assert (score.metric, score.people) == ("AUROC", people)
        assert score.value == pytest.approx(np.mean(areas))
        assert score.lower < score.value < score.upper


def test_too_few_people_are_counted_but_not_scored(judgement):
    told = {site: (people, score) for site, people, score in score_sites(judgement, SITES, 0)}
    assert told["few"] == (9, None)
    assert told["one sex"] == (12, None)
    assert told[None] == (4, None)
