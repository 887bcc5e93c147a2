"""A cohort -> a dataset of the suite: arrow files by part, and the plug-in that loads them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app import __version__, files
from slimbrain_app.bids.discover import check_dataset, discover
from slimbrain_app.bids.participants import TABLE
from slimbrain_app.brainmarks.rows import (
    ATLAS,
    PARCELS,
    average_parcels,
    normalise,
    read_parcels,
    read_rows,
)
from slimbrain_app.brainmarks.space import NAME, TEMPLATE, VOXELS, read_suite_mask
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.evaluation.outcomes import Outcome, list_some, read_phenotype, take_outcomes
from slimbrain_app.evaluation.split_file import PARTS, TEST
from slimbrain_app.records import Notice, Refusal, Run
from slimbrain_app.settings import Prepare, Select

# A fifth of the people is judged, another one chooses settings, the others are fitted to.
FOLDS = 5
SEED = 0
# Of numbers, which the suite takes for names of classes.
BINS = 3

_PARCELLED = f"schaefer{PARCELS}"
_PLUGIN = '''\
"""{name}, a dataset of Brainmarks; written by SlimBrain {version}."""

import json
from pathlib import Path

from brainmarks.datasets.base import HFDataset, load_arrow_dataset
from brainmarks.datasets.registry import register_dataset

ROOT = Path(__file__).parents[2]


@register_dataset("{name}")
def load(space, **kwargs):
    targets = json.loads((ROOT / "targets.json").read_text(encoding="utf-8"))
    return {{
        part: HFDataset(
            load_arrow_dataset(ROOT / f"{{space}}.arrow" / part, **kwargs),
            target_key="sub",
            target_map=targets,
        )
        for part in {parts}
    }}
'''


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the dataset's name in the suite, and which runs were refused."""

    name: str
    refused: tuple[Refusal, ...]


def export_cohort(
    dataset: Path, folder: Path, outcome: str, phenotype: Path | None, say: Callable[[str], None]
) -> Exported:
    """Write a folder of fMRIPrep's derivatives as a dataset of the suite.

    Runs are taken in MNI152NLin6Asym only, where fMRIPrep wrote them: to bring them there from
    another space would interpolate a second time.

    Parameters
    ----------
    folder : Path
        A new folder; its name is the dataset's.
    outcome : str
        A column of the phenotypes. Numbers become three classes of as many people.
    phenotype : Path or None
        A table of people in place of ``participants.tsv``.
    say : callable
        Is told who and what is left out, and how far it is.

    Raises
    ------
    CallRefused
        ``extra-missing`` without ``datasets``; ``template-missing``; ``usage`` for a folder that
        holds anything; ``no-outcome``, ``outcome-constant``, ``too-few``, ``leak``; ``no-runs``
        if none is in the space; what `discover` refuses.
    """
    files.check_empty(folder)
    mask = read_suite_mask()
    parcels = read_parcels(mask)
    notices = check_dataset(dataset)
    table = read_phenotype(phenotype or dataset / TABLE)
    runs, refused = _find_runs(dataset)
    people = sorted({run.participant for run in runs})
    (taken,), notes = take_outcomes(table, [outcome], people, {})
    classes = sort_classes(taken)
    parts = split_people(classes)
    open_writer = _load_writer()
    for note in (*notes, *_describe_parts(people, classes, parts), *map(_spell, notices)):
        say(note)
    if parcels is None:
        say(f"{_PARCELLED} is left out: TEMPLATEFLOW_HOME has no tpl-{TEMPLATE}_{ATLAS}")
    name = _name_dataset(folder, outcome)
    with files.whole_folder(folder) as temporary:
        writer = _Writer(temporary, open_writer, mask, parcels, parts)
        late = writer.write(runs, say)
        _write_tables(temporary, name, people, classes, parts, runs)
    return Exported(name, (*refused, *late))


def sort_classes(outcome: Outcome) -> dict[str, str]:
    """Return the class of each person; numbers are cut into three of as many people.

    Raises
    ------
    CallRefused
        ``too-few`` for a class of fewer people than there are folds.
    """
    if outcome.kind == "class":
        classes = dict(zip(outcome.people, map(str, outcome.values), strict=True))
    else:
        classes = _cut_numbers(outcome)
    counts = Counter(classes.values())
    small = [f"{shorten(label)} {n}" for label, n in sorted(counts.items()) if n < FOLDS]
    if small or len(counts) < 2:
        raise CallRefused(
            "too-few",
            file=outcome.name,
            expected=f"two classes or more, each of {FOLDS} people with runs, so that all parts "
            "have some",
            found=list_some(small) or f"one class of {len(classes)}",
            advice="add people, or join small classes in the table",
        )
    return classes


def _cut_numbers(outcome: Outcome) -> dict[str, str]:
    values = np.asarray(outcome.values, float)
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    bins = np.searchsorted(edges, values, side="left")
    # The suite puts labels in the order of the alphabet.
    ranges = {k: (values[bins == k].min(), values[bins == k].max()) for k in set(bins.tolist())}
    labels = {k: f"{k + 1}: {low:g} to {high:g}" for k, (low, high) in ranges.items()}
    return {person: labels[k] for person, k in zip(outcome.people, bins.tolist(), strict=True)}


def split_people(classes: Mapping[str, str]) -> dict[str, str]:
    """Return the part of each person, train, validation or test: alike in classes, always the same.

    The order of people changes nothing.
    """
    from sklearn.model_selection import StratifiedKFold

    people = sorted(classes)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    labels = [classes[person] for person in people]
    parts = dict.fromkeys(people, "train")
    for part, (_, rows) in zip((TEST, "validation"), folds.split(people, labels), strict=False):
        parts |= {people[row]: part for row in rows}
    return parts


def _find_runs(dataset: Path) -> tuple[tuple[Run, ...], tuple[Refusal, ...]]:
    found = discover(dataset, Select(), Prepare(space=TEMPLATE), stay=True)
    refused = tuple(_explain(refusal) for refusal in found.refused)
    if not found.runs:
        raise CallRefused(
            "no-runs",
            file=dataset,
            expected=f"a run in {TEMPLATE}",
            found=list_some([f"{one.run} [{one.code}] {one.found}" for one in refused], 3),
            advice=f"run fMRIPrep again with --output-spaces {TEMPLATE}:res-2",
        )
    return found.runs, refused


def _explain(refusal: Refusal) -> Refusal:
    """Say of a run in other spaces only what would help here."""
    if refusal.code != "no-space":
        return refusal
    return replace(
        refusal,
        expected=f"a BOLD series in {TEMPLATE}",
        advice=f"run fMRIPrep again with --output-spaces {TEMPLATE}:res-2",
    )


class _Writer:
    """Writes runs into the arrow files of their people's parts."""

    def __init__(
        self,
        folder: Path,
        open_writer: Callable[[Path, int], Any],
        mask: NDArray[np.bool_],
        parcels: NDArray[np.int64] | None,
        parts: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._open = open_writer
        self._mask = mask
        self._parcels = parcels
        self._parts = parts
        self._owners: dict[str, str] = {}

    def write(self, runs: Sequence[Run], say: Callable[[str], None]) -> tuple[Refusal, ...]:
        """Write the runs of people who are in a part; return those that are refused."""
        spaces = {NAME: VOXELS} | ({} if self._parcels is None else {_PARCELLED: PARCELS})
        chosen = [run for run in runs if run.participant in self._parts]
        refused, lengths = [], defaultdict[int, int](int)
        with ExitStack() as stack:
            writers = {
                (space, part): stack.enter_context(
                    self._open(self._folder / f"{space}.arrow" / part, columns)
                )
                for space, columns in spaces.items()
                for part in PARTS
            }
            for number, run in enumerate(chosen, 1):
                told = [f"{run.name} ({number} of {len(chosen)})", *map(_spell, run.notices)]
                say("; ".join(told))
                try:
                    samples = self._read(run)
                except RunRefused as error:
                    refused.append(Refusal.of(run.name, error))
                    continue
                for space, sample in samples:
                    lengths[len(sample["bold"])] += space == NAME
                    writers[space, self._parts[run.participant]].write(sample)
        if len(lengths) > 1:
            say(
                f"runs have {min(lengths)} to {max(lengths)} volumes: models that take them as "
                "they are, such as the connectome, need batch_size=1"
            )
        return tuple(refused)

    def _read(self, run: Run) -> list[tuple[str, dict[str, Any]]]:
        rows = read_rows(run, self._mask)
        owner = self._owners.setdefault(rows.sha256, run.participant)
        if owner != run.participant:
            raise CallRefused(
                "leak",
                file=run.relative(run.bold),
                expected="each person under one label: no two with the same BOLD file",
                found=f"the series of sub-{owner} again",
                advice="leave one of them out of the table, by writing n/a for the outcome",
            )
        values = {NAME: rows.values}
        if self._parcels is not None:
            values[_PARCELLED] = average_parcels(rows.values, self._parcels)
        return [(space, _describe_sample(run, each)) for space, each in values.items()]


def _describe_sample(run: Run, values: NDArray[np.float32]) -> dict[str, Any]:
    rows = normalise(values)
    return {
        "sub": run.participant,
        "run": run.name,
        "tr": run.repetition_time.seconds,
        "bold": rows.values,
        "mean": rows.mean,
        "std": rows.deviation,
    }


def _load_writer() -> Callable[[Path, int], Any]:
    """Return what opens an arrow file, of samples with so many columns, in a folder of its own."""
    try:
        from datasets import Array2D, Features, Value
        from datasets.arrow_writer import ArrowWriter
    except ImportError as error:
        raise CallRefused(
            "extra-missing",
            file="datasets",
            expected="the package that writes the suite's datasets",
            found="none of that name",
            advice='pip install "slimbrain[brainmarks]", or pip install datasets alone',
        ) from error

    @contextmanager
    def open_writer(folder: Path, columns: int) -> Iterator[ArrowWriter]:
        folder.mkdir(parents=True)
        features = Features(
            sub=Value("string"),
            run=Value("string"),
            tr=Value("float64"),
            bold=Array2D((None, columns), "float16"),
            mean=Array2D((1, columns), "float32"),
            std=Array2D((1, columns), "float32"),
        )
        writer = ArrowWriter(
            features=features, path=str(folder / "data-00000-of-00001.arrow"), writer_batch_size=1
        )
        try:
            yield writer
            writer.finalize()
        finally:
            writer.close()

    return open_writer


def _write_tables(
    folder: Path,
    name: str,
    people: Sequence[str],
    classes: Mapping[str, str],
    parts: Mapping[str, str],
    runs: Sequence[Run],
) -> None:
    counts = Counter(run.participant for run in runs)
    lines = ["participant_id\tpart\tclass\truns"]
    for person in people:
        part, label = parts.get(person, "n/a"), classes.get(person, "n/a")
        lines.append(f"sub-{person}\t{part}\t{label}\t{counts[person]}")
    files.write_text(folder / TABLE, "\n".join(lines) + "\n")
    files.write_json(folder / "targets.json", dict(classes))
    plugin = folder / "brainmarks" / "datasets" / f"{name}.py"
    plugin.parent.mkdir(parents=True)
    text = _PLUGIN.format(name=name, version=__version__, parts=PARTS)
    files.write_text(plugin, text)


def _name_dataset(folder: Path, outcome: str) -> str:
    """Return the name by which the suite knows a dataset: that of a module, too."""
    name = re.sub(r"\W+", "_", f"{folder.absolute().name}_{outcome}", flags=re.ASCII).lower()
    # The suite passes over modules whose names begin with test_.
    return name if re.match(r"(?!test_)[a-z]", name) else f"cohort_{name}"


def _describe_parts(
    people: Sequence[str], classes: Mapping[str, str], parts: Mapping[str, str]
) -> Iterator[str]:
    without = [f"sub-{person}" for person in people if person not in parts]
    if without:
        yield f"left out, without the outcome: {', '.join(without)}"
    for part in PARTS:
        counts = Counter(classes[person] for person, own in parts.items() if own == part)
        sizes = [f"{shorten(label)} {count}" for label, count in sorted(counts.items())]
        yield f"{part}: {sum(counts.values())} people ({list_some(sizes)})"


def _spell(notice: Notice) -> str:
    return f"[{notice.code}] {notice.message}"
