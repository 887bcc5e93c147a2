"""The Boutiques descriptor against the parser that it is made from."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app import __version__
from slimbrain_app.cli.descriptor import describe
from slimbrain_app.cli.parser import make_parser
from slimbrain_app.errors import Exit

SLIMBRAIN = Path(sys.executable).with_name("slimbrain")
POSITIONALS = {"bids_dir": "data", "output_dir": "my out", "analysis_level": "group"}
DESCRIPTOR = describe(make_parser())
INPUTS = {one["id"]: one for one in DESCRIPTOR["inputs"]}
# Values that are understood, where any word would not do.
TEXTS = {"windows": "all", "mem": "8GB"}


def fill(values: dict[str, object]) -> list[str]:
    """Return the command line with its keys filled in, as a program for Boutiques does it."""
    line = DESCRIPTOR["command-line"]
    for name, one in INPUTS.items():
        value = values.get(name)
        listed = value if isinstance(value, list) else [value]
        words = [] if value in (None, True) else [shlex.quote(str(item)) for item in listed]
        flag = [one["command-line-flag"]] if value and "command-line-flag" in one else []
        line = line.replace(one["value-key"], " ".join((*flag, *words)))
    made, program, *words = re.split(r"; (slimbrain) ", line)
    assert (made, program) == ("mkdir -p 'my out'", "slimbrain")
    return shlex.split(words[0])


def make_value(one: dict) -> object:
    """Return a value of an input's type."""
    if one["type"] == "Flag":
        return True
    if one["type"] == "Number":
        return 2 if one["integer"] else 1.5
    text = one.get("value-choices", [TEXTS.get(one["id"], "a")])[-1]
    return [text, text] if one.get("list") else text


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in POSITIONALS])
def test_each_option_filled_in_is_what_the_parser_reads(name):
    value = make_value(INPUTS[name])
    words = fill({**POSITIONALS, name: value})
    options = vars(make_parser().parse_strictly(words))
    plain = vars(make_parser().parse_strictly(fill(POSITIONALS)))
    assert (plain["bids_dir"], plain["output_dir"]) == (Path("data"), Path("my out"))
    changed = {key: options[key] for key in options if options[key] != plain[key]}
    (read,) = changed.values()
    if isinstance(value, list):
        assert len(read) == 2
    elif isinstance(value, str) and name not in TEXTS:
        assert str(read) == value
    else:
        assert read == {"windows": "all", "mem": 8.0}.get(name, value)


def test_each_option_that_is_shown_is_there_once_and_no_other():
    shown = [
        action
        for action in make_parser()._actions
        if action.help != argparse.SUPPRESS
        and not {"--help", "--version", "--bids-exec-spec"} & set(action.option_strings)
    ]
    flags = [one["command-line-flag"] for one in INPUTS.values() if "command-line-flag" in one]
    assert len(flags) == len(set(flags))
    for action in shown:
        options = set(action.option_strings)
        assert len(options & set(flags)) == 1 or action.dest in POSITIONALS
    assert len(INPUTS) == len(DESCRIPTOR["inputs"]) == len(shown)


def test_choices_and_what_must_be_given_are_those_of_the_parser():
    by_flag = {flag: action for action in make_parser()._actions for flag in action.option_strings}
    for one in INPUTS.values():
        action = by_flag.get(one.get("command-line-flag"))
        if action:
            assert one.get("value-choices") == (action.choices and list(action.choices))
    needed = {name for name, one in INPUTS.items() if not one["optional"]}
    assert needed == set(POSITIONALS)
    assert INPUTS["analysis_level"]["value-choices"] == ["participant", "group"]


def test_every_exit_code_but_success_is_told():
    codes = [one["code"] for one in DESCRIPTOR["error-codes"]]
    assert sorted(codes) == sorted(set(Exit) - {Exit.DONE})
    assert all(one["description"] for one in DESCRIPTOR["error-codes"])


def test_it_has_the_form_that_boutiques_wants():
    keys = [one["value-key"] for one in INPUTS.values()]
    assert all(DESCRIPTOR["command-line"].count(key) == 1 for key in keys if key != "[OUTPUT_DIR]")
    assert not [(a, b) for a in keys for b in keys if a != b and a in b]
    for one in (*INPUTS.values(), *DESCRIPTOR["output-files"]):
        assert re.fullmatch(r"[0-9_a-zA-Z]+", one["id"])
    for one in INPUTS.values():
        assert one["type"] in ("String", "File", "Flag", "Number")
        assert ("integer" in one) == (one["type"] == "Number")
        assert one["type"] != "Flag" or (one["optional"] and "list" not in one)
    assert DESCRIPTOR["schema-version"] == "0.5"
    assert DESCRIPTOR["container-image"] == {"type": "docker", "image": f"slimbrain:{__version__}"}


def test_it_is_printed_as_json_by_itself_and_beside_anything():
    for words in ([], ["data", "--windows", "3"]):
        done = subprocess.run(
            [SLIMBRAIN, *words, "--bids-exec-spec"], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == DESCRIPTOR
