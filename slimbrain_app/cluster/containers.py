"""How a command enters an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def enter_image(
    command: Sequence[str], image: Path, read: Sequence[Path], written: Sequence[Path], gpus: bool
) -> list[str]:
    """Return the command within an Apptainer image that sees some files and folders.

    Parameters
    ----------
    command : sequence of str
    image : Path
    read, written : sequence of Path
        Files and folders that the command only reads, and those that it writes; absolute.
    gpus : bool
    """
    binds = [f"--bind={path}:{path}:ro" for path in read]
    binds += [f"--bind={path}:{path}" for path in written]
    return ["apptainer", "exec", *(["--nv"] if gpus else []), *binds, str(image), *command]
