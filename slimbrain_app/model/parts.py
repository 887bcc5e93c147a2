"""Files of a model package: read strictly, or refused by what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from slimbrain_app.errors import CallRefused

AGAIN = "copy or make the package again"
NEWER = "use the release of SlimBrain that made the package, or a later one"

FLOATS = ("F32", "F16", "BF16")

Record = TypeVar("Record")


def refuse_part(file: Path, expected: str, found: str, advice: str = AGAIN) -> CallRefused:
    """Return the refusal of a package for one of its files."""
    return CallRefused("package-bad", file=file, expected=expected, found=found, advice=advice)


def write_part(file: Path, content: Any) -> None:
    """Write JSON into a folder that nobody reads yet."""
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_part(file: Path, kind: type[Record]) -> Record:
    """Read JSON as a record of a kind, which knows all of its keys.

    Raises
    ------
    CallRefused
        ``package-bad``.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(file.read_bytes(), strict=True)
    except ValidationError as error:
        faults = [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors(include_url=False)
        ]
        expected = "known keys with known values"
        raise refuse_part(file, expected, "; ".join(faults), NEWER) from error


def check_shapes(
    file: Path,
    wanted: Mapping[str, Sequence[int]],
    expected: str,
    kinds: Sequence[str] = FLOATS,
) -> None:
    """Hold the names and shapes of tensors in a file against those wanted, both ways.

    Parameters
    ----------
    file : Path
    wanted : mapping of str to sequence of int
        Shapes by name.
    expected : str
        What that is, in words.
    kinds : sequence of str
        Types of numbers that will do.

    Raises
    ------
    CallRefused
        ``package-bad``, with the names.
    """
    shapes = {name: format_shape(shape) for name, shape in wanted.items()}
    found = _read_shapes(file, kinds)
    faults = [
        f"{name}: {found.get(name, 'none')} for {shapes.get(name, 'none')}"
        for name in sorted(shapes.keys() | found.keys())
        if shapes.get(name) != found.get(name)
    ]
    if faults:
        shown = "; ".join(faults[:5]) + ("; and more" if len(faults) > 5 else "")
        raise refuse_part(file, expected, shown)


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape as text.

    >>> format_shape((2, 192))
    '2 x 192'
    """
    return " x ".join(map(str, shape))


def _read_shapes(file: Path, kinds: Sequence[str]) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    shapes = {}
    try:
        with safe_open(file, framework="numpy") as stored:
            for name in stored.keys():  # noqa: SIM118
                tensor = stored.get_slice(name)
                kind = "" if tensor.get_dtype() in kinds else tensor.get_dtype() + " "
                shapes[name] = kind + format_shape(tensor.get_shape())
    except SafetensorError as error:
        raise refuse_part(file, "a safetensors file", str(error)) from error
    return shapes
