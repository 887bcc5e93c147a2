"""The command line as a Boutiques descriptor, schema 0.5, made from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimbrain_app import __version__
from slimbrain_app.cli.arguments import WRITTEN
from slimbrain_app.cli.parser import EXITS
from slimbrain_app.costs import MEMORY_GB
from slimbrain_app.errors import Exit


def describe(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the descriptor of a command line. Options that are hidden are left out."""
    inputs = [_describe_input(action) for action in _list_actions(parser)]
    keys = " ".join(one["value-key"] for one in inputs)
    return {
        "name": parser.prog,
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": f"mkdir -p [OUTPUT_DIR]; {parser.prog} {keys}",
        "container-image": {"type": "docker", "image": f"slimbrain:{__version__}"},
        "inputs": inputs,
        "output-files": [
            {
                "id": "derivatives",
                "name": "derivatives",
                "description": "Tables, images, reports and logs, as BIDS derivatives.",
                "path-template": "[OUTPUT_DIR]",
                "optional": False,
            }
        ],
        "error-codes": [
            {"code": int(code), "description": meaning}
            for code, meaning in EXITS.items()
            if code != Exit.DONE
        ],
        "suggested-resources": {"cpu-cores": 4, "ram": max(MEMORY_GB.values())},
    }


def _list_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield what is shown and leaves a value, unlike what prints something and ends."""
    for action in parser._actions:
        if argparse.SUPPRESS not in (action.help, action.default):
            yield action


def _describe_input(action: argparse.Action) -> dict[str, Any]:
    flags = [option for option in action.option_strings if option.startswith("--")]
    name = flags[0].removeprefix("--") if flags else action.dest
    described = {
        "id": name.replace("-", "_"),
        "name": name.replace("-", " ").replace("_", " "),
        "description": action.help,
        "value-key": f"[{name.replace('-', '_').upper()}]",
        "optional": not action.required,
        **_describe_values(action),
    }
    if flags:
        described["command-line-flag"] = flags[0]
    if action.nargs == "+":
        described["list"] = True
    if action.choices is not None:
        described["value-choices"] = list(action.choices)
    return described


def _describe_values(action: argparse.Action) -> dict[str, Any]:
    if action.nargs == 0:
        return {"type": "Flag"}
    if action.type in (int, float):
        return {"type": "Number", "integer": action.type is int}
    # What is yet to be written is no file for Boutiques.
    is_file = action.type is Path and action.dest not in WRITTEN
    return {"type": "File" if is_file else "String"}
