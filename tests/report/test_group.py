"""The group's page of a pretraining."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from slimbrain_app.errors import REASONS
from slimbrain_app.records import Contract, Refusal
from slimbrain_app.report.group import describe_duration, render_group_page, write_group_page
from slimbrain_app.report.methods import describe_pretraining
from slimbrain_app.report.story import Story
from slimbrain_app.settings import PretrainSettings, Train
from slimbrain_app.training.log import Alarm, End, Resume, Start, pick

MakeStory = Callable[..., Story]
VOID = {"meta", "link", "br", "img", "hr", "input"}


@dataclass
class Page(HTMLParser):
    """What is open, said and linked, read with the standard library."""

    open: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    page.close()
    return page


def read(html: str) -> str:
    return " ".join(" ".join(parse(html).words).split())


@pytest.fixture(scope="module")
def pages(make_story: MakeStory, make_events) -> dict[str, str]:
    """The pages of trainings of all kinds."""
    alarms = [Alarm(step=step, pass_=2, message=f"Only {step} directions.") for step in (4, 5)]
    stories = {
        "whole": make_story(),
        "one pass": make_story(events=make_events(passes=1)),
        "one step": make_story(events=make_events(passes=1, steps=1)),
        "no probe": make_story(events=make_events(probes=False)),
        "no validation": make_story(events=make_events(validation=False), validation=()),
        "alarms": make_story(events=(*make_events(), *alarms)),
        "stopped": make_story(
            events=(*make_events()[:12], End(step=3, pass_=1, finished=False, reason="A signal."))
        ),
        "not begun": make_story(events=(), weights=None),
        "extractor only": make_story(events=make_events()[:5], weights=None),
        "no run": make_story(events=(), training=(), validation=(), weights=None),
        "no refusal": make_story(refusals=()),
    }
    return {case: render_group_page(story) for case, story in stories.items()}


CASES = [
    "whole",
    "one pass",
    "one step",
    "no probe",
    "no validation",
    "alarms",
    "stopped",
    "not begun",
    "extractor only",
    "no run",
    "no refusal",
]


@pytest.mark.parametrize("case", CASES)
def test_every_page_is_sound(pages: dict[str, str], case: str) -> None:
    page = parse(pages[case])
    assert page.open == []
    assert [name for name, count in Counter(page.values("id")).items() if count > 1] == []
    links = page.values("href") + page.values("xlink:href")
    labels = " ".join(page.values("aria-labelledby")).split()
    targets = {link[1:] for link in links if link.startswith("#")} | set(labels)
    assert targets <= set(page.values("id"))
    assert links[0] == "#main"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    sections = [attrs["id"] for tag, attrs in page.elements if tag == "h2"]
    assert sections == ["curves", "corpus", "refused", "call", "methods"]
    assert re.findall(r"\b(?:None|nan|undefined)\b", " ".join(page.words)) == []


@pytest.mark.parametrize("case", CASES)
def test_no_page_loads_or_tells_anything_from_elsewhere(pages: dict[str, str], case: str) -> None:
    page, html = parse(pages[case]), pages[case]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert page.values("src") == []
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "jane" not in html
    assert "/home" not in html


def test_what_scrolls_can_be_reached_by_keyboard(pages: dict[str, str]) -> None:
    for tag, attrs in parse(pages["whole"]).elements:
        if tag == "pre" or attrs.get("class") == "wide":
            assert attrs["tabindex"] == "0"


def test_the_page_is_written_whole(
    pages: dict[str, str], make_story: MakeStory, tmp_path: Path
) -> None:
    write_group_page(tmp_path / "group.html", make_story())
    written = (tmp_path / "group.html").read_text(encoding="utf-8")
    assert written == pages["whole"]
    assert [file.name for file in tmp_path.iterdir()] == ["group.html"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("whole", "Package ours : finished, 4 passes."),
        ("one pass", "finished, 1 pass."),
        ("stopped", "stopped at pass 1 of 4."),
        ("not begun", "not at its end, before the first of 40 passes."),
    ],
)
def test_the_first_sentence_says_how_far_it_came(pages, case, words) -> None:
    text = read(pages[case])
    assert "4 people with 4 runs, 0.3 hours of data; 2 runs left out" in text
    assert words in text


def test_refusals_are_linked_and_told_with_their_advice(pages, too_short: Refusal) -> None:
    html, text = pages["whole"], read(pages["whole"])
    for code in ("too-short", "missing-content"):
        assert f'href="#reason-{code}"' in html
        assert REASONS[code].meaning[1:] in text
    for part in (too_short.run, too_short.expected, too_short.found, too_short.advice):
        assert part in text


def test_banners_stand_there_exactly_if_there_is_cause(pages: dict[str, str]) -> None:
    causes = {
        "Stopped early.": {"stopped"},
        "Not at its end.": {"not begun", "extractor only", "no run"},
        "No validation.": {"no validation", "no run"},
        "1 alarm.": {"alarms"},
    }
    texts = {case: read(pages[case]) for case in CASES}
    for words, cases in causes.items():
        assert {case for case, text in texts.items() if words in text} == cases, words
    assert "A signal. The same command goes on" in texts["stopped"]
    assert "Only 5 directions. 2 times" in texts["alarms"]


def test_every_event_is_told(make_story: MakeStory, make_events) -> None:
    incidents = (
        End(step=6, pass_=2, finished=False, reason="By Slurm."),
        Resume(step=6, pass_=2),
        *(Alarm(step=step, pass_=3, message=f"Alarm of step {step}.") for step in (7, 8)),
    )
    events = (*make_events()[:-1], *incidents, make_events()[-1])
    html = render_group_page(make_story(events=events))
    text = read(html)
    for words in (
        "Begun: 4 passes in 12 steps of 8 windows.",
        "Step 6: stopped. By Slurm.",
        "Step 6: resumed in a later call.",
        "Step 7: Alarm of step 7.",
        "Step 8: Alarm of step 8.",
        "Step 12: finished.",
        "4 checkpoints",
        "Time in steps 24 s",
    ):
        assert words in text
    table = html.split("Passes in numbers")[-1].split("</table>")[0]
    rows = re.findall(r"<tr><th scope=\"row\"[^>]*>(\d+)</th>(.*)</tr>", table)
    assert [int(number) for number, _ in rows] == [1, 2, 3, 4]
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for _, row in rows]
    assert cells[0] == ["0.3056", "0.2000", "0.550", "0.850", "53.0", "0.750", "4", "25 %", "6 s"]


def test_names_are_escaped(make_story: MakeStory, make_recording, too_short: Refusal) -> None:
    bad = "<script src='x'>"
    story = make_story(
        name="ours",
        training=(make_recording("01", dataset=bad, site=bad),),
        refusals=(replace(too_short, run=bad, advice=bad),),
        events=(
            Alarm(step=1, pass_=1, message=bad),
            End(step=1, pass_=1, finished=False, reason=bad),
        ),
        device=bad,
    )
    html = render_group_page(story)
    assert "<script" not in html
    assert read(html).count(bad) >= 6


def test_settings_that_differ_are_told_beside_their_defaults(make_story: MakeStory) -> None:
    settings = PretrainSettings(train=Train(passes=7, batch=16))
    text = read(render_group_page(make_story(events=(), settings=settings)))
    assert "train.passes 7 40" in text
    assert "train.batch 16 absent" in text
    assert "package_name" not in text
    defaults = make_story(events=(), settings=PretrainSettings())
    assert "None: all are the defaults." in read(render_group_page(defaults))


def test_identity_and_command_are_told(pages: dict[str, str]) -> None:
    text = read(pages["whole"])
    for words in ("5c" * 32, "7e" * 32, "cpu, float32", "torch 2.9.1", "--action pretrain"):
        assert words in text
    assert "there is no package yet" in read(pages["not begun"])


def test_methods_are_told_word_by_word(pages: dict[str, str], make_story, make_events) -> None:
    start = pick(make_events(), Start)[0]
    settings = PretrainSettings(package_name="ours", seed=3)
    paragraph = describe_pretraining(settings, Contract(), start, make_story().software).split(
        "\n\n"
    )[2]
    assert paragraph in read(pages["whole"])


def test_a_large_cohort_and_a_long_training_leave_a_page_that_can_be_mailed(
    make_story: MakeStory, make_events, make_recording, too_short: Refusal
) -> None:
    events = make_events(passes=100, steps=60)
    alarms = [Alarm(step=step, pass_=1, message=f"Alarm {step}.") for step in range(1, 6001)]
    story = make_story(
        training=tuple(make_recording(f"{n:05}", site=f"site {n % 200}") for n in range(8000)),
        refusals=tuple(replace(too_short, run=f"sub-{n:05}_task-rest") for n in range(3000)),
        events=(*events, *alarms),
    )
    html = render_group_page(story)
    assert len(html.encode()) < 2_000_000
    text = read(html)
    assert "3000 runs left out" in text
    assert "And 2900 more, all of them in desc-slimbrain_corpus.tsv" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (7384, "2 h 3 min")],
)
def test_durations_read_like_words(seconds: float, words: str) -> None:
    assert describe_duration(seconds) == words
