"""The group's page of a pretraining: one self-contained HTML file."""

from __future__ import annotations

import shlex
from pathlib import Path

from slimbrain_app.errors import REASONS
from slimbrain_app.files import write_text
from slimbrain_app.report import story as told
from slimbrain_app.report.curves import draw_corpus, draw_training
from slimbrain_app.report.page import group_by_code, make_environment
from slimbrain_app.report.story import Story
from slimbrain_app.settings import write_settings

EVALUATION_PAGE = "evaluation.html"
# Of each reason, so that thousands of refused runs leave a page that can be mailed.
MOST_REFUSALS = 100
# A training that rings at each reading has thousands.
MOST_INCIDENTS = 300

GROUPS = {
    "learning": "Does it learn?",
    "collapse": "Does it collapse?",
    "probes": "Probes",
    "pace": "Rate and pace",
    "extractor": "Temporal extractor",
}


def write_group_page(path: Path, story: Story) -> None:
    """Write the page of a pretraining, finished or not, to ``path``.

    It tells no folder of this machine and needs no other file.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    write_text(path, render_group_page(story, (path.parent / EVALUATION_PAGE).exists()))


def link_evaluation(path: Path) -> None:
    """Add a link to the evaluation beside it to the page of a pretraining, where there is one."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    if "</nav>" in page and f'href="{EVALUATION_PAGE}"' not in page:
        link = f'<a href="{EVALUATION_PAGE}">Evaluation</a>\n</nav>'
        write_text(path, page.replace("</nav>", link, 1))


def render_group_page(story: Story, evaluation: bool = False) -> str:
    """Return the page's HTML; with a link to the page of an evaluation if there is one."""
    charts = draw_training(story)
    return (
        make_environment()
        .get_template("group.html.jinja")
        .render(
            story=story,
            evaluation=evaluation,
            told=told,
            charts={group: [chart for chart in charts if chart.group == group] for group in GROUPS},
            corpus_charts=draw_corpus(story),
            headings=GROUPS,
            refused=group_by_code(story.refusals),
            reasons=REASONS,
            most_refusals=MOST_REFUSALS,
            most_incidents=MOST_INCIDENTS,
            command=shlex.join(story.command),
            settings=write_settings(story.settings),
            duration=describe_duration,
        )
    )


def describe_duration(seconds: float) -> str:
    """Return a duration in words, to the minute, or to the second below one.

    >>> describe_duration(7384)
    '2 h 3 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
