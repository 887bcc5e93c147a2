"""The group's page of an evaluation."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from slimbrain_app.evaluation.comparison import Judgement, Scheme
from slimbrain_app.evaluation.judging import Score, compare_answers, score_answers
from slimbrain_app.evaluation.map import map_people, tabulate_people
from slimbrain_app.evaluation.metrics import Answers, list_metrics
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.people import People
from slimbrain_app.evaluation.tables import (
    tabulate_calibration,
    tabulate_metrics,
    tabulate_scores,
)
from slimbrain_app.records import Contract, ModelIdentity, Notice
from slimbrain_app.report.diagrams import choose_points, cut_numbers
from slimbrain_app.report.evaluation import (
    Findings,
    form_scores,
    render_evaluation_page,
    write_evaluation_page,
)
from slimbrain_app.report.group import link_evaluation
from slimbrain_app.report.methods import describe_evaluation
from slimbrain_app.settings import Baseline, EvaluateSettings, Judge, Predict
from slimbrain_app.workflow.findings import tabulate_sites

PEOPLE = 60
SITES = [*["north"] * 30, *["south"] * 20, *["isle"] * 6, *[None] * 4]
LABELS = [f"{number:02}" for number in range(PEOPLE)]
VOID = {"meta", "link", "br", "img", "hr", "input"}
SOFTWARE = {"SlimBrain": "0.1.0", "scikit-learn": "1.7.0", "nibabel": "5.4", "Nipype": "1.10"}
FEATURES = {"model": 1.0, "connectivity, correlation": 0.2, "covariates": 0.0}


@dataclass
class Page(HTMLParser):
    """Tables by their labels, other words, and what is linked."""

    open: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    _label: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {key: value or "" for key, value in attrs}
        self.elements.append((tag, known))
        if known.get("role") == "region":
            self._label = known["aria-label"]
        if tag == "tr":
            self.tables.setdefault(self._label, []).append([])
        if tag in ("td", "th"):
            self.tables[self._label][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if {"style", "svg"} & set(self.open):
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[self._label][-1][-1] += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page


def answer(outcome: Outcome, strength: float, repeats: int) -> Answers:
    """Say of each person something near the truth, as far as strength says."""
    draw, people = np.random.default_rng(int(10 * strength)), len(outcome.people)
    numbers = outcome.kind == "number"
    coded = outcome.values if numbers else np.searchsorted(outcome.classes, outcome.values)
    truth = np.tile(np.asarray(coded, float), (repeats, 1))
    spread = truth.std()
    score = strength * (truth - truth.mean()) / spread + draw.standard_normal((repeats, people))
    said = 1 / (1 + np.exp(-score))
    return Answers(
        truth=truth,
        predicted=truth.mean() + spread * score / 2 if numbers else (score > 0).astype(float),
        score=score[..., None],
        centre=np.full((repeats, people), truth.mean() if numbers else 0.0),
        probability=np.stack([1 - said, said], axis=2)[..., : 0 if numbers else 2],
        margin=np.full((repeats, people), 1.6 * spread if numbers else 0.0),
        fold=np.tile(np.arange(people) % 5, (repeats, 1)),
    )


def judge(outcome: Outcome, name: str, repeats: int) -> list[Judgement]:
    judgements: list[Judgement] = []
    for features, strength in FEATURES.items():
        answers = answer(outcome, strength, repeats)
        first = judgements[0].answers if judgements else None
        metrics = list_metrics(outcome)
        judgements.append(
            Judgement(
                features=features,
                scheme=Scheme(name=name, outcome=outcome, parts=answers.fold),
                answers=answers,
                scores=tuple(score_answers(outcome, answers, metric) for metric in metrics),
                above=tuple(compare_answers(outcome, answers, first, one) for one in metrics)
                if first
                else (),
                chance=None if first else 0.0123,
            )
        )
    return judgements


def describe_people(sites: list[str | None]) -> People:
    covariates = pd.DataFrame(index=LABELS)
    return People(labels=tuple(LABELS), sites=tuple(sites), families=None, covariates=covariates)


@pytest.fixture(scope="module")
def make_findings(make_recording) -> Callable[..., Findings]:
    """Return a function that makes the findings of an evaluation; what is given replaces a part."""

    def make(
        names: tuple[str, str] = ("age", "sex"), sites: list[str | None] = SITES, **parts: Any
    ) -> Findings:
        draw = np.random.default_rng(0)
        age = Outcome(names[0], "number", draw.normal(30, 8, PEOPLE), LABELS, units="year")
        levels = np.array(["F", "M"])[draw.integers(0, 2, PEOPLE)]
        sex = Outcome(names[1], "class", levels, LABELS, levels={"F": "female"})
        known = np.array([row for row in range(PEOPLE) if sites[row] is not None], int)
        judgements = [*judge(age, "person", 2), *judge(sex, "person", 2)]
        if len(known):
            judgements += judge(sex.take(known), "site", 1)
        embeddings = draw.standard_normal((PEOPLE, 5))
        embeddings[3] *= 30
        laid = map_people(embeddings)
        own = [one for one in judgements if one.features == "model"]
        settings = EvaluateSettings(
            model="/home/jane doe/ours",
            predict=Predict(outcomes=names, phenotype="/home/jane doe/people.tsv"),
            judge=Judge(repeats=2),
        )
        model = ModelIdentity(
            name="ours", preset="tiny", sha256="3f" * 32, trained=True, contract=Contract()
        )
        found: dict[str, Any] = {
            "model": model,
            "recordings": tuple(make_recording(label) for label in LABELS),
            "refusals": (),
            "notes": (f"{names[0]}: numbers in year",),
            "seen": 0,
            "metrics": tabulate_metrics(
                judgements, [Score("identity across runs", "accuracy", 0.9, 0.8, 0.95, 0.02, 60)]
            ),
            "scores": tabulate_scores(own),
            "calibration": tabulate_calibration(own),
            "people": tabulate_people(LABELS, sites, [1] * PEOPLE, laid),
            "sites": tabulate_sites(judgements, describe_people(sites), 0),
            "shares": tuple(laid.shares),
            "levels": {names[1]: {"F": "female"}},
            "settings": settings,
            "device": "cpu",
            "software": SOFTWARE,
            "command": ("slimbrain", "/home/jane/fmriprep", "out", "group"),
            "methods": describe_evaluation(
                settings,
                model,
                SOFTWARE,
                by_covariance=False,
                by_site=True,
                inner_folds=5,
                draws=1000,
                cleanings=["detrended, cleaned of csf"],
            ),
        }
        return Findings(**{**found, **parts})

    return make


@pytest.fixture(scope="module")
def findings(make_findings: Callable[..., Findings]) -> Findings:
    return make_findings()


@pytest.fixture(scope="module")
def html(findings: Findings) -> str:
    return render_evaluation_page(findings, {"sub-03.html", "group.html"})


@pytest.fixture(scope="module")
def plain(findings: Findings) -> Findings:
    """The same of one outcome alone, whose page is made sooner."""
    return replace(
        findings,
        scores=findings.scores[findings.scores["outcome"] == "sex"],
        people=findings.people.assign(site=None, apart="no"),
    )


def written(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as it comes back from its file."""
    text = table.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.9g")
    return pd.read_csv(io.StringIO(text), sep="\t")


def test_the_page_is_sound(html: str) -> None:
    page = parse(html)
    assert page.open == []
    assert len(set(page.values("id"))) == len(page.values("id"))
    links = page.values("href") + page.values("xlink:href")
    labels = " ".join(page.values("aria-labelledby")).split()
    targets = {link[1:] for link in links if link.startswith("#")} | set(labels)
    assert targets <= set(page.values("id"))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert page.values("src") == []
    assert re.findall(r"\b(?:None|nan|undefined)\b", page.text) == []
    for tag, attrs in page.elements:
        if tag == "pre" or "wide" in attrs.get("class", "").split():
            assert attrs["tabindex"] == "0"


def test_no_folder_and_no_user_is_told(html: str) -> None:
    assert "jane" not in html
    assert "/home" not in html
    assert "people.tsv" in html


def test_no_page_of_a_pretraining_is_linked_where_there_is_none(plain: Findings) -> None:
    assert "group.html" not in render_evaluation_page(plain, set())


def test_scores_are_those_of_the_table_of_metrics(html: str, findings: Findings) -> None:
    tables, metrics = parse(html).tables, written(findings.metrics)
    metrics = metrics[metrics["scheme"] != "run"]
    count = 0
    for outcome in ("age", "sex"):
        for label, key, width in (("Scores", "features", 3), ("Differences", "against", 2)):
            for features, metric, *cells in tables[f"{label} of {outcome}"][2:]:
                name = metric.removesuffix(" (year)")
                own = metrics[(metrics["outcome"] == outcome) & (metrics["metric"] == name)]
                own = own[own["against"].isna() == (key == "features")]
                own = own[own[key] == features]
                for place, row in enumerate(own.to_dict("records")):
                    value, lower, upper, guess = form_scores(row)
                    told = [value, f"{lower} to {upper}", guess]
                    assert cells[place * width : (place + 1) * width] == told[:width]
                    count += 1
    assert count == len(metrics)


def test_the_first_sentence_tells_score_interval_chance_and_p(
    html: str, findings: Findings
) -> None:
    metrics = written(findings.metrics)
    row = metrics[(metrics["outcome"] == "sex") & (metrics["features"] == "model")].iloc[0]
    value, lower, upper = (f"{row[key]:.3f}" for key in ("value", "lower", "upper"))
    assert (
        f"With people left out at random (60 people), the model tells sex with an AUROC of {value} "
        f"(95 % interval {lower} to {upper}), above what a guess scores (0.500); p = 0.012 by 100 "
        "permutations." in parse(html).text
    )


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((0.1, 0.3), "It is above connectivity, correlation, by 0.200"),
        (
            (-0.3, -0.1),
            "It is below connectivity, correlation, by 0.200 (95 % interval 0.100 to 0.300)",
        ),
        ((-0.1, 0.3), "From connectivity, correlation it differs by 0.200"),
    ],
)
def test_better_than_connectivity_is_said_if_the_interval_leaves_out_none(
    plain: Findings, ends: tuple[float, float], words: str
) -> None:
    metrics = plain.metrics.copy()
    place = (metrics["against"] == "connectivity, correlation") & (metrics["metric"] == "AUROC")
    value = np.copysign(0.2, sum(ends))
    metrics.loc[place, ["value", "lower", "upper"]] = [value, *ends]
    text = parse(render_evaluation_page(replace(plain, metrics=metrics), set())).text
    assert text.count(words) == 2
    others = {"It is above conn", "It is below conn", "From connectivity, correlation it differs"}
    assert sum(other in text for other in others) == 1


def test_scores_in_units_share_their_decimals() -> None:
    row = {"metric": "MAE", "value": 0.7717, "lower": 0.048734, "upper": 1.4391, "chance": np.nan}
    assert form_scores(row) == ["0.772", "0.049", "1.439", "n/a"]
    row |= {"value": 20412.7, "lower": -0.2, "upper": 30000.0}
    assert form_scores(row)[:3] == ["20413", "0", "30000"]
    assert form_scores(row | {"metric": "r", "value": -0.0001})[0] == "0.000"


def test_a_score_that_dealt_outcomes_reach_within_sites_is_not_praised(findings: Findings) -> None:
    words = "So what it tells need be no more than how sites differ."
    metrics = findings.metrics.copy()
    place = (metrics["scheme"] == "site") & (metrics["features"] == "model")
    place &= metrics["against"].isna() & (metrics["metric"] == "AUROC")
    assert place.any()
    metrics.loc[place, ["chance", "lower", "upper"]] = [0.5, 0.55, 0.75]
    for p, count in ((0.8, 1), (0.01, 0)):
        metrics.loc[place, "p"] = p
        page = parse(render_evaluation_page(replace(findings, metrics=metrics), set()))
        assert page.text.count(words) == count
        assert f"p = {p} by 100 permutations within sites" in page.text


def test_numbers_are_mapped_with_their_units(html: str) -> None:
    assert "By age (year)." in parse(html).text


def test_confusion_is_that_of_the_table_of_scores(html: str, findings: Findings) -> None:
    scores = written(findings.scores)
    own = scores[
        (scores["outcome"] == "sex") & (scores["scheme"] == "person") & (scores["repeat"] == 1)
    ]
    table = parse(html).tables["Confusion of sex, people left out at random"]
    assert [row[0].split()[0] for row in table[1:]] == ["F", "M"]
    counts = np.array([row[1:] for row in table[1:]], int)
    assert (counts[:, :2] == confusion_matrix(own["truth"], own["predicted"])).all()
    assert counts[:, 2].sum() == PEOPLE


def test_each_site_can_be_scored_from_the_tables(html: str, findings: Findings) -> None:
    scores, people = written(findings.scores), written(findings.people)
    own = scores[(scores["outcome"] == "sex") & (scores["scheme"] == "person")].merge(
        people[["participant_id", "site"]], on="participant_id"
    )
    rows = {row[0]: row[1:] for row in parse(html).tables["Sites of sex"][2:]}
    assert sum(int(row[0]) for row in rows.values()) == len(people)
    for site in ("north", "south"):
        here = own[own["site"] == site]
        areas = [
            roc_auc_score(one["truth"] == one["level"], one["score"])
            for _, one in here.groupby("repeat")
        ]
        assert rows[site][1] == f"{np.mean(areas):.3f}"
        assert int(rows[site][0]) == here["participant_id"].nunique()
    assert rows["isle"][:2] == ["6", "too few to tell"]
    assert rows["unknown"][0] == "4"
    assert rows["unknown"][-1] == "not judged"


def test_those_far_from_all_are_linked_where_they_have_a_page(html: str, findings) -> None:
    apart = written(findings.people).query("apart == 'yes'")
    table = parse(html).tables["Far from all others"][1:]
    assert sorted(row[0] for row in table) == sorted(apart["participant_id"])
    assert "sub-03" in set(apart["participant_id"])
    links = [link for link in parse(html).values("href") if link.startswith("sub-")]
    assert links == ["sub-03.html"]
    assert "sub-03.html" not in render_evaluation_page(findings, set())


def test_tables_are_named_and_linked(html: str) -> None:
    names = ("metrics", "scores", "splits", "calibration", "people")
    assert {f"desc-slimbrain_{name}.tsv" for name in names} <= set(parse(html).values("href"))


def test_banners_stand_there_exactly_if_there_is_cause(plain: Findings) -> None:
    caution = Notice(code="caution", message="Trained on few people.")
    cases = {
        "": plain,
        "Untrained.": replace(plain, model=replace(plain.model, trained=False)),
        "Seen in training.": replace(plain, seen=7),
        "Caution.": replace(plain, model=replace(plain.model, notices=(caution,))),
    }
    pages = {words: parse(render_evaluation_page(case, set())) for words, case in cases.items()}
    for words, page in pages.items():
        banners = [attrs for _, attrs in page.elements if attrs.get("class") == "banner"]
        assert len(banners) == (1 if words else 0)
        assert words in page.text
    assert "on 7 of these 60 people" in pages["Seen in training."].text
    assert "Trained on few people." in pages["Caution."].text


def test_names_are_escaped(make_findings, too_short) -> None:
    bad, money = "<script>'\"&<b>", "_$x^2$ \N{CJK UNIFIED IDEOGRAPH-8111} -->"
    sites = [bad if site == "north" else site for site in SITES]
    found = make_findings(
        (bad, money), sites, notes=(bad,), refusals=(replace(too_short, run=bad),), device=bad
    )
    html = render_evaluation_page(found, set())
    page = parse(html)
    assert page.open == []
    assert "<script" not in html
    assert page.text.count(bad) >= 8
    assert html.count("$x^2$") > page.text.count("$x^2$") >= 5


def test_a_cohort_without_sites_or_baselines_has_a_page(plain: Findings) -> None:
    metrics = plain.metrics[
        (plain.metrics["scheme"] == "person") & (plain.metrics["features"] == "model")
    ]
    metrics = metrics[metrics["against"].isna()].assign(p=np.nan)
    scores = plain.scores[plain.scores["scheme"] == "person"]
    found = replace(plain, metrics=metrics, scores=scores, sites=plain.sites.iloc[:0])
    text = parse(render_evaluation_page(found, set())).text
    for words in (
        "It was not compared with connectivity.",
        "There was nothing to compare the model with.",
        "No site is known of these people.",
        "Nobody had a second run",
        "Far from all others Nobody.",
    ):
        assert words in text
    assert "p = " not in text


def test_ten_thousand_people_leave_a_page_that_can_be_mailed(findings, too_short) -> None:
    count, draw = 10_000, np.random.default_rng(0)
    labels = [f"sub-{number:05}" for number in range(count)]
    age = draw.normal(30, 8, count)
    row = findings.scores[findings.scores["outcome"] == "age"].iloc[:1]
    scores = row.loc[row.index.repeat(count)].assign(
        participant_id=labels, truth=age, predicted=age + draw.normal(0, 5, count)
    )
    people = findings.people.iloc[:1].loc[[0] * count]
    people = people.assign(
        participant_id=labels,
        site=[f"site {number % 200}" for number in range(count)],
        first=draw.standard_normal(count),
        second=draw.standard_normal(count),
        apart=np.where(np.arange(count) % 50, "no", "yes"),
    )
    refusals = tuple(replace(too_short, run=f"sub-{n:05}_task-rest") for n in range(3000))
    found = replace(findings, scores=scores, people=people, refusals=refusals)
    html = render_evaluation_page(found, set())
    assert len(html.encode()) < 2_000_000
    text = parse(html).text
    assert text.count("1000 of 10000 points, drawn at random") == 3
    assert "The largest 6 of 200 groups are coloured" in text
    assert "And 150 more in desc-slimbrain_people.tsv" in text
    assert "And 2900 more, which the call has named on its way" in text


def test_of_many_points_those_far_are_drawn() -> None:
    far = np.arange(5000) % 100 == 0
    shown = choose_points(5000, far)
    assert shown.sum() == 1000
    assert shown[far].all()


def test_numbers_are_coloured_by_fifths() -> None:
    groups = cut_numbers(np.array([*range(100), np.nan], float))
    counts = [groups.of.count(name) for name in groups.names]
    assert counts == [20] * 5
    assert groups.of[-1] is None
    assert groups.drawn == groups.names
    assert [float(name.split(" to ")[0]) for name in groups.names] == sorted(
        float(name.split(" to ")[0]) for name in groups.names
    )


def test_the_page_of_a_pretraining_and_this_one_are_linked(plain, tmp_path) -> None:
    page = tmp_path / "group.html"
    page.write_text('<nav><a href="#main">x</a>\n</nav><nav></nav>', encoding="utf-8")
    write_evaluation_page(tmp_path, plain)
    for _ in range(2):
        assert page.read_text(encoding="utf-8").count('href="evaluation.html"') == 1
        link_evaluation(page)
    assert 'href="group.html"' in (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    link_evaluation(tmp_path / "absent.html")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["evaluation.html", "group.html"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (EvaluateSettings(judge=Judge(folds=7)), "7 folds of people"),
        (EvaluateSettings(judge=Judge(repeats=3)), "3 times"),
        (EvaluateSettings(judge=Judge(repeats=1)), ", once and"),
        (EvaluateSettings(judge=Judge(split="mine.tsv")), "laid down in a table"),
        (
            EvaluateSettings(baseline=Baseline(covariates=("iq", "age"))),
            "covariates alone (iq, age",
        ),
        (EvaluateSettings(judge=Judge(permutations=50)), "share of 50 outcomes"),
        (EvaluateSettings(judge=Judge(deconfound=("age",))), "age were taken out of all features"),
        (EvaluateSettings(predict=Predict(family="kin")), "people of one family ('kin')"),
        (EvaluateSettings(baseline=Baseline(connectivity=("tangent",))), "Varoquaux et al., 2010"),
        (EvaluateSettings(baseline=Baseline(connectivity=("partial",))), "Ledoit and Wolf, 2004"),
        (EvaluateSettings(baseline=Baseline(atlas="own.nii")), "an atlas of the user's"),
    ],
)
def test_methods_follow_the_settings(settings, words, model) -> None:
    def describe(own: EvaluateSettings, *, by_covariance: bool = False) -> str:
        return describe_evaluation(
            own,
            model,
            SOFTWARE,
            by_covariance=by_covariance,
            by_site=True,
            inner_folds=5,
            draws=9,
            cleanings=["filtered"],
        )

    assert words in describe(settings)
    assert words not in describe(EvaluateSettings())
    second = "direction that best tells the cell's mean BOLD signal"
    assert second in describe(settings, by_covariance=True)
    assert second not in describe(settings)
    assert "For connectivity they were filtered;" in describe(settings)
