"""The participant's page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.errors import REASONS
from slimbrain_app.records import Flag, Head, HeadScore, Notice, Prediction, Refusal
from slimbrain_app.report import page as page_module
from slimbrain_app.report.contents import ReportContext, ReportedRun
from slimbrain_app.report.page import ORIGINS, RUNGS, hide_paths, write_report

MakeRun = Callable[..., ReportedRun]
VOID = {"meta", "link", "br", "img", "hr", "input"}


@dataclass
class Page(HTMLParser):
    """An HTML page read with the standard library: what is open, linked, loaded and said."""

    open: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    @classmethod
    def of(cls, html: str) -> Page:
        page = cls()
        page.feed(html)
        page.close()
        return page

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]


@pytest.fixture
def write(tmp_path: Path, context: ReportContext) -> Callable[..., str]:
    """Return a function that writes a report and gives its HTML."""

    def write(
        runs: list[ReportedRun],
        refused: Sequence[Refusal] = (),
        context: ReportContext = context,
        predictions: Sequence[Prediction] = (),
    ) -> str:
        write_report(tmp_path / "sub-01.html", "sub-01", runs, refused, context, predictions)
        return (tmp_path / "sub-01.html").read_text(encoding="utf-8")

    return write


@pytest.fixture(scope="module")
def output(
    tmp_path_factory: pytest.TempPathFactory,
    make_run: MakeRun,
    too_short: Refusal,
    missing_content: Refusal,
    context: ReportContext,
) -> Path:
    """Folder with the report of two runs that are done and two that were refused."""
    folder = tmp_path_factory.mktemp("output")
    runs = [make_run(number="01"), make_run(number="02")]
    write_report(folder / "sub-01.html", "sub-01", runs, [too_short, missing_content], context)
    return folder


@pytest.fixture(scope="module")
def html(output: Path) -> str:
    return (output / "sub-01.html").read_text(encoding="utf-8")


def test_tags_are_balanced(html: str) -> None:
    page = Page.of(html)
    assert page.faults == []
    assert page.open == []


def test_ids_are_unique_and_every_inner_link_has_its_target(html: str) -> None:
    page = Page.of(html)
    counts = Counter(page.values("id"))
    assert [name for name, count in counts.items() if count > 1] == []
    links = page.values("href") + page.values("xlink:href")
    labels = " ".join(page.values("aria-labelledby")).split()
    targets = {link[1:] for link in links if link.startswith("#")} | set(labels)
    assert len(targets) > 10
    assert targets <= set(counts)


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    page = Page.of(html)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    loaded = page.values("src") + [
        attrs["xlink:href"] for tag, attrs in page.elements if tag in ("image", "use")
    ]
    assert loaded
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in loaded)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_lede_counts_runs_and_links_every_code(html: str) -> None:
    text = Page.of(html).text
    assert "4 runs found, 2 done, 2 refused ( too-short , missing-content )" in text
    for code in ("too-short", "missing-content"):
        assert f'href="#reason-{code}"' in html
        assert f'id="reason-{code}"' in html
        assert REASONS[code].meaning[1:] in text


def test_refusals_are_told_in_all_their_parts(html: str, too_short: Refusal) -> None:
    text = Page.of(html).text
    for part in (too_short.run, too_short.expected, too_short.found, too_short.advice):
        assert part in text


def test_banner_stands_there_exactly_if_the_model_is_untrained(
    write: Callable[..., str], make_run: MakeRun, context: ReportContext
) -> None:
    trained = replace(context, model=replace(context.model, trained=True))
    assert "Untrained model" in write([make_run()])
    assert "Untrained model" not in write([make_run()], context=trained)


def test_figures_of_the_page_equal_the_records(html: str, make_run: MakeRun) -> None:
    text, run = Page.of(html).text, make_run()
    for words in (
        "2 s, from the file's own sidecar",
        "240 (480.0 s) after 4 dummy scans",
        "94.7 % of the template's brain",
        f"{run.voxels:,}, 17 of them constant",
        f"31,415 ({100 * 31415 / (240 * run.voxels):.2g} %)",
        f"8 of 32 selected, {run.selected_seconds:.1f} s together",
        f"displacement {np.mean(run.displacement[1:]):.2f} mm on average",  # type: ignore[index]
        f"{sum(value > 0.5 for value in run.displacement)} of 240 volumes above 0.5 mm",  # type: ignore[union-attr]
        f"192 values, norm {np.linalg.norm(run.embedding):.4g}",
        "none: the package has no head",
        run.source,
        *(checksum for _, checksum in run.checksums),
        *(notice.message for notice in run.notices),
    ):
        assert words in text


def test_table_of_windows_equals_the_records(html: str, make_run: MakeRun) -> None:
    table = html.split("Table of windows")[1].split("</table>")[0]
    rows = [
        re.findall(r"<td[^>]*>([^<]*)</td>", row)
        for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)[1:]
    ]
    windows = make_run().windows
    assert [float(row[0]) for row in rows] == pytest.approx([w.onset for w in windows], abs=0.005)
    assert [float(row[2]) for row in rows] == pytest.approx(
        [w.saliency for w in windows], abs=0.0005
    )
    assert [(int(row[3]), row[4] == "yes", int(row[5])) for row in rows] == [
        (w.rank, w.selected, w.censored_frames) for w in windows
    ]


def test_every_figure_has_a_text_alternative_and_a_caption(html: str) -> None:
    page = Page.of(html)
    drawings = [attrs for tag, attrs in page.elements if tag == "svg"]
    assert len(drawings) == 6
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 20 for attrs in drawings)
    assert sum(tag == "figcaption" for tag, _ in page.elements) == 6


def test_headings_descend_by_single_steps(html: str) -> None:
    levels = [int(tag[1]) for tag, _ in Page.of(html).elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_sections_come_in_order(html: str) -> None:
    sections = [attrs["id"] for tag, attrs in Page.of(html).elements if tag == "h2"]
    assert sections == ["runs", "refused", "call", "methods"]


def test_keyboard_users_can_skip_to_the_main_part(html: str) -> None:
    links = [attrs["href"] for tag, attrs in Page.of(html).elements if tag == "a"]
    assert links[0] == "#main"


def test_no_absolute_path_is_told(html: str) -> None:
    assert "/home" not in html
    assert "jane" not in html
    assert "/tmp" not in html
    assert "…/MD5E-s3.nii.gz" in html


def test_names_from_files_cannot_inject_markup(
    write: Callable[..., str], make_run: MakeRun, too_short: Refusal
) -> None:
    evil = "<script>alert(1)</script>"
    run = replace(
        make_run(),
        source=f"sub-01/{evil}.nii.gz",
        method=evil,
        notices=(Notice(code="known-fault", message=evil, file=evil),),
        checksums=((evil, evil),),
    )
    refusal = replace(too_short, run=evil, file=evil, found=evil, expected=evil, advice=evil)
    page = Page.of(write([run], [refusal]))
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.faults == []
    assert page.text.count("alert(1)") >= 9


def test_report_is_made_if_every_run_was_refused(
    write: Callable[..., str], too_short: Refusal
) -> None:
    page = Page.of(write([], [too_short]))
    assert "1 run found, 0 done, 1 refused" in page.text
    assert "No run is done" in page.text
    assert page.faults == []


def test_same_records_give_the_same_page(write: Callable[..., str], make_run: MakeRun) -> None:
    assert write([make_run()]) == write([make_run()])


def test_figures_are_files_as_well(html: str, output: Path) -> None:
    folder = output / "sub-01" / "figures"
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        f"sub-01_task-rest_run-{number}_desc-slimbrain_{kind}.svg"
        for number in ("01", "02")
        for kind in ("coverage", "embedding", "windows")
    ]
    assert all((folder / name).read_text(encoding="utf-8") in html for name in names)


def test_run_done_before_keeps_its_figures(
    write: Callable[..., str], make_run: MakeRun, tmp_path: Path
) -> None:
    write([make_run()])
    figures = {file: file.read_bytes() for file in (tmp_path / "sub-01" / "figures").iterdir()}
    later = replace(make_run(), done_before=True, mean_image=None, mask=None, views=None)
    page = Page.of(write([later]))
    assert {file: file.read_bytes() for file in figures} == figures
    assert sum(tag == "svg" for tag, _ in page.elements) == 3
    assert "1 done (by an earlier call)" in page.text


def test_run_done_before_without_its_figures_is_drawn_from_what_is_there(
    write: Callable[..., str], make_run: MakeRun
) -> None:
    later = replace(make_run(), done_before=True, mean_image=None, mask=None, views=None)
    page = Page.of(write([later]))
    assert sum(tag == "svg" for tag, _ in page.elements) == 2


def test_run_of_this_call_replaces_old_figures(
    write: Callable[..., str], make_run: MakeRun, tmp_path: Path
) -> None:
    write([make_run()])
    file = next((tmp_path / "sub-01" / "figures").glob("*_windows.svg"))
    old = file.read_text(encoding="utf-8")
    write([replace(make_run(), displacement=None)])
    assert file.read_text(encoding="utf-8") != old


def test_page_of_many_runs_stays_small_and_links_the_rest(
    write: Callable[..., str],
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_module, "INLINE_BYTES", 250_000)
    html = write([make_run(number="01"), make_run(number="02")])
    page = Page.of(html)
    inlined = sum(tag == "svg" for tag, _ in page.elements)
    linked = [href for href in page.values("href") if href.endswith(".svg")]
    assert 3 <= inlined < 6
    assert inlined + len(linked) == 6
    assert all((tmp_path / href).is_file() for href in linked)
    assert len(html.encode()) < 350_000


def test_runs_of_earlier_calls_are_counted(write: Callable[..., str], make_run: MakeRun) -> None:
    runs = [replace(make_run(number="01"), done_before=True), make_run(number="02")]
    assert "2 done (1 of them by an earlier call)" in Page.of(write(runs)).text


def test_warnings_about_the_dataset_are_told(
    write: Callable[..., str], make_run: MakeRun, context: ReportContext
) -> None:
    notice = Notice(code="known-fault", message="fMRIPrep 23.2.0 loses the header's TR")
    text = Page.of(write([make_run()], context=replace(context, notices=(notice,)))).text
    assert f"known-fault {notice.message}" in text
    assert notice.message not in Page.of(write([make_run()])).text


def test_unknown_motion_is_told(write: Callable[..., str], make_run: MakeRun) -> None:
    text = Page.of(write([replace(make_run(), displacement=None)])).text
    assert "Motion unknown" in text


def test_every_origin_and_rung_has_words(write: Callable[..., str], make_run: MakeRun) -> None:
    run = make_run()
    for origin, rung in zip(ORIGINS, [*RUNGS, 0], strict=True):
        time = replace(run.repetition_time, origin=origin)
        text = Page.of(write([replace(run, repetition_time=time, rung=rung)])).text
        assert ORIGINS[origin] in text
        assert f"rung {rung}: {RUNGS[rung]}" in text


@given(
    st.lists(st.from_regex(r"[A-Za-z0-9_.+-]{1,12}", fullmatch=True), min_size=2, max_size=5),
    st.sampled_from(["", "found ", "(", "'", "file://"]),
)
def test_only_the_last_part_of_an_absolute_path_remains(parts: list[str], before: str) -> None:
    shown = hide_paths(f"{before}/{'/'.join(parts)}")
    assert shown.endswith(f"…/{parts[-1]}")
    assert shown.count("/") == 1


@pytest.mark.parametrize(
    "text",
    [
        "sub-01/func/sub-01_bold.nii.gz",
        "https://doi.org/10.1038/s41592-018-0235-4",
        "bids:preprocessed:sub-01/func/x.nii.gz",
        "4 mm/s, and/or 3 / 4",
        "./out and ../in",
    ],
)
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert hide_paths(text) == text


HEADS = (
    Head(
        outcome="age",
        kind="number",
        people=41,
        units="years",
        score=HeadScore(metric="r", value=0.4, lower=0.25, upper=0.5, scheme="5 folds of sites"),
    ),
    Head(outcome="sex", kind="class", people=40, classes=("F", "M")),
)


def make_predictions(age: float, *flags: Flag) -> tuple[Prediction, ...]:
    rows = (("age", None, age), ("sex", "F", 0.25), ("sex", "M", 0.75))
    return tuple(
        Prediction(
            outcome=outcome,
            level=level,
            value=value,
            lower=None if level else value - 8,
            upper=None if level else value + 8,
            percentile=None if level else 37.0,
            calibrated=level is None,
            flags=flags,
        )
        for outcome, level, value in rows
    )


@pytest.fixture
def headed(context: ReportContext) -> ReportContext:
    return replace(context, model=replace(context.model, trained=True, heads=HEADS))


def test_predictions_of_person_and_runs_stand_with_how_good_the_heads_are(
    write: Callable[..., str], make_run: MakeRun, headed: ReportContext
) -> None:
    run = replace(make_run(), predictions=make_predictions(33.5))
    page = Page.of(write([run], (), headed, make_predictions(31.25)))
    assert page.faults == [] and page.open == []
    assert "#predictions" in page.values("href") and "predictions" in page.values("id")
    assert "sub-01, from the mean embedding of 1 run" in page.text
    assert "age (years) 31.25 23.25 to 39.25 37 yes" in page.text
    assert f"{run.name}, from its embedding" in page.text
    assert "age (years) 33.50 25.50 to 41.50 37 yes" in page.text
    assert "sex M 0.75 no" in page.text
    assert "r 0.40 for people left out, 95 % interval 0.25 to 0.50 (5 folds of sites)" in page.text
    assert "sex: fitted to 40 people; how well it tells people left out is unknown" in page.text
    assert "No diagnosis." in page.text


def test_a_banner_names_whose_embedding_lies_apart(
    write: Callable[..., str], make_run: MakeRun, headed: ReportContext
) -> None:
    apart = make_predictions(33.5, "out-of-distribution")
    first = replace(make_run(number="01"), predictions=make_predictions(30.0))
    second = replace(make_run(number="02"), predictions=apart)
    page = Page.of(write([first, second], (), headed, make_predictions(31.0)))
    assert f"Out of distribution. The embedding of {second.name} lies apart" in page.text
    page = Page.of(write([first, second], (), headed, apart))
    assert f"The embedding of sub-01, {second.name} lies apart" in page.text
    assert "Out of distribution" not in Page.of(write([first], (), headed)).text


def test_a_banner_says_who_was_seen_in_training(
    write: Callable[..., str], make_run: MakeRun
) -> None:
    notice = Notice(code="seen-in-training", message="the weights were trained on this run")
    assert "Seen in training." in Page.of(write([replace(make_run(), notices=(notice,))])).text
    assert "Seen in training." not in Page.of(write([make_run()])).text


def test_without_heads_or_runs_the_page_says_why_nothing_is_predicted(
    write: Callable[..., str], make_run: MakeRun, headed: ReportContext, too_short: Refusal
) -> None:
    without = Page.of(write([make_run()]))
    assert "Predictions none: the package has no head" in without.text
    assert "predictions" not in without.values("id")
    assert "Nothing was predicted" in Page.of(write([], [too_short], headed)).text
