"""Arguments in the spelling of fMRIPrep's users: what argparse alone doesn't forgive."""

from __future__ import annotations

import argparse
import difflib
import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from slimbrain_app.errors import CallRefused

LEVELS = ("participant", "group")
# What is written; whatever else an option names is only read.
WRITTEN = ("output_dir", "work_dir")
ACTIONS = ("tabulate", "pretrain", "finetune", "evaluate")


class Parser(argparse.ArgumentParser):
    """A parser that refuses as SlimBrain does and names the nearest option for an unknown one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._taken: list[tuple[argparse.Action, list[str]]] = []

    def error(self, message: str) -> NoReturn:
        raise CallRefused(
            "usage",
            expected="a command line as --help shows it",
            found=message,
            advice=f"see {self.prog} --help",
        )

    def parse_strictly(self, arguments: Sequence[str]) -> argparse.Namespace:
        for argument in arguments:
            if "\0" in argument or argument.encode("utf-8", "replace").decode() != argument:
                self.error(f"{argument!a}, which is not text in UTF-8, or has a NUL in it")
        known, unknown = self.parse_known_args(arguments)
        if unknown:
            self.error("; ".join(self._describe_unknown(argument) for argument in unknown))
        return known

    def take_apart(self, arguments: Sequence[str]) -> list[tuple[argparse.Action, list[str]]]:
        """Return what a command line names, in order, each with its values as they were written."""
        self._taken = []
        self.parse_strictly(arguments)
        return self._taken

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        self._taken.append((action, list(arg_strings)))
        return super()._get_values(action, arg_strings)

    def _describe_unknown(self, argument: str) -> str:
        options = [option for action in self._actions for option in action.option_strings]
        nearest = difflib.get_close_matches(argument.split("=")[0], options, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        return f"the unknown argument {argument}{hint}"


class PassingParser(Parser):
    """A parser that leaves what stands behind ``--`` to another command, as ``passed``."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(args or ())
        end = words.index("--") if "--" in words else len(words)
        options, unknown = super().parse_known_args(words[:end], namespace)
        options.passed = words[end + 1 :]
        return options, unknown


def normalise(arguments: Sequence[str]) -> list[str]:
    """Write options with dashes and bring the three positionals to the front.

    ``--participant_label`` becomes ``--participant-label``. A list option just before the
    positionals would swallow them: they are the level and what stands before it.
    """
    dashed = [_dash(argument) for argument in arguments]
    leading = next((i for i, word in enumerate(dashed) if word.startswith("-")), len(dashed))
    if leading >= 3:
        return dashed
    levels = [i for i in range(leading, len(dashed)) if dashed[i] in LEVELS]
    if not levels:
        return dashed
    end = levels[-1] + 1
    start = end - (3 - leading)
    return [*dashed[:leading], *dashed[start:end], *dashed[leading:start], *dashed[end:]]


def _dash(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return f"{option.replace('_', '-')}{equals}{value}"


def refuse_loops(*paths: Path | None) -> None:
    """Refuse as ``usage`` a path whose links lead round in a circle: it can't be made whole."""
    for path in filter(None, paths):
        try:
            path.stat()
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CallRefused(
                    "usage",
                    file=path,
                    expected="links that lead somewhere",
                    found=error.strerror or str(error),
                    advice="mend the links, or name another path",
                ) from error


def misfit(command: str, found: str, expected: str = "options that go together") -> CallRefused:
    """Return the refusal of a call of a tool whose options do not go together."""
    return CallRefused(
        "usage",
        expected=expected,
        found=found,
        advice=f"see slimbrain-tools {command} --help",
    )


def label(entity: str) -> Callable[[str], str]:
    """Return a converter that takes a label with or without its ``<entity>-`` before it."""

    def strip(text: str) -> str:
        bare = text.removeprefix(f"{entity}-")
        if not bare.isalnum():
            raise argparse.ArgumentTypeError(
                f"{text!r}, where a label of letters and digits is expected"
            )
        return bare

    return strip


def count_or_all(text: str) -> int | str:
    if text == "all":
        return text
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}, where a number from 1 or 'all' is expected")
    return int(text)


def memory(text: str) -> float:
    """Return GB from ``N[GB]``; a number without a unit is in megabytes, as in fMRIPrep."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|K|M|G|T)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}, where 8GB or 8000 (megabytes) is expected")
    number, unit = float(match[1]), match[2].upper()
    if not unit and number < 512:
        raise argparse.ArgumentTypeError(f"{text!r}, which is megabytes: did you mean {text}GB?")
    return number * {"K": 1e-6, "M": 1e-3, "": 1e-3, "G": 1.0, "T": 1e3}[unit]


def gigabytes(text: str) -> float:
    return memory(f"{text}GB")


def number_from(least: int) -> Callable[[str], int]:
    """Return a converter that takes whole numbers which are not below ``least``."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}, where a number from {least} is expected")
        return int(text)

    return convert


def slurm_time(text: str) -> str:
    """Return minutes, with seconds, with hours; or days with what follows them."""
    return _match(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", text)


def slurm_name(text: str) -> str:
    return _match(r"[\w.,:@+-]+", text)


def slurm_size(text: str) -> str:
    return _match(r"[1-9]\d*[KMGT]?", text)


def _match(pattern: str, text: str) -> str:
    if re.fullmatch(pattern, text, re.ASCII) is None:
        raise argparse.ArgumentTypeError(f"{text!r}, which Slurm does not understand")
    return text
