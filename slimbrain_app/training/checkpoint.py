"""What a training needs to go on, in one file, whole or not there.

Written under another name, flushed, renamed: a process killed at any moment leaves the last
checkpoint as it was. Read as data: nothing pickled is executed.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import slimbrain_app
from slimbrain_app.errors import CallRefused
from slimbrain_app.files import remove_leftovers, whole_file
from slimbrain_app.training.state import TrainingState

_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a checkpoint belongs to: fingerprints of all settings that matter, and of the corpus."""

    settings: str
    corpus: str


def write_checkpoint(path: Path, state: TrainingState, identity: Identity) -> None:
    """Put a training's state in the place of the last one.

    For one process only, the one that holds the lock on the folder.

    Raises
    ------
    CallRefused
        ``disk-full`` or ``not-writable``; the last checkpoint is as it was.
    """
    content = {
        "version": _VERSION,
        "settings": identity.settings,
        "corpus": identity.corpus,
        "software": {"slimbrain": slimbrain_app.__version__, "torch": str(torch.__version__)},
        "done": state.done,
        **{name: part.state_dict() for name, part in state.parts.items()},
    }
    write_content(path, content)


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all.

    Raises
    ------
    CallRefused
        ``disk-full`` or ``not-writable``.
    """
    # By way of memory: torch's own writer would hide what the system says of a full disk.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    remove_leftovers(path.parent, path.name)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def resume(path: Path, state: TrainingState, identity: Identity) -> bool:
    """Bring a training to where its checkpoint is, and return whether there is one.

    Raises
    ------
    CallRefused
        ``checkpoint-bad`` if it is damaged or of another release; ``settings-changed`` or
        ``corpus-changed`` if it belongs to another training. It is left as it is.
    """
    if not path.exists():
        return False
    content = read_content(path)
    if str(content.get("version")) != str(_VERSION):
        raise _bad(path, f"a checkpoint of version {_VERSION}", "another version")
    require_same_settings(path, str(content.get("settings")), identity.settings)
    require_same_corpus(path, str(content.get("corpus")), identity.corpus)
    try:
        for name, part in state.parts.items():
            part.load_state_dict(content[name])
        state.done = int(content["done"])
    # Tensors of other shapes, or parts that are not there: each part raises its own kind of error.
    except Exception as error:
        found = next(iter(str(error).splitlines()), type(error).__name__)
        raise _bad(path, "the state of this network", found) from error
    return True


def read_content(path: Path) -> dict[str, Any]:
    """Return what `write_content` wrote.

    Raises
    ------
    CallRefused
        ``checkpoint-bad``.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums in its files.
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file makes the readers stumble in any way.
    except Exception as error:
        raise _bad(
            path, "a whole checkpoint", next(iter(str(error).splitlines()), type(error).__name__)
        ) from error
    if damaged is not None:
        raise _bad(path, "a whole checkpoint", f"another checksum of {damaged}")
    if not isinstance(content, dict):
        raise _bad(path, "a table", f"a {type(content).__name__}")
    return content


def require_same_settings(path: Path, before: str, now: str) -> None:
    """Refuse to go on from ``path`` with settings of another fingerprint: ``settings-changed``."""
    if before != now:
        raise CallRefused(
            "settings-changed",
            file=path,
            expected="the settings that the training was begun with",
            found="others",
            advice="give the former ones to go on, or another --package-name to begin anew",
        )


def require_same_corpus(path: Path, before: str, now: str) -> None:
    """Refuse to go on from ``path`` with runs of another fingerprint: ``corpus-changed``."""
    if before != now:
        raise CallRefused(
            "corpus-changed",
            file=path,
            expected="the runs that the training was begun with",
            found="others, or the same prepared in another way",
            advice="bring them back to go on, or give another --package-name to begin anew",
        )


def _bad(path: Path, expected: str, found: str) -> CallRefused:
    return CallRefused(
        "checkpoint-bad",
        file=path,
        expected=expected,
        found=found,
        advice="bring back a whole copy to go on, or remove the file to begin anew",
    )
