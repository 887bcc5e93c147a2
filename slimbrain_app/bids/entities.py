"""BIDS names: taken apart, put together, compared.

pybids 0.22 drops ``cohort-`` and ``stat-``, cuts ``to-MNIInfant+1`` and does not know the names of
fMRIPrep 1.0 to 1.1, hence a pattern of our own. What the entities are called is pybids' say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

Entities = tuple[tuple[str, str], ...]

# What tells variants of one run apart, not runs.
VARIANT = frozenset(
    ("space", "res", "den", "cohort", "desc", "hemi", "echo", "part", "from", "to", "mode")
)

_NAME = re.compile(r"(?P<stem>[A-Za-z0-9+_-]+)(?P<extension>(?:\.[A-Za-z0-9]+)+)")
_ENTITY = re.compile(r"([A-Za-z0-9]+)-([A-Za-z0-9+]+)")
_WORD = re.compile(r"[A-Za-z0-9]+")
_PYBIDS_KEY = re.compile(r"([a-z]+)-\(")

# Names of the BIDS standard and keys that pybids' patterns lack.
_MORE_KEYS = {
    "description": "desc",
    "resolution": "res",
    "density": "den",
    "hemisphere": "hemi",
    "cohort": "cohort",
    "statistic": "stat",
    "stat": "stat",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A file's name, taken apart. The extension is the whole of it, ``.func.gii``."""

    entities: Entities
    suffix: str
    extension: str

    def get(self, key: str) -> str | None:
        return next((value for name, value in self.entities if name == key), None)

    def without(self, keys: Iterable[str]) -> Entities:
        return tuple(entity for entity in self.entities if entity[0] not in keys)


def parse_name(name: str) -> Name | None:
    """Take a name apart; None if it isn't made like a BIDS name.

    Names of fMRIPrep 1.0 to 1.3 come out in today's words: ``_bold_space-X_preproc`` is a
    ``bold`` with ``space-X`` and ``desc-preproc``. All others go back by `build_name` unchanged.
    """
    whole = _NAME.fullmatch(name)
    if whole is None:
        return None
    parts = whole["stem"].split("_")
    pairs = [_parse_entity(part) for part in parts]
    entities = dict(pair for pair in pairs if pair)
    words = [part for part, pair in zip(parts, pairs, strict=True) if pair is None]
    twice = len(entities) + len(words) < len(parts)
    if twice or not all(_WORD.fullmatch(word) for word in words):
        return None
    if words == parts[-1:]:
        return Name(tuple(entities.items()), words[0], whole["extension"])
    return _translate_old(entities, words, whole["extension"])


def build_name(entities: Iterable[tuple[str, str]], suffix: str, extension: str) -> str:
    """Put a name together, entities in the order given."""
    return "_".join([*(f"{key}-{value}" for key, value in entities), suffix]) + extension


def strip_prefix(key: str, label: str) -> str:
    """Return a label as it stands after its key: ``sub-01`` and ``01`` are the same."""
    return label.removeprefix(f"{key}-")


def same_label(key: str, one: str, other: str) -> bool:
    """Compare labels with or without prefix; runs and echoes are numbers, the others text."""
    one, other = strip_prefix(key, one), strip_prefix(key, other)
    if key in ("run", "echo") and one.isdecimal() and other.isdecimal():
        return one.lstrip("0") == other.lstrip("0")
    return one == other


def entity_keys() -> Mapping[str, str]:
    """Return the key in file names for each name of an entity, the key itself included."""
    from bids.layout.models import Config

    names = dict(_MORE_KEYS)
    for config in ("bids", "derivatives"):
        for entity in Config.load(config).entities.values():
            if key := _PYBIDS_KEY.search(entity.pattern):
                names[entity.name] = key[1]
    return names | {key: key for key in names.values()}


@lru_cache(maxsize=4096)  # All files of a run, and of people, share most of theirs.
def _parse_entity(part: str) -> tuple[str, str] | None:
    pair = _ENTITY.fullmatch(part)
    return (pair[1], pair[2]) if pair else None


def _translate_old(entities: dict[str, str], words: list[str], extension: str) -> Name | None:
    match words:
        case [image, "preproc"]:
            desc = entities.pop("variant", "preproc")
            return Name((*entities.items(), ("desc", desc)), image, extension)
        case [_, "brainmask"]:
            return Name((*entities.items(), ("desc", "brain")), "mask", extension)
        case ["bold", "confounds"]:
            return Name((*entities.items(), ("desc", "confounds")), "timeseries", extension)
        case [image, "warp" | "affine"] if "target" in entities:
            way = {"from": entities.pop("space", image), "to": entities.pop("target")}
            return Name((*entities.items(), *way.items(), ("mode", "image")), "xfm", extension)
        case ["bold"] | [] if extension.endswith(".func.gii"):
            return Name(tuple(entities.items()), "bold", ".func.gii")
        case _:
            return None
