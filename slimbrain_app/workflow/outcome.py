"""What a pretraining tells at the root of the output: the table of its corpus, and its page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import whole_file, write_json
from slimbrain_app.records import Recording, Refusal
from slimbrain_app.report.group import write_group_page
from slimbrain_app.report.methods import describe_pretraining
from slimbrain_app.report.story import Story, count_people
from slimbrain_app.training.card import Source
from slimbrain_app.training.corpus import COLUMNS, Corpus, Item, tabulate_corpus
from slimbrain_app.training.log import Checkpoint, Event, Start, pick, read_log
from slimbrain_app.training.pretraining import Pretraining
from slimbrain_app.workflow.plan import list_software

TABLE = "desc-slimbrain_corpus.tsv"
PAGE = "group.html"
# While a training goes on; drawing takes seconds.
_SECONDS_BETWEEN_PAGES = 600


def write_corpus(output: Path, corpus: Corpus, refusals: Mapping[str, Sequence[Refusal]]) -> None:
    """Write the table of all runs that were found, and the JSON that describes its columns."""
    table = tabulate_corpus(corpus, refusals)
    with whole_file(output / TABLE) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a")
    columns = {name: {"Description": text} for name, text in COLUMNS.items()}
    write_json((output / TABLE).with_suffix(".json"), columns)


@dataclass(slots=True, kw_only=True, eq=False)
class Page:
    """``group.html``, kept up to date while a training goes on.

    Attributes
    ----------
    tell : callable
        Takes the events that the page follows.
    weights : str or None
        Checksum of the package, once it is whole.
    """

    output: Path
    pretraining: Pretraining
    corpus: Corpus
    refusals: tuple[Refusal, ...]
    device: str
    command: tuple[str, ...]
    tell: Callable[[Event], None]
    weights: str | None = None
    _written: float = 0.0

    @contextmanager
    def kept(self) -> Iterator[Page]:
        """Write the page when the block ends, however it does."""
        try:
            yield self
        except CallRefused:
            with suppress(CallRefused):  # The first one says what is wrong.
                self.write()
            raise
        self.write()

    def follow(self, event: Event) -> None:
        """Hand an event on, and write the page now and then."""
        self.tell(event)
        if isinstance(event, Checkpoint):
            self._written = self._written or time.monotonic()
            if time.monotonic() - self._written > _SECONDS_BETWEEN_PAGES:
                self.write()

    def write(self) -> None:
        """Write the page as things stand."""
        self._written = time.monotonic()
        pretraining, software = self.pretraining, list_software()
        log = pretraining.log if pretraining.log.exists() else pretraining.finished_log
        events = read_log(log) if log.exists() else ()
        starts = pick(events, Start)
        if not starts:
            return
        contract = pretraining.design.contract
        story = Story(
            name=pretraining.folder.name,
            weights=self.weights,
            contract=contract,
            training=_list_recordings(self.corpus.train),
            validation=_list_recordings(self.corpus.validation),
            refusals=self.refusals,
            fingerprint=self.corpus.fingerprint,
            events=events,
            settings=pretraining.settings,
            device=self.device,
            software=software,
            command=self.command,
            methods=describe_pretraining(pretraining.settings, contract, starts[-1], software),
        )
        write_group_page(self.output / PAGE, story)


def list_sources(corpus: Corpus, licences: Mapping[str, str | None]) -> list[Source]:
    """Sum up what was trained on, dataset by dataset, for the card."""
    recordings = _list_recordings((*corpus.train, *corpus.validation))
    return [_sum_up(name, licences.get(name), recordings) for name in _list_names(recordings)]


def _list_names(recordings: Sequence[Recording]) -> list[str]:
    return sorted({recording.dataset for recording in recordings})


def _sum_up(name: str, licence: str | None, recordings: Sequence[Recording]) -> Source:
    own = [recording for recording in recordings if recording.dataset == name]
    seconds = sum(recording.prepared.volumes * recording.prepared.tr for recording in own)
    return Source(
        name=name,
        people=count_people(own),
        runs=len(own),
        hours=seconds / 3600,
        licence=licence,
    )


def _list_recordings(items: Sequence[Item]) -> tuple[Recording, ...]:
    return tuple(item.recording for item in items)
