"""Write the tables of options on the command-line page, from the parsers: `python docs/options.py`.

A table stands between `<!-- options: COMMAND, GROUP -->` and `<!-- end -->`, where GROUP is a title
in --help. They are kept in the page, so that they can be read where no site is made.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from slimbrain_app.cli import parser as app
from slimbrain_app.cli import tools

PAGE = Path(__file__).parent / "reference/command-line.md"

BAR = "\\|"
_TABLE = re.compile(r"(<!-- options: ([\w -]+), ([^>]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_DEFAULT = re.compile(r"(?: \(|; )default: (.*?)\)?$")
_CODE = re.compile(r"(?<![\w`-])(--[a-z][\w-]*|\w+_\w[\w/]*|\w+\.tsv|\{\".*\}\})")


def list_commands(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command without commands below it, and its parser."""
    below = [action for action in parser._actions if isinstance(action.choices, dict)]
    for word, child in (pair for action in below for pair in action.choices.items()):
        yield from list_commands(child, f"{name} {word}")
    if not below:
        yield name, parser


def list_groups() -> dict[tuple[str, str], list[argparse.Action]]:
    """Return the options that --help shows, by command and title."""
    commands = {
        "slimbrain": app.make_parser(),
        **dict(list_commands(tools.make_parser(), "slimbrain-tools")),
    }
    return {
        (name, str(group.title)): options
        for name, parser in commands.items()
        for group in parser._action_groups
        if (options := [action for action in group._group_actions if _is_shown(action, name)])
    }


def _is_shown(action: argparse.Action, command: str) -> bool:
    # That each of the tools has --help is told once.
    told = action.dest == "help" and command != "slimbrain"
    return bool(action.option_strings) and action.help != argparse.SUPPRESS and not told


def write_table(options: list[argparse.Action]) -> str:
    """Return a row for each option: how it is spelled, what holds without it, what it means."""
    rows = [("option", "default", "meaning"), ("---", "---", "---"), *map(_describe, options)]
    return "".join(f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |\n" for row in rows)


def _describe(option: argparse.Action) -> tuple[str, str, str]:
    text = (option.help or "") % vars(option)
    default = _DEFAULT.search(text)
    meaning = _CODE.sub(r"`\1`", _DEFAULT.sub("", text))
    if option.choices:
        meaning += ": " + ", ".join(f"`{choice}`" for choice in option.choices)
    return _spell(option), _tell_default(option, default[1] if default else ""), meaning


def _spell(option: argparse.Action) -> str:
    values = "" if option.nargs == 0 else f" {option.metavar or 'WHAT'}"
    values += " ..." * (option.nargs == "+")
    first = next(spelling for spelling in option.option_strings if spelling.startswith("--"))
    return ", ".join(
        f"`{spelling}{values * (spelling == first)}`" for spelling in option.option_strings
    )


def _tell_default(option: argparse.Action, told: str) -> str:
    if option.required:
        return "must be given"
    if not told:
        return "off" if option.nargs == 0 and option.default != argparse.SUPPRESS else ""
    is_value = re.fullmatch(r"[\w.]+", told) and told not in ("all", "none")
    return f"`{told}`" if is_value else _CODE.sub(r"`\1`", told)


def refresh(page: str) -> str:
    """Return the page with its tables as the parsers have them."""
    groups = list_groups()
    return _TABLE.sub(
        lambda table: f"{table[1]}\n{write_table(groups[table[2], table[3]])}\n{table[5]}", page
    )


if __name__ == "__main__":
    PAGE.write_text(refresh(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
