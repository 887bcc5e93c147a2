"""What the pages tell to type is understood; test_blocks.py runs it."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile

from slimbrain_app.bids.discover import read_filter_file
from slimbrain_app.cli import tools
from slimbrain_app.cli.app import read_options
from slimbrain_app.settings import ParticipantSettings, read_settings


def list_commands(pages):
    """Yield page and words of each call of ours in the blocks of shell."""
    for page in pages.values():
        for _, block in page.blocks("sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if not re.match(r"\s*(exec )?slimbrain", line):
                    continue
                # A variable may stand for a label or a number.
                words = shlex.split(re.sub(r"\$\{?\w+\}?", "1", line), comments=True)
                words = words[1:] if words[:1] == ["exec"] else words
                words = list(takewhile(lambda word: word not in (">", "|", "||", "&&"), words))
                if words and words[0] in ("slimbrain", "slimbrain-tools"):
                    yield page.name, words


def test_every_command_is_understood(pages):
    commands = list(list_commands(pages))
    assert {words[0] for _, words in commands} == {"slimbrain", "slimbrain-tools"}
    for _, (program, *words) in commands:
        if program == "slimbrain":
            read_options(words)
        elif words != ["--version"]:
            tools.make_parser().parse_strictly(words)


def test_every_example_of_settings_and_filters_is_taken(pages, tmp_path):
    settings, filters = tmp_path / "settings.toml", tmp_path / "filter.json"
    ((_, text),) = pages["docs/reference/settings.md"].blocks("toml")
    settings.write_text(text)
    assert read_settings(ParticipantSettings, settings, {}).rank.windows == 12
    ((_, text),) = pages["docs/how-to/choose-runs.md"].blocks("json")
    filters.write_text(text)
    taken, notices = read_filter_file(filters)
    assert len(taken) == 3
    assert not notices
