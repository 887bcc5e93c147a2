"""Whatever lies in a dataset or in our own outputs: a result or a refusal, and nothing else."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from slimbrain_app.bids.cohort import read_cohort, read_person
from slimbrain_app.bids.dataset import open_output
from slimbrain_app.bids.discover import check_dataset, discover
from slimbrain_app.bids.filters import build_filter, read_filter_file
from slimbrain_app.bids.headers import read_header, require_series, same_grid
from slimbrain_app.bids.outputs import (
    is_current,
    is_whole,
    name_output,
    write_person,
    write_run,
)
from slimbrain_app.bids.participants import read_labels, read_sites
from slimbrain_app.bids.prepared import list_prepared
from slimbrain_app.bids.status import join_status, read_status, write_status
from slimbrain_app.bids.tables import tabulate_embeddings, tabulate_people, tabulate_runs
from slimbrain_app.errors import CallRefused, RunRefused, SlimBrainError
from slimbrain_app.files import sha256_of
from slimbrain_app.records import Notice, Prediction, Refusal, RunStatus
from slimbrain_app.settings import Prepare, Select

STEM = "sub-01/func/sub-01_task-rest_run-1"
SPACE = f"{STEM}_space-MNI152NLin2009cAsym"
BOLD, MASK = f"{SPACE}_desc-preproc_bold.nii.gz", f"{SPACE}_desc-brain_mask.nii.gz"
SIDECAR = {
    "RepetitionTime": 2.0,
    "VolumeTiming": [0, 2, 4],
    "Sources": ["bids:raw:sub-01/func/sub-01_task-rest_run-1_bold.nii.gz"],
    "RawSources": "sub-01/func/sub-01_task-rest_run-1_bold.nii.gz",
}
DESCRIPTION = {
    "Name": "fMRIPrep",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.0"}],
    "DatasetLinks": {"raw": "file:///data/raw", "preprocessed": "../x"},
    "SourceDatasets": [{"DOI": "x"}],
    "DatasetDOI": "doi:1",
    "Authors": ["A"],
    "License": "CC0",
}
FILTER = {"bold": {"session": "1", "acquisition": ["a"], "direction": None, "run": 1}, "t1w": {}}


def find(dataset: Path) -> None:
    check_dataset(dataset)
    discover(dataset, Select(), Prepare())


def test_any_filter_file_is_read_or_refused(fuzz, odd_json, tmp_path):
    file = tmp_path / "filter.json"

    def holds(content):
        file.write_bytes(content)
        with suppress(SlimBrainError):
            filters, _ = read_filter_file(file)
            wanted = build_filter(Select(filters=filters))
            assert all(isinstance(value, str) for one in filters.values() for value in one)
            str(wanted.conditions)

    blocks = odd_json(FILTER["bold"]).map(lambda text: b'{"bold": ' + text + b"}")
    fuzz(holds, odd_json(FILTER) | blocks, examples=80)


@pytest.mark.parametrize("number", ["9" * 5000, "²", "1"])
def test_a_run_number_of_any_length_is_compared(number, lay_out):
    dataset = lay_out(BOLD, MASK)
    with suppress(SlimBrainError):
        discover(dataset, Select(filters={"run": (number,)}), Prepare())


def test_any_sidecar_is_read_or_its_run_refused(fuzz, odd_json, lay_out):
    own = BOLD.replace(".nii.gz", ".json")
    dataset = lay_out(BOLD, MASK, own, "task-rest_bold.json")

    def holds(name, content, inherited):
        (dataset / own).write_bytes(content)
        (dataset / "task-rest_bold.json").write_bytes(inherited)
        found = discover(dataset, Select(), Prepare())
        assert len(found.runs) + len(found.refused) == 1
        for run in found.runs:
            assert 0.1 <= run.repetition_time.seconds <= 10

    silent = {**SIDECAR, "RepetitionTime": None}
    anything = odd_json(SIDECAR) | odd_json(silent)
    fuzz(holds, st.none(), anything, anything, examples=80)


def test_any_description_is_read_or_the_call_refused(fuzz, odd_json, lay_out, tmp_path):
    dataset = lay_out(BOLD, MASK, BOLD.replace(".nii.gz", ".json"), contents={})
    (dataset / BOLD.replace(".nii.gz", ".json")).write_text(json.dumps(SIDECAR))

    def holds(content, also_ours):
        (dataset / "dataset_description.json").write_bytes(content)
        with suppress(SlimBrainError):
            find(dataset)
        with suppress(SlimBrainError):
            open_output(tmp_path / "output", dataset)
        (tmp_path / "output").mkdir(exist_ok=True)
        (tmp_path / "output/dataset_description.json").write_bytes(also_ours)
        with suppress(SlimBrainError):
            open_output(tmp_path / "output", dataset)

    fuzz(holds, odd_json(DESCRIPTION), odd_json(DESCRIPTION), examples=60)


TABLE = b"participant_id\tsite\tage\nsub-01\tA\t20\nsub-02\tn/a\t30\n"


def test_any_participants_table_says_something_or_nothing(fuzz, damage, tmp_path):
    def holds(content):
        (tmp_path / "participants.tsv").write_bytes(content)
        assert all(isinstance(label, str) for label in read_labels(tmp_path))
        assert all(isinstance(site, str) for site in read_sites(tmp_path).values())

    odd = st.sampled_from(
        [
            TABLE.decode().encode("utf-16"),
            TABLE.replace(b"A", b'"' + b"A\n" * 100_000),
            TABLE.replace(b"\n", b"\r"),
            TABLE.replace(b"sub-01", b"sub-01\0"),
        ]
    )
    fuzz(holds, damage(TABLE) | st.binary(max_size=80) | odd, examples=100)


DIMS = st.lists(st.sampled_from([-32768, -1, 0, 1, 2, 3, 7, 8, 32767]), min_size=8, max_size=8)
FLOATS = st.sampled_from([0.0, -1.0, 352.0, 1e10, 3e38, np.inf, -np.inf, np.nan])


def test_any_image_is_read_or_its_run_refused(fuzz, damage, lay_out, make_image):
    dataset = lay_out(BOLD, MASK, BOLD.replace(".nii.gz", ".json"))
    plain = gzip.decompress(make_image())
    packed = make_image()

    def set_fields(dims, offset, slope, step, forms):
        header = np.frombuffer(bytearray(plain[:348]), np.uint8).copy()
        header[40:56] = np.array(dims, "<i2").view(np.uint8)
        header[76:108] = np.array([1, 2, 2, 2, step, 1, 1, 1], "<f4").view(np.uint8)
        header[108:120] = np.array([offset, slope, slope], "<f4").view(np.uint8)
        header[252:256] = np.array(forms, "<i2").view(np.uint8)
        return gzip.compress(bytes(header) + plain[348:])

    forms = st.tuples(st.integers(-1, 4), st.integers(-1, 4))
    fields = st.builds(set_fields, DIMS, FLOATS, FLOATS, FLOATS, forms)
    images = (
        damage(packed)
        | damage(plain, within=352).map(gzip.compress)
        | fields
        | st.binary(max_size=400)
        | st.binary(max_size=400).map(gzip.compress)
    )

    def holds(bold, mask):
        (dataset / BOLD).write_bytes(bold)
        (dataset / MASK).write_bytes(mask)
        found = discover(dataset, Select(), Prepare())
        assert len(found.runs) + len(found.refused) == 1
        with suppress(SlimBrainError):
            header = read_header(dataset / BOLD)
            assert np.isfinite(header.affine).all()
            require_series(header, "x")
            same_grid(header, header)

    fuzz(holds, images, images | st.just(make_image((4, 5, 6))), examples=80)


@pytest.mark.parametrize(
    "name", ["sub-01_ses-\n", "sub-..", "sub-", "sub-\udcff", "sub-a b", "sub-+"]
)
def test_folders_of_any_name_are_searched(name, lay_out):
    dataset = lay_out(BOLD, MASK)
    folder = dataset / name / "func"
    folder.mkdir(parents=True)
    (folder / f"{name}_task-rest_desc-preproc_bold.nii.gz").write_bytes(b"x")
    found = discover(dataset, Select(), Prepare())
    assert [run.participant for run in found.runs] == ["01"]
    assert all(
        refusal.run.startswith("sub-") and "/" not in refusal.run for refusal in found.refused
    )
    list_prepared(dataset, Select())


@pytest.fixture
def written(finished):
    """Outputs of a run and of its participant, and how it ended."""
    told = Prediction(
        outcome="age",
        level=None,
        value=31.0,
        lower=20.0,
        upper=40.0,
        percentile=None,
        calibrated=True,
        flags=("untrained",),
    )
    finished = replace(finished, predictions=(told,))
    write_run(*finished.arguments)
    write_person(finished.output, "01", [finished.run], [told], finished.provenance)
    why = RunRefused("too-short", file="x", expected="a", found="b", advice="c")
    refusal = Refusal.of("sub-01_task-x", why)
    statuses = (
        RunStatus(run=finished.run.name, state="done", notices=(Notice(code="x", message="y"),)),
        RunStatus.of_refusal(refusal),
    )
    write_status(finished.output, "01", statuses)
    return finished


def list_jsons(written):
    contract = written.provenance.model.contract
    return {
        "run": name_output(written.run, contract, "embeddings", ".json", stat="mean"),
        "person": "sub-01/sub-01_desc-slimbrain_predictions.json",
        "status": "logs/sub-01_status.json",
    }


def read_all(written) -> None:
    """Read back what we wrote as the next call and the group level do."""
    output, run, contract = written.output, written.run, written.provenance.model.contract
    is_current(output, run, written.provenance)
    is_whole(output, run, contract)
    read_status(output, "01")
    with suppress(SlimBrainError):
        runs = read_cohort(output, Select())
        making = next((one.making for one in runs if one.making), None)
        person = None
        with suppress(SlimBrainError):
            person = read_person(output, "01")
        told = {"01": person} if person and making else {}
        tabulate_runs(runs, making).write(output / "runs.tsv")
        if making:
            tabulate_embeddings(runs, making).write(output / "embeddings.tsv")
        tabulate_people(runs, making, told).write(output / "people.tsv")
    join_status(output)


@pytest.mark.parametrize("kind", ["run", "person", "status"])
def test_any_json_of_ours_is_read_back_or_counts_as_damaged(fuzz, odd_json, written, kind):
    file = written.output / list_jsons(written)[kind]
    whole = json.loads(file.read_text())

    def holds(content):
        file.write_bytes(content)
        read_all(written)

    nested = [
        odd_json(value).map(lambda text, key=key: _put(whole, key, text))
        for key, value in whole.items()
        if isinstance(value, dict) and value
    ]
    if kind == "status":
        nested = [
            odd_json(entry).map(lambda text: b'{"runs": [' + text + b"]}")
            for entry in whole["runs"]
        ]
        refusal = odd_json(whole["runs"][-1]["refusal"])
        nested.append(
            refusal.map(lambda text: _put(whole["runs"][-1], "refusal", text)).map(
                lambda text: b'{"runs": [' + text + b"]}"
            )
        )
    fuzz(holds, st.one_of(odd_json(whole), *nested), examples=80)


def _put(whole, key, text: bytes) -> bytes:
    """Put JSON in the place of a value of an object."""
    others = json.dumps({other: value for other, value in whole.items() if other != key})
    return others[:-1].encode() + b", " + json.dumps(key).encode() + b": " + text + b"}"


def test_any_table_of_ours_is_read_back_or_counts_as_damaged(fuzz, damage, written):
    output, contract = written.output, written.provenance.model.contract
    table = output / name_output(written.run, contract, "embeddings", ".tsv", stat="mean")
    person = output / "sub-01/sub-01_desc-slimbrain_predictions.tsv"
    sidecar = table.with_suffix(".json")
    facts = json.loads(sidecar.read_text())
    tables = {table: table.read_bytes(), person: person.read_bytes()}

    def holds(drawn, vouched):
        changed, content = drawn
        for file, whole in tables.items():
            file.write_bytes(content if file == changed else whole)
        known = {table.relative_to(output).as_posix(): sha256_of(table)} if vouched else {}
        sidecar.write_text(json.dumps({**facts, "Outputs": {**facts["Outputs"], **known}}))
        read_all(written)

    one_of = [
        (damage(whole) | st.binary(max_size=60)).map(lambda content, file=file: (file, content))
        for file, whole in tables.items()
    ]
    fuzz(holds, st.one_of(one_of), st.booleans(), examples=80)


def test_a_name_that_is_too_long_for_the_disk_is_refused(finished):
    entities = (*finished.run.entities, ("acq", "a" * 200))
    with pytest.raises(CallRefused, match="not-writable"):
        write_run(*replace(finished, run=replace(finished.run, entities=entities)).arguments)
