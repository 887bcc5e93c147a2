"""The corpus of a training on disk: settled once, it holds until the training is through.

Windows are not selected anew when a training goes on, and a run that could not be used at the
beginning stays out, for it would change what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import write_text
from slimbrain_app.prepare.store import load_prepared
from slimbrain_app.records import Contract, Recording, Refusal
from slimbrain_app.training.corpus import Corpus, Item

Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A recording as it was when the corpus was settled.

    ``folder`` is where its prepared run lay at the last call, ``fingerprint`` what made it.
    """

    dataset: str
    participant: str
    run: str
    site: str | None
    folder: Path
    fingerprint: str
    split: Literal["train", "validation"]
    starts: tuple[int, ...]

    def record(self) -> Recording:
        return Recording(
            dataset=self.dataset,
            participant=self.participant,
            run=self.run,
            site=self.site,
            prepared=load_prepared(self.folder),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A corpus and, by dataset, the runs that were left out when it was settled.

    ``settings`` is the fingerprint of all settings that matter.
    """

    settings: str
    contract: Contract
    rows: tuple[Row, ...]
    refusals: Mapping[str, tuple[Refusal, ...]]

    @classmethod
    def of(
        cls, corpus: Corpus, refusals: Mapping[str, Sequence[Refusal]], settings: str
    ) -> Manifest:
        rows = [*_list_rows(corpus.train, "train"), *_list_rows(corpus.validation, "validation")]
        return cls(
            settings=settings,
            contract=corpus.contract,
            rows=tuple(rows),
            refusals={dataset: tuple(many) for dataset, many in refusals.items()},
        )

    def gather(self, recordings: Iterable[Recording] | None = None) -> Corpus:
        """Return the corpus from recordings at hand, or from the folders where they lay."""
        known = {_key(one): one for one in recordings or [row.record() for row in self.rows]}
        items = {
            split: tuple(
                Item(known[_key(row)], row.starts) for row in self.rows if row.split == split
            )
            for split in ("train", "validation")
        }
        return Corpus(items["train"], items["validation"], self.contract)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    from pydantic import TypeAdapter

    write_text(path, TypeAdapter(Manifest).dump_json(manifest, indent=1).decode() + "\n")


def read_manifest(path: Path) -> Manifest:
    """Return what `write_manifest` wrote.

    Raises
    ------
    CallRefused
        ``checkpoint-bad``.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(Manifest).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CallRefused(
            "checkpoint-bad",
            file=path,
            expected="the corpus that the training began with",
            found=str(error).splitlines()[0],
            advice="bring back a whole copy to go on, or remove the folder to begin anew",
        ) from error


def require_same_runs(manifest: Manifest, recordings: Sequence[Recording], file: object) -> None:
    """Refuse recordings that are not those of a manifest, called ``file``.

    What was left out at the beginning may have become usable: it stays out.

    Raises
    ------
    CallRefused
        ``corpus-changed``.
    """
    out = {(dataset, one.run) for dataset, many in manifest.refusals.items() for one in many}
    before = {_key(row): row.fingerprint for row in manifest.rows}
    now = {_key(one): one.prepared.fingerprint for one in recordings if _key(one) not in out}
    differences = list(_compare(before, now))
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise CallRefused(
            "corpus-changed",
            file=file,
            expected=f"the {len(before)} runs that the training began with",
            found="; ".join(differences[:3]) + more,
            advice="give the same datasets and filters as before, or train under another "
            "--package-name",
        )


def _compare(before: Mapping[Key, str], now: Mapping[Key, str]) -> Iterator[str]:
    for key in sorted(before.keys() | now.keys()):
        name = "/".join(key)
        if key not in now:
            yield f"{name} is gone"
        elif key not in before:
            yield f"{name} is new"
        elif before[key] != now[key]:
            yield f"{name} was prepared from other data"


def _key(one: Recording | Row) -> Key:
    return one.dataset, one.run


def _list_rows(items: Iterable[Item], split: Literal["train", "validation"]) -> Iterator[Row]:
    for item in items:
        recording = item.recording
        yield Row(
            dataset=recording.dataset,
            participant=recording.participant,
            run=recording.run,
            site=recording.site,
            folder=recording.prepared.folder,
            fingerprint=recording.prepared.fingerprint,
            split=split,
            starts=item.starts,
        )
