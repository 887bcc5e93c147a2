"""Cheap probes of an encoder in training: whether its embeddings tell runs, and sites, apart.

Both are watched, not aimed at. Run identity should rise: two halves of a run come from one brain.
Of a site, an encoder of brains should tell little.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.embedding import View, embed_views
from slimbrain_app.evaluation.judging import Score, identify_people
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.probe import probe_outcome
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.records import Contract
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.log import Probe

# So that a probe costs little beside the passes between two of them.
_MOST_RUNS = 100
_FEWEST_RUNS = 4
_FEWEST_AT_A_SITE = 4


@dataclass(frozen=True, slots=True, eq=False)
class Prober:
    """Probes on the runs of people kept out.

    Attributes
    ----------
    items : sequence of Item
        Those that are embedded.
    contract : Contract
    seed : int
    """

    items: Sequence[Item]
    contract: Contract
    seed: int

    @classmethod
    def of(cls, items: Sequence[Item], contract: Contract, seed: int) -> Prober:
        """Take evenly spaced runs of those with two windows, one for each half."""
        able = [item for item in items if len(item.starts) > 1]
        every = -(-len(able) // _MOST_RUNS) or 1
        return cls(able[::every], contract, seed)

    @property
    def missing(self) -> list[str]:
        """What can't be probed, in half-sentences."""
        reasons = []
        if len(self.items) < _FEWEST_RUNS:
            reasons.append(
                f"run identity is not probed: {len(self.items)} validation runs with two windows, "
                f"not {_FEWEST_RUNS}"
            )
        if len(self._list_sites()) < 2:
            reasons.append(
                "site is not probed: no two sites with "
                f"{_FEWEST_AT_A_SITE} validation participants each are known"
            )
        return reasons

    def __call__(self, encoder: Encoder, step: int, pass_: int) -> Iterator[Probe]:
        """Probe the encoder."""
        if len(self.missing) == 2:
            return
        halves = [self._embed(encoder, item) for item in self.items]
        first, second = (np.stack([half[place] for half in halves]) for place in (0, 1))
        if len(self.items) >= _FEWEST_RUNS:
            yield _describe(identify_people(first, second, "run identity"), step, pass_)
        if len(self._list_sites()) > 1:
            yield _describe(self._probe_site((first + second) / 2), step, pass_)

    def _embed(self, encoder: Encoder, item: Item) -> NDArray[np.float32]:
        """Return the mean embeddings of a run's earlier and later windows: (2, width)."""
        starts = sorted(item.starts)
        views = tuple(View(0, float(start), 0.0) for start in starts)
        device = next(encoder.parameters()).device
        rows = np.concatenate(
            list(embed_views(item.recording.prepared, self.contract, encoder, views, str(device)))
        )
        middle = len(starts) // 2
        return np.stack([rows[:middle].mean(axis=0), rows[middle:].mean(axis=0)])

    def _list_sites(self) -> set[str]:
        people = {(item.recording.person, item.recording.site) for item in self.items}
        counts = Counter(site for _, site in people if site is not None)
        return {site for site, count in counts.items() if count >= _FEWEST_AT_A_SITE}

    def _probe_site(self, features: NDArray[np.float32]) -> Score:
        rows_of: dict[str, list[int]] = defaultdict(list)
        known, sites = self._list_sites(), {}
        for row, item in enumerate(self.items):
            if item.recording.site in known:
                rows_of[item.recording.person].append(row)
                sites[item.recording.person] = item.recording.site
        people = sorted(rows_of)
        means = np.stack([features[rows_of[person]].mean(axis=0) for person in people])
        values = np.array([sites[person] for person in people])
        outcome = Outcome("site", "class", values, people)
        return probe_outcome(means, outcome, repeats=1, seed=self.seed)


def _describe(score: Score, step: int, pass_: int) -> Probe:
    return Probe(
        step=step,
        pass_=pass_,
        name=score.name,
        metric=score.metric,
        score=score.value,
        lower=score.lower,
        upper=score.upper,
        chance=score.chance,
    )
