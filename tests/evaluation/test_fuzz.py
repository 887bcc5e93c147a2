"""Whatever a table of people, its sidecar or a split file holds: it is read or refused."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.outcomes import read_phenotype, take_outcomes
from slimbrain_app.evaluation.people import describe_people
from slimbrain_app.evaluation.split_file import cut_by_file, match_split, read_split

PEOPLE = [f"{number:02d}" for number in range(12)]
HEADER = "participant_id\tage\tsex\tsite\tgroup\n"
TABLE = HEADER + "".join(
    f"sub-{label}\t{20 + row}\t{'FM'[row % 2]}\t{'ab'[row % 2]}\t{row % 3}\n"
    for row, label in enumerate(PEOPLE)
)
SIDECAR = {
    "age": {"Units": "years", "Description": "x"},
    "sex": {"Levels": {"F": "female", "M": {"Description": "male"}}},
    "group": {"Levels": {"0": "control", "1": "x", "2": "y"}},
}
SPLIT = "participant_id\tfold\n" + "".join(
    f"sub-{label}\t{row % 3}\n" for row, label in enumerate(PEOPLE)
)


def odd_tables(damage, whole):
    odd = [
        whole.encode("utf-16"),
        whole.replace("\t2", '\t"2' + "x\n" * 100_000).encode(),
        whole.replace("20", "1e999").encode(),
        whole.replace("20", "9" * 5000).encode(),
        whole.replace("20", "٣").encode(),
        whole.replace("\n", "\r").encode(),
        whole.replace("age", "sex").replace("fold", "part").encode(),
        whole.replace("sub-03", "sub-02").encode(),
        whole.replace("sub-03", "../sub-03").encode(),
    ]
    return damage(whole.encode()) | st.binary(max_size=80) | st.sampled_from(odd)


def test_any_table_of_people_and_sidecar_are_read_or_refused(fuzz, damage, odd_json, tmp_path):
    file = tmp_path / "people.tsv"

    def holds(content, sidecar):
        file.write_bytes(content)
        file.with_suffix(".json").write_bytes(sidecar)
        with suppress(CallRefused):
            phenotype = read_phenotype(file)
            motion = dict.fromkeys(PEOPLE, np.nan)
            people = describe_people(phenotype, motion, site=None, family=None, covariates=None)
            assert people.labels == tuple(PEOPLE)
            for name in ("age", "sex", "group"):
                with suppress(CallRefused):
                    take_outcomes(phenotype, [name], PEOPLE, {})

    inner = [
        odd_json(entry).map(lambda text, key=key: b'{"%s": %s}' % (key.encode(), text))
        for key, entry in SIDECAR.items()
    ]
    sidecars = st.one_of(st.just(json.dumps(SIDECAR).encode()), odd_json(SIDECAR), *inner)
    fuzz(holds, odd_tables(damage, TABLE) | st.just(TABLE.encode()), sidecars, examples=150)


def test_any_split_file_is_read_or_refused(fuzz, damage, tmp_path):
    people, file = tmp_path / "people.tsv", tmp_path / "split.tsv"
    people.write_text(TABLE)
    (outcome,), _ = take_outcomes(read_phenotype(people), ["age"], PEOPLE, {})

    def holds(content):
        file.write_bytes(content)
        with suppress(CallRefused):
            split = read_split(file)
            match_split(split, PEOPLE)
            rows = np.flatnonzero([label in split.of for label in outcome.people])
            if len(rows):
                cut_by_file(outcome.take(rows), split)

    parts = SPLIT.replace("fold", "split").replace("\t0", "\ttrain").replace("\t1", "\ttest")
    both = odd_tables(damage, SPLIT) | odd_tables(damage, parts.replace("\t2", "\tvalidation"))
    fuzz(holds, both, examples=150)
